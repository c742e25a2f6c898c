"""Positions as rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe


def apply_rotary(x: Tensor, positions: Tensor | None = None, base: float = 10_000.0) -> Tensor:
    """Pairs of numbers turned by an angle that grows with the position.

        (x_i, x_{i+d/2}) -> (x_i cos a - x_{i+d/2} sin a, x_{i+d/2} cos a + x_i sin a)
        a = position · base^(-2i/d),    i = 0 ... d/2 - 1

    The norm stays, position 0 changes nothing, and the product of a query and a key that were turned depends
    on the difference of their positions only. Number i is paired with number i + d/2 (the "half" convention;
    others pair 2i with 2i + 1, which is the same up to an order of the numbers). In bf16 and fp16 the
    rotation is taken in fp32.

    Args:
        x: queries or keys, [..., T, d], d even.
        positions: of the T axis, integers or floating-point numbers: [T], or x's leading axes and T, each
            of which may be 1; None: 0 ... T - 1.
        base: > 1, finite.

    Returns:
        [..., T, d] in x's dtype.

    Raises:
        ValueError: an odd d, positions of another shape, `base` out of range.
        TypeError: `x` not of floating point, `positions` not a tensor of numbers.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 15 and 34.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {describe(x)}")
    if x.ndim < 2 or x.shape[-1] < 2 or x.shape[-1] % 2:
        raise ValueError(f"x: expected the shape [..., T, d] with an even d, got {tuple(x.shape)}")
    if isinstance(base, bool) or not isinstance(base, int | float) or not 1 < base < math.inf:
        raise ValueError(f"base: expected a finite number > 1, got {describe(base)}")
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if positions is None:
        positions = torch.arange(x.shape[-2], device=x.device)
    _check_positions(positions, tuple(x.shape[:-1]))
    d = x.shape[-1]
    rates = base ** (-torch.arange(0, d, 2, dtype=dtype, device=x.device) / d)
    angle = positions.to(dtype).unsqueeze(-1) * rates
    cos, sin = angle.cos(), angle.sin()
    first, second = x.to(dtype).chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def _check_positions(positions: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(positions, Tensor) or positions.dtype == torch.bool or positions.is_complex():
        raise TypeError(f"positions: expected a tensor of numbers, got {describe(positions)}")
    given = tuple(positions.shape)
    fits = len(given) == len(shape) and all(a in (1, b) for a, b in zip(given, shape, strict=True))
    if given != shape[-1:] and not (fits and given[-1] == shape[-1]):
        raise ValueError(
            f"positions: expected the shape {shape[-1:]} or {shape}, where all but the last may be 1, "
            f"got {given}"
        )
