"""What all networks of motions have in common: derivatives, vmap, dropout, errors, compilation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from small_nets import NETS, mlp, numbers, randomised, transformer, unet
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import mfk
from mfk.losses import meanflow
from mfk.nn import time_features
from mfk.optim import decays_by_name

each_net = pytest.mark.parametrize("name", NETS)


@each_net
def test_forward_mode_and_gradients_through_it(name: str) -> None:
    """Frames and condition moving at once, against central differences; with dropout, whose mask stays."""
    net, key = randomised(NETS[name](dropout=0.2)), torch.tensor([5, 6])
    points = numbers(2, 4, 5), numbers(2, 4, seed=1)
    along, back = ([numbers(*x.shape, seed=s + i) for i, x in enumerate(points)] for s in (10, 20))
    h = 1e-6

    def moved(directions: list[Tensor], step: float) -> tuple[Tensor, ...]:
        return tuple(x + step * d for x, d in zip(points, directions, strict=True))

    def rate(*at: Tensor) -> Tensor:
        return jvp(lambda x, c: net(x, c, key), at, tuple(along))[1]

    ahead, behind = (net(*moved(along, s), key) for s in (h, -h))
    torch.testing.assert_close(rate(*points), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)
    if "transformer" in name:  # torch's layer norm is wrong there, see mfk.core.norms
        return
    gradient = grad(lambda at: rate(*at).square().sum())(points)
    slope = sum((g * d).sum() for g, d in zip(gradient, back, strict=True))
    ahead, behind = (rate(*moved(back, s)).square().sum() for s in (h, -h))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


@each_net
def test_vmap_over_samples_and_over_members(name: str) -> None:
    net = randomised(NETS[name](dropout=0.2))
    x, c, key = numbers(3, 4, 5), numbers(3, 4, seed=1), torch.tensor([1, 2, 3])
    one = vmap(lambda x, c: net(x[None], c[None])[0])
    torch.testing.assert_close(one(x, c), net(x, c), rtol=1e-10, atol=1e-12)
    keyed = vmap(lambda x, c, k: net(x[None], c[None], k[None])[0])
    torch.testing.assert_close(keyed(x, c, key), net(x, c, key), rtol=1e-10, atol=1e-12)
    other = randomised(NETS[name](dropout=0.2))
    for p in other.parameters():
        p.data.mul_(0.5)
    params, buffers = stack_module_state([net, other])
    both = vmap(lambda p, b: functional_call(net, (p, b), (x, c, key)))(params, buffers)
    torch.testing.assert_close(both, torch.stack((net(x, c, key), other(x, c, key))), rtol=1e-10, atol=1e-12)


@each_net
def test_dropout_belongs_to_the_row(name: str) -> None:
    net = NETS[name](dropout=0.5)
    x, c, key = numbers(4, 4, 5).float(), numbers(4, 4).float(), torch.tensor([7, 8, 9, 7])
    whole = net(x, c, key)
    torch.testing.assert_close(
        torch.cat([net(x[i::2], c[i::2], key[i::2]) for i in (0, 1)]), whole[[0, 2, 1, 3]]
    )
    assert not torch.allclose(net(x, c), whole)
    assert not torch.allclose(net(x, c, key + 1), whole)


@each_net
def test_a_condition_changes_the_output_and_may_be_none(name: str) -> None:
    net = randomised(NETS[name]())
    x, c = numbers(2, 4, 5), numbers(2, 4, seed=1)
    plain = net(x)
    assert plain.shape == (2, 3)
    assert not torch.allclose(net(x, c), plain)
    if "prepend" not in name:
        torch.testing.assert_close(net(x, 0 * c), plain)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.zeros(2, 4, 6)}, ValueError, r"^x: expected the shape \[B, T, 5\] .*, got \(2, 4, 6\)"),
        ({"x": torch.zeros(2, 0, 5)}, ValueError, r"^x: expected the shape \[B, T, 5\] with T >= 1"),
        ({"x": torch.zeros(5)}, ValueError, r"^x: expected the shape"),
        ({"x": torch.zeros(2, 4, 5).double()}, TypeError, r"^x: expected the network's dtype, torch.float32"),
        ({"x": torch.zeros(2, 4, 5).long()}, TypeError, r"^x: expected a floating-point tensor"),
        ({"x": [[1.0]]}, TypeError, r"^x: expected a floating-point tensor"),
        (
            {"condition": torch.zeros(2, 3)},
            ValueError,
            r"^condition: expected the shape \(2, 4\).*got \(2, 3\)",
        ),
        ({"condition": torch.zeros(1, 4)}, ValueError, r"^condition: expected the shape \(2, 4\)"),
        ({"condition": torch.zeros(2, 3, 4)}, ValueError, r"^condition: expected the shape \(2, 4\)"),
        ({"condition": torch.zeros(2, 4).double()}, TypeError, r"^condition: expected x's dtype"),
        ({"key": torch.zeros(3).long()}, ValueError, r"^key: expected the shape \(2,\)"),
        ({"key": torch.zeros(2, 4).long()}, ValueError, r"^key: expected the shape \(2,\)"),
        ({"key": torch.zeros(2).int()}, TypeError, r"^key: expected an int64 tensor"),
    ],
)
@each_net
def test_errors_name_the_argument(
    name: str, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    net = NETS[name]()
    right = {"x": torch.zeros(2, 4, 5), "condition": torch.zeros(2, 4), "key": torch.zeros(2).long()}
    net(**right)
    with pytest.raises(error, match=message):
        net(**{**right, **wrong})


@pytest.mark.parametrize("make", [transformer, mlp, unet])
def test_refusals_that_all_share(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(
        ValueError, match=r"^condition: expected None, as the network was built with condition=0"
    ):
        make()(torch.zeros(2, 1, 5), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"^inputs: expected an int >= 1"):
        make(inputs=0)
    with pytest.raises(ValueError, match=r"^condition: expected an int >= 0"):
        make(condition=-1)
    with pytest.raises(ValueError, match=r"^dropout rate: expected a number in \[0, 1\)"):
        make(dropout=1.0)
    word = "pooling" if make is mlp else "returns"
    with pytest.raises(ValueError, match=rf"^{word}: expected one of 'last'|'sequence'"):
        make(**{word: "first"})


def test_odd_width_has_no_positions() -> None:
    with pytest.raises(ValueError, match=r"^width: expected an even number"):
        transformer(width=9, heads=3)


@each_net
def test_biases_and_norms_are_told_by_their_names(name: str) -> None:
    net = NETS[name]()
    norms = {n for n, layer in net.named_modules() if isinstance(layer, nn.LayerNorm | nn.GroupNorm)}
    for n, _ in net.named_parameters():
        assert decays_by_name(n) == (n.rpartition(".")[0] not in norms and not n.endswith(".bias"))


@each_net
def test_autocast(name: str) -> None:
    net = NETS[name]()
    x, c = numbers(2, 4, 5).float(), numbers(2, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x, c)
        mixed = net(x.bfloat16(), c)
    torch.testing.assert_close(out.float(), net(x, c), rtol=0.1, atol=0.1)
    torch.testing.assert_close(mixed.float(), net(x, c), rtol=0.1, atol=0.1)


def test_time_features() -> None:
    t = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    expected = [
        [math.sin(k * math.pi / 2 * x) for k in (1, 2, 3)]
        + [math.cos(k * math.pi / 2 * x) for k in (1, 2, 3)]
        for x in (0, 0.3, 1)
    ]
    torch.testing.assert_close(time_features(t, 6), torch.tensor(expected).double(), rtol=0, atol=1e-7)
    assert time_features(t[:, None].float(), 6).shape == (3, 1, 6)
    rate = jvp(lambda t: time_features(t, 32), (t,), (torch.ones_like(t),))[1]
    assert rate.abs().max() <= 8 * math.pi
    for wrong in (0, 5, True):
        with pytest.raises(ValueError, match=r"^count: expected an"):
            time_features(t, wrong)
    with pytest.raises(ValueError, match=r"^t: expected the shape \[..., 1\], got \(3,\)"):
        time_features(t[:, 0], 4)
    with pytest.raises(TypeError, match=r"^t: expected a floating-point tensor"):
        time_features(t.long(), 4)


def meanflow_gradient(net: nn.Module) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Of a loss whose field is the network's output at a last frame, with the two times as its condition."""
    params = {n: p.detach() for n, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def loss(
        params: dict[str, Tensor],
        buffers: dict[str, Tensor],
        past: Tensor,
        key: Tensor,
        z: Tensor,
        v: Tensor,
        r: Tensor,
        t: Tensor,
    ) -> Tensor:
        def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            times = torch.cat((time_features(r, 2), time_features(t, 2)), -1)
            return functional_call(net, (params, buffers), (torch.cat((past, z[:, None]), 1), times, key))

        return meanflow(field, z, v, r, t).sum()

    like = next(net.parameters()).dtype
    r = torch.tensor([[0.1], [0.4]], dtype=like)
    past, z, v = (numbers(2, *shape, seed=i, dtype=like) for i, shape in enumerate(((3, 5), (5,), (5,))))
    return grad(loss), (params, buffers, past, torch.tensor([1, 2]), z, v, r, r + 0.4)


@each_net
def test_traced_meanflow_gradient_is_the_eager_one(name: str) -> None:
    """The graph that Inductor is given, run as it is."""
    gradient, args = meanflow_gradient(randomised(NETS[name](outputs=5, dropout=0.2)))
    found = mfk.jit(gradient).graph(*args)(*flat(args))
    torch.testing.assert_close(list(found), flat(gradient(*args)), rtol=1e-9, atol=1e-11)


def flat(x: Any) -> list[Tensor]:
    """As a compiled function flattens."""
    return optree.tree_leaves(x, namespace="mfk.jit")
