"""Categories of features: planted ones recovered, and every part against scikit-learn, SciPy or a loop."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

from mfk.data import Categories, discover_categories, manual_categories, synthetic_blocks
from mfk.data.category_measures import centroid_correlation, correlation_matrix

WIDTHS = (8, 5, 12, 2)
BLOCK = np.repeat(np.arange(4), WIDTHS)


def planted(seed: int, rows: int = 800) -> np.ndarray:
    """Four blocks of 8, 5, 12 and 2 columns: a factor each, with either sign, and 0.3 noise; [rows, 27]."""
    draw = np.random.default_rng(seed)
    signs = draw.choice([-1.0, 1.0], len(BLOCK))
    return draw.standard_normal((rows, 4))[:, BLOCK] * signs + 0.3 * draw.standard_normal((rows, 27))


@pytest.mark.parametrize("rows", [30, 60, 200])
def test_few_rows_are_alike_by_chance(rows: int) -> None:
    """Independent blocks of few rows correlate by more than the target; they are found all the same."""
    for seed in range(6):
        g = np.random.default_rng(seed)
        signs = [g.choice([-1.0, 1.0], (1, width)) for width in (8, 5, 12)]
        x = np.concatenate([g.standard_normal((rows, 1)) * s for s in signs], 1)
        x += 0.3 * g.standard_normal(x.shape)
        found = discover_categories(x)
        assert found.assignment.tolist() == [0] * 8 + [1] * 5 + [2] * 12


def test_two_features_are_enough() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2))
    assert discover_categories(x).assignment.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_planted_blocks_come_out_and_the_pair_is_reassigned(seed: int) -> None:
    x = planted(seed)
    alone = discover_categories(x, min_features=1)
    assert alone.assignment.tolist() == BLOCK.tolist() and alone.moved == ()
    left_out = discover_categories(x, reassign_orphans=False)
    assert left_out.assignment.tolist() == np.where(BLOCK == 3, -1, BLOCK).tolist()

    found = discover_categories(x)
    assert found.assignment[:25].tolist() == BLOCK[:25].tolist()
    assert found.moved == (25, 26) and found.names == ("category_0", "category_1", "category_2")
    # The nearest centroid, by scikit-learn's first principal component for the signs.
    centroids = []
    for block in range(3):
        z = x[:, block == BLOCK]
        z = (z - z.mean(0)) / z.std(0)
        centroids.append((z * np.sign(_first_axis(z))).mean(1))
    for column in (25, 26):
        near = [abs(np.corrcoef(x[:, column], centroid)[0, 1]) for centroid in centroids]
        assert found.assignment[column] == int(np.argmax(near))
    assert found.orthogonality < 0.15 and found.silhouette > 0.7


def test_the_blocks_of_two_factors_come_out() -> None:
    """Each block holds columns that hardly correlate; a cut in two has centroids alike, beyond the target."""
    for seed in range(3):
        x, block = synthetic_blocks(seed, rows=2000)
        assert discover_categories(x, categories=6).assignment.tolist() == block.tolist()
        assert discover_categories(x).assignment.tolist() == block.tolist()
    x, block = synthetic_blocks(0)
    finer = discover_categories(x, orthogonality_target=None, min_features=1)
    assert len(finer.names) > 6 and finer.orthogonality > 0.15
    assert max(finer.tried, key=lambda k: finer.tried[k]) == len(finer.names)
    for category in range(len(finer.names)):
        assert len(set(block[finer.assignment == category])) == 1


def test_rows_and_signs_and_units_are_of_no_account() -> None:
    x = planted(0)
    expected = discover_categories(x)
    draw = np.random.default_rng(1)
    shuffled = discover_categories(x[draw.permutation(len(x))])
    for name in ("assignment", "linkage", "correlation"):
        assert np.array_equal(getattr(shuffled, name), getattr(expected, name))  # to the last bit
    assert shuffled.tried == expected.tried and shuffled[1:5] == expected[1:5]
    # So many correlations that rounding alone would not hide what the order of a sum does.
    wide = draw.standard_normal((300, 400))
    assert np.array_equal(correlation_matrix(wide[::-1]), correlation_matrix(wide))
    changed = discover_categories(x * draw.choice([-1.0, 1.0], 27) * 10.0 ** draw.integers(-5, 6, 27) + 3)
    assert changed.assignment.tolist() == expected.assignment.tolist()
    assert changed.silhouette == pytest.approx(expected.silhouette, abs=1e-9)
    order = draw.permutation(27)
    moved = discover_categories(x[:, order]).assignment
    same = expected.assignment[order]
    assert np.array_equal(moved[:, None] == moved, same[:, None] == same)
    firsts = [int(np.flatnonzero(moved == k)[0]) for k in range(moved.max() + 1)]
    assert firsts == sorted(firsts)


def test_the_same_as_scipy_and_scikit_learn() -> None:
    x = np.random.default_rng(0).standard_normal((200, 12)) @ np.random.default_rng(1).random((12, 30))
    r = np.corrcoef(np.clip((x - np.median(x, 0)) / _deviation(x), -5, 5), rowvar=False)
    tree = linkage(squareform(1 - np.abs(r), checks=False), "ward")
    found = discover_categories(x, min_features=1, orthogonality_target=None, max_clusters=10)
    np.testing.assert_allclose(found.correlation, r, atol=1e-12)
    np.testing.assert_allclose(found.linkage, tree, atol=1e-9)
    assert list(found.tried) == list(range(2, 11))
    distance = 1 - np.abs(r)
    np.fill_diagonal(distance, 0)
    for clusters, score in found.tried.items():
        labels = fcluster(tree, clusters, "maxclust")
        assert score == pytest.approx(silhouette_score(distance, labels, metric="precomputed"), abs=1e-9)
        cut = discover_categories(x, categories=clusters, min_features=1).assignment
        assert np.array_equal(cut[:, None] == cut, labels[:, None] == labels)
    assert found.silhouette == max(found.tried.values())


def _first_axis(z: np.ndarray) -> np.ndarray:
    axes = PCA(1).fit(z).components_
    assert axes is not None
    return axes[0]


def _deviation(x: np.ndarray) -> np.ndarray:
    return 1.4826 * np.median(np.abs(x - np.median(x, 0)), 0)


def test_centroids_by_a_loop() -> None:
    x = planted(3)
    r = correlation_matrix(x)
    near, between = centroid_correlation(r, BLOCK)
    limited = np.clip((x - np.median(x, 0)) / _deviation(x), -5, 5)
    z = (limited - limited.mean(0)) / limited.std(0)
    centroids = []
    for block in range(4):
        members = z[:, block == BLOCK]
        centroids.append((members * np.sign(_first_axis(members))).mean(1))
    for i in range(27):
        for block in range(4):
            expected = abs(np.corrcoef(z[:, i], centroids[block])[0, 1])
            assert near[i, block] == pytest.approx(expected, abs=1e-9)
    expected = np.abs(np.corrcoef(centroids))
    np.testing.assert_allclose(between, expected, atol=1e-9)
    largest = expected[np.triu_indices(4, 1)].max()
    assert discover_categories(x, categories=4, min_features=1).orthogonality == pytest.approx(largest)


def test_wild_rows_change_nothing_and_rare_values_count() -> None:
    x = planted(0)
    wild = x.copy()
    wild[0] = 1e6
    assert discover_categories(wild, min_features=1).assignment.tolist() == BLOCK.tolist()
    assert np.abs(np.corrcoef(wild, rowvar=False)).min() > 0.99  # Pearson's r of them as they stand
    # A feature that is zero in most rows has no deviation to be limited by.
    rare = np.where(np.arange(800) % 10 == 0, x[:, 0], 0.0)
    r = correlation_matrix(np.stack([rare, 2 * rare + 1, x[:, 1]], 1))
    assert r[0, 1] == pytest.approx(1.0) and np.isfinite(r).all()


def test_few_features_and_no_structure() -> None:
    draw = np.random.default_rng(0)
    two = discover_categories(draw.standard_normal((50, 2)), min_features=1)
    assert two.assignment.tolist() == [0, 0] and two.silhouette == 0.0 and two.tried == {}
    one = draw.standard_normal((50, 1))
    alike = discover_categories(one * np.arange(1.0, 6.0), min_features=1)
    assert alike.assignment.tolist() == [0] * 5 and alike.orthogonality == 0.0
    each = discover_categories(draw.standard_normal((50, 4)), categories=4, min_features=1)
    assert each.assignment.tolist() == [0, 1, 2, 3]
    whole = discover_categories(planted(0).astype(np.float32), categories=1)
    assert whole.assignment.tolist() == [0] * 27
    # No cluster of any cut is as large as asked: one category.
    assert discover_categories(planted(0), min_features=27).assignment.tolist() == [0] * 27


X = planted(0, rows=20)


@pytest.mark.parametrize(
    ("features", "options", "error"),
    [
        (X[:1], {}, "at least 3 rows.*got 1"),
        (X[:0], {}, "at least 3 rows.*got 0"),
        (X[:, :1], {}, "at least 2 features.*got 1"),
        (X[0], {}, r"\[N, D\].*\(27,\)"),
        (X.astype(complex), {}, "complex128"),
        (np.where(np.arange(27) == 4, np.nan, X), {"names": [f"a::{i}" for i in range(27)]}, "'a::4'"),
        (np.where(np.arange(27) == 4, np.inf, X), {}, "finite.*'feature 4'"),
        (np.where(np.arange(27) > 19, 1.0, X), {}, "constant.*'feature 20'.*and 2 more; clean"),
        (X, {"names": ["a"]}, "names: expected 27.*got 1"),
        (X, {"categories": 28}, "categories: expected an int from 1 to 27"),
        (X, {"categories": True}, "categories"),
        (X, {"categories": 27}, "min_features: .*largest has 1"),
        (X, {"max_clusters": 1}, "max_clusters: expected an int >= 2, got 1"),
        (X, {"min_features": 0}, "min_features"),
        (X, {"min_features": 28}, "min_features"),
        (X, {"orthogonality_target": 1.5}, "orthogonality_target"),
    ],
)
def test_mistakes_are_named(features, options, error) -> None:
    with pytest.raises(ValueError, match=error):
        discover_categories(features, **options)


def test_other_types_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="features: expected a NumPy array, got"):
        discover_categories(X.tolist())
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ImportError, match=r"scikit-learn is needed.*mfk\[vqvae\]"):
        discover_categories(X)
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(ImportError, match=r"SciPy is needed.*mfk\[vqvae\]"):
        discover_categories(X)


NAMES = ("a::x_mean", "a::x_std", "b::[0]", "b::y_mean")


def test_categories_by_hand() -> None:
    found = manual_categories({"means": ["*_mean"], "rest": ["a::x_std", "b::[0]"]}, NAMES)
    assert found.assignment.tolist() == [0, 1, 1, 0] and found.names == ("means", "rest")
    assert found.moved == () and found.correlation.shape == (0, 0) and np.isnan(found.silhouette)
    x = planted(0)
    names = [f"{'pqrs'[b]}::{i}" for i, b in enumerate(BLOCK)]
    measured = manual_categories({"s": ["s::*"], "rest": ["[pqr]::*"]}, names, features=x)
    auto = discover_categories(x)
    assert measured.assignment.tolist() == [1] * 25 + [0] * 2  # in the order of the mapping
    assert np.array_equal(measured.correlation, auto.correlation)
    assert np.array_equal(measured.linkage, auto.linkage)
    assert 0 < measured.silhouette < auto.silhouette and 0 < measured.orthogonality < 1
    kept = manual_categories({"means": ["*_mean", "c::z"], "rest": ["*_std", "*0]"]}, NAMES, known=["c::z"])
    assert kept.assignment.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        ({}, "at least one category"),
        ({"m": ["*_mean"], "s": ["*_std"]}, r"'b::\[0\]' is in no category"),
        ({"m": ["*_mean"], "all": ["*"]}, "'a::x_mean' is in 'm', 'all'"),
        ({"all": ["*"], "none": []}, "'none' has no feature"),
        ({"all": ["*", "A::*"]}, r"all: 'A::\*' matches no feature"),
    ],
)
def test_mistakes_of_a_mapping_are_named(mapping, error) -> None:
    with pytest.raises(ValueError, match=error):
        manual_categories(mapping, NAMES)
    with pytest.raises(ValueError, match="names: expected"):
        manual_categories({"all": ["*"]}, ("a", "a"))


def test_synthetic_blocks() -> None:
    x, block = synthetic_blocks(1, rows=4000, widths=(3, 5), noise=0.0)
    assert x.shape == (4000, 8) and x.dtype == np.float32 and block.tolist() == [0] * 3 + [1] * 5
    again, _ = synthetic_blocks(1, rows=7, widths=(3, 5), noise=0.0)
    assert np.array_equal(again, x[:7])
    assert not np.array_equal(synthetic_blocks(2, rows=7, widths=(3, 5))[0], again)
    noisy, _ = synthetic_blocks(1, rows=4000, widths=(3, 5), noise=0.1)
    assert np.std(noisy - x, axis=0) == pytest.approx(np.full(8, 0.1), rel=0.05)
    # Two factors: without noise the curved columns of a block lie on a surface, of which a plane is most.
    r = np.abs(np.corrcoef(x, rowvar=False))
    assert r[:3, 3:].max() < 0.06
    assert PCA().fit(x[:, 3:]).explained_variance_ratio_[:2].sum() > 0.95
    with pytest.raises(ValueError, match="rows: expected an int >= 1, got 0"):
        synthetic_blocks(0, rows=0)
    with pytest.raises(ValueError, match="widths: expected at least one"):
        synthetic_blocks(0, widths=())
    with pytest.raises(ValueError, match=r"widths\[1\]: expected an int >= 1, got 0"):
        synthetic_blocks(0, widths=(2, 0))
    with pytest.raises(ValueError, match="noise"):
        synthetic_blocks(0, noise=float("nan"))


def test_the_result_is_arrays_and_plain_numbers() -> None:
    found = discover_categories(planted(0).astype(np.float32))
    assert isinstance(found, Categories) and found.assignment.dtype == np.int64
    assert type(found.silhouette) is float and type(found.orthogonality) is float
    assert all(type(k) is int and type(v) is float for k, v in found.tried.items())
    assert all(type(i) is int for i in found.moved)
