"""Diffusion: a schedule of noise, what it makes of data, and the deterministic way back.

Step s of N mixes data and noise, z = √ᾱ_s x + √(1 - ᾱ_s) ε; a network is trained to tell ε from z and s, by
`squared_error`, say. Steps count from 0, the least noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows


def signal_shares(steps: int = 1_000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """What is left of the data's variance after each step: ᾱ_s = Π_{i <= s} (1 - β_i), β linear.

    Args:
        steps: N, an int >= 1.
        first: β of step 0, in (0, 1).
        last: β of the last step, in (0, 1).

    Returns:
        [N], float32, falling.

    Raises:
        ValueError: out of range.

    Source: Ho et al. 2020, arXiv:2006.11239, section 4.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an int >= 1, got {describe(steps)}")
    for name, value in (("first", first), ("last", last)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {describe(value)}")
    betas = torch.linspace(first, last, steps, dtype=torch.float64, device="cpu")
    return (1 - betas).cumprod(0).float()


def add_noise(x: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """Z = √ᾱ x + √(1 - ᾱ) ε.

    Args:
        x: data, [..., D].
        noise: ε, [..., D].
        share: ᾱ of each row, [..., 1], in [0, 1].

    Raises:
        ValueError: shapes that do not agree. TypeError: dtypes that differ.
    """
    check_rows({"x": x, "noise": noise}, {"share": share})
    return share.sqrt() * x + (1 - share).sqrt() * noise


def sample_ddim(
    noise_in: Callable[[Tensor, Tensor], Tensor], z: Tensor, shares: Tensor, steps: int
) -> Tensor:
    """From noise to data in a few deterministic steps, evenly spread over the schedule, the last to ᾱ = 1.

    x = (z - √(1 - ᾱ) ε) / √ᾱ, then z' = √ᾱ' x + √(1 - ᾱ') ε.

    Args:
        noise_in: the network, (z [..., D], (s + 1) / N [..., 1]) -> ε [..., D].
        z: noise, [..., D].
        shares: as of `signal_shares`, [N].
        steps: evaluations of the network, 1 to N.

    Returns:
        [..., D].

    Raises:
        ValueError: `steps` out of range, or `shares` is no [N].

    Source: Song et al. 2021, arXiv:2010.02502, eq. 12 with σ = 0.
    """
    if shares.ndim != 1 or not len(shares):
        raise ValueError(f"shares: expected a tensor [N], got {describe(shares)}")
    total = len(shares)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
        raise ValueError(f"steps: expected an int in [1, {total}], got {describe(steps)}")
    values = shares.tolist()
    chosen = [math.ceil(total * (k + 1) / steps) - 1 for k in range(steps)][::-1]
    for s, after in zip(chosen, [*chosen[1:], None], strict=True):
        share, then = values[s], 1.0 if after is None else values[after]
        noise = noise_in(z, torch.full_like(z[..., :1], (s + 1) / total))
        x = (z - math.sqrt(1 - share) * noise) / math.sqrt(share)
        z = math.sqrt(then) * x + math.sqrt(1 - then) * noise
    return z
