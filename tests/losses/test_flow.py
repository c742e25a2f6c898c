"""Losses against closed forms, their own vmap, finite differences, and hostile shapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_forms import Gaussians, Point, TwoBranches
from torch.func import grad, vmap

from mfk.losses import flow_matching, meanflow, meanflow_residual, meanflow_terms, sample


def times(rows: int, seed: int = 0, largest: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.rand(rows, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * largest
    return pair.amin(1, keepdim=True), pair.amax(1, keepdim=True)


def states(rows: int, dims: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_exact_gaussian_field_satisfies_the_identity(rho: float) -> None:
    case = Gaussians(m0=-0.3, s0=1.2, m1=2.0, s1=0.3, rho=rho)
    r, t = times(200)
    z = case.mean(r) + case.variance(r).sqrt() * states(200, 3)
    v = case.velocity(z, r)
    torch.testing.assert_close(meanflow(case.u, z, v, r, t), torch.zeros(200).double(), atol=1e-20, rtol=0)
    torch.testing.assert_close(flow_matching(case.u, z, v, r), torch.zeros(200).double(), atol=1e-20, rtol=0)


def test_straight_flow_has_no_residual_and_a_bent_one_has() -> None:
    straight, bent = Gaussians(rho=1.0), Gaussians(rho=0.0)
    r, t = times(100)
    z = states(100)
    v = straight.velocity(z, r)
    assert meanflow_residual(straight.u, z, v, r, t).max() < 1e-20
    assert meanflow_residual(bent.u, z, bent.velocity(z, r), r, t).mean() > 0.1


def test_loss_value_of_the_exact_field_with_conditional_velocities() -> None:
    """E ‖Δ‖² = (σ_t/σ_r)² s0² s1²/σ_r² a dimension; Gauss-Hermite quadrature is exact for a square."""
    case = Gaussians(m0=0.5, s0=0.9, m1=-1.0, s1=0.4)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    a, b = (torch.tensor(x).reshape(-1, 1) for x in np.stack(np.meshgrid(nodes, nodes)).reshape(2, -1))
    weight = torch.tensor(np.outer(weights, weights).reshape(-1) / (2 * math.pi))
    z0, z1 = case.m0 + case.s0 * a, case.m1 + case.s1 * b
    for start, end in ((0.0, 1.0), (0.2, 0.7), (0.5, 0.5)):
        r, t = torch.full_like(z0, start), torch.full_like(z0, end)
        loss = (weight * meanflow(case.u, (1 - r) * z0 + r * z1, z1 - z0, r, t)).sum()
        var_r, var_t = case.variance(r)[0], case.variance(t)[0]
        expected = (var_t / var_r) * case.s0**2 * case.s1**2 / var_r
        torch.testing.assert_close(loss, expected[0], rtol=1e-12, atol=0)


def test_point_target_is_regression() -> None:
    case = Point()
    r, t = times(50)
    z0 = states(50, 2)
    z1 = torch.full_like(z0, case.c)
    z, v = (1 - r) * z0 + r * z1, z1 - z0
    assert meanflow(case.u, z, v, r, t).max() < 1e-20
    assert meanflow_residual(case.u, z, v, r, t).max() < 1e-20
    for steps in (1, 3):
        torch.testing.assert_close(sample(case.u, z0, steps), z1)


def test_two_branches_identity_and_samples() -> None:
    case = TwoBranches()
    r, t = times(100, largest=0.8)
    z = states(100)
    assert meanflow(case.u, z, case.velocity(z, r), r, t).max() < 1e-12
    landed = sample(case.u, z)
    torch.testing.assert_close(landed.abs(), torch.full_like(landed, case.c))
    assert (landed.sign() == z.sign()).all()
    # Through intermediate times the same branch is reached.
    torch.testing.assert_close(sample(case.u, z, 4), landed)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gaussian_samples_do_not_depend_on_the_number_of_steps(steps: int) -> None:
    case = Gaussians(m0=-1.0, s0=2.0, m1=3.0, s1=0.1)
    z0 = case.m0 + case.s0 * states(40, 2)
    torch.testing.assert_close(sample(case.u, z0, steps), case.one_step(z0))


def test_a_field_of_zeros_scores_zero_on_the_residual_and_not_on_the_losses() -> None:
    r, t = times(20)
    z, v = states(20, 3), states(20, 3, seed=2)

    def zero(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)

    assert (meanflow_residual(zero, z, v, r, t) == 0).all()
    torch.testing.assert_close(meanflow(zero, z, v, r, t), v.square().sum(-1))


def test_the_end_point_identity_with_the_start_point_sampler_is_wrong() -> None:
    """Turning the paper's time round and keeping its minus sign: the exact field is no solution."""
    case = Gaussians()
    r, t = times(100)
    z = states(100)
    v = case.velocity(z, r)
    terms = meanflow_terms(case.u, z, v, r, t)
    wrong = (terms.value - (v - (t - r) * terms.rate)).square().sum(-1)
    assert terms.squared_error.max() < 1e-20
    assert wrong.mean() > 0.1


