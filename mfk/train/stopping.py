"""Which validation was the best, and when a run without progress ends."""

from __future__ import annotations

import math

from mfk.train.config import TrainConfig
from mfk.train.state import Guard


def judge(guard: Guard, score: float, step: int, min_delta: float) -> Guard:
    """The guard after a validation of value `score`, lower being better, at `step`.

    The best value is the lowest. Early stopping keeps a value of its own, its reference, which moves
    only by more than a share `min_delta` of itself::

        score < reference - min_delta |reference|

    so that a long course of crumbs counts as a standstill. A value that is not finite is no progress.
    """
    if score < guard.best:
        guard = guard._replace(best=score, best_step=step)
    guard, bar = guard._replace(judged_step=step), guard.reference
    if math.isfinite(bar):
        bar -= min_delta * abs(bar)
    if score < bar:
        return guard._replace(reference=score, reference_step=step, stalled=0)
    return guard._replace(stalled=guard.stalled + 1)


def is_over(guard: Guard, config: TrainConfig) -> bool:
    """Whether early stopping ended the run with its last validation; `config` as from `in_steps`."""
    if config.patience is None:
        return False
    if config.patience_unit == "validations":
        return guard.stalled >= config.patience
    assert config.steps_per_epoch is not None
    waited = guard.judged_step - guard.reference_step
    return guard.stalled > 0 and waited >= config.patience * config.steps_per_epoch


def verdict(guard: Guard, config: TrainConfig) -> str:
    """Why early stopping ended the run, in a line."""
    fallen = f" by more than {100 * config.min_delta:g} %" if config.min_delta else ""
    return (
        f"{config.best_metric} has not fallen{fallen} below its {guard.reference:.6g} of step "
        f"{guard.reference_step} for {config.patience} {config.patience_unit}"
    )
