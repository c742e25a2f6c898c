"""Joints that wrap: angles, paths and fields that do not know how many turns were made.

A revolute joint without limits lives on a circle. Its copies that are 2π apart are one state, the way
from one state to another is the shorter one, and a field has to be the same at every copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mfk.core.types import Field, describe
from mfk.losses.fields import check_rows

Periodic = Tensor | Sequence[bool]
"""Which axes wrap: bool, [D]; a tensor on the states' device saves copying it there at every call."""


def wrap(angle: Tensor, periodic: Periodic | None = None) -> Tensor:
    """The copy of an angle in [-π, π), whose derivative is 1 everywhere.

    An angle that is there already comes back bit for bit.

    Args:
        angle: rad, [...]; [..., D] with `periodic`.
        periodic: the axes to wrap, bool [D]; None: all.

    Returns:
        Angles in rad, of the same shape.

    Raises:
        ValueError: `periodic` has another length than the last axis.
        TypeError: `angle` is not a floating-point tensor, or `periodic` is not bool.
    """
    if not isinstance(angle, Tensor) or not angle.is_floating_point():
        raise TypeError(f"angle: expected a floating-point tensor, got {describe(angle)}")
    wrapped = angle - 2 * math.pi * torch.floor((angle + math.pi) / (2 * math.pi))
    # Rounding may leave it on the far side of the seam, and must not touch what needs no turn.
    wrapped = torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)
    wrapped = torch.where(wrapped < -math.pi, wrapped + 2 * math.pi, wrapped)
    wrapped = torch.where((angle >= -math.pi) & (angle < math.pi), angle, wrapped)
    if periodic is None:
        return wrapped
    return torch.where(_mask(periodic, angle), wrapped, angle)


def torus_path(z0: Tensor, z1: Tensor, t: Tensor, periodic: Periodic) -> tuple[Tensor, Tensor]:
    """State and velocity at time t of the shortest path from z0 to z1.

    v = wrap(z1 - z0), z_t = wrap(z0 + t v) on the axes that wrap; v = z1 - z0, z_t = z0 + t v on the
    others. Two states exactly half a turn apart are joined through falling angles.

    Args:
        z0: state at time 0, [..., D]; rad where it wraps.
        z1: state at time 1, [..., D].
        t: time in [0, 1], [..., 1].
        periodic: which axes wrap, bool [D].

    Returns:
        z_t, [..., D], and v, [..., D].

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ, or `periodic` is not bool.
    """
    check_rows({"z0": z0, "z1": z1}, {"t": t})
    v = wrap(z1 - z0, periodic)
    return wrap(z0 + t * v, periodic), v


def on_torus(u: Field, periodic: Periodic) -> Field:
    """The field u(wrap(z), r, t): the same at all copies of a state.

    Every loss and sampler of the package takes it as it takes any field; what a sampler returns may be
    any copy, `wrap(result, periodic)` is the one in [-π, π). The transform makes a field periodic, not
    continuous: at the seam it is as continuous as training made `u`. A network that sees its angles
    through sine and cosine is both already, and needs no transform.

    Args:
        u: the field, (z[..., D], r[..., 1], t[..., 1]) -> [..., D].
        periodic: which axes wrap, bool [D].

    Raises:
        ValueError, TypeError: at the call, as `wrap`.
    """
    return lambda z, r, t: u(wrap(z, periodic), r, t)


def _mask(periodic: Periodic, like: Tensor) -> Tensor:
    if not isinstance(periodic, Tensor):
        if not isinstance(periodic, Iterable) or not all(isinstance(wraps, bool) for wraps in periodic):
            raise TypeError(f"periodic: expected bools, got {describe(periodic)}")
        periodic = torch.tensor(tuple(periodic), dtype=torch.bool, device=like.device)
    if periodic.dtype != torch.bool:
        raise TypeError(f"periodic: expected bools, got {describe(periodic)}")
    if like.ndim == 0 or periodic.shape != like.shape[-1:]:
        raise ValueError(
            f"periodic: expected one bool for each of the last axis of {describe(like)}, "
            f"got {tuple(periodic.shape)}"
        )
    return periodic
