"""Errors of a prediction, row by row, and their sum over the rows that count.

Every error is the *mean* over the last axis, so that frames of 7 numbers and of 455 read alike; the losses of
`flow` sum it. Nothing broadcasts, and no leading axis is reduced but by `masked_sum`.

Rows that do not count may hold anything, NaN included. To leave them out of the sum is not enough: the
gradient of an error that got no weight is 0 times its slope, and 0 · NaN is NaN. `masked_rows` therefore
fills such rows *before* the network and the error see them, and `masked_sum` leaves them out after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows


def squared_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of a row: Σ_d (pred_d - target_d)² / D.

    Args:
        pred: [..., D], D >= 1.
        target: [..., D].

    Returns:
        [...], in the square of the rows' unit.

    Raises:
        ValueError: shapes that differ, or without a last axis to take the mean over.
        TypeError: dtypes that differ, or are not of floating point.
    """
    return _difference(pred, target).square().mean(-1)


def absolute_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of a row: Σ_d |pred_d - target_d| / D, with gradient 0 where they are equal.

    Args and errors are those of `squared_error`; [...], in the rows' unit.
    """
    return _difference(pred, target).abs().mean(-1)


def smooth_l1_error(pred: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Mean of a parabola near zero and the absolute error far from it, Σ_d h(pred_d - target_d) / D.

        h(x) = x² / (2 β) for |x| < β,    |x| - β/2 otherwise

    Args:
        pred: [..., D], D >= 1.
        target: [..., D].
        beta: β, where the two meet, in the rows' unit; finite, > 0.

    Returns:
        [...], in the rows' unit.

    Raises:
        ValueError: as `squared_error`, or `beta` out of range. TypeError: as `squared_error`.

    Source: Girshick 2015, "Fast R-CNN", arXiv:1504.08083, eq. 3, with β as in PyTorch.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
        raise ValueError(f"beta: expected a finite number > 0, got {describe(beta)}")
    x = _difference(pred, target)
    size = x.abs()
    return torch.where(size < beta, x * x / (2 * beta), size - beta / 2).mean(-1)


def masked_rows(x: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """The rows that count, and `fill` in every number of the others, whose gradient is 0 whatever they hold.

    To be applied to the inputs of a network and to the targets of an error; see the module's first lines.

    Args:
        x: rows, [..., D].
        mask: which of them count, [...], bool.
        fill: a finite number in the rows' unit.

    Returns:
        [..., D].

    Raises:
        ValueError: a mask of another shape than x's leading one, or `fill` is not finite.
        TypeError: `x` is not of floating point, or `mask` not of bool.
    """
    check_rows({"x": x}, {})
    _check_mask(mask, "x", x.shape[:-1])
    if isinstance(fill, bool) or not isinstance(fill, int | float) or not math.isfinite(fill):
        raise ValueError(f"fill: expected a finite number, got {describe(fill)}")
    return torch.where(mask.unsqueeze(-1), x, fill)


def masked_sum(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the values that count, and how many they are: what a Task's loss returns.

    What the others are changes neither the sum nor its gradient with respect to `values`. Where they were
    computed from a NaN, fill that with `masked_rows` first; see the module's first lines.

    Args:
        values: one for each row, any shape.
        mask: which of them count, of the same shape, bool.

    Returns:
        (total, weight), 0-dimensional, of the values' dtype; (0, 0) where no value counts.

    Raises:
        ValueError: a mask of another shape. TypeError: `values` not of floating point, `mask` not of bool.
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(f"values: expected a floating-point tensor, got {describe(values)}")
    _check_mask(mask, "values", values.shape)
    return torch.where(mask, values, 0.0).sum(), mask.sum().to(values.dtype)


def _difference(pred: Tensor, target: Tensor) -> Tensor:
    check_rows({"pred": pred, "target": target}, {})
    if not pred.shape[-1]:
        raise ValueError(f"pred: expected at least one number in a row, got the shape {tuple(pred.shape)}")
    return pred - target


def _check_mask(mask: Tensor, of: str, shape: torch.Size) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a tensor of bool, got {describe(mask)}")
    if mask.shape != shape:
        raise ValueError(f"mask: expected one for each row of {of}, {tuple(shape)}, got {tuple(mask.shape)}")
