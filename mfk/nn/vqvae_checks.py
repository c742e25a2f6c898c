"""What `CategoricalVQVAE` refuses: categories, levels and families that do not agree."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence

from mfk.core.types import describe
from mfk.nn.checks import check_sizes
from mfk.nn.vq_levels import LevelConfig


def check_groups(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """The columns of each category, as lists of ints; ValueError unless each of 0, ..., F - 1 is in one."""
    lists = [_columns(f"groups[{g}]", group) for g, group in enumerate(groups)]
    times = Counter(column for group in lists for column in group)
    total = sum(times.values())
    if not lists or sorted(times) != list(range(total)):
        several = sorted(column for column, n in times.items() if n > 1)
        raise ValueError(
            f"groups: expected every column 0, ..., F - 1 in exactly one category, got {total} entries; "
            f"several times {several[:4]}, absent {sorted(set(range(total)) - set(times))[:4]}"
        )
    return lists


def check_levels(levels: Sequence[Sequence[LevelConfig]], groups: int, least: int) -> None:
    """ValueError unless each category has levels, of latents of at least `least` numbers."""
    if len(levels) != groups:
        raise ValueError(f"levels: expected those of each of the {groups} categories, got {len(levels)}")
    for g, category in enumerate(levels):
        if not category:
            raise ValueError(f"levels[{g}]: expected at least one level, got none")
        for i, level in enumerate(category):
            if not isinstance(level, LevelConfig):
                raise ValueError(f"levels[{g}][{i}]: expected a LevelConfig, got {describe(level)}")
            check_sizes(least, **{f"levels[{g}][{i}].latent_dim": level.latent_dim})
            check_sizes(**{f"levels[{g}][{i}].tokens": level.tokens})


def check_families(families: Mapping[str, Sequence[int]], features: int) -> list[list[int]]:
    """Columns of each family as lists of ints; ValueError for one in two families or not below `features`."""
    owner: dict[int, str] = {}
    lists = []
    for name, given in families.items():
        columns = _columns(f"families[{name!r}].columns", given)
        for column in columns:
            if not 0 <= column < features:
                raise ValueError(
                    f"families[{name!r}].columns: expected ints in [0, {features}), got {column}"
                )
            if column in owner:
                raise ValueError(
                    f"families[{name!r}].columns: column {column} is in family {owner[column]!r} already"
                )
            owner[column] = name
        lists.append(columns)
    return lists


def _columns(name: str, columns: Sequence[int]) -> list[int]:
    """At least one, NumPy's ints among them."""
    try:
        found = [operator.index(column) for column in columns]
    except TypeError:
        raise ValueError(f"{name}: expected a list of ints, got {describe(columns)}") from None
    if not found:
        raise ValueError(f"{name}: expected at least one column, got none")
    return found
