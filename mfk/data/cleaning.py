"""Cleaning of a table of features, fitted on training rows: missing values, constants, copies, outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from mfk.core.types import describe

_BINS = 50  # of the histogram in a feature's score
_WHISKER = 1.5  # interquartile ranges beyond the quartiles, where outliers begin


@dataclass(frozen=True)
class CleaningConfig:
    """What is done to a table before anything is learned from it."""

    nan: Literal["error", "median", "zero", "drop_feature"] = "error"
    """Of a missing value: refuse it, put the training rows' median or 0 for it, or do without its feature."""
    min_std: float = 1e-10
    """A feature is constant unless its standard deviation on the training rows is larger."""
    max_correlation: float = 0.99
    """Of two features whose |r| on the training rows is larger, one is dropped; 1 keeps all."""
    percentiles: tuple[float, float] | None = (0.5, 99.5)
    """Of the training rows, where every row's values are cut off; None: they are not."""


class Cleaning(NamedTuple):
    """What was found on training rows; arrays alone, so that it can be part of a checkpoint."""

    kept: np.ndarray  # [F] bool
    low: np.ndarray  # [F] float64, smallest value that is let through; -inf: any
    high: np.ndarray  # [F] float64, largest
    fill: np.ndarray  # [F] float64, for a missing value; NaN: a missing value is an error


def fit_cleaning(
    x: np.ndarray, config: CleaningConfig | None = None, names: Sequence[str] | None = None
) -> tuple[Cleaning, list[str]]:
    """Decide on training rows what is kept and where it is cut off.

    In this order: missing values; outliers cut off at the percentiles; constant features dropped, as they are
    after that; of features that are copies of each other, |r| > max_correlation, the one of the highest score
    is kept: entropy of its histogram (50 bins) x interquartile range x share of values within 1.5 of it
    beyond the quartiles, of the feature divided by its standard deviation, so that no unit counts. A feature
    is dropped only for one that stays. All in float64.

    Args:
        x: [N, F] training rows, N >= 2; NaN is a missing value.
        config: the defaults if None.
        names: of the F features, for report and errors.

    Returns:
        The cleaning, and a line for each feature that was dropped or had missing values.

    Raises:
        TypeError: `x` is no array of floating-point numbers.
        ValueError: a bad setting, no or one row, infinite values, missing values where `config.nan` does not
            allow them or a median cannot be taken, or no feature left.
    """
    config = CleaningConfig() if config is None else config
    _check_config(config)
    names = _check_rows(x, names)
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 training rows, got {len(x)}")
    values, report = x.astype(np.float64), []
    kept, fill = _fit_missing(values, config, names, report)
    low, high = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    if config.percentiles is not None and kept.any():
        low[kept], high[kept] = np.percentile(values[:, kept], config.percentiles, axis=0)
    values = np.clip(values, low, high)
    for i in _where(kept):
        column = values[:, i]
        std = 0.0 if column.min() == column.max() else float(column.std())
        if std <= config.min_std:
            kept[i] = False
            cut = " within the percentiles" if np.std(x[:, i], dtype=np.float64) > config.min_std else ""
            report.append(f"{names[i]}: dropped, constant{cut} (standard deviation {std:.3g})")
    _drop_copies(values, kept, config.max_correlation, names, report)
    if not kept.any():
        raise ValueError(f"x: none of {len(names)} features is left: {'; '.join(report[:3])}")
    return Cleaning(kept, low, high, fill), report


def clean(x: np.ndarray, cleaning: Cleaning, names: Sequence[str] | None = None) -> np.ndarray:
    """Rows [N, F] as cleaned [N, kept], float32: missing values filled, outliers cut off, features left out.

    Args:
        x: [N, F] rows, of any number.
        cleaning: from `fit_cleaning`.
        names: of the F features, for errors.

    Raises:
        TypeError: `x` is no array of floating-point numbers. ValueError: other features than fitted, infinite
        values, or missing ones in a feature that has no fill.
    """
    names = _check_rows(x, names)
    if len(names) != len(cleaning.kept):
        raise ValueError(f"x: expected the {len(cleaning.kept)} features that were fitted, got {len(names)}")
    kept = _where(cleaning.kept)
    values = x[:, kept].astype(np.float64)
    missing, fill = np.isnan(values), cleaning.fill[kept]
    if bad := [names[kept[j]] for j in _where(missing.any(0) & np.isnan(fill))]:
        raise ValueError(f"x: expected no missing values (NaN) in {_some(bad)}")
    values = np.clip(np.where(missing, fill, values), cleaning.low[kept], cleaning.high[kept])
    return values.astype(np.float32)