def field_with(weights: torch.Tensor):
    def u(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(torch.cat((z, r, t), -1) @ weights[:4].T)
        return hidden @ weights[4:]

    return u


def problem(rows: int = 6) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.5
    r, t = times(rows)
    return weights, states(rows, 2), states(rows, 2, seed=5), r, t


def two_wide(weights: torch.Tensor):
    full = field_with(torch.cat((weights[:4], weights[4:].repeat(2, 1)), 0))
    return lambda z, r, t: full(z, r, t)[..., :2]


def test_losses_agree_with_their_vmap() -> None:
    weights, z, v, r, t = problem()
    u = two_wide(weights)
    for loss, args in (
        (meanflow, (z, v, r, t)),
        (meanflow_residual, (z, v, r, t)),
        (flow_matching, (z, v, r)),
    ):
        batched = loss(u, *args)
        assert batched.shape == (6,)
        torch.testing.assert_close(vmap(lambda *row, loss=loss: loss(u, *row))(*args), batched)
        for lead in ((2, 3), (6, 1)):
            shaped = loss(u, *(x.reshape(*lead, -1) for x in args))
            torch.testing.assert_close(shaped.reshape(6), batched)


def test_gradient_is_that_of_a_fixed_target() -> None:
    """Finite differences in float64 of ‖u_θ - target‖² with the target of the unmoved parameters."""
    weights, z, v, r, t = problem()
    terms = meanflow_terms(two_wide(weights), z, v, r, t)
    target = v + (t - r) * terms.rate

    def fixed(w: torch.Tensor) -> torch.Tensor:
        return (two_wide(w)(z, r, t) - target).square().sum()

    found = grad(lambda w: meanflow(two_wide(w), z, v, r, t).sum())(weights)
    for i, j in ((0, 0), (2, 3), (5, 1)):
        nudge = torch.zeros_like(weights)
        nudge[i, j] = 1e-6
        numeric = (fixed(weights + nudge) - fixed(weights - nudge)) / 2e-6
        torch.testing.assert_close(found[i, j], numeric, rtol=1e-6, atol=1e-9)


def test_rate_against_finite_differences() -> None:
    weights, z, v, r, t = problem()
    u = two_wide(weights)
    h = 1e-6
    numeric = (u(z + h * v, r + h, t) - u(z - h * v, r - h, t)) / (2 * h)
    torch.testing.assert_close(meanflow_terms(u, z, v, r, t).rate, numeric, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        meanflow_residual(u, z, v, r, t), numeric.square().sum(-1), rtol=1e-7, atol=1e-9
    )


def exact(z: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return z


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"r": torch.zeros(5)}, "r"),
        ({"t": torch.zeros(5)}, "t"),
        ({"t": torch.zeros(1, 1)}, "t"),
        ({"r": torch.tensor(0.0)}, "r"),
        ({"v": torch.zeros(3)}, "v"),
        ({"v": torch.zeros(5, 1)}, "v"),
        ({"v": torch.zeros(4, 3)}, "v"),
        ({"z": torch.tensor(0.0)}, "z"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(change: dict[str, torch.Tensor], name: str) -> None:
    args = {"z": torch.zeros(5, 3), "v": torch.zeros(5, 3), "r": torch.zeros(5, 1), "t": torch.ones(5, 1)}
    args |= change
    for loss in (meanflow, meanflow_residual):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            loss(exact, **args)
    if name != "t":
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            flow_matching(exact, args["z"], args["v"], args["r"])


def test_dtypes_and_fields_that_do_not_fit_are_refused() -> None:
    z, r = torch.zeros(5, 3), torch.zeros(5, 1)
    with pytest.raises(TypeError, match=r"^v: expected the dtype of z"):
        meanflow(exact, z, z.double(), r, r)
    with pytest.raises(TypeError, match=r"^z: expected a floating-point tensor"):
        flow_matching(exact, z.long(), z, r)
    with pytest.raises(TypeError, match=r"^r: expected a floating-point tensor"):
        flow_matching(exact, z, z, 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        flow_matching(lambda z, r, t: z[..., :1], z, z, r)
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        meanflow(lambda z, r, t: z.sum(), z, z, r, r)
    with pytest.raises(TypeError, match=r"^u: expected a field, a function of \(z, r, t\), got 3"):
        meanflow(3, z, z, r, r)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"^u: expected the field to return z's dtype"):
        meanflow(lambda z, r, t: z.double(), z, z, r, r)
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        sample(lambda z, r, t: None, z)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^steps: expected"):
        sample(exact, z, 0)
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        sample(lambda z, r, t: z[0], z)
