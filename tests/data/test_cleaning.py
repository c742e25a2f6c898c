"""Cleaning: against numpy on small tables, and fitted on training rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mfk.data import Cleaning, CleaningConfig, clean, fit_cleaning

PLAIN = CleaningConfig(percentiles=None)


def rows(count: int = 400, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_values_are_cut_off_at_the_training_rows_percentiles() -> None:
    x, other = rows(), 100 * rows(seed=1)
    cleaning, report = fit_cleaning(x)
    assert report == [] and cleaning.kept.all()
    low, high = np.percentile(x.astype(np.float64), [0.5, 99.5], axis=0)
    np.testing.assert_allclose(clean(other, cleaning), np.clip(other, low, high), rtol=1e-6)
    assert np.abs(clean(other, cleaning)).max() < 4 and clean(other, cleaning).dtype == np.float32
    assert all(isinstance(part, np.ndarray) for part in cleaning)
    np.testing.assert_array_equal(clean(other, fit_cleaning(x, PLAIN)[0]), other)
    wide = fit_cleaning(x, CleaningConfig(percentiles=(10, 90)))[0]
    assert (wide.low > cleaning.low).all() and (wide.high < cleaning.high).all()
    assert clean(other[:1], cleaning).shape == (1, 4) and clean(other[:0], cleaning).shape == (0, 4)


def test_constant_features_are_dropped_and_reported() -> None:
    x = rows(width=5)
    x[:, 1] = 1e8 / 3  # a mean of such is rounded: its standard deviation need not come out as 0
    x[:, 3] = 0
    x[0, 3] = 1  # but for what the percentiles cut off
    x[:, 4] *= 1e-12
    cleaning, report = fit_cleaning(x, names=list("abcde"))
    np.testing.assert_array_equal(cleaning.kept, [True, False, True, False, False])
    assert [line.split(" (")[0] for line in report] == [
        "b: dropped, constant",
        "d: dropped, constant within the percentiles",
        "e: dropped, constant",
    ]
    assert clean(x, cleaning).shape == (400, 2)
    assert fit_cleaning(x, CleaningConfig(min_std=0, percentiles=None))[0].kept.sum() == 4
    with pytest.raises(ValueError, match=r"^x: none of 5 features is left"):
        fit_cleaning(x, CleaningConfig(min_std=1e3))
    with pytest.raises(ValueError, match=r"^x: none of 2 features is left: feature 0: dropped, constant"):
        fit_cleaning(np.ones((5, 2)))


def test_of_copies_the_one_of_the_higher_score_is_kept_whatever_its_unit() -> None:
    x = rows(2000, 3)
    heavy = x[:, 0] + 0.004 * x[:, 0] ** 3  # |r| > 0.99 with the first, and has more outliers
    table = np.stack([1e-4 * x[:, 0], x[:, 1], 1e4 * heavy, x[:, 2], -x[:, 1]], 1)
    assert np.corrcoef(table[:, 0], table[:, 2])[0, 1] > 0.99
    for order in ([0, 1, 2, 3, 4], [2, 4, 1, 3, 0], [4, 3, 2, 1, 0]):
        cleaning, report = fit_cleaning(table[:, order], PLAIN, [f"f{i}" for i in order])
        kept = {order[i] for i in np.flatnonzero(cleaning.kept)}
        first = next(i for i in order if i in (1, 4))  # mirror images score alike: the first one stays
        assert kept == {0, first, 3}
        assert sorted(line.split(":")[0] for line in report) == sorted(["f2", f"f{5 - first}"])
        assert f"f{5 - first}: dropped, |r| = 1.0000 with f{first}" in report
    assert fit_cleaning(table, CleaningConfig(max_correlation=1.0))[0].kept.all()
    assert fit_cleaning(x, CleaningConfig(max_correlation=0.001))[0].kept.sum() < 3


def test_every_dropped_copy_has_one_that_stays() -> None:
    # A chain: neighbours are copies of each other, its ends are not.
    base = rows(3000, 8, seed=2).astype(np.float64)
    chain = np.stack([base[:, 0] + 0.1 * i * base[:, 1] for i in range(12)], 1)
    cleaning, _ = fit_cleaning(chain, PLAIN)
    strength = np.abs(np.corrcoef(chain.T))
    kept = np.flatnonzero(cleaning.kept)
    assert 2 <= len(kept) < 12
    assert (strength[np.ix_(~cleaning.kept, cleaning.kept)] > 0.99).any(1).all()
    assert (strength[np.ix_(kept, kept)] - np.eye(len(kept))).max() <= 0.99


def test_missing_values_by_policy() -> None:
    x = rows()
    x[3:5, 1] = np.nan
    with pytest.raises(
        ValueError, match=r"^x: expected no missing values \(NaN\), got some in b; nan='median'"
    ):
        fit_cleaning(x, names=list("abcd"))
    median, report = fit_cleaning(x, CleaningConfig(nan="median", percentiles=None))
    value = np.nanmedian(x[:, 1].astype(np.float64))
    assert report == [f"feature 1: filled with {value:.6g}, 2 of 400 values are missing"]
    np.testing.assert_allclose(clean(x, median)[3:5, 1], value)
    other = rows(seed=5)
    other[0, 2] = np.nan  # where the training rows miss nothing
    np.testing.assert_allclose(clean(other, median)[0, 2], np.median(x[:, 2].astype(np.float64)))
    zero, _ = fit_cleaning(x, CleaningConfig(nan="zero"))
    assert (clean(x, zero)[3:5, 1] == 0).all() and clean(other, zero)[0, 2] == 0
    dropped, report = fit_cleaning(x, CleaningConfig(nan="drop_feature"))
    np.testing.assert_array_equal(dropped.kept, [True, False, True, True])
    assert report == ["feature 1: dropped, 2 of 400 values are missing"]
    assert np.isfinite(clean(x, dropped)).all()
    plain, _ = fit_cleaning(rows())
    for cleaning in (dropped, plain):
        with pytest.raises(ValueError, match=r"^x: expected no missing values \(NaN\) in c$"):
            clean(other, cleaning, list("abcd"))
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="got only missing ones in feature 1; nan='drop_feature'"):
        fit_cleaning(x, CleaningConfig(nan="median"))
    assert fit_cleaning(x, CleaningConfig(nan="drop_feature"))[0].kept.sum() == 3
    assert fit_cleaning(x, CleaningConfig(nan="zero"))[0].kept.sum() == 3
    with pytest.raises(ValueError, match=r"^x: none of 4 features is left"):
        fit_cleaning(np.full((3, 4), np.nan), CleaningConfig(nan="drop_feature"))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (rows(1), {}, "^x: expected at least 2 training rows, got 1"),
        (rows(0), {}, "^x: expected at least 2 training rows, got 0"),
        (rows(9, 0), {}, r"^x: expected rows \[N, F\] of at least one feature, got shape \[9, 0\]"),
        (rows()[0], {}, r"^x: expected rows \[N, F\] .* got shape \[4\]"),
        (np.where(rows() > 3, np.inf, 0.0), {}, "^x: expected finite numbers or NaN, got infinite ones in"),
        (rows(), {"nan": "mean"}, "^nan: expected error, median, zero or drop_feature, got 'mean'"),
        (rows(), {"min_std": -1.0}, "^min_std: expected a number >= 0"),
        (rows(), {"max_correlation": 0.0}, r"^max_correlation: expected within \(0, 1\]"),
        (rows(), {"percentiles": (99.5, 0.5)}, "^percentiles: expected 0 <= low < high <= 100"),
    ],
)
def test_mistakes_are_named(x: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_cleaning(x, CleaningConfig(**options))


def test_other_mistakes() -> None:
    for bad in (np.ones((3, 2), int), [[1.0, 2.0]]):
        with pytest.raises(TypeError, match=r"^x: expected an array of floating-point numbers"):
            fit_cleaning(bad)  # pyright: ignore[reportArgumentType]
    cleaning, _ = fit_cleaning(rows())
    with pytest.raises(ValueError, match=r"^x: expected the 4 features that were fitted, got 3"):
        clean(rows(width=3), cleaning)
    with pytest.raises(ValueError, match=r"^names: expected 4, got 1"):
        clean(rows(), cleaning, ["a"])
    assert isinstance(cleaning, Cleaning)