def _fit_missing(
    values: np.ndarray, config: CleaningConfig, names: Sequence[str], report: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill missing values in place; which features are kept, and what later missing values become."""
    missing = np.isnan(values)
    counts = missing.sum(0)
    found = _where(counts)
    kept, fill = np.ones(len(names), bool), np.full(len(names), np.nan)
    if config.nan == "error" and found:
        raise ValueError(
            f"x: expected no missing values (NaN), got some in {_some([names[i] for i in found])}; "
            "nan='median', 'zero' or 'drop_feature' says what to do with them"
        )
    if config.nan == "median":
        if nothing := [names[i] for i in found if counts[i] == len(values)]:
            raise ValueError(
                f"x: expected a value to take a median of, got only missing ones in {_some(nothing)}; "
                "nan='drop_feature' would leave these out"
            )
        fill = np.nanmedian(values, axis=0)
    elif config.nan == "zero":
        fill = np.zeros(len(names))
    elif config.nan == "drop_feature":
        kept = counts == 0
    for i in found:
        done = f"filled with {fill[i]:.6g}" if kept[i] else "dropped"
        report.append(f"{names[i]}: {done}, {counts[i]} of {len(values)} values are missing")
    np.copyto(values, np.broadcast_to(np.nan_to_num(fill), values.shape), where=missing)
    return kept, fill


def _drop_copies(
    values: np.ndarray, kept: np.ndarray, limit: float, names: Sequence[str], report: list[str]
) -> None:
    places = _where(kept)
    if limit >= 1 or len(places) < 2:
        return
    scaled = values[:, places] - values[:, places].mean(0)
    scaled /= scaled.std(0)
    strength = np.abs(scaled.T @ scaled) / len(scaled)
    scores = _scores(scaled)
    stays: list[int] = []
    for i in sorted(range(len(places)), key=lambda i: (-scores[i], i)):
        copies = [j for j in stays if strength[i, j] > limit]
        if not copies:
            stays.append(i)
            continue
        best = max(copies, key=lambda j: strength[i, j])
        kept[places[i]] = False
        report.append(
            f"{names[places[i]]}: dropped, |r| = {strength[i, best]:.4f} with {names[places[best]]}"
        )


def _scores(scaled: np.ndarray) -> np.ndarray:
    """Entropy x interquartile range x share without outliers, of columns of standard deviation 1."""
    first, third = np.percentile(scaled, (25, 75), axis=0)
    spread = third - first
    inside = (scaled >= first - _WHISKER * spread) & (scaled <= third + _WHISKER * spread)
    entropies = []
    for column in scaled.T:
        share = np.histogram(column, _BINS)[0] / len(column)
        entropies.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    # Two columns that are one up to rounding are as good as each other, and the first stays.
    return np.round(np.array(entropies) * spread * inside.mean(0), 9)


def _check_config(config: CleaningConfig) -> None:
    if config.nan not in ("error", "median", "zero", "drop_feature"):
        raise ValueError(f"nan: expected error, median, zero or drop_feature, got {describe(config.nan)}")
    if not 0 <= config.min_std < np.inf:
        raise ValueError(f"min_std: expected a number >= 0, got {describe(config.min_std)}")
    if not 0 < config.max_correlation <= 1:
        raise ValueError(f"max_correlation: expected within (0, 1], got {describe(config.max_correlation)}")
    cut = config.percentiles
    if cut is not None and not (len(cut) == 2 and 0 <= cut[0] < cut[1] <= 100):
        raise ValueError(f"percentiles: expected 0 <= low < high <= 100 or None, got {describe(cut)}")


def _check_rows(x: np.ndarray, names: Sequence[str] | None) -> Sequence[str]:
    """The names of the features, once the rows are right."""
    if not (isinstance(x, np.ndarray) and x.dtype.kind == "f"):
        kind = f"one of {x.dtype}" if isinstance(x, np.ndarray) else describe(x)
        raise TypeError(f"x: expected an array of floating-point numbers, got {kind}")
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"x: expected rows [N, F] of at least one feature, got shape {list(x.shape)}")
    names = [f"feature {i}" for i in range(x.shape[1])] if names is None else names
    if len(names) != x.shape[1]:
        raise ValueError(f"names: expected {x.shape[1]}, got {len(names)}")
    if bad := [names[i] for i in _where(np.isinf(x).any(0))]:
        raise ValueError(f"x: expected finite numbers or NaN, got infinite ones in {_some(bad)}")
    return names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _where(flags: Any) -> list[int]:
    return np.flatnonzero(flags).tolist()
