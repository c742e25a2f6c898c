"""What every loss does with a field: check the rows, call it, differentiate it, square the error."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp

from mfk.core.norms import WrittenNorms
from mfk.core.types import Field, describe


class FieldTerms(NamedTuple):
    """The parts of a loss that has no rate at hand, for whoever reports them too."""

    squared_error: Tensor  # [...], the loss
    value: Tensor  # [..., D], u(z, r, t)


def call_field(u: Field, z: Tensor, r: Tensor, t: Tensor, name: str = "u") -> Tensor:
    """u(z, r, t), which must have z's shape (ValueError) and dtype (TypeError).

    Under torch.autocast a field may return the lower precision asked for there; it is widened to z's.
    `name` is what an error calls the field.
    """
    if not callable(u):
        raise TypeError(f"{name}: expected a field, a function of (z, r, t), got {describe(u)}")
    out = u(z, r, t)
    if not isinstance(out, Tensor) or out.shape != z.shape:
        raise ValueError(
            f"{name}: expected the field to return z's shape {tuple(z.shape)}, got {describe(out)}"
        )
    if out.dtype != z.dtype and torch.is_autocast_enabled(z.device.type):
        out = out.to(z.dtype)
    if out.dtype != z.dtype:
        raise TypeError(f"{name}: expected the field to return z's dtype {z.dtype}, got {out.dtype}")
    return out


def value_and_rate(
    u: Field, z: Tensor, v: Tensor, r: Tensor, t: Tensor, through: bool = False
) -> tuple[Tensor, Tensor]:
    """u(z, r, t) and its derivative at the start: tangents dz = v, dr = 1, dt = 0.

    `through`: whether the caller's gradient flows through the derivative; where it does not, the norms in
    the field keep their fused kernels (see `WrittenNorms`).
    """
    return _directional(u, (z, r, t), (v, torch.ones_like(r), torch.zeros_like(t)), through)


def value_and_end_rate(u: Field, z: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """u(z, r, t) and its derivative at the end, through which gradients may flow: dz = 0, dr = 0, dt = 1."""
    return _directional(u, (z, r, t), (torch.zeros_like(z), torch.zeros_like(r), torch.ones_like(t)), True)


def safe_span(length: Tensor) -> Tensor:
    """A length of time to divide by: 1 where it is 0, so that neither value nor gradient is a NaN."""
    return torch.where(length == 0, torch.ones_like(length), length)


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² over the last axis."""
    return (x * x).sum(-1)


def check_rows(states: dict[str, Tensor], times: dict[str, Tensor]) -> None:
    """States by name, the first [..., D] and the others alike, and times [..., 1], of one dtype.

    Raises:
        ValueError: shapes that do not agree, or that would broadcast.
        TypeError: dtypes that differ, or are not of floating point.
    """
    first, z = next(iter(states.items()))
    for name, x in {**states, **times}.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
        if x.dtype != z.dtype:
            raise TypeError(f"{name}: expected the dtype of {first}, {z.dtype}, got {x.dtype}")
    if z.ndim == 0:
        raise ValueError(f"{first}: expected a shape [..., D], got a 0-dimensional tensor")
    shape = tuple(z.shape)
    for name, x in states.items():
        if x.shape != shape:
            raise ValueError(f"{name}: expected the shape of {first}, {shape}, got {tuple(x.shape)}")
    for name, x in times.items():
        if x.shape != (*shape[:-1], 1):
            raise ValueError(
                f"{name}: expected the shape {(*shape[:-1], 1)}, one time for each row of {first} "
                f"{shape}, got {tuple(x.shape)}"
            )


def _directional(
    u: Field, at: tuple[Tensor, Tensor, Tensor], along: tuple[Tensor, Tensor, Tensor], through: bool
) -> tuple[Tensor, Tensor]:
    def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        with WrittenNorms() if through else nullcontext():
            return call_field(u, z, r, t)

    value, rate = jvp(field, at, along)[:2]
    return value, rate
