"""The losses of the family at average velocities known in closed form: zero, stationary, or how far off."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from closed_forms import Gaussians, Point, TwoBranches
from test_family import field, numbers, weights
from torch import Tensor
from torch.func import grad

from mfk import losses
from mfk.core.types import Field

ALPHAS = (0.5, 0.1, 0.02, 0.004)
# Where the quoted slopes were measured, between Gaussians of deviations 1 and 0.5.
START, END = 0.3, 0.9


def times(rows: int, largest: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Start, between, end."""
    draws = torch.rand(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * largest
    r, s, t = draws.sort(1).values.split(1, 1)
    return r, s, t


def states(rows: int, dims: int = 1) -> Tensor:
    return torch.randn(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def errors(u: Field, velocity, z: Tensor, r: Tensor, s: Tensor, t: Tensor) -> dict[str, float]:
    """Largest loss of every member that the exact average velocity satisfies, v being the marginal one."""
    v = velocity(z, r)
    return {
        "improved": float(losses.improved_meanflow(u, z, v, r, t).max()),
        "split": float(losses.split_meanflow(u, z, r, s, t).max()),
        "shortcut": float(losses.shortcut(u, z, r, t).max()),
        "teacher": float(losses.shortcut(u, z, r, t, u).max()),
        "terminal": float(losses.terminal_velocity(u, z, r, t).max()),
    }


@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.4, 1.0])
def test_gaussians_score_zero(rho: float) -> None:
    case = Gaussians(m0=-0.3, s0=1.2, m1=2.0, s1=0.3, rho=rho)
    r, s, t = times(200, 1.0)
    z = case.mean(r) + case.variance(r).sqrt() * states(200, 3)
    assert max(errors(case.u, case.velocity, z, r, s, t).values()) < 1e-18


def test_a_point_scores_zero() -> None:
    case = Point()
    r, s, t = times(200)
    found = errors(case.u, lambda z, r: (case.c - z) / (1 - r), states(200, 2), r, s, t)
    assert max(found.values()) < 1e-18
    # Its field is straight, so that any α and any ε does, with the row's own velocity.
    z0 = states(200, 2)
    v = case.c - z0
    z = z0 + r * v
    for alpha in ALPHAS:
        assert losses.alpha_flow(case.u, z, v, r, t, alpha).max() < 1e-18
    for sides in (1, 2):
        assert losses.meanflow_finite_difference(case.u, z, v, r, t, 5e-3, sides).max() < 1e-18


def two_branches(case: TwoBranches) -> Field:
    """Its average velocity, with the limit at t = r."""

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        same = t == r
        span = torch.where(same, torch.ones_like(t), t - r)
        return torch.where(same, case.velocity(z, r), (case.flow(z, r, t) - z) / span)

    return u


def test_two_branches_score_zero() -> None:
    case = TwoBranches()
    r, s, t = times(200, 0.8)
    found = errors(two_branches(case), case.velocity, states(200), r, s, t)
    assert max(found.values()) < 1e-10, found


