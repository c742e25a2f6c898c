"""Errors of impulse responses: weighted over the horizon, summed over the shocks that are a sample's own.

A response is [..., H + 1, V]: periods 0, ..., H and variables. Samples of other worlds have fewer shocks;
what pads them to one shape must touch neither a sample's error nor its gradient. `own_shocks` fills such
responses before the error sees them, whatever they hold, and `sum_shocks` adds the rest one by one in their
order, so that the sum is the same to the last bit with any padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows

SCHEMES = ("uniform", "exponential", "impact", "impact_doubled")

_SOON = 5  # periods that "impact_doubled" weighs double


def horizon_weights(
    H: int,
    scheme: str = "uniform",
    *,
    tau: float = 20.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Weights of the periods 0, ..., H, which sum to 1.

        uniform          w_h = 1 / (H + 1)
        exponential      w_h = exp(-h / τ) / Z
        impact           w_0 = 0.3, w_h = 0.7 / H for h > 0
        impact_doubled   w_h = 2 / Z for h < 5, 1 / Z later

    The last two are both called impact in the documents: the one in their text and trainer, the other in
    their losses.

    Args:
        H: the last period, an int >= 1.
        scheme: one of the four.
        tau: τ in periods, of "exponential"; finite, > 0.
        dtype: of the weights.

    Returns:
        [H + 1].

    Raises:
        ValueError: out of range, or another scheme.
    """
    if isinstance(H, bool) or not isinstance(H, int) or H < 1:
        raise ValueError(f"H: expected an int >= 1, got {describe(H)}")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(map(repr, SCHEMES))}, got {describe(scheme)}")
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not 0 < tau < math.inf:
        raise ValueError(f"tau: expected a finite number > 0, got {describe(tau)}")
    shapes = {
        "uniform": [1.0] * (H + 1),
        "exponential": [math.exp(-h / tau) for h in range(H + 1)],
        "impact": [0.3] + [0.7 / H] * H,
        "impact_doubled": [2.0 if h < _SOON else 1.0 for h in range(H + 1)],
    }
    weights = torch.tensor(shapes[scheme], dtype=torch.float64, device="cpu")
    return (weights / weights.sum()).to(dtype)


def horizon_squared_error(pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Squared error of a response: Σ_h w_h Σ_v (pred_hv - target_hv)².

    Args:
        pred: [..., H + 1, V].
        target: [..., H + 1, V].
        weights: w, [H + 1], of their dtype; of `horizon_weights`.

    Returns:
        [...], one for each response.

    Raises:
        ValueError: shapes that do not agree. TypeError: dtypes that differ, or are not of floating point.
    """
    return _weighted(_difference(pred, target).square(), weights)


def horizon_absolute_error(pred: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Absolute error of a response: Σ_h w_h Σ_v |pred_hv - target_hv|; as `horizon_squared_error`."""
    return _weighted(_difference(pred, target).abs(), weights)


def smoothness(response: Tensor) -> Tensor:
    """How much a response bends: the mean over periods and variables of (y_{h+1} - 2 y_h + y_{h-1})².

    0 for constants and lines, 4 for h². The documents write a sum, their trainer takes this mean and weighs
    it by 0.01.

    Args:
        response: [..., H + 1, V], H >= 2.

    Returns:
        [...], one for each response.

    Raises:
        ValueError: fewer than three periods. TypeError: not of floating point.
    """
    check_rows({"response": response}, {})
    if response.ndim < 2 or response.shape[-2] < 3 or not response.shape[-1]:
        raise ValueError(
            f"response: expected a shape [..., H + 1, V] with H >= 2, got {tuple(response.shape)}"
        )
    return torch.diff(response, n=2, dim=-2).square().flatten(-2).mean(-1)


def own_shocks(response: Tensor, shock_mask: Tensor) -> Tensor:
    """The responses to a sample's own shocks, and 0 in place of what pads them, whose gradient is 0.

    To be applied to prediction and target before their error: padding may then hold anything, NaN included.

    Args:
        response: [..., S, H + 1, V].
        shock_mask: which shocks are the sample's own, bool [..., S].

    Returns:
        [..., S, H + 1, V].

    Raises:
        ValueError: a mask of another shape. TypeError: not of floating point, or a mask not of bool.
    """
    check_rows({"response": response}, {})
    if response.ndim < 3:
        raise ValueError(f"response: expected a shape [..., S, H + 1, V], got {tuple(response.shape)}")
    _check_mask(shock_mask, "response", response.shape[:-2])
    return torch.where(shock_mask[..., None, None], response, 0.0)


def sum_shocks(values: Tensor, shock_mask: Tensor) -> Tensor:
    """The sum over a sample's own shocks, the same to the last bit however many others pad them.

    Args:
        values: an error of each response, [..., S].
        shock_mask: which shocks are the sample's own, bool [..., S].

    Returns:
        [...]; 0 where no shock counts.

    Raises:
        ValueError: a mask of another shape. TypeError: not of floating point, or a mask not of bool.
    """
    check_rows({"values": values}, {})
    _check_mask(shock_mask, "values", values.shape)
    total = torch.zeros_like(values[..., 0]) if values.shape[-1] else values.sum(-1)
    for value, counts in zip(values.unbind(-1), shock_mask.unbind(-1), strict=True):
        total = total + torch.where(counts, value, 0.0)
    return total


def _weighted(errors: Tensor, weights: Tensor) -> Tensor:
    if not isinstance(weights, Tensor) or weights.dtype != errors.dtype:
        raise TypeError(
            f"weights: expected a tensor of pred's dtype, {errors.dtype}, got {describe(weights)}"
        )
    if tuple(weights.shape) != (errors.shape[-2],):
        raise ValueError(
            f"weights: expected one for each period of pred {tuple(errors.shape)}, ({errors.shape[-2]},), "
            f"got {tuple(weights.shape)}"
        )
    return (errors * weights.unsqueeze(-1)).flatten(-2).sum(-1)


def _difference(pred: Tensor, target: Tensor) -> Tensor:
    check_rows({"pred": pred, "target": target}, {})
    if pred.ndim < 2:
        raise ValueError(f"pred: expected a shape [..., H + 1, V], got {tuple(pred.shape)}")
    return pred - target


def _check_mask(mask: Tensor, of: str, shape: torch.Size) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"shock_mask: expected a tensor of bool, got {describe(mask)}")
    if mask.shape != shape:
        raise ValueError(
            f"shock_mask: expected one for each shock of {of}, {tuple(shape)}, got {tuple(mask.shape)}"
        )
