"""Categories of features: columns that say much about each other, found by clustering or listed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import numpy as np

from mfk.core.types import describe
from mfk.data.category_measures import (
    DIGITS,
    centroid_correlation,
    correlation_matrix,
    distance,
    missing,
    orthogonality,
    silhouette,
    some,
)  # fmt: skip


class Categories(NamedTuple):
    """Which category each of D features belongs to, and how good a division that is."""

    assignment: np.ndarray  # [D] int64, 0 ... G - 1; -1: in none (only without reassign_orphans)
    names: tuple[str, ...]  # of the G categories
    silhouette: float  # mean over the features of the assignment, -1 ... 1; 0 of a single category
    orthogonality: float  # largest |r| between two categories' centroids, 0 ... 1; 0 of a single category
    moved: tuple[int, ...]  # features of clusters that were too small, reassigned
    tried: dict[int, float]  # number of clusters -> silhouette of that cut
    linkage: np.ndarray  # [D - 1, 4] float64, SciPy's table of the clustering; [0, 4] if there was none
    correlation: np.ndarray  # [D, D] float64; [0, 0] if no features were given


def discover_categories(
    features: np.ndarray,
    *,
    categories: int | None = None,
    max_clusters: int = 25,
    min_features: int = 3,
    reassign_orphans: bool = True,
    orthogonality_target: float | None = 0.15,
    names: Sequence[str] | None = None,
) -> Categories:
    """Divide features into categories by how they correlate.

    Each feature is scaled by its median and median absolute deviation (MAD) and limited to 5 deviations, so
    that a few wild rows neither make a correlation nor hide one; r is Pearson's, the distance of two
    features 1 - |r|, and the clusters are Ward's. Of the cuts into K = 2 ... `max_clusters` clusters that
    with the largest mean silhouette is taken; none where none is positive: then all is one category.
    Features of clusters smaller than `min_features` go to the nearest centroid of the others, so that there
    may be fewer categories than K. A centroid is the mean of a category's standardised features, each with
    the sign that its first principal component has: a feature's sign is of no account anywhere.

    The result does not depend on the order of the rows. Categories are numbered by their first feature.

    Args:
        features: [N, D], finite numbers, N >= 3, D >= 2; no column constant.
        categories: number of clusters K to cut into, 1 <= K <= D; None chooses by silhouette.
        max_clusters: the largest K tried, >= 2; at most D - 1 are.
        min_features: features that a category needs, >= 1; of two features the default asks for two.
        reassign_orphans: False leaves the features of smaller clusters out, with assignment -1.
        orthogonality_target: where K is chosen, of the cuts whose `orthogonality` is at most this
            (0 ... 1), or what chance makes of N rows, 3/√N, that with the largest silhouette is taken,
            since a category that is cut in two has centroids alike; where there is none of several
            categories, or the target is None, that of all.
        names: D names of the features, for error messages.

    Raises:
        TypeError: features that are no NumPy array.
        ValueError: another shape; fewer than 3 rows or 2 features; a number that is not finite; a constant
            feature; an option out of range; no cluster as large as `min_features`.
        ImportError: SciPy or scikit-learn is not installed.

    Source: Ward, J. Am. Stat. Assoc. 58 (1963); Rousseeuw, J. Comput. Appl. Math. 20 (1987).
    """
    r = correlation_matrix(features, names)
    count = len(r)
    min_features = min(min_features, count) if min_features == 3 else min_features
    _check_options(count, categories, max_clusters, min_features, orthogonality_target)
    tree = _ward(r)
    if categories is None:
        cuts = list(range(2, min(max_clusters, count - 1) + 1))
    else:
        cuts = [categories]
    tried, found = {}, []
    for clusters, labels in zip(cuts, _cut(tree, cuts), strict=True):
        tried[clusters] = silhouette(r, labels)
        large = np.bincount(labels) >= min_features
        if large.any():
            found.append(_settle(r, labels, large, reassign_orphans))
        elif categories is not None:
            raise ValueError(
                f"min_features: expected a cluster of at least {min_features} of the {count} features among "
                f"{categories}, the largest has {np.bincount(labels).max()}; give fewer categories"
            )
        else:
            found.append(None)
    if categories is None:
        # Of few rows independent categories are alike by chance; no cut is to be refused for that.
        chance = 3 / np.sqrt(len(features))
        target = None if orthogonality_target is None else max(orthogonality_target, chance)
        found = _best(r, tried, found, target)
    assignment, moved = found[0] if found else (np.zeros(count, np.int64), ())
    return _measured(r, assignment, None, moved, tried, tree)


def manual_categories(
    mapping: Mapping[str, Sequence[str]],
    names: Sequence[str],
    *,
    known: Sequence[str] | None = None,
    features: np.ndarray | None = None,
) -> Categories:
    """Categories as listed: category -> patterns of full names, such as ``summary::*.mean``.

    A pattern is a name, or one with the wildcards ``*``, ``?`` and ``[...]``; case matters. The categories
    keep the order of the mapping.

    Args:
        mapping: category -> patterns.
        names: full names of the D features.
        known: names that a pattern may match beside `names`, such as those of features that cleaning
            dropped.
        features: [N, D], to measure the division and to draw it; as of `discover_categories`.

    Raises:
        ValueError: no category; a feature in none or in several; a category without a feature; a pattern
            that matches nothing; each named.
    """
    if not mapping:
        raise ValueError("category_mapping: expected at least one category, got none")
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"names: expected names of features, each once, got {describe(list(names))}")
    homes: list[list[str]] = [[] for _ in names]
    everything = [*names, *(known or ())]
    for category, patterns in mapping.items():
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in everything):
                raise ValueError(f"category_mapping: {category}: {pattern!r} matches no feature")
        for name, home in zip(names, homes, strict=True):
            if any(_matches(name, pattern) for pattern in patterns):
                home.append(category)
    left = [name for name, home in zip(names, homes, strict=True) if not home]
    if left:
        raise ValueError(f"category_mapping: {some(left)} {'is' if len(left) == 1 else 'are'} in no category")
    for name, home in zip(names, homes, strict=True):
        if len(home) > 1:
            raise ValueError(f"category_mapping: {name!r} is in {some(home)}; expected one category")
    order = {category: i for i, category in enumerate(mapping)}
    assignment = np.array([order[home[0]] for home in homes], np.int64)
    for category, i in order.items():
        if not (assignment == i).any():
            raise ValueError(f"category_mapping: {category!r} has no feature")
    if features is None:
        nothing = np.zeros((0, 0))
        return Categories(
            assignment, tuple(mapping), float("nan"), float("nan"), (), {}, np.zeros((0, 4)), nothing
        )
    r = correlation_matrix(features, names)
    return _measured(r, assignment, tuple(mapping), (), {}, _ward(r))


def _check_options(
    count: int, categories: int | None, max_clusters: int, min_features: int, target: float | None
) -> None:
    ranges: list[tuple[str, Any, int, float, str]] = [
        ("max_clusters", max_clusters, 2, np.inf, ">= 2"),
        ("min_features", min_features, 1, count, f"from 1 to {count}, the features"),
    ]
    if categories is not None:
        ranges.append(("categories", categories, 1, count, f"from 1 to {count}, the features"))
    for name, value, least, most, span in ranges:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{name}: expected an int {span}, got {describe(value)}")
    is_number = isinstance(target, int | float) and not isinstance(target, bool)
    if target is not None and not (is_number and 0 <= target <= 1):
        raise ValueError(f"orthogonality_target: expected a number from 0 to 1, got {describe(target)}")


def _ward(r: np.ndarray) -> np.ndarray:
    try:
        from scipy.cluster.hierarchy import linkage
    except ImportError as error:
        raise ImportError(missing("SciPy", error)) from error
    return np.asarray(linkage(distance(r)[np.triu_indices(len(r), 1)], "ward"))


def _cut(tree: np.ndarray, clusters: Sequence[int]) -> list[np.ndarray]:
    """For each number of clusters the cluster of each feature, numbered by first feature."""
    labels = np.arange(len(tree) + 1)
    wanted = {}
    for merged, (a, b) in enumerate(tree[:, :2].astype(int), start=1):
        wanted[len(tree) + 2 - merged] = labels
        labels = np.where((labels == a) | (labels == b), len(tree) + merged, labels)
    wanted[1] = labels
    return [_renumbered(wanted[k]) for k in clusters]


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """Labels >= 0 as 0, 1, ... in the order of their first places; -1 stays."""
    seen = list(dict.fromkeys(labels[labels >= 0].tolist()))
    order = {label: i for i, label in enumerate(seen)}
    return np.array([order.get(label, -1) for label in labels.tolist()], np.int64)


def _settle(
    r: np.ndarray, labels: np.ndarray, large: np.ndarray, reassign: bool
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The assignment after features of clusters that are not large went where they belong; those features."""
    kept = _renumbered(np.where(large[labels], labels, -1))
    orphans = np.flatnonzero(kept < 0)
    if not len(orphans) or not reassign:
        return kept, ()
    nearest = np.round(centroid_correlation(r, kept)[0][orphans], DIGITS).argmax(1)
    kept[orphans] = nearest
    return _renumbered(kept), tuple(orphans.tolist())


def _best(
    r: np.ndarray, tried: Mapping[int, float], found: Sequence[Any], target: float | None
) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """The cut of the largest silhouette, if that is positive, of those within the target if there are any."""
    pairs = zip(tried.values(), found, strict=True)
    scored = [(score, cut) for score, cut in pairs if cut is not None and score > 0]
    if target is not None:
        apart = [(score, cut) for score, cut in scored if cut[0].max() > 0]  # a single one is no division
        within = [(score, cut) for score, cut in apart if orthogonality(r, cut[0]) <= target]
        scored = within or scored
    return [max(scored, key=lambda pair: pair[0])[1]] if scored else []


def _measured(
    r: np.ndarray,
    assignment: np.ndarray,
    names: tuple[str, ...] | None,
    moved: tuple[int, ...],
    tried: dict[int, float],
    tree: np.ndarray,
) -> Categories:
    names = names or tuple(f"category_{g}" for g in range(assignment.max() + 1))
    return Categories(
        assignment, names, silhouette(r, assignment), orthogonality(r, assignment), moved, tried, tree, r
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
