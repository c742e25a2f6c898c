"""From a step's metrics, tensors, to what is logged: numbers, means over an epoch and over members."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

import torch

from mfk.core.types import Metrics
from mfk.train.state import TrainState

_PER_STEP = ("grad_norm", "lr", "loss_scale")  # metrics that are not means over rows
_COUNTS = ("skipped", "weight")


def step_figures(metrics: Metrics, state: TrainState, roots: Collection[str]) -> dict[str, float]:
    """Metrics as Python floats: here the host waits for the device."""
    figures: dict[str, float] = {}
    for name, value in metrics.items():
        each = [_rooted(name, x, roots) for x in value.reshape(-1).tolist()]
        figures |= over_members(f"train/{name}", each, spread=name not in (*_PER_STEP, *_COUNTS))
    figures["train/skipped_steps"] = float(state.guard.skipped.sum())
    return figures


def add_metrics(sums: Metrics, metrics: Metrics) -> Metrics:
    """Sums over the steps that were made: of steps, of weights, and of the metrics times these."""
    made = metrics["skipped"] == 0
    terms = {"steps": torch.ones_like(made, dtype=torch.float64), "weight": metrics["weight"]}
    for name, x in metrics.items():
        if name in _PER_STEP:
            terms[name] = x.to(made.device, non_blocking=True)
        elif name not in _COUNTS:
            terms[name] = x * metrics["weight"]
    terms = {name: torch.where(made, x, 0.0) for name, x in terms.items()}
    return {name: sums[name] + x if sums else x.double() for name, x in terms.items()}


def epoch_figures(sums: Metrics, roots: Collection[str]) -> dict[str, float]:
    """Means over the epoch's rows (a short last batch counts for less), of the step's own over its steps."""
    lists: dict[str, list[float]] = {name: x.reshape(-1).tolist() for name, x in sums.items()}
    figures: dict[str, float] = {}
    for name in ("steps", "weight"):
        figures |= over_members(f"epoch/{name}", lists[name], spread=False)
    for name, totals in lists.items():
        if name not in ("steps", "weight"):
            divisors = lists["steps" if name in _PER_STEP else "weight"]
            each = [
                _rooted(name, x / divisor if divisor else math.nan, roots)
                for x, divisor in zip(totals, divisors, strict=True)
            ]
            figures |= over_members(f"epoch/{name}", each, spread=name not in _PER_STEP)
    # Fewer steps than the epoch has: some were skipped, or the run was resumed within it.
    return figures


def described(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each metric's `over_members`."""
    figures: dict[str, float] = {}
    for name, each in values.items():
        figures |= over_members(name, each)
    return figures


def over_members(name: str, values: Sequence[float], spread: bool = True) -> dict[str, float]:
    """A single run's value under `name`; of k members the mean and, under ``<name>_spread``, the spread.

    Members whose value is not finite, as after a divergence, are left out; NaN where all are. The spread is
    the standard deviation (of k - 1 degrees of freedom), NaN of fewer than two members.
    """
    if len(values) == 1:
        return {name: values[0]}
    finite = [x for x in values if math.isfinite(x)]
    figures = {name: statistics.fmean(finite) if finite else math.nan}
    if spread:
        figures[f"{name}_spread"] = statistics.stdev(finite) if len(finite) > 1 else math.nan
    return figures


def _rooted(name: str, value: float, roots: Collection[str]) -> float:
    return value**0.5 if name in roots else value
