"""AdamW against torch.optim.AdamW, which updates one contiguous tensor at a time here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mfk.core import tree
from mfk.optim import adamw, decays_by_name

SETTINGS = [
    dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
    dict(betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0),
    dict(betas=(0.0, 0.5), eps=1e-3, weight_decay=0.3),
]


def _normal(seed: int, dtype: torch.dtype) -> Callable[..., Tensor]:
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=g, dtype=dtype)


def _params(dtype: torch.dtype) -> dict[str, Tensor]:
    """One leaf of each kind of shape and layout that a parameter may have."""
    new = _normal(0, dtype)
    return {
        "matrix": new(4, 5),
        "channels_last": new(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": new(3, 4).T,
        "every_second": new(6, 8)[:, ::2],
        "permuted": new(2, 3, 4).permute(2, 0, 1),
        "scalar": new(),
        "one": new(1, 1),
        "empty": torch.zeros(0, 3, dtype=dtype),
    }


def _gradient(name: str, x: Tensor, step: int) -> Tensor:
    """A gradient in another layout at each step: reversed strides, a row expanded, a strided slice, plain."""
    new = _normal(1000 * step + sum(map(ord, name)), x.dtype)
    if step % 4 == 0:
        return new(*reversed(x.shape)).permute(tuple(reversed(range(x.ndim))))
    if step % 4 == 1 and x.ndim:
        return new(*x.shape[1:]).expand(x.shape)
    if step % 4 == 2 and x.ndim:
        return new(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    return new(*x.shape)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [True, False])
def test_twenty_steps_equal_torch(settings, dtype, fused):
    params = _params(dtype)
    theirs = {
        k: torch.nn.Parameter(x.clone(memory_format=torch.contiguous_format)) for k, x in params.items()
    }
    reference = torch.optim.AdamW(list(theirs.values()), lr=1.0, foreach=False, fused=False, **settings)
    optimizer = adamw(**settings, fused=fused)
    state = optimizer.init(params)
    for step in range(20):
        lr = 0.1 / (step + 1)
        grads = {name: _gradient(name, x, step) for name, x in params.items()}
        before = tree.clone(grads)
        for name, p in theirs.items():
            p.grad = grads[name].clone(memory_format=torch.contiguous_format)
        reference.param_groups[0]["lr"] = lr
        reference.step()
        params, state = optimizer.update(grads, state, params, lr)
        assert all(torch.equal(grads[k], before[k]) for k in grads)
    assert state.step.item() == 20
    for name, x in params.items():
        torch.testing.assert_close(x, theirs[name].detach(), rtol=1e-6, atol=1e-6)
        if x.numel():
            kept = reference.state[theirs[name]]
            torch.testing.assert_close(state.mu[name], kept["exp_avg"], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(state.nu[name], kept["exp_avg_sq"], rtol=1e-6, atol=1e-6)


def test_gradients_that_torch_func_returns_strided():
    """The same model written with einsum and with matmul; the first one's gradient is a transposed view."""
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    forms = {
        "einsum": lambda w: torch.einsum("bi,oi->bo", x, w).square().sum(),
        "matmul": lambda w: (x @ w.T.contiguous()).square().sum(),
    }
    ends = {}
    for name, loss in forms.items():
        w = torch.linspace(-1, 1, 15).reshape(3, 5).clone()
        optimizer = adamw()
        state = optimizer.init(w)
        for _ in range(5):
            w, state = optimizer.update(torch.func.grad(loss)(w), state, w, 0.1)
        ends[name] = w
    torch.testing.assert_close(ends["einsum"], ends["matmul"], rtol=1e-5, atol=1e-6)
    gradient = torch.func.grad(lambda w: w.permute(1, 0).square().sum(0).sum())(torch.randn(3, 5).T)
    assert gradient.shape == (5, 3)


def test_the_kernel_alone_is_wrong_on_such_gradients():
    """Why layouts are repaired at all; if torch repairs its kernel, this says so."""
    p, g = torch.zeros(2, 3), torch.arange(6.0).reshape(3, 2).T
    m, v, step = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(())
    rest = dict(lr=1.0, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1.0, amsgrad=False, maximize=False)
    torch.ops.aten._fused_adamw_([p], [g], [m], [v], [], [step], **rest)
    assert not torch.allclose(m, 0.1 * g)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_found_inf_leaves_everything_bit_identical(fused, bad):
    params = _params(torch.float32)
    optimizer = adamw(fused=fused)
    state = optimizer.init(params)
    one_off = {name: torch.full_like(x, bad) for name, x in params.items()}
    for step, grads in enumerate([one_off, {n: _gradient(n, x, 0) for n, x in params.items()}, one_off]):
        before = tree.clone((params, state))
        flag = torch.tensor(float(grads is one_off))
        params, state = optimizer.update(grads, state, params, 0.1, found_inf=flag)
        same = [
            torch.equal(x, y) for x, y in zip(tree.leaves(before), tree.leaves((params, state)), strict=True)
        ]
        assert all(same) == (step != 1)
    assert state.step.item() == 1


def test_update_reuses_the_memory_it_was_given():
    params = {"w": torch.randn(3, 4)}
    optimizer = adamw()
    state = optimizer.init(params)
    held = [x.data_ptr() for x in tree.leaves((params, state))]
    params, state = optimizer.update({"w": torch.randn(4, 3).T}, state, params, 0.1)
    assert [x.data_ptr() for x in tree.leaves((params, state))] == held


