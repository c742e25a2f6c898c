"""What networks refuse: sizes they cannot have, and inputs that are not what they were built for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.core.types import describe


def check_sizes(least: int = 1, **sizes: int) -> None:
    """ValueError that names the first of `sizes` which is not an int >= `least`."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {describe(size)}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of the strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {describe(value)}")


def check_frames(x: Tensor, inputs: int, dtype: torch.dtype, name: str = "x") -> None:
    """Frames are [B, T, inputs] with T >= 1 (ValueError), in the parameters' `dtype` (TypeError)."""
    _check_dtype(name, x, dtype, "the network's")
    if x.ndim != 3 or x.shape[2] != inputs or x.shape[1] < 1:
        raise ValueError(f"{name}: expected the shape [B, T, {inputs}] with T >= 1, got {tuple(x.shape)}")


def check_rows(x: Tensor, inputs: int, dtype: torch.dtype, name: str = "x") -> None:
    """Rows are [..., inputs] (ValueError), in the parameters' `dtype` (TypeError)."""
    _check_dtype(name, x, dtype, "the network's")
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"{name}: expected the shape [..., {inputs}], got {tuple(x.shape)}")


def check_condition(condition: Tensor | None, width: int, x: Tensor, *, per_frame: bool) -> None:
    """A condition of the frames `x` [B, T, F] is None, [B, width] or, where `per_frame`, [B, T, width].

    Of a network that was built with condition=0 it is None.
    """
    if condition is None:
        return
    if width == 0:
        raise ValueError(
            f"condition: expected None, as the network was built with condition=0, got {describe(condition)}"
        )
    _check_dtype("condition", condition, x.dtype, "x's")
    shapes = [(x.shape[0], width), *([(*x.shape[:2], width)] if per_frame else [])]
    if tuple(condition.shape) not in shapes:
        raise ValueError(
            f"condition: expected the shape {' or '.join(map(str, shapes))}, got {tuple(condition.shape)}; "
            f"x is {tuple(x.shape)}"
        )


def check_key(key: Tensor | None, rows: tuple[int, ...]) -> None:
    """A key of `dropout` is None or int64 (TypeError), one number per row (ValueError)."""
    if key is None:
        return
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        raise TypeError(f"key: expected an int64 tensor or None, got {describe(key)}")
    if tuple(key.shape) != rows:
        raise ValueError(f"key: expected the shape {rows}, one number per row, got {tuple(key.shape)}")


def check_input(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, whose: str) -> None:
    """A further input has exactly this shape (ValueError) and floating-point `dtype` (TypeError)."""
    _check_dtype(name, x, dtype, whose)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected the shape {shape}, got {tuple(x.shape)}")


def check_exact(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What no network casts, labels and masks, has exactly this shape (ValueError) and dtype (TypeError)."""
    if not isinstance(x, Tensor) or x.dtype != dtype:
        raise TypeError(f"{name}: expected a tensor of {dtype}, got {describe(x)}")
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected the shape {shape}, got {tuple(x.shape)}")


def _check_dtype(name: str, x: Tensor, dtype: torch.dtype, whose: str) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
    # Autocast brings its own dtypes to one, and leaves float64 alone.
    meet = torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, dtype)
    if x.dtype != dtype and not meet:
        raise TypeError(f"{name}: expected {whose} dtype, {dtype}, got {x.dtype}")
