"""Start and end times of training rows, as pure functions of a key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.config import refuse_unused
from mfk.core.types import Rows, describe


@dataclass(frozen=True)
class TimeConfig:
    """How the times r <= t of a training row are drawn."""

    distribution: Literal["uniform", "logit_normal", "beta", "mfik"] = "uniform"
    """Of two draws, whose minimum is r and maximum t; mfik: r from the Beta distribution, t from U(r, 1)."""
    location: float = 0.4
    """logit_normal: mean of the logit (the paper's -0.4, in forward time)."""
    scale: float = 1.0
    """logit_normal: standard deviation of the logit."""
    alpha: float = 2.0
    """beta, mfik: first parameter."""
    beta: float = 5.0
    """beta, mfik: second parameter."""
    jvp_share: float = 0.25
    """Share of the global batch with t > r, in [0, 1]: the rows that cost a derivative or more calls."""


def draw_times(config: TimeConfig, seed: int, step: int, rows: Rows) -> tuple[Tensor, Tensor]:
    """Start times of all rows and end times of the rows that have one.

    Each row takes two draws from the distribution, the smaller is r, the larger t ("mfik": r ~ Beta,
    t ~ U(r, 1), as its documents do). The first
    `jvp_rows` rows of the *global* batch are MeanFlow rows; the others are flow
    matching, t = r, and have no entry in t. The number is static, so only those rows pay for a JVP.

    Args:
        config: the distribution and the share.
        seed: of the run.
        step: of the run.
        rows: which rows of the global batch; MeanFlow rows come first in it.

    Returns:
        r, [len(rows.index), 1], and t, [n, 1], with n <= len(rows.index): t belongs to the first n rows.

    Raises:
        ValueError: a share outside [0, 1], a scale or a Beta parameter that is not finite and positive, a
            location that is not finite, or rows in falling order.
    """
    _check(config)
    if rows.index.step < 1:
        raise ValueError(f"rows: expected rising positions, got {rows.index}")
    key = rng.key(seed, step, "times")
    if config.distribution == "uniform":
        pair = rng.uniform(key, rows, (2,))
    elif config.distribution == "logit_normal":
        pair = torch.sigmoid(config.location + config.scale * rng.normal(key, rows, (2,)))
    elif config.distribution == "beta":
        pair = rng.beta(key, rows, config.alpha, config.beta, (2,))
    else:
        start = rng.beta(key, rows, config.alpha, config.beta, (1,))
        pair = torch.cat((start, _uniform_end(start, seed, step, rows)), 1)
    r, t = pair.amin(1, keepdim=True), pair.amax(1, keepdim=True)
    return r, t[: _count(config, rows)]


def end_times(config: TimeConfig, r: Tensor, t: Tensor | None, seed: int, step: int, rows: Rows) -> Tensor:
    """End times of those rows that have one, where the start times are given, [n, 1].

    Args:
        config: its `jvp_share`; the distribution has no part in it.
        r: start times of all rows, [len(rows.index), 1].
        t: end times of all rows, alike; None draws t ~ U(r, 1).
        seed: of the run.
        step: of the run.
        rows: which rows of the global batch; MeanFlow rows come first in it.

    Raises:
        ValueError: as `draw_times`; r or t has not one time for each row.
        TypeError: r or t is no floating-point tensor, or their dtypes differ.
    """
    _check(config)
    _check_times("r", r, rows)
    if t is not None:
        _check_times("t", t, rows)
        _check_dtype(r, t)
    ends = _uniform_end(r, seed, step, rows) if t is None else t
    return ends[: _count(config, rows)]


def split_times(r: Tensor, t: Tensor, seed: int, step: int, rows: Rows) -> Tensor:
    """Times between r and t for the rows that have an end time: s ~ U(r, t).

    Args:
        r: start times of all rows, [len(rows.index), 1].
        t: end times of the first n rows, [n, 1], as `draw_times` returns them.
        seed: of the run.
        step: of the run.
        rows: which rows of the global batch.

    Returns:
        s, [n, 1], r <= s <= t.

    Raises:
        ValueError: r has not one time for each row, or t more than r.
        TypeError: r or t is no floating-point tensor, or their dtypes differ.
    """
    count = len(rows.index)
    _check_times("r", r, rows)
    _check_dtype(r, t)
    if t.ndim != 2 or t.shape[1] != 1 or len(t) > count:
        raise ValueError(f"t: expected a shape (n, 1) with n <= {count}, got {tuple(t.shape)}")
    n = len(t)
    share = rng.uniform(rng.key(seed, step, "split times"), rows, (1,), r.dtype)[:n]
    # Rounding must not lift it over its end.
    return torch.minimum(r[:n] + share * (t - r[:n]), t)


def jvp_rows(config: TimeConfig, total: int) -> int:
    """How many of a global batch's `total` rows are MeanFlow rows."""
    return round(config.jvp_share * total)


def _uniform_end(start: Tensor, seed: int, step: int, rows: Rows) -> Tensor:
    return start + (1 - start) * rng.uniform(rng.key(seed, step, "end times"), rows, (1,))


def _count(config: TimeConfig, rows: Rows) -> int:
    """How many of `rows` are among the MeanFlow rows."""
    last = jvp_rows(config, rows.total)
    return len(range(rows.index.start, min(rows.index.stop, last), rows.index.step))


def _check(config: TimeConfig) -> None:
    if config.distribution not in ("uniform", "logit_normal", "beta", "mfik"):
        raise ValueError(
            f"distribution: expected uniform, logit_normal, beta or mfik, got {config.distribution!r}"
        )
    refuse_unused(config, config.distribution == "logit_normal", "location", "scale")
    refuse_unused(config, config.distribution in ("beta", "mfik"), "alpha", "beta")
    if not 0 <= config.jvp_share <= 1:
        raise ValueError(f"jvp_share: expected a share in [0, 1], got {config.jvp_share!r}")
    if not math.isfinite(config.location):
        raise ValueError(f"location: expected a finite number, got {config.location!r}")
    for name in ("scale", "alpha", "beta"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a finite positive number, got {value!r}")


def _check_times(name: str, x: Tensor, rows: Rows) -> None:
    """One time for each row, which would broadcast otherwise."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
    if x.shape != (len(rows.index), 1):
        raise ValueError(f"{name}: expected the shape {(len(rows.index), 1)}, got {tuple(x.shape)}")


def _check_dtype(r: Tensor, t: Tensor) -> None:
    if not isinstance(t, Tensor) or t.dtype != r.dtype:
        raise TypeError(f"t: expected a tensor of the dtype of r, {r.dtype}, got {describe(t)}")