def test_moments_in_another_layout_are_repaired():
    """As after a checkpoint that was read back in plain layout."""
    ends = []
    for moved in (False, True):
        p = torch.arange(6.0).reshape(2, 3).T
        optimizer = adamw()
        state = optimizer.init(p)
        p, state = optimizer.update(p * 2 + 1, state, p, 0.1)
        if moved:
            state = tree.map(lambda x: x.clone(memory_format=torch.contiguous_format), state)
        p, state = optimizer.update(p * 2 + 1, state, p, 0.1)
        ends.append(p.clone())
    assert torch.equal(*ends)


def test_decay_by_name():
    names = ["net.weight", "net.bias", "norm.weight", "blocks.0.layer_norm.weight", "head.w"]
    params = {name: torch.ones(3) for name in names}
    optimizer = adamw(weight_decay=0.5, decay=decays_by_name)
    params, _ = optimizer.update(tree.map(torch.zeros_like, params), optimizer.init(params), params, 0.1)
    expected = {name: 0.95 if name in ("net.weight", "head.w") else 1.0 for name in names}
    assert {name: round(x[0].item(), 6) for name, x in params.items()} == expected


@pytest.mark.parametrize(
    ("name", "decays"),
    [
        ("0.weight", True),
        ("0.bias", False),
        ("rnn.bias_ih_l0", False),
        ("attn.in_proj_bias", False),
        ("attn.in_proj_weight", True),
        ("ln_f.weight", False),
        ("ln1.weight", False),
        ("LayerNorm.weight", False),
        ("norm2/weight", False),
        ("rmsnorm.scale", False),
        ("normal_head.weight", True),
        ("unbiased.weight", True),
        ("belnap.weight", True),
    ],
)
def test_decays_by_name(name, decays):
    assert decays_by_name(name) is decays


def test_nested_trees_and_mixed_dtypes():
    params = {"a": (torch.ones(2), [torch.ones(3, dtype=torch.float64)]), "b": {"c": torch.ones(())}}
    optimizer = adamw(weight_decay=0.0)
    params, state = optimizer.update(tree.clone(params), optimizer.init(params), params, 0.1)
    assert state.mu["a"][1][0].dtype == torch.float64
    for x in tree.leaves(params):
        torch.testing.assert_close(x, torch.full_like(x, 0.9))


def test_parameters_that_require_grad():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = adamw()
    q, state = optimizer.update(torch.ones(3), optimizer.init(p), p, 0.1)
    assert q is p and p.requires_grad and not state.mu.requires_grad


def test_an_empty_tree():
    optimizer = adamw()
    params, state = optimizer.update({}, optimizer.init({}), {}, 0.1)
    assert params == {} and state.step.item() == 1


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"a": torch.ones(2)}, r"grads.*missing \['b'\]"),
        ({"a": torch.ones(2), "b": torch.ones(3), "z": torch.ones(1)}, r"grads.*unknown \['z'\]"),
        ({"a": torch.ones(2), "b": torch.ones(1)}, r"grads: leaf 'b'.*\(3,\).*\(1,\)"),
        ({"a": torch.ones(2), "b": torch.ones(3).double()}, r"grads: leaf 'b'.*float32.*float64"),
        ({"a": 1.0, "b": torch.ones(3)}, r"grads: leaf 'a'"),
    ],
)
def test_gradients_that_do_not_match(grads, message):
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    optimizer = adamw()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=message):
        optimizer.update(grads, state, params, 0.1)
    assert state.step.item() == 0 and params["a"].eq(1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.complex64])
def test_narrow_parameters_are_refused(dtype):
    with pytest.raises(TypeError, match=r"'w'.*float32 or float64"):
        adamw().init({"w": torch.ones(2, dtype=dtype)})


def test_shared_memory_is_refused():
    x = torch.ones(3)
    with pytest.raises(ValueError, match="'a' and 'b' share memory"):
        adamw().init({"a": x, "b": x})
    with pytest.raises(ValueError, match="'a' share memory"):
        adamw().init({"a": x.expand(2, 3)})
    with pytest.raises(ValueError, match="'a' share memory"):
        adamw().init({"a": torch.ones(5).as_strided((3, 3), (1, 1))})
    optimizer = adamw()
    with pytest.raises(ValueError, match="'a' share memory"):
        optimizer.update(
            {"a": torch.ones(2, 3)}, optimizer.init({"a": torch.ones(2, 3)}), {"a": x.expand(2, 3)}, 1.0
        )


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0, True, "0.1", torch.tensor(0.1)])
def test_bad_learning_rates(lr):
    optimizer = adamw()
    with pytest.raises(ValueError, match="lr: expected a finite number"):
        optimizer.update(torch.ones(1), optimizer.init(torch.ones(1)), torch.ones(1), lr)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (dict(betas=(1.0, 0.9)), r"betas\[0\]"),
        (dict(betas=(0.9, -0.1)), r"betas\[1\]"),
        (dict(eps=-1.0), "eps"),
        (dict(weight_decay=float("nan")), "weight_decay"),
    ],
)
def test_bad_settings(settings, name):
    with pytest.raises(ValueError, match=name):
        adamw(**settings)


def test_leaves_that_overlap_and_settings_in_the_wrong_place_are_refused():
    whole = torch.zeros(4)
    with pytest.raises(ValueError, match="share memory"):
        adamw().init({"a": whole[:3], "b": whole[1:]})
    adamw().init({"a": whole[:2], "b": whole[2:]})
    with pytest.raises(ValueError, match=r"^betas: expected two numbers.*learning rate"):
        adamw(1e-3)  # pyright: ignore[reportArgumentType]
    params = {"w": torch.zeros(2, 2)}
    optimizer = adamw()
    with pytest.raises(ValueError, match="'w' must match"):
        optimizer.update({"w": torch.zeros(2, 2).to_sparse()}, optimizer.init(params), params, 1e-3)
