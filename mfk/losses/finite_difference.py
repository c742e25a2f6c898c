"""MeanFlow with a difference quotient in place of the forward derivative."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mfk.core.types import Field, describe
from mfk.losses.fields import call_field, check_rows, safe_span, squared_norm
from mfk.losses.flow import MeanFlowTerms


def meanflow_finite_difference(
    u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor, eps: float = 5e-3, sides: Literal[1, 2] = 2
) -> Tensor:
    """`meanflow` with Du ≈ [u(z + h v, r + h, t) - u(z - k v, r - k, t)] / (h + k).

    h = k = ε where there is room; the start times r + h and r - k are kept inside [0, t], so that the
    quotient becomes one-sided at the ends. With one side k = 0, and u(z, r, t) serves again. The error
    of Du is of the order of ε² with two sides and of ε with one; in fp32 that of rounding is about
    1e-7 / ε. At t = r the value is that of `flow_matching`.

    For networks without a forward derivative (fused attention, custom kernels).

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z: state at time r, [..., D].
        v: conditional velocity z1 - z0, [..., D].
        r: start time, [..., 1], 0 <= r <= t.
        t: end time, [..., 1], t <= 1.
        eps: ε, in units of time, > 0; 5e-3 to 1e-2 in fp32.
        sides: 2, or 1 for one evaluation less.

    Returns:
        Squared error, [...].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast; eps or sides out of range.
        TypeError: dtypes that differ.
    """
    return finite_difference_terms(u, z, v, r, t, eps, sides).squared_error


def finite_difference_terms(
    u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor, eps: float = 5e-3, sides: Literal[1, 2] = 2
) -> MeanFlowTerms:
    """`meanflow_finite_difference` with the field's value and the rate, which is detached.

    Args and errors are those of `meanflow_finite_difference`.
    """
    check_rows({"z": z, "v": v}, {"r": r, "t": t})
    check_difference(eps, sides)
    value = call_field(u, z, r, t)
    # From the times as they are rounded, so that the quotient divides by what the field has seen.
    after = torch.minimum(r + eps, t)
    later = call_field(u, z + (after - r) * v, after, t)
    if sides == 2:
        before = (r - eps).clamp(min=0)
        earlier = call_field(u, z + (before - r) * v, before, t)
    else:
        before, earlier = r, value
    # Both offsets vanish where there is no room at all, at t = r; the rate does not matter there.
    rate = ((later - earlier) / safe_span(after - before)).detach()
    target = (v + (t - r) * rate).detach()
    return MeanFlowTerms(squared_norm(value - target), value, rate)


def check_difference(eps: float, sides: int = 2) -> None:
    """ValueError: eps is not a positive number, or sides not 1 or 2."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise ValueError(f"eps: expected a positive number, got {describe(eps)}")
    if isinstance(sides, bool) or sides not in (1, 2):
        raise ValueError(f"sides: expected 1 or 2, got {describe(sides)}")
