"""Folded zeros: how many matrix products are left of MeanFlow's gradient, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import nets
import optree
import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import mfk
from mfk.core.compiler.fold import fold_zeros
from mfk.core.compiler.mutations import remove_mutations
from mfk.core.compiler.report import MATMULS
from mfk.core.compiler.tidy import tidy
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


def randomised(
    params: dict[str, Tensor], dtype: torch.dtype, members: int | None = None
) -> dict[str, Tensor]:
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
    """As a compiled function flattens: dicts in the order of their keys, which optree sorts elsewhere."""
    return optree.tree_leaves(tree, namespace="mfk.jit")


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


@pytest.mark.parametrize("name", CASES)
def test_fp32_gradients_equal_eager_to_rounding(name: str) -> None:
    make, members, _, after = CASES[name]
    gradient, args = setting(make, torch.float32, members)
    f = mfk.jit(gradient, matmul="default")
    exact, _ = setting(make, torch.float64, members)
    want = exact(*optree.tree_map(Tensor.double, cast(Any, args)))
    assert f.report(*args).after.matmuls == after
    for key, x in f(*args).items():
        assert x.dtype == torch.float32
        assert (x.double() - want[key]).abs().max() < 2e-5 * want[key].abs().max(), key


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
    """One forward pass more on the rows that have a derivative; flow matching is three, nearly."""
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
        return (
            total if k == rows else total + flow_matching(field(params), z[k:], v[k:], r[k:]).sum()
        ) / rows

    forward = mfk.jit(model.apply).report(params, {}, z, r, r).after.flops
    anchor = mfk.jit(grad(plain)).report(params, z, v, r).after.flops
    after = mfk.jit(grad(mixed)).report(params, z, v, r, t).after.flops
    assert (after - anchor) * rows == forward * k
    assert after / anchor == pytest.approx(1 + share / 3, rel=2e-3)


# Single graphs


def traced(fn: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    return make_fx(lambda *xs: [fn(*xs)], tracing_mode="fake")(*inputs)


def targets(graph: fx.GraphModule) -> list[str]:
    return [str(n.target).removeprefix("aten.") for n in graph.graph.nodes if n.op == "call_function"]


def folded(fn: Callable[..., Any], *inputs: Tensor) -> list[str]:
    """The operators that are left of fn, whose value, dtype and strides must be what they were."""
    graph = traced(fn, *inputs)
    assert remove_mutations(graph)
    tidy(graph)
    fold_zeros(graph)
    tidy(graph)
    graph.graph.lint()
    graph.recompile()
    (got,), want = graph(*inputs), fn(*inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    assert got.dtype == want.dtype and got.stride() == want.stride()
    return targets(graph)


X = numbers(3, 3) + 4
Z = torch.zeros_like

FOLDED: dict[str, tuple[Callable[[Tensor], Tensor], list[str]]] = {
    "x + 0": (lambda x: x + Z(x), []),
    "0 + x": (lambda x: Z(x) + x, []),
    "x - 0": (lambda x: x - Z(x), []),
    "0 - x": (lambda x: Z(x) - x, ["neg.default"]),
    "x + k 0": (lambda x: torch.add(x, Z(x), alpha=3), []),
    "0 x": (lambda x: Z(x) * x, ["full.default"]),
    "x @ 0": (lambda x: x @ Z(x), ["full.default"]),
    "0 + x @ x": (lambda x: torch.addmm(Z(x), x, x), ["mm.default"]),
    "x + x @ 0": (lambda x: torch.addmm(x, x, Z(x)), []),
    "x + 0 x": (lambda x: torch.addcmul(x, Z(x), x, value=2), []),
    "x + 0 / x": (lambda x: torch.addcdiv(x, Z(x), x), []),
    "0 / x": (lambda x: x + Z(x) / x, []),
    "0 ** 2": (lambda x: x + Z(x) ** 2, []),
    "chain": (lambda x: x + torch.cat([Z(x).sin().t(), Z(x)[1:]])[:3].neg().sum(0), []),
    "padding": (lambda x: x + nn.functional.pad(Z(x)[1:], (0, 0, 1, 0)), []),
    "where": (lambda x: x + torch.where(x > 4, Z(x), Z(x)), []),
    "masked": (lambda x: x + Z(x).masked_fill(x > 4, 0.0), []),
    "mean": (lambda x: x + Z(x).mean(0, keepdim=True).expand(3, 3), []),
    "sum into layout": (lambda x: x.t() + Z(x).t(), ["t.default"]),
    "constant": (lambda x: x + torch.zeros(3, 3, dtype=x.dtype), []),
    "full": (lambda x: x + torch.full((3, 3), 0.0, dtype=x.dtype), []),
    "written zero": (lambda x: x + torch.empty(3, 3, dtype=x.dtype).zero_() * x, []),
    "bf16": (lambda x: x.bfloat16() + Z(x.bfloat16()), ["_to_copy.default"]),
    "broadcast": (lambda x: x + torch.zeros(3, dtype=x.dtype), []),
}


@pytest.mark.parametrize("name", FOLDED)
def test_folds(name: str) -> None:
    fn, left = FOLDED[name]
    assert folded(fn, X) == left


ALONE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "pad with a value": (lambda x: nn.functional.pad(Z(x), (1, 1), value=2.0), "constant_pad_nd.default"),
    "masked fill with a value": (lambda x: Z(x).masked_fill(x > 4, 3.0), "masked_fill.Scalar"),
    "where with a value": (lambda x: torch.where(x > 4, Z(x), x), "where.self"),
    "pow 0": (lambda x: Z(x) ** 0, "pow.Tensor_Scalar"),
    "pow -1": (lambda x: Z(x) ** -1.0, "pow.Tensor_Scalar"),
    "pow x": (lambda x: Z(x) ** (x * 0), "pow.Tensor_Tensor"),
    "cosine": (lambda x: Z(x).cos(), "cos.default"),
    "exponential": (lambda x: Z(x).exp(), "exp.default"),
    "hardtanh above zero": (lambda x: nn.functional.hardtanh(Z(x), 1.0, 2.0), "hardtanh.default"),
    "clamp above zero": (lambda x: Z(x).clamp(min=1.0), "clamp.default"),
    "threshold": (lambda x: nn.functional.threshold(Z(x), 1.0, 7.0), "threshold.default"),
    "softplus": (lambda x: nn.functional.softplus(Z(x)), "softplus.default"),
    "softmax": (lambda x: Z(x).softmax(-1), "_softmax.default"),
    "logarithm": (lambda x: Z(x).log(), "log.default"),
    "mean of nothing": (lambda x: Z(x)[:0].mean(), "mean.default"),
    "mean of nothing over an axis": (lambda x: Z(x)[:0].mean(0), "mean.dim"),
    "rounding division": (lambda x: torch.div(Z(x), x, rounding_mode="floor"), "div.Tensor_mode"),
    "floor division": (lambda x: Z(x) // x, "floor_divide.default"),
    "integers": (lambda x: torch.zeros(3, 3, dtype=torch.int64) + (x > 4), "add.Tensor"),
    "integer zeros and floats": (lambda x: x + torch.zeros(3, 3, dtype=torch.int64), "add.Tensor"),
    "booleans": (lambda x: torch.zeros(3, 3, dtype=torch.bool) | (x > 4), "bitwise_or.Tensor"),
    "bf16 + fp32 zeros": (lambda x: x.bfloat16() + torch.zeros(3, 3), "add.Tensor"),
    "fp32 zeros + bf16": (lambda x: torch.zeros(3, 3) + x.bfloat16(), "add.Tensor"),
    "other strides": (lambda x: Z(x) + x.t(), "clone.default"),
    "row + matrix of zeros": (lambda x: x[0] + Z(x), "expand.default"),
    "transposed zeros": (lambda x: torch.zeros(3, 3, dtype=x.dtype).t() + x, "add.Tensor"),
    "not quite zero": (lambda x: x + torch.full((3, 3), 1e-300, dtype=x.dtype), "add.Tensor"),
    "number - 0": (lambda x: torch.rsub(Z(x), 2.0), "rsub.Scalar"),
    "0 + number": (lambda x: Z(x) + 2.0, "add.Tensor"),
    "scatter": (lambda x: Z(x).index_add(0, torch.tensor([1]), x[:1]), "index_add.default"),
    "product with a scaled term": (lambda x: torch.addmm(x, x, Z(x), beta=2), "addmm.default"),
    "argument": (lambda x: x + x.detach() * 1.0, "add.Tensor"),
}


@pytest.mark.parametrize("name", ALONE)
def test_leaves_alone(name: str) -> None:
    fn, kept = ALONE[name]
    assert kept in folded(fn, X)


def test_zero_times_nan_is_zero_where_the_zero_is_known() -> None:
    f = mfk.jit(lambda x: torch.zeros(2) * x + torch.zeros(2) / x)
    assert f(torch.tensor([float("nan"), 0.0])).tolist() == [0, 0]
    passed = mfk.jit(lambda z, x: z * x)
    assert passed(torch.zeros(1), torch.tensor([float("inf")])).isnan().all()


def test_a_convolution_of_zeros_is_its_offset() -> None:
    w, b = numbers(4, 2, 3), numbers(4, seed=1)

    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return nn.functional.conv1d(Z(x), w, b)

    x = numbers(5, 2, 7)
    assert "convolution.default" not in folded(fn, x, w, b)


def test_a_convolution_has_the_gradients_that_are_used() -> None:
    def fn(w: Tensor, x: Tensor) -> Tensor:
        return grad(lambda w: nn.functional.conv1d(x, w).square().sum())(w)

    f, args = mfk.jit(fn), (numbers(4, 2, 3), numbers(5, 2, 7, seed=1))
    (node,) = f.graph(*args).graph.find_nodes(op="call_function", target=aten.convolution_backward.default)
    assert node.args[10] == [False, True, False]
    assert f.report(*args).after.matmuls == 2
    torch.testing.assert_close(f(*args), fn(*args))


def test_tidy_merges_equals_and_tells_numbers_apart() -> None:
    def fn(x: Tensor) -> Tensor:
        same = x.sin() + x.sin() + x.clone().sin()
        return (
            same + torch.full((3,), 1) + torch.full((3,), 1.0) + torch.full((3,), True) + x * 0.0 + x * -0.0
        )

    left = folded(fn, X)
    assert left.count("sin.default") == 1
    assert left.count("full.default") == 3
    assert left.count("mul.Tensor") == 2


# Mutations


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "one after another": lambda x: torch.zeros(3, 3, dtype=x.dtype).add_(x).mul_(2).sub_(x, alpha=3).neg_(),
    "numbers": lambda x: torch.empty(3, 3, dtype=x.dtype).fill_(2.0).add_(1).mul_(3).div_(2).sub_(1),
    "another dtype": lambda x: torch.zeros(3, 3).copy_(x).add_(1),
    "another layout": lambda x: torch.zeros(3, 3, dtype=x.dtype).copy_(x.t()),
    "promotion": lambda x: torch.zeros(3, 3).add_(x),
}


@pytest.mark.parametrize("name", WRITES)
def test_plain_writes_go(name: str) -> None:
    graph = traced(WRITES[name], X)
    assert remove_mutations(graph)
    assert not any(t.split(".")[0].endswith("_") for t in targets(graph))
    graph.recompile()
    (got,), want = graph(X), WRITES[name](X)
    assert torch.equal(got, want) and got.dtype == want.dtype and got.stride() == want.stride()


def test_reads_before_and_after_a_write_are_told_apart() -> None:
    def fn(x: Tensor) -> Tensor:
        y = x + 1
        before = y * 10
        y.mul_(2)
        between = y * 10
        y.add_(before)
        return torch.stack([before, between, y])

    graph = traced(fn, X)
    assert remove_mutations(graph)
    graph.recompile()
    assert torch.equal(graph(X)[0], fn(X))


def through_view(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[0] = x[1]
    return z * x


def view_before_write(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    row = z[1]
    z.add_(x)
    return row * 2


def by_list(x: Tensor) -> Tensor:
    z = [torch.zeros_like(x), torch.zeros_like(x)]
    torch._foreach_add_(z, [x, 2 * x])
    return z[0] * z[1]


def in_slices(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    z[:, 1:].t()[0].fill_(2.0)
    z[1:, :2] += x[1:, :2]
    z.masked_fill_(x < 4, 5.0)
    return z @ x


def out_argument(x: Tensor) -> Tensor:
    z = torch.zeros_like(x)
    torch.mul(x, x, out=z)
    return z + x


@pytest.mark.parametrize("fn", [through_view, view_before_write, by_list, in_slices, out_argument])
def test_a_zero_that_is_written_to_is_no_zero(fn: Callable[[Tensor], Tensor]) -> None:
    graph = traced(fn, X)
    before = targets(graph)
    assert not remove_mutations(graph)
    assert targets(graph) == before
    torch.testing.assert_close(mfk.jit(fn)(X), fn(X), rtol=0, atol=0)
    if fn is not out_argument:
        gradient = grad(lambda x: fn(x).sum())
        torch.testing.assert_close(mfk.jit(gradient)(X), gradient(X))
