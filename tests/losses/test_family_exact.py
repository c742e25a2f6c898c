"""The losses of the family at average velocities known in closed form: zero, stationary, or how far off."""

from __future__ import annotations

import math
from collections.abc import Callable

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
