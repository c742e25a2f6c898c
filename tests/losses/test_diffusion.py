"""Schedules of noise and the way back, against closed forms of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mfk.losses import add_noise, sample_ddim, signal_shares


def test_shares_by_hand() -> None:
    shares = signal_shares(3, 0.1, 0.3)
    assert torch.allclose(shares, torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7]))
    documented = signal_shares()
    assert documented.shape == (1000,) and documented[0] == pytest.approx(0.9999)
    assert float(documented[-1]) == pytest.approx(4.04e-5, rel=0.01)  # nearly nothing


def test_noise_keeps_unit_variance_and_the_ends_are_data_and_noise() -> None:
    x, noise = torch.randn(2, 50_000, 2, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.3, 1.0):
        z = add_noise(x, noise, torch.full((50_000, 1), share))
        assert float(z.var()) == pytest.approx(1, abs=0.02)
    assert torch.equal(add_noise(x, noise, torch.ones(50_000, 1)), x)
    assert torch.equal(add_noise(x, noise, torch.zeros(50_000, 1)), noise)


@pytest.mark.parametrize(("steps", "within"), [(1000, 0.02), (100, 0.05), (10, 0.35)])
def test_the_way_back_of_a_gaussian(steps: int, within: float) -> None:
    """Data N(m, s^2): the noise in z is known, and the exact way back multiplies (z - m) by s."""
    m, s, shares = 0.7, 0.3, signal_shares()

    def noise_in(z: Tensor, t: Tensor) -> Tensor:
        share = shares[(t * 1000).round().long() - 1].to(z)
        return (1 - share).sqrt() * (z - share.sqrt() * m) / (share * s * s + 1 - share)

    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = sample_ddim(noise_in, z, shares, steps)
    assert torch.allclose(found, m + s * z, atol=within)


def test_refusals() -> None:
    numbers: list[tuple[Any, ...]] = [(0,), (True,), (10, 0.0), (10, 0.1, 1.0), (10, math.nan)]
    for arguments in numbers:
        with pytest.raises(ValueError):
            signal_shares(*arguments)
    shares = signal_shares(5)
    wrong: list[tuple[Any, ...]] = [(shares, 0), (shares, 6), (shares[None], 2)]
    for given in wrong:
        with pytest.raises(ValueError):
            sample_ddim(lambda z, t: z, torch.zeros(2, 1), *given)
    with pytest.raises(ValueError, match="share"):
        add_noise(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2))
