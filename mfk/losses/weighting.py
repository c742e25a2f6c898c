"""Weights of rows: pure functions of an error or a distance, without gradient."""

from __future__ import annotations

import math

from torch import Tensor

from mfk.core.types import describe
from mfk.losses.consistency import check_alpha


def adaptive_weight(squared_error: Tensor, c: float = 1e-3, p: float = 1.0) -> Tensor:
    """The MeanFlow paper's weight of a row: w = sg(1 / (‖Δ‖² + c)^p).

    At p = 1 the weighted loss reads about 1 whatever the error, so log the raw ‖Δ‖² beside it.

    Args:
        squared_error: ‖Δ‖² of the loss itself, summed over the last axis, [...], >= 0.
        c: keeps the weight finite at zero error, > 0, in the unit of `squared_error`.
        p: 0 weighs all rows alike; 0.5 makes the loss behave as ‖Δ‖; 1 as log ‖Δ‖².

    Returns:
        Weights, [...], detached.

    Raises:
        ValueError: c is not positive or p is negative.
        TypeError: `squared_error` is not a floating-point tensor.

    Source: Geng et al. 2025, arXiv:2505.13447, section 4.3.
    """
    return _inverse_power("squared_error", squared_error, c, p)


def distance_weight(squared_distance: Tensor, c: float = 1e-4, p: float = 0.5) -> Tensor:
    """The mfik document's weight of a row: w = sg(1 / (‖q_target - q‖² + c)^p).

    It depends on the data only: rows that start near their solution weigh more, however large their
    error. Not the paper's weight, which is `adaptive_weight`.

    Args, returns and errors are those of `adaptive_weight`, with ‖q_target - q‖², [...], in place of
    the error.

    Source: mfik, "MeanFlow IK Training - Version 1", section Adaptive Weighting.
    """
    return _inverse_power("squared_distance", squared_distance, c, p)


def alpha_weight(squared_error: Tensor, alpha: Tensor | float, c: float = 1e-3, p: float = 1.0) -> Tensor:
    """The α-Flow paper's weight of a row: w = sg((α / (‖Δ‖² + c))^p).

    `alpha_flow` returns ‖Δ‖²/α, so that at p = 1 the weighted loss is ‖Δ‖² / (‖Δ‖² + c).

    Args:
        squared_error: ‖Δ‖²/α, what `alpha_flow` returns, [...], >= 0.
        alpha: the α that it was computed with.
        c: as in `adaptive_weight`, added to ‖Δ‖².
        p: as in `adaptive_weight`; the paper's is 1.

    Returns:
        Weights, [...], detached.

    Raises:
        ValueError: c is not positive, p is negative, or alpha is out of range.
        TypeError: `squared_error` is not a floating-point tensor, or alpha has another dtype.

    Source: Zhang et al. 2025, arXiv:2510.20771.
    """
    _check("squared_error", squared_error, c, p)
    check_alpha(alpha, squared_error)
    return (squared_error.detach() + c / alpha) ** -p


def _inverse_power(name: str, x: Tensor, c: float, p: float) -> Tensor:
    _check(name, x, c, p)
    return (x.detach() + c) ** -p


def _check(name: str, x: Tensor, c: float, p: float) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
    for constant, value in (("c", c), ("p", p)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{constant}: expected a finite number, got {describe(value)}")
    if not c > 0:
        raise ValueError(f"c: expected a positive number, got {c!r}")
    if not p >= 0:
        raise ValueError(f"p: expected a number >= 0, got {p!r}")
