"""Levels that scale with the features, against the documented values."""

from __future__ import annotations

import pytest

from mfk.nn import LevelConfig, auto_levels

# Features -> numbers of codes, and their widths.
DOCUMENTED = {
    3: ([15, 6, 6], [48, 8, 4]),
    10: ([20, 11, 6], [48, 8, 4]),
    33: ([32, 17, 8], [48, 24, 12]),
    71: ([40, 21, 10], [116, 60, 32]),
}


@pytest.mark.parametrize("features", DOCUMENTED)
def test_documented_values(features: int) -> None:
    tokens, widths = DOCUMENTED[features]
    assert auto_levels(features) == tuple(map(LevelConfig, widths, tokens))


def test_ratios_are_widths_in_units_of_the_features() -> None:
    assert [v.latent_dim for v in auto_levels(33, (0.5, 1, 1.5))] == [20, 36, 52]
    assert [v.latent_dim for v in auto_levels(71, (0.5, 1, 1.5))] == [36, 72, 108]
    assert [v.tokens for v in auto_levels(33, (0.5, 1, 1.5, 2))] == [32, 17, 8, 6]


def test_every_number_of_features_gives_a_proper_pyramid() -> None:
    for rows in (1, 1000, 1001, 10_000, 10**7):
        for features in range(1, 500):
            levels = auto_levels(features, rows=rows)
            tokens, widths = [v.tokens for v in levels], [v.latent_dim for v in levels]
            assert sorted(tokens, reverse=True) == tokens and min(tokens) >= 6
            assert sorted(widths, reverse=True) == widths and min(widths) >= 4
            assert all(w % 4 == 0 for w in widths)


def test_least_values_grow_with_the_rows() -> None:
    least = {n: auto_levels(3, rows=n)[0] for n in (500, 2000, 10_000, 100_000, 10**8)}
    assert least[500] == (8, 8) and least[2000] == (40, 8)
    assert least[10_000] == (48, 15) and least[100_000] == (60, 28) and least[10**8] == (64, 28)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "features"),
        ((3, ()), "ratios"),
        ((3, (1, 0)), r"ratios\[1\]"),
        ((3, "0.5:1"), "ratios"),
        ((3, None, 0), "rows"),
    ],
)
def test_mistakes_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        auto_levels(*arguments)