def gaussian_rows(case: Gaussians, count: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs and their weights: Gauss-Hermite quadrature, exact for what is quadratic in the pair."""
    nodes, masses = np.polynomial.hermite_e.hermegauss(count)
    a, b = (torch.tensor(x).reshape(-1, 1) for x in np.stack(np.meshgrid(nodes, nodes)).reshape(2, -1))
    z0 = case.m0 + case.s0 * a
    z1 = case.m1 + case.s1 * (case.rho * a + math.sqrt(1 - case.rho**2) * b)
    return z0, z1, torch.tensor(np.outer(masses, masses).reshape(-1) / (2 * math.pi))


def branch_rows(case: TwoBranches, count: int = 801) -> tuple[Tensor, Tensor, Tensor]:
    """A grid over the prior for each branch: the trapezoid rule, which is exact for smooth bells."""
    nodes = torch.linspace(-8, 8, count, dtype=torch.float64)
    mass = torch.exp(-0.5 * nodes.square())
    z0 = (case.s0 * nodes).repeat(2).unsqueeze(-1)
    z1 = torch.cat((torch.full((count,), case.c), torch.full((count,), -case.c))).double().unsqueeze(-1)
    return z0, z1, (mass / mass.sum()).repeat(2) / 2


def slopes(loss: Callable[..., Tensor], exact: Field, pairs, start: float, end: float) -> Tensor:
    """Gradient of the expected loss with respect to a nudge of the exact field in four directions."""
    z0, z1, mass = pairs
    r, t = torch.full_like(z0, start), torch.full_like(z0, end)
    z = (1 - r) * z0 + r * z1

    def expected(w: Tensor) -> Tensor:
        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return exact(z, r, t) + torch.cat((torch.ones_like(z), z, r * z, t - r), -1) @ w.unsqueeze(-1)

        return (mass * loss(u, z, z1 - z0, r, t)).sum()

    return grad(expected)(torch.zeros(4).double())


STATIONARY = {
    "meanflow": losses.meanflow,
    "improved": losses.improved_meanflow,
    "split": lambda u, z, v, r, t: losses.split_meanflow(u, z, r, r + 0.3 * (t - r), t),
    "shortcut": lambda u, z, v, r, t: losses.shortcut(u, z, r, t),
    "terminal": lambda u, z, v, r, t: losses.terminal_velocity(u, z, r, t),
}


@pytest.mark.parametrize("loss", STATIONARY.values(), ids=STATIONARY.keys())
def test_the_exact_field_is_stationary_with_conditional_velocities(loss) -> None:
    for rho in (0.0, 0.5, 1.0):
        case = Gaussians(m0=0.5, s0=0.9, m1=-1.0, s1=0.4, rho=rho)
        for start, end in ((0.0, 1.0), (0.2, 0.7)):
            found = slopes(loss, case.u, gaussian_rows(case), start, end)
            assert found.abs().max() < 1e-12
    case = TwoBranches()
    found = slopes(loss, two_branches(case), branch_rows(case), 0.1, 0.6)
    assert found.abs().max() < 1e-6, found


def test_a_field_that_is_off_is_not_stationary() -> None:
    case = Gaussians(m0=0.5, s0=0.9, m1=-1.0, s1=0.4)

    def off(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return case.u(z, r, t) + 0.1 * (t - r) * z

    for loss in STATIONARY.values():
        assert slopes(loss, off, gaussian_rows(case), 0.2, 0.7).abs().max() > 1e-3


def test_with_equal_tangents_improved_meanflow_is_meanflow() -> None:
    """v = u(z, r, r): the same value and, the targets being constants, the same gradient."""
    x = numbers()
    own = field(weights())(x["z"], x["r"], x["r"])
    rows = (x["z"], own, x["r"], x["t"])
    torch.testing.assert_close(
        losses.improved_meanflow(field(weights()), *rows), losses.meanflow(field(weights()), *rows)
    )
    improved, plain = (
        grad(lambda w, loss=loss: loss(field(w), *rows).sum())(weights())
        for loss in (losses.improved_meanflow, losses.meanflow)
    )
    assert plain.abs().max() > 0.1
    torch.testing.assert_close(improved, plain)


def fitted_slope(exact: Field, alpha: float, case: Gaussians) -> float:
    """Slope in z that α-Flow's targets have with `exact` on their right side: one Newton step, exact here."""
    z0, z1, mass = gaussian_rows(case)
    r, t = torch.full_like(z0, START), torch.full_like(z0, END)
    z = (1 - r) * z0 + r * z1
    offset, variance = z - case.mean(r), float(case.variance(r[0]))

    def expected(w: Tensor) -> Tensor:
        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return exact(z, r, t) + w * (z - case.mean(r))

        return (mass * losses.alpha_flow(u, z, z1 - z0, r, t, alpha)).sum()

    now = (mass * (exact(z, r, t) * offset).squeeze(-1)).sum() / variance
    return float(now - alpha * grad(expected)(torch.zeros(()).double()) / (2 * variance))


def euler(case: Gaussians, alpha: float) -> Field:
    """The flow by Euler steps, each over a share α of what is left."""
    steps = math.ceil(math.log(1e-14) / math.log1p(-alpha))

    def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        place, time = z, r
        for _ in range(steps):
            length = alpha * (t - time)
            place, time = place + length * case.velocity(place, time), time + length
        return (place - z) / (t - r)

    return u


def falling(gaps: list[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(gaps))


def test_alpha_flow_s_bias_vanishes_with_alpha() -> None:
    """One regression on the exact field's targets, and the fixed point of many, against the true slope."""
    case = Gaussians(m0=0.0, s0=1.0, m1=2.0, s1=0.5)
    r, t = torch.tensor([START]).double(), torch.tensor([END]).double()
    deviation_r, deviation_t = float(case.variance(r).sqrt()), float(case.variance(t).sqrt())
    true = (deviation_t - deviation_r) / ((END - START) * deviation_r)
    assert true == pytest.approx(-0.593, abs=5e-4)
    once = [fitted_slope(case.u, alpha, case) for alpha in ALPHAS]
    assert once[:2] == pytest.approx([-0.692, -0.596], abs=5e-4)
    settled = []
    for alpha in ALPHAS:
        field = euler(case, alpha)
        settled.append(float(field(1 + case.mean(r), r, t) - field(case.mean(r), r, t)))
    assert settled[:2] == pytest.approx([-0.769, -0.622], abs=5e-4)
    for found in (once, settled):
        gaps = [true - x for x in found]
        assert falling(gaps) and gaps[-1] > 0
    # The gap of the fixed point is of the order of α, that of one regression of the order of α².
    assert (true - settled[3]) / (true - settled[2]) == pytest.approx(0.2, rel=0.05)
    assert (true - once[3]) / (true - once[2]) == pytest.approx(0.04, rel=0.1)


def test_alpha_flow_settles_at_euler_steps() -> None:
    case = Gaussians(m0=0.5, s0=0.9, m1=-1.0, s1=0.4)
    for alpha in (0.5, 0.1):

        def loss(u: Field, *rows: Tensor, alpha: float = alpha) -> Tensor:
            return losses.alpha_flow(u, *rows, alpha=alpha)

        pairs = gaussian_rows(case)
        assert slopes(loss, euler(case, alpha), pairs, START, END).abs().max() < 1e-11
        assert slopes(loss, case.u, pairs, START, END).abs().max() > 1e-2
    # All of the interval at once is flow matching: the velocity at the start.
    whole = slopes(
        lambda u, *rows: losses.alpha_flow(u, *rows, alpha=1.0),
        lambda z, r, t: case.velocity(z, r),
        pairs,
        START,
        END,
    )
    assert whole.abs().max() < 1e-12


def biases(loss, case: Gaussians, shares: tuple[float, ...]) -> list[float]:
    pairs = gaussian_rows(case)
    return [
        float(slopes(lambda u, *rows, share=share: loss(u, *rows, share), case.u, pairs, START, END).norm())
        for share in shares
    ]


@pytest.mark.parametrize(
    ("loss", "shares", "order"),
    [
        (losses.alpha_flow, (0.04, 0.02, 0.01, 0.005), 1),
        (lambda *args: losses.meanflow_finite_difference(*args, sides=1), (0.04, 0.02, 0.01, 0.005), 1),
        (lambda *args: losses.meanflow_finite_difference(*args, sides=2), (0.04, 0.02, 0.01, 0.005), 2),
    ],
    ids=["alpha", "one-sided", "two-sided"],
)
def test_the_gradient_at_the_exact_field_vanishes_in_order(loss, shares, order) -> None:
    case = Gaussians(m0=0.5, s0=0.9, m1=-1.0, s1=0.4)
    found = biases(loss, case, shares)
    assert falling(found)
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(found)]
    assert orders == pytest.approx([order] * 3, abs=0.15)


@pytest.mark.parametrize(
    ("loss", "order"),
    [
        (losses.alpha_flow, 1),
        (lambda *args: losses.meanflow_finite_difference(*args, sides=1), 1),
        (lambda *args: losses.meanflow_finite_difference(*args, sides=2), 2),
    ],
    ids=["alpha", "one-sided", "two-sided"],
)
def test_any_field_s_gradient_becomes_that_of_meanflow(loss, order) -> None:
    x = numbers()
    rows = (x["z"], x["v"], x["r"], x["t"])
    limit = grad(lambda w: losses.meanflow(field(w), *rows).sum())(weights())
    gaps = []
    for share in (4e-3, 2e-3, 1e-3):
        found = grad(lambda w, share=share: loss(field(w), *rows, share).sum())(weights())
        gaps.append(float((found - limit).norm() / limit.norm()))
    assert falling(gaps) and gaps[-1] < 5e-3
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(gaps)]
    assert orders == pytest.approx([order] * 2, abs=0.1)


