"""Programs that treat rows one by one: their numbers against the graph's, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import mfk
from mfk.core.compiler import rowcalls, rowwise
from mfk.core.compiler.backend import compile_graph
from mfk.core.compiler.rowcode import compile_rows
from mfk.core.compiler.rowwise import row_programs
from mfk.core.compiler.scalars import Load, Program, needed

ROWS = 77  # no multiple of the vector width


@pytest.fixture(autouse=True)
def every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowwise, "_LEAST_STEPS", 1)


def numbers(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def check(fn: Callable[..., Tensor], *inputs: Tensor, atol: float = 1e-13) -> None:
    """Compare each row program of fn's graph with the nodes that it stands for."""
    graph = mfk.jit(lambda *xs: fn(*xs)).graph(*inputs)
    programs = row_programs(graph)
    assert programs, "nothing was taken apart"
    found: dict[torch.fx.Node, Any] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            found[n] = result = super().run_node(n)
            return result

    Watch(graph).run(*inputs)
    for program in programs:
        results = compile_rows(program)([found[n] for n in program.inputs])
        for (node, _), x in zip(program.outputs, results, strict=True):
            assert x.stride() == found[node].stride()
            relative = 1e-13 if x.dtype == torch.float64 else 1e-5
            torch.testing.assert_close(x, found[node], atol=atol, rtol=relative)


ELEMENTWISE = {
    "arithmetic": lambda x, y: (x + 2 * y - x * y / (3 + y * y)) * -1.5 + 1 / x,
    "scaled sums": lambda x, y: (
        torch.add(x, y, alpha=2) - torch.rsub(x, y, alpha=3) + torch.addcmul(x, y, y, value=-2)
    ),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, 2 + x.abs(), value=0.5),
    "trigonometry": lambda x, y: (
        x.sin() + y.cos() + (x / 9).tan() + torch.atan2(x, y) + x.tanh().asin() + y.tanh().acos()
    ),
    "hyperbolic": lambda x, y: x.sinh() + y.cosh() + x.atan() + x.tanh(),
    "exponentials": lambda x, y: (
        x.exp() + x.abs().log() + y.expm1() + y.abs().log1p() + y.erf() + x.sigmoid()
    ),
    "powers": lambda x, y: (
        x**2 + x**3 + x**-1 + x.abs() ** 0.5 + x.abs() ** -0.5 + x.abs() ** 1.7 + x.square()
    ),
    "roots": lambda x, y: x.abs().sqrt() + x.abs().rsqrt() + x.reciprocal(),
    "rounding": lambda x, y: (x * 3).round() + x.floor() + y.ceil() - (x * 2 + 0.5).round(),
    "bounds": lambda x, y: x.clamp(-0.5, 0.5) + y.clamp(min=0.1) + torch.maximum(x, y) - torch.minimum(x, y),
    "choices": lambda x, y: (
        torch.where((x > 0) & ~(y <= 0.3) | (x == y), x * 2, y) + (x < y) + (x >= 1).to(x.dtype)
    ),
    "signs": lambda x, y: -x + y.abs() + (-(-x)) - (-y),  # noqa: B002
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_elementwise_operations(name: str, dtype: torch.dtype) -> None:
    x, y = numbers(ROWS, 3, dtype=dtype), numbers(ROWS, 3, dtype=dtype, seed=1)
    check(ELEMENTWISE[name], x, y, atol=1e-13 if dtype == torch.float64 else 2e-5)


