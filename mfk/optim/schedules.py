"""Learning-rate schedules: pure functions step -> value.

All of them warm up as peak (step + 1) / warmup_steps for step < warmup_steps, so that step 0 is not
wasted, stand at the peak at step == warmup_steps, reach the floor at step == total_steps and stay there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mfk.core.types import Schedule, describe


def warmup_cosine(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    floor: float = 0.0,
    *,
    floor_fraction: float | None = None,
) -> Schedule:
    """Linear warm-up, then half a cosine from `peak` to `floor`.

    value = floor + (peak - floor) (1 + cos(pi x)) / 2,  x = (step - warmup) / (total - warmup).

    Args:
        peak: largest value, > 0.
        warmup_steps: length of the warm-up, 0 for none; see `epochs_to_steps`.
        total_steps: the step from which the floor holds.
        floor: last value, in [0, peak].
        floor_fraction: the floor as a fraction of the peak instead, in [0, 1].

    Raises:
        ValueError: out of range, or both floors given. TypeError: a step that is not an int.
    """
    return _decaying(
        peak, warmup_steps, total_steps, floor, floor_fraction, lambda x: 0.5 * (1 + math.cos(math.pi * x))
    )


def warmup_linear(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    floor: float = 0.0,
    *,
    floor_fraction: float | None = None,
) -> Schedule:
    """Linear warm-up, then a straight line from `peak` to `floor`.

    value = floor + (peak - floor) (1 - x),  x = (step - warmup) / (total - warmup).
    Arguments and errors are those of `warmup_cosine`.
    """
    return _decaying(peak, warmup_steps, total_steps, floor, floor_fraction, lambda x: 1 - x)


def warmup_constant(peak: float, warmup_steps: int) -> Schedule:
    """Linear warm-up, then `peak` for ever."""
    _check_number("peak", peak)
    _check_steps("warmup_steps", warmup_steps)

    def schedule(step: int) -> float:
        _check_steps("step", step)
        return _warming(peak, warmup_steps, step) if step < warmup_steps else float(peak)

    return schedule


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return warmup_constant(value, 0)


def epochs_to_steps(epochs: float, steps_per_epoch: int) -> int:
    """How many steps those epochs have, rounded to the nearest; for a warm-up given in epochs."""
    _check_number("epochs", epochs)
    _check_steps("steps_per_epoch", steps_per_epoch)
    if steps_per_epoch == 0:
        raise ValueError("steps_per_epoch: expected at least 1, got 0")
    return round(epochs * steps_per_epoch)


def _decaying(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    floor: float,
    floor_fraction: float | None,
    shape: Callable[[float], float],
) -> Schedule:
    """Warm-up, then floor + (peak - floor) shape(x), where shape falls from 1 to 0 over x in [0, 1]."""
    _check_number("peak", peak)
    _check_number("floor", floor)
    _check_steps("warmup_steps", warmup_steps)
    _check_steps("total_steps", total_steps)
    if floor_fraction is not None:
        if floor != 0.0:
            raise ValueError(
                f"floor, floor_fraction: expected one of them, got {floor!r} and {floor_fraction!r}"
            )
        _check_number("floor_fraction", floor_fraction)
        if floor_fraction > 1:
            raise ValueError(f"floor_fraction: expected at most 1, got {floor_fraction!r}")
        floor = floor_fraction * peak
    if floor > peak:
        raise ValueError(f"floor: expected at most the peak {peak!r}, got {floor!r}")
    if warmup_steps > total_steps:
        raise ValueError(f"warmup_steps: expected at most total_steps {total_steps}, got {warmup_steps}")

    def schedule(step: int) -> float:
        _check_steps("step", step)
        if step < warmup_steps:
            return _warming(peak, warmup_steps, step)
        if step >= total_steps:
            return float(floor)
        value = floor + (peak - floor) * shape((step - warmup_steps) / (total_steps - warmup_steps))
        # Rounding must lift no value above the peak, nor drop one below the floor.
        return float(min(max(value, floor), peak))

    return schedule


def _warming(peak: float, warmup_steps: int, step: int) -> float:
    return peak * ((step + 1) / warmup_steps)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number >= 0, got {describe(value)}")


def _check_steps(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {describe(value)}")
    if value < 0:
        raise ValueError(f"{name}: expected at least 0, got {value}")