def test_differences_stay_inside_at_the_ends_and_serve_single_precision() -> None:
    x = numbers()
    asked: list[Tensor] = []

    def watched(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        asked.append(r)
        assert (r >= 0).all() and (r <= t).all()
        return field(weights())(z, r, t)

    start, end = torch.zeros_like(x["r"]), torch.full_like(x["r"], 1e-3)
    for sides in (1, 2):
        for r, t in ((start, end), (start, start), (end, end), (x["r"], x["r"] + 1e-3)):
            terms = losses.finite_difference_terms(watched, x["z"], x["v"], r, t, 5e-3, sides)
            assert terms.rate.isfinite().all()
            exact = losses.meanflow_terms(field(weights()), x["z"], x["v"], r, t)
            torch.testing.assert_close(terms.squared_error, exact.squared_error, rtol=1e-4, atol=1e-5)
        asked.clear()
        losses.meanflow_finite_difference(watched, x["z"], x["v"], x["r"], x["t"], 5e-3, sides)
        assert len(asked) == sides + 1
    single = {name: value.float() for name, value in x.items()}
    rows = (single["z"], single["v"], single["r"], single["t"])
    for eps in (5e-3, 1e-2):
        rate = losses.finite_difference_terms(field(weights().float()), *rows, eps).rate
        exact = losses.meanflow_terms(field(weights()), x["z"], x["v"], x["r"], x["t"]).rate
        assert float((rate - exact).norm() / exact.norm()) < 2e-4
