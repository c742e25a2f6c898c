"""From a field to a sample: by average velocities, or by instantaneous ones in many steps."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core.types import Field, describe
from mfk.losses.fields import call_field


def sample(u: Field, z0: Tensor, steps: int = 1) -> Tensor:
    """Follow the flow from time 0 to 1: z_t = z_r + (t - r) u(z_r, r, t) over equal intervals.

    With one step this is z1 = z0 + u(z0, 0, 1).

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        z0: state at time 0, [..., D].
        steps: number of intervals, >= 1.

    Returns:
        State at time 1, [..., D].

    Raises:
        ValueError: `steps` is not a positive int, or the field returns another shape than z0's.
        TypeError: `z0` is not a floating-point tensor, or the field returns another dtype.
    """
    one = _check(z0, steps)
    z = z0
    for k in range(steps):
        r, t = k / steps, (k + 1) / steps
        z = z + call_field(u, z, r * one, t * one) / steps
    return z


def sample_euler(u: Field, z0: Tensor, steps: int) -> Tensor:
    """Follow the instantaneous velocity u(z, r, r) from time 0 to 1: z += u(z, r, r) / steps.

    The error falls as 1 / steps. For a field whose t = r alone is trained, or is guided.

    Args, returns and errors are those of `sample`.
    """
    one = _check(z0, steps)
    z = z0
    for k in range(steps):
        r = k / steps * one
        z = z + call_field(u, z, r, r) / steps
    return z


def sample_midpoint(u: Field, z0: Tensor, steps: int) -> Tensor:
    """Follow the instantaneous velocity by the midpoint rule: half a step to look, a whole step from it.

    Two evaluations a step; the error falls as 1 / steps².

    Args, returns and errors are those of `sample`.
    """
    one = _check(z0, steps)
    z = z0
    for k in range(steps):
        r, middle = k / steps * one, (k + 0.5) / steps * one
        halfway = z + call_field(u, z, r, r) / (2 * steps)
        z = z + call_field(u, halfway, middle, middle) / steps
    return z


def _check(z0: Tensor, steps: int) -> Tensor:
    """Ones of the shape that a time has, [..., 1]."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected an int >= 1, got {describe(steps)}")
    if not isinstance(z0, Tensor) or not z0.is_floating_point():
        raise TypeError(f"z0: expected a floating-point tensor, got {describe(z0)}")
    if z0.ndim == 0:
        raise ValueError("z0: expected a shape [..., D], got a 0-dimensional tensor")
    return torch.ones_like(z0[..., :1])
