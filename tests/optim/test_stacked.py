"""The stacked optimizer against the plain one, member by member and bit by bit."""

from __future__ import annotations

import pytest
import torch

from mfk.core import Optimizer, tree
from mfk.optim import adamw, clip_factor, ema_update, stacked

K = 3
SHAPES = {"matrix": (4, 5), "bias": (5,), "scalar": (), "empty": (0, 2), "cube": (2, 3, 4)}


def _members(seed: int, dtype: torch.dtype):
    g = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=g, dtype=dtype) for name, shape in SHAPES.items()}
        for _ in range(K)
    ]


def _odd(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with the axes reversed in memory, as vmap and einsum return them."""
    axes = tuple(reversed(range(x.ndim)))
    return x.permute(axes).contiguous().permute(axes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_each_member_is_as_if_alone(dtype, fused, odd):
    rates = (1.0, 0.1, 0.0)
    plain = adamw(weight_decay=0.1, decay=lambda name: name != "bias", fused=fused)
    together, alone = stacked(plain, K, rates), _members(0, dtype)
    params = tree.stack(alone)
    opt, opts = together.init(params), [plain.init(p) for p in alone]
    for step in range(6):
        grads = _members(step + 1, dtype)
        # Member 1 misses step 2, all of them miss step 4.
        bad = torch.tensor([float(step == 4), float(step in (2, 4)), float(step == 4)])
        if step == 2:
            grads[1]["cube"].fill_(torch.nan)
        whole = tree.stack(grads)
        params, opt = together.update(
            tree.map(_odd, whole) if odd else whole, opt, params, 1e-2, found_inf=bad
        )
        for i in range(K):
            alone[i], opts[i] = plain.update(grads[i], opts[i], alone[i], 1e-2 * rates[i], found_inf=bad[i])
            for one, other in zip(
                tree.leaves((alone[i], opts[i])), tree.leaves(tree.member((params, opt), i)), strict=True
            ):
                assert torch.equal(one, other)
    assert opt.step.tolist() == [5, 4, 5]


def test_memory_is_reused():
    optimizer = stacked(adamw(), K)
    params = tree.stack(_members(0, torch.float32))
    opt, grads = optimizer.init(params), tree.stack(_members(1, torch.float32))
    kept = [x.data_ptr() for x in tree.leaves((params, opt))]
    assert [x.data_ptr() for x in tree.leaves(optimizer.update(grads, opt, params, 0.1))] == kept


def test_an_optimizer_that_returns_new_tensors():
    def update(grads, opt_state, params, lr, found_inf=None):
        return tree.map(lambda p, g: p - lr * g, params, grads), opt_state

    members, grads = _members(0, torch.float64), _members(1, torch.float64)
    optimizer = stacked(Optimizer(lambda params: {}, update), K, rates=[1, 2, 3])
    after, _ = optimizer.update(tree.stack(grads), {}, tree.stack(members), 0.5)
    for i in range(K):
        expected = tree.map(lambda p, g, i=i: p - 0.5 * (i + 1) * g, members[i], grads[i])
        torch.testing.assert_close(tree.member(after, i), expected, rtol=0, atol=0)


def test_clip_factor_and_average_of_members():
    norms = torch.tensor([0.5, 4.0, torch.inf])
    assert clip_factor(norms, 2.0).tolist()[:2] == [1.0, 0.5]
    assert clip_factor(norms, torch.tensor([0.25, 8.0, 1.0])).tolist()[:2] == [0.5, 1.0]
    assert clip_factor(norms, 2.0)[2].isnan()
    averages, params = _members(0, torch.float32), _members(1, torch.float32)
    bad = torch.tensor([0.0, 1.0, 0.0])
    whole = ema_update(tree.stack(averages), tree.stack(params), 0.9, bad)
    for i in range(K):
        alone = ema_update(averages[i], params[i], 0.9, bad[i])
        assert all(
            torch.equal(x, y)
            for x, y in zip(tree.leaves(alone), tree.leaves(tree.member(whole, i)), strict=True)
        )


@pytest.mark.parametrize(
    ("members", "rates", "message"),
    [
        (0, None, "members: expected an int >= 1, got 0"),
        (K, (1.0, 2.0), "rates: expected 3 numbers, one for each member"),
        (K, (1.0, 2.0, -1.0), r"rates: expected finite numbers >= 0, got -1\.0"),
        (K, 2.0, "rates: expected 3 numbers"),
    ],
)
def test_bad_settings(members, rates, message):
    with pytest.raises(ValueError, match=message):
        stacked(adamw(), members, rates)


def test_bad_trees():
    params = tree.stack(_members(0, torch.float32))
    optimizer = stacked(adamw(), K)
    opt = optimizer.init(params)
    with pytest.raises(ValueError, match=r"found_inf: expected shape \(3,\)"):
        optimizer.update(params, opt, params, 0.1, found_inf=torch.zeros(()))
    with pytest.raises(ValueError, match=r"params: leaf 'w' must be contiguous, with 3 members"):
        optimizer.init({"w": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"params: leaf 'w' must be contiguous"):
        optimizer.init({"w": torch.zeros(4, 3).T})
    with pytest.raises(ValueError, match=r"max_norm: expected one for each norm, \(3,\)"):
        clip_factor(torch.ones(3), torch.ones(2))
