"""Guidance: its identities at 0 and 1, the fixed point that training on it has, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import Gaussians
from torch import Tensor
from torch.func import grad, vmap

from mfk.losses import flow_matching, guided, guided_velocity, sample, sample_euler, sample_midpoint

WITH, WITHOUT = Gaussians(m1=2.0, s1=0.5), Gaussians(m1=-1.0, s1=0.9, rho=0.3)


def rows(count: int = 40, dims: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(2, count, dims, dtype=torch.float64, generator=generator)
    pair = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    return z, v, pair.amin(1, keepdim=True), pair.amax(1, keepdim=True)


def test_scale_one_is_the_conditional_field_and_zero_the_other() -> None:
    z, _, r, t = rows()
    torch.testing.assert_close(guided(WITH.u, WITHOUT.u, 1)(z, r, t), WITH.u(z, r, t))
    assert torch.equal(guided(WITH.u, WITHOUT.u, 0)(z, r, t), WITHOUT.u(z, r, t))
    torch.testing.assert_close(guided(WITH.u, WITH.u, 7.5)(z, r, t), WITH.u(z, r, t))
    beyond = guided(WITH.u, WITHOUT.u, 2.5)(z, r, t)
    torch.testing.assert_close(beyond, 2.5 * WITH.u(z, r, t) - 1.5 * WITHOUT.u(z, r, t))


def test_straight_flows_are_guided_in_one_step() -> None:
    z, *_ = rows()
    u = guided(Gaussians(m1=2.0, s1=1.0, rho=1.0).u, Gaussians(m1=-1.0, s1=1.0, rho=1.0).u, 1.5)
    for samples in (sample(u, z), sample_euler(u, z, 3), sample_midpoint(u, z, 3)):
        torch.testing.assert_close(samples, z + 1.5 * 2.0 + 0.5 * 1.0)


def test_bent_flows_are_not() -> None:
    """The average velocities' mixture is not the guided flow's average velocity, as the docstring warns."""
    z, *_ = rows()
    u = guided(WITH.u, WITHOUT.u, 2.0)
    fine, finer = (sample_midpoint(u, z, steps) for steps in (200, 400))
    assert (fine - finer).abs().max() < 1e-4
    assert (sample(u, z) - finer).abs().max() > 0.1


def test_the_velocity_without_guidance_is_the_row_s_own() -> None:
    z, v, r, _ = rows()
    torch.testing.assert_close(guided_velocity(WITH.u, WITHOUT.u, z, v, r, 1), v)
    torch.testing.assert_close(
        guided_velocity(WITH.u, WITHOUT.u, z, v, r, 0), WITHOUT.u(z, r, r), rtol=0, atol=0
    )
    both = guided_velocity(WITH.u, WITHOUT.u, z, v, r, 0.6, 0.7)
    torch.testing.assert_close(both, 0.6 * v + 0.7 * WITH.u(z, r, r) - 0.3 * WITHOUT.u(z, r, r))
    # Nothing is gained where all three agree.
    own = WITH.velocity(z, r)
    for scale, mix in ((3.0, 0.0), (0.5, 0.5), (-1.0, 0.9)):
        torch.testing.assert_close(guided_velocity(WITH.u, WITH.u, z, own, r, scale, mix), own)


@pytest.mark.parametrize(("scale", "mix"), [(2.0, 0.0), (0.6, 0.7), (1.0, 0.5)])
def test_training_on_it_settles_at_scale_over_one_minus_mix(scale: float, mix: float) -> None:
    """u(z, r, r) = guided at ω/(1 - κ) is its own target when v is the conditional mean."""
    z, _, r, _ = rows()
    settled = guided(WITH.u, WITHOUT.u, scale / (1 - mix))
    target = guided_velocity(settled, WITHOUT.u, z, WITH.velocity(z, r), r, scale, mix)
    torch.testing.assert_close(target, settled(z, r, r))
    assert flow_matching(settled, z, target, r).max() < 1e-24


def test_it_carries_no_gradient_and_spares_what_it_can() -> None:
    z, v, r, _ = rows()
    calls = []

    def counted(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        calls.append(torch.equal(r, t))
        return WITH.u(z, r, t)

    guided_velocity(counted, WITHOUT.u, z, v, r, 2.0)
    assert calls == []
    guided_velocity(counted, counted, z, v, r, 2.0, 0.1)
    assert calls == [True, True]

    def total(gain: Tensor) -> Tensor:
        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return gain * z

        return guided_velocity(u, u, z, v, r, 2.0, 0.5).sum()

    assert float(grad(total)(torch.tensor(2.0).double())) == 0


def test_agreement_with_its_vmap() -> None:
    z, v, r, t = rows(6)
    batched = guided_velocity(WITH.u, WITHOUT.u, z, v, r, 2.0, 0.3)
    single = vmap(lambda z, v, r: guided_velocity(WITH.u, WITHOUT.u, z, v, r, 2.0, 0.3))(z, v, r)
    torch.testing.assert_close(single, batched)
    u = guided(WITH.u, WITHOUT.u, 2.0)
    torch.testing.assert_close(vmap(u)(z, r, t), u(z, r, t))


def exact(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    return z


@pytest.mark.parametrize("number", [math.inf, math.nan, True, "1", None])
def test_numbers_out_of_range_are_refused(number) -> None:
    z, r = torch.zeros(5, 3), torch.zeros(5, 1)
    with pytest.raises(ValueError, match=r"^scale: expected a finite number"):
        guided(exact, exact, number)
    with pytest.raises(ValueError, match=r"^scale: expected a finite number"):
        guided_velocity(exact, exact, z, z, r, number)
    with pytest.raises(ValueError, match=r"^mix: expected a finite number"):
        guided_velocity(exact, exact, z, z, r, 1.0, number)
    for mix in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"^mix: expected a number in \[0, 1\)"):
            guided_velocity(exact, exact, z, z, r, 1.0, mix)


def test_rows_and_fields_that_do_not_fit_are_refused() -> None:
    z, r = torch.zeros(5, 3), torch.zeros(5, 1)
    for v in (torch.zeros(3), torch.zeros(1, 3), torch.zeros(5, 1)):
        with pytest.raises(ValueError, match=r"^v: expected"):
            guided_velocity(exact, exact, z, v, r, 1.0)
    for bad in (torch.zeros(5), torch.zeros(1, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match=r"^r: expected"):
            guided_velocity(exact, exact, z, z, bad, 1.0)
    with pytest.raises(TypeError, match=r"^v: expected the dtype of z"):
        guided_velocity(exact, exact, z, z.double(), r, 1.0)
    with pytest.raises(ValueError, match=r"^unconditional: expected the field to return"):
        guided_velocity(exact, lambda z, r, t: z[:1], z, z, r, 1.0)
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        guided_velocity(lambda z, r, t: z[:1], exact, z, z, r, 1.0, 0.5)
    with pytest.raises(ValueError, match=r"^unconditional: expected the field to return"):
        guided(exact, lambda z, r, t: z[:1], 1.0)(z, r, r)
    with pytest.raises(ValueError, match=r"^u: expected the field to return"):
        guided(lambda z, r, t: z[:1], exact, 1.0)(z, r, r)
