"""Folded zeros: how many matrix products are left of MeanFlow's gradient, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nets
import optree
import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import grad, vmap

import mfk
from mfk.core.compiler.report import MATMULS
from mfk.losses import flow_matching, meanflow

aten: Any = torch.ops.aten
ROWS = 6
# The position of the first of the two factors.
FACTORS = {
    aten.mm.default: 0,
    aten.bmm.default: 0,
    aten.mv.default: 0,
    aten.addmm.default: 1,
    aten.addmv.default: 1,
    aten.baddbmm.default: 1,
    aten.convolution.default: 0,
    torch.ops.mfk.strict_mm.default: 0,
}


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(graph: fx.GraphModule, fakes: object) -> Callable[..., Any]:
        return lambda inputs: graph(*inputs)

    monkeypatch.setattr("mfk.core.compiler.jitted.compile_graph", run)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(params: dict[str, Tensor], dtype: torch.dtype, members: int | None = None) -> dict[str, Tensor]:
    """Parameters none of which is zero, not even an offset."""
    lead = () if members is None else (members,)
    return {
        name: (p + 0.1 * numbers(*lead, *p.shape, seed=i)).to(dtype)
        for i, (name, p) in enumerate(params.items())
    }


def batch(dtype: torch.dtype, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, v = (numbers(rows, nets.DIMS, seed=s, dtype=dtype) for s in (1, 2))
    r = torch.linspace(0.1, 0.5, rows, dtype=dtype).unsqueeze(-1)
    return z, v, r, r + 0.3


def flat(tree: Any) -> list[Tensor]:
    return optree.tree_leaves(tree)


class NoZeroFactor(fx.Interpreter):
    """Runs a graph; fails at a matrix product with a factor of nothing but zeros."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.products = 0

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = super().call_function(target, args, kwargs)
        if target is aten.convolution_backward.default:
            wants_input, wants_weight = args[10][:2]
            factors = [args[0], *[args[2]] * wants_input, *[args[1]] * wants_weight]
            self.products += wants_input + wants_weight
        elif target in FACTORS:
            factors = args[FACTORS[target] : FACTORS[target] + 2]
            self.products += 1
        else:
            assert target not in MATMULS
            return result
        for x in factors:
            assert x.any(), f"{target} multiplies by zero"
        return result


def setting(
    make: Callable[[], nn.Module], dtype: torch.dtype, members: int | None = None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """(gradient of MeanFlow's loss, arguments)."""
    model = mfk.stateless(make)
    params, buffers = model.init(0)
    params = randomised(params, dtype, members)
    buffers = {name: b.to(dtype) for name, b in buffers.items()}

    def loss(params: Any, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return meanflow(lambda *x: model.apply(params, buffers, *x), z, v, r, t).mean()

    gradient = grad(loss)
    if members is not None:
        gradient = vmap(gradient, (0, None, None, None, None))
    return gradient, (params, *batch(dtype))


# network, members, matrix products before and after
CASES: dict[str, tuple[Callable[[], nn.Module], int | None, int, int]] = {
    "residual MLP": (nets.ResidualMLP, None, 49, 39),
    "FiLM": (nets.Film, None, 43, 34),
    "transformer": (nets.Transformer, None, 39, 33),
    "UNet1D": (nets.UNet1D, None, 24, 19),
    "ensemble": (lambda: nets.ResidualMLP(16, 2), 3, 29, 23),
}


@pytest.mark.parametrize("name", CASES)
def test_no_product_with_zeros_is_left(name: str) -> None:
    make, members, before, after = CASES[name]
    gradient, args = setting(make, torch.float64, members)
    f = mfk.jit(gradient)
    report = f.report(*args)
    assert (report.before.matmuls, report.after.matmuls) == (before, after)
    assert report.after.flops < report.before.flops and report.folded_zeros > 0
    want = gradient(*args)
    torch.testing.assert_close(f(*args), want, rtol=1e-10, atol=1e-12)
    (compiled,) = next(iter(f._cache.values()))
    inputs = [*flat(args), *(c.read() for c in compiled.around)]
    interpreter = NoZeroFactor(f.graph(*args))
    with torch.no_grad():
        got = interpreter.run(*inputs)
    assert interpreter.products == after
    torch.testing.assert_close(got, flat(want), rtol=1e-10, atol=1e-12)


def test_no_product_with_zeros_is_left_under_autocast() -> None:
    gradient, args = setting(nets.ResidualMLP, torch.float32)
    f = mfk.jit(gradient)
    with torch.autocast("cpu", torch.bfloat16):
        report = f.report(*args)
        graph = f.graph(*args)
        narrow, got = gradient(*args), f(*args)
    assert (report.before.matmuls, report.after.matmuls) == (49, 39)
    products = [n for n in graph.graph.nodes if n.target in MATMULS]
    assert {n.meta["val"].dtype for n in products} == {torch.bfloat16}
    interpreter = NoZeroFactor(graph)
    with torch.no_grad():
        interpreter.run(*flat(args))
    assert interpreter.products == 39
    wide = gradient(*args)
    for name, x in got.items():
        assert x.dtype == torch.float32
        size = wide[name].abs().max()
        assert (x - wide[name]).abs().max() < 0.05 * size, name
        assert (narrow[name] - wide[name]).abs().max() < 0.05 * size, name


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_meanflow_costs_a_third_more_than_flow_matching(share: float) -> None:
    """One forward pass more on the rows that have a derivative; flow matching is three without the entry's."""
    rows = 16
    k = round(share * rows)
    model = mfk.stateless(lambda: nets.ResidualMLP(256, 4))
    params, _ = model.init(0)
    z, v, r, t = batch(torch.float32, rows)

    def field(params: Any) -> Callable[..., Tensor]:
        return lambda *x: model.apply(params, {}, *x)

    def plain(params: Any, z: Tensor, v: Tensor, r: Tensor) -> Tensor:
        return flow_matching(field(params), z, v, r).mean()

    def mixed(params: Any, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
        total = meanflow(field(params), z[:k], v[:k], r[:k], t[:k]).sum()
        return (total if k == rows else total + flow_matching(field(params), z[k:], v[k:], r[k:]).sum()) / rows

    forward = mfk.jit(model.apply).report(params, {}, z, r, r).after.flops
    anchor = mfk.jit(grad(plain)).report(params, z, v, r).after.flops
    after = mfk.jit(grad(mixed)).report(params, z, v, r, t).after.flops
    assert (after - anchor) * rows == forward * k
    assert after / anchor == pytest.approx(1 + share / 3, rel=2e-3)