SHAPED = {
    "stack and unbind": lambda x, y: torch.stack(
        [a * b for a, b in zip(x.unbind(-1), y.unbind(-1), strict=True)], -1
    ),
    "cat": lambda x, y: torch.cat((x * 2, y[..., :2] + 1, x[..., 1:]), -1),
    "split": lambda x, y: torch.cat([p * (i + 2) for i, p in enumerate(x.split((1, 2), -1))], -1),
    "chunks": lambda x, y: sum(p.sum(-1) for p in x.chunk(2, -1)),
    "sums": lambda x, y: (x * y).sum(-1, keepdim=True) + x.mean(-1, keepdim=True) * y,
    "norm": lambda x, y: x / x.norm(dim=-1, keepdim=True) + y * 2,
    "cumsum": lambda x, y: (x * 2).cumsum(-1) * y,
    "cross": lambda x, y: torch.linalg.cross(x, y) + torch.linalg.cross(y, x * 2),
    "outer": lambda x, y: (x.unsqueeze(-1) * y.unsqueeze(-2)).transpose(-1, -2) * 2,
    "permuted": lambda x, y: x.t() * 3 + y.t(),
    "reshaped": lambda x, y: (torch.stack((x, y), 1) * 2).reshape(len(x), 6) + 1,
    "columns": lambda x, y: (x.movedim(-1, 0) * y.movedim(-1, 0)).sum(0) * 2,
    "eye": lambda x, y: (torch.eye(3, dtype=x.dtype) + x.unsqueeze(-1) * y.unsqueeze(-2)).sum(-1) * 2,
    "made here": lambda x, y: x * torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype) + torch.ones_like(y) * 0.5,
    "rows of it": lambda x, y: x[:66] * 2 + y[11:] * x[:66],
    "every other row": lambda x, y: (x[: 2 * (ROWS // 2)] * 2 + y[: 2 * (ROWS // 2)]) * 3,
    "expanded": lambda x, y: (x[:, :1].expand(-1, 3) * y) + y[:, 1:2] * 2,
    "selected": lambda x, y: x[:, 0] * y[:, 2] - x[:, -1] / (2 + y[:, 1] ** 2),
    "products": lambda x, y: torch.bmm(x.unsqueeze(-1) * 2, y.unsqueeze(1) + 1),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_are_bookkeeping(name: str) -> None:
    check(SHAPED[name], numbers(ROWS, 3), numbers(ROWS, 3, seed=1))


def test_strided_inputs_and_uniform_ones() -> None:
    x, y = numbers(3, ROWS).t(), numbers(ROWS, 6, seed=1)[:, ::2]
    check(lambda x, y, c, s: x * c + y * s, x, y, numbers(3, seed=2), torch.tensor(0.7).double())


def test_rows_with_nan_and_infinity_are_theirs_alone() -> None:
    x = numbers(ROWS, 3)
    x[5, 0], x[6, 1], x[7, 2] = float("nan"), float("inf"), -float("inf")
    graph = mfk.jit(lambda x: x.clamp(min=0.5) * 2).graph(x)
    (program,) = row_programs(graph)
    (result,) = compile_rows(program)([x])
    torch.testing.assert_close(result, x.clamp(min=0.5) * 2, equal_nan=True)


def kinematic(dtype: torch.dtype) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A twist error's rate along a velocity: what a network that sees the robot computes."""
    chain = mfk.kinematics.panda()
    q = numbers(ROWS, 7, dtype=dtype) * 0.5
    target = mfk.kinematics.forward(chain, numbers(ROWS, 7, dtype=dtype, seed=2) * 0.5)

    def step(q: Tensor, target: Tensor) -> Tensor:
        pose, j = mfk.kinematics.pose_and_jacobian(chain, q)
        inverse = mfk.kinematics.damped_inverse(j, 0.1)
        return (inverse * mfk.kinematics.pose_error(pose, target).unsqueeze(-2)).sum(-1)

    def rate(q: Tensor, target: Tensor, v: Tensor) -> Tensor:
        value, tangent = jvp(lambda q: step(q, target), (q,), (v,))[:2]
        return value + tangent

    return rate, [q, target, numbers(ROWS, 7, dtype=dtype, seed=3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kinematics_under_forward_mode(dtype: torch.dtype) -> None:
    rate, inputs = kinematic(dtype)
    jitted = mfk.jit(rate)
    exact = rate(*(x.double() for x in inputs))
    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    torch.testing.assert_close(jitted(*inputs).double(), exact, atol=tolerance, rtol=tolerance)
    # All of it is one program: nothing is left for Inductor.
    graph = jitted.graph(*inputs)
    programs = row_programs(graph)
    assert len(programs) == 1
    rowcalls.call_rows(graph, programs)
    assert rowcalls.is_bookkeeping(graph)
    graph.recompile()
    torch.testing.assert_close(graph(*inputs)[0], jitted(*inputs))


def test_reverse_mode_through_kinematics() -> None:
    chain = mfk.kinematics.ur10()
    q = numbers(ROWS, 6) * 0.5

    def pull(q: Tensor, w: Tensor) -> Tensor:
        return vmap(grad(lambda q, w: (mfk.kinematics.forward(chain, q) * w).sum()))(q, w)

    check(pull, q, numbers(ROWS, 7, seed=1))


def test_what_couples_rows_stays_outside() -> None:
    x = numbers(ROWS, 3)

    def fn(x: Tensor) -> Tensor:
        y = (x * 2).sin() * x.cos()
        return y * y.mean(0) + y.cumsum(0) + y.sum()

    torch.testing.assert_close(mfk.jit(fn)(x), fn(x), atol=1e-12, rtol=1e-12)


def test_programs_between_products_see_each_others_results() -> None:
    """Levels: before, between and after matrix products, and what an earlier one kept for a later one."""
    x, w = numbers(ROWS, 3), numbers(3, 3, seed=1)

    def fn(x: Tensor, w: Tensor) -> Tensor:
        a = (x * 2).sin() * x
        b = torch.stack((a, a.cos() * 3), -1)
        c = (a @ w).tanh() * b[..., 0] + (b * b).sum(-1)
        return (c @ w) * a + torch.where(c > 0, c, -a) * b[..., 1] - (c.cos() @ w) * c

    def derivative(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return jvp(lambda x: grad(lambda x, w: fn(x, w).square().sum())(x, w), (x,), (v,))[1]

    v = numbers(ROWS, 3, seed=2)
    graph = mfk.jit(derivative).graph(x, w, v)
    assert len(row_programs(graph)) >= 3
    check(derivative, x, w, v, atol=1e-10)
    torch.testing.assert_close(mfk.jit(derivative)(x, w, v), derivative(x, w, v), atol=1e-10, rtol=1e-10)


def test_views_of_conditions_stay_outside() -> None:
    x = numbers(ROWS, 3)

    def fn(x: Tensor) -> Tensor:
        y = x.sin() * 2
        return torch.where((y[:, 0] > 0).unsqueeze(-1), y * y, -y) + (x > 0) * y

    torch.testing.assert_close(mfk.jit(fn)(x), fn(x), atol=1e-12, rtol=1e-12)


def test_two_lengths_are_two_programs() -> None:
    x, y = numbers(ROWS, 3), numbers(ROWS + 64, 3, seed=1)
    graph = mfk.jit(lambda x, y: (x.sin() * x * 2, y.cos() * y + 1)).graph(x, y)
    assert sorted(p.rows for p in row_programs(graph)) == [ROWS, ROWS + 64]
    run = compile_graph(graph, [n.meta["val"] for n in graph.graph.find_nodes(op="placeholder")])
    first, second = run([x, y])
    torch.testing.assert_close(first, x.sin() * x * 2)
    torch.testing.assert_close(second, y.cos() * y + 1)


def test_short_batches_and_wide_tensors_are_left_alone() -> None:
    assert row_programs(mfk.jit(lambda x: x.sin() * x).graph(numbers(8, 3))) == []
    assert row_programs(mfk.jit(lambda x: x.sin() * x).graph(numbers(ROWS, 500))) == []
    assert row_programs(mfk.jit(lambda x: x.sin() * x).graph(torch.ones(ROWS, 3, dtype=torch.int64))) == []


def test_many_rows_are_shared_among_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = numbers(3_000_001, 1)
        (program,) = row_programs(mfk.jit(lambda x: (x.sin() * x + 2).cos() * x).graph(x))
        (result,) = compile_rows(program)([x])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result, (x.sin() * x + 2).cos() * x, atol=1e-12, rtol=1e-12)


def test_arithmetic_of_constants() -> None:
    p = Program(np.float32)
    x, zero, one = p.load(Load(0, 0, 1)), p.constant(0.0), p.constant(1.0)
    assert p.call("mul", x, zero) == zero and p.call("mul", one, x) == x
    assert p.call("add", zero, x) == x and p.call("sub", x, zero) == x
    negative = p.call("neg", x)
    assert p.call("mul", x, p.constant(-1.0)) == negative and p.call("sub", zero, x) == negative
    assert p.call("neg", negative) == x
    assert p.call("add", x, one) == p.call("add", one, x)
    assert p.call("sub", x, one) != p.call("sub", one, x)
    assert p.value(p.call("add", p.constant(0.1), p.constant(0.2))) == float(
        np.float32(0.1) + np.float32(0.2)
    )
    assert p.value(p.call("mul", one, one)) == 1.0
    assert p.value(p.constant(1e300)) == float("inf")
    assert p.steps[p.call("div", x, p.constant(3.0))].name == "div"
    assert p.steps[p.call("div", x, p.constant(4.0))].name == "mul"
    y = p.call("add", x, one)
    assert needed(p, [y]) == sorted({x, one, y})
