"""The losses of the family against references written another way, their own vmap, and hostile rows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import mfk
from mfk import losses
from mfk.core.types import Field

ALPHA, EPS, STEP = 0.3, 0.02, 1e-3
Row = dict[str, Tensor]


def numbers(rows: int = 6, dims: int = 2, seed: int = 0) -> Row:
    """Times at least 0.1 apart and STEP from the ends, so that differences stay inside."""
    generator = torch.Generator().manual_seed(seed)
    z, v = torch.randn(2, rows, dims, dtype=torch.float64, generator=generator)
    share = torch.rand(3, rows, 1, dtype=torch.float64, generator=generator)
    r = 0.05 + 0.5 * share[0]
    t = r + 0.1 + (0.85 - r) * share[1]
    return {"z": z, "v": v, "r": r, "t": t, "s": r + (t - r) * share[2]}


def weights(seed: int = 3) -> Tensor:
    return 0.5 * torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def field(w: Tensor) -> Field:
    """Two layers, two dimensions."""

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        hidden = torch.tanh(torch.cat((z, r, t, torch.ones_like(r)), -1) @ w)
        return hidden @ w[:2].T + z.cos()

    return u


TEACHER = field(weights(8))


def slope(f: Callable[[float], Tensor]) -> Tensor:
    """df/dx at 0 by differences of the fourth order."""
    h = STEP
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def along(u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """Du by differences."""
    return slope(lambda h: u(z + h * v, r + h, t))


# References: (moving field, frozen field, rows) -> Δ. Places reached in place of average velocities.


def improved(u: Field, frozen: Field, x: Row) -> Tensor:
    own = frozen(x["z"], x["r"], x["r"])
    rate = along(frozen, x["z"], own, x["r"], x["t"])
    return u(x["z"], x["r"], x["t"]) - (x["v"] + (x["t"] - x["r"]) * rate)


def alpha(u: Field, frozen: Field, x: Row) -> Tensor:
    middle = (1 - ALPHA) * x["r"] + ALPHA * x["t"]
    place = x["z"] + (middle - x["r"]) * x["v"]
    end = place + (x["t"] - middle) * frozen(place, middle, x["t"])
    return (u(x["z"], x["r"], x["t"]) - (end - x["z"]) / (x["t"] - x["r"])) / math.sqrt(ALPHA)


def split(u: Field, frozen: Field, x: Row) -> Tensor:
    place = x["z"] + (x["s"] - x["r"]) * frozen(x["z"], x["r"], x["s"])
    end = place + (x["t"] - x["s"]) * frozen(place, x["s"], x["t"])
    return u(x["z"], x["r"], x["t"]) - (end - x["z"]) / (x["t"] - x["r"])


def halves(u: Field, frozen: Field, x: Row) -> Tensor:
    return split(u, frozen, x | {"s": 0.5 * (x["r"] + x["t"])})


def terminal(u: Field, frozen: Field, x: Row) -> Tensor:
    z, r, t = x["z"], x["r"], x["t"]
    end = z + (t - r) * frozen(z, r, t)
    return slope(lambda h: (t + h - r) * u(z, r, t + h)) - frozen(end, t, t)


def difference(u: Field, frozen: Field, x: Row, sides: int) -> Tensor:
    z, v, r, t = x["z"], x["v"], x["r"], x["t"]
    back = EPS if sides == 2 else 0.0
    rate = (frozen(z + EPS * v, r + EPS, t) - frozen(z - back * v, r - back, t)) / (EPS + back)
    return u(z, r, t) - v - (t - r) * rate


def one_sided(u, z, v, r, t):
    return losses.meanflow_finite_difference(u, z, v, r, t, EPS, 1)


def two_sided(u, z, v, r, t):
    return losses.meanflow_finite_difference(u, z, v, r, t, EPS, 2)


def alpha_flow(u, z, v, r, t):
    return losses.alpha_flow(u, z, v, r, t, ALPHA)


def with_teacher(u, z, r, s, t):
    return losses.split_meanflow(u, z, r, s, t, TEACHER)


FAMILY = {
    "improved": (losses.improved_meanflow, improved),
    "alpha": (alpha_flow, alpha),
    "split": (losses.split_meanflow, split),
    "teacher": (with_teacher, lambda u, frozen, x: split(u, TEACHER, x)),
    "shortcut": (losses.shortcut, halves),
    "terminal": (losses.terminal_velocity, terminal),
    "one-sided": (one_sided, lambda u, frozen, x: difference(u, frozen, x, 1)),
    "two-sided": (two_sided, lambda u, frozen, x: difference(u, frozen, x, 2)),
}
family = pytest.mark.parametrize(("loss", "reference"), FAMILY.values(), ids=FAMILY.keys())


def arguments(loss, x: Row) -> Row:
    return {name: x[name] for name in inspect.signature(loss).parameters if name in x}


@family
def test_value_and_gradient_against_a_reference_with_frozen_targets(loss, reference) -> None:
    w, x = weights(), numbers()
    args = arguments(loss, x)

    def total(w: Tensor) -> Tensor:
        return loss(field(w), **args).sum()

    def expected(w: Tensor) -> Tensor:
        return reference(field(w), field(weights()), x).square().sum(-1)

    torch.testing.assert_close(loss(field(w), **args), expected(w), rtol=1e-9, atol=1e-11)
    found = grad(total)(w)
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            nudge = torch.zeros_like(w)
            nudge[i, j] = 1
            numeric = slope(lambda h, nudge=nudge: expected(w + h * nudge).sum())
            torch.testing.assert_close(found[i, j], numeric, rtol=1e-7, atol=1e-8)


@family
def test_agreement_with_its_vmap_and_any_leading_axes(loss, reference) -> None:
    args = arguments(loss, numbers())
    u = field(weights())
    batched = loss(u, **args)
    assert batched.shape == (6,)
    torch.testing.assert_close(vmap(lambda row: loss(u, **row))(args), batched)
    for lead in ((2, 3), (6, 1), (1, 6)):
        shaped = loss(u, **{name: x.reshape(*lead, -1) for name, x in args.items()})
        assert shaped.shape == lead
        torch.testing.assert_close(shaped.reshape(6), batched)
    assert loss(u, **{name: x[:0] for name, x in args.items()}).shape == (0,)
    single = grad(lambda w, row: loss(field(w), **row))
    each = vmap(single, in_dims=(None, 0))(weights(), args)
    whole = grad(lambda w: loss(field(w), **args).sum())(weights())
    torch.testing.assert_close(each.sum(0), whole)


@family
def test_no_length_of_time(loss, reference) -> None:
    """At t = r: flow matching for whoever sees v, and nothing, with no gradient, for the others."""
    x = numbers()
    args = arguments(loss, x | {"s": x["r"], "t": x["r"]})
    value = loss(field(weights()), **args)
    slopes = grad(lambda w: loss(field(w), **args).sum())(weights())
    if "v" in args:
        expected = losses.flow_matching(field(weights()), x["z"], x["v"], x["r"])
        anchor = grad(lambda w: losses.flow_matching(field(w), x["z"], x["v"], x["r"]).sum())(weights())
        # alpha-Flow's error is alpha times that of flow matching, its square over alpha alpha times.
        torch.testing.assert_close(value, expected * (ALPHA if loss is alpha_flow else 1))
        torch.testing.assert_close(slopes, anchor)
    elif loss is not with_teacher:
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-28)
        torch.testing.assert_close(slopes, torch.zeros_like(slopes), rtol=0, atol=1e-14)
    assert value.isfinite().all() and slopes.isfinite().all()


@family
def test_the_compiler_traces_the_gradient(loss, reference) -> None:
    args = arguments(loss, numbers())

    def total(w: Tensor, args: Row) -> Tensor:
        return loss(field(w), **args).mean()

    graph = mfk.jit(grad(total)).graph(weights(), args)
    names = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert any("tanh" in name for name in names)


@family
@pytest.mark.parametrize("name", ["z", "v", "r", "s", "t"])
def test_rows_that_do_not_fit_are_refused(loss, reference, name: str) -> None:
    args = arguments(loss, numbers(5))
    if name not in args:
        return
    u = field(weights())
    if name != "z":
        for shape in ((5,), (1, 1), (4, 1), (2, 5, 1), (5, 3), (1, 5, 2)):
            with pytest.raises(ValueError, match=f"^{name}: expected the shape"):
                loss(u, **args | {name: torch.zeros(shape).double()})
        with pytest.raises(TypeError, match=f"^{name}: expected the dtype of z"):
            loss(u, **args | {name: args[name].float()})
    with pytest.raises(ValueError, match=f"^{name}: expected (the|a) shape"):
        loss(u, **args | {name: torch.tensor(0.0).double()})
    for wrong in (args[name].long(), 0.5, None, [[0.0]]):
        with pytest.raises(TypeError, match=f"^{name}: expected a floating-point tensor"):
            loss(u, **args | {name: wrong})


@family
def test_fields_that_do_not_fit_are_refused(loss, reference) -> None:
    args = arguments(loss, numbers())
    for u in (
        lambda z, r, t: z[..., :1],
        lambda z, r, t: z.sum(),
        lambda z, r, t: z[0],
        lambda z, r, t: None,
    ):
        with pytest.raises(ValueError, match=r"^u: expected the field to return z's shape"):
            loss(u, **args)
    with pytest.raises(TypeError, match=r"^u: expected the field to return z's dtype"):
        loss(lambda z, r, t: z.float(), **args)


def test_an_error_of_the_teacher_names_the_teacher() -> None:
    x = numbers()
    for call in (
        lambda teacher: losses.shortcut(field(weights()), x["z"], x["r"], x["t"], teacher),
        lambda teacher: losses.split_meanflow(field(weights()), x["z"], x["r"], x["s"], x["t"], teacher),
    ):
        with pytest.raises(ValueError, match=r"^teacher: expected the field to return z's shape"):
            call(lambda z, r, t: z[..., :1])
        with pytest.raises(TypeError, match=r"^teacher: expected the field to return z's dtype"):
            call(lambda z, r, t: z.float())


def test_a_teacher_gets_no_gradient() -> None:
    x = numbers()

    def total(w: Tensor) -> Tensor:
        return losses.shortcut(TEACHER, x["z"], x["r"], x["t"], field(w)).sum()

    assert not grad(total)(weights()).any()


@pytest.mark.parametrize("bad", [0, 0.0, -0.5, 1.5, math.nan, math.inf, True, "1", None, torch.zeros(1)])
def test_alpha_out_of_range_is_refused(bad) -> None:
    x = numbers()
    with pytest.raises(ValueError, match=r"^alpha: expected a number"):
        losses.alpha_flow(field(weights()), x["z"], x["v"], x["r"], x["t"], bad)
    with pytest.raises(ValueError, match=r"^alpha: expected a number"):
        losses.alpha_weight(torch.ones(3), bad)


def test_alpha_may_be_a_tensor_of_the_same_dtype() -> None:
    x, u = numbers(), field(weights())
    rows = (x["z"], x["v"], x["r"], x["t"])
    number = losses.alpha_flow(u, *rows, ALPHA)
    tensor = torch.tensor(ALPHA, dtype=torch.float64)
    torch.testing.assert_close(losses.alpha_flow(u, *rows, tensor), number)
    with pytest.raises(TypeError, match=r"^alpha: expected the dtype torch.float64"):
        losses.alpha_flow(u, *rows, tensor.float())
    # It is annealed without a new trace: one graph serves every value.
    graph = mfk.jit(lambda alpha: losses.alpha_flow(u, *rows, alpha)).graph(tensor)
    (annealed, *_) = (node for node in graph.graph.nodes if node.op == "placeholder")
    assert len(annealed.users) > 0


@pytest.mark.parametrize(
    ("change", "name"),
    [({"eps": eps}, "eps") for eps in (0, -1e-3, math.nan, math.inf, True, "1", None, torch.tensor(0.1))]
    + [({"sides": sides}, "sides") for sides in (0, 3, True, "2", None)],
)
def test_differences_out_of_range_are_refused(change, name) -> None:
    x = numbers()
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        losses.meanflow_finite_difference(field(weights()), x["z"], x["v"], x["r"], x["t"], **change)


def test_the_rate_that_a_difference_reports_is_detached() -> None:
    x = numbers()
    for sides in (1, 2):

        def rate(w: Tensor, sides: Literal[1, 2] = sides) -> Tensor:
            rows = (x["z"], x["v"], x["r"], x["t"])
            return losses.finite_difference_terms(field(w), *rows, eps=EPS, sides=sides).rate.sum()

        assert not grad(rate)(weights()).any()
