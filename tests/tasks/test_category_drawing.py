"""The picture of categories: its tree against SciPy's, its pixels read back by Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.cluster.hierarchy import dendrogram as scipy_dendrogram
from scipy.cluster.hierarchy import linkage

from mfk.data import discover_categories, manual_categories
from mfk.tasks.category_drawing import dendrogram, draw_categories

BLOCK = np.repeat(np.arange(3), (6, 4, 10))
NAMES = [f"f::${i}$" for i in range(20)]  # not to be read as mathematics


def features(count: int = 20) -> np.ndarray:
    draw = np.random.default_rng(0)
    block = np.resize(BLOCK, count)
    return draw.standard_normal((300, 3))[:, block] + 0.5 * draw.standard_normal((300, count))


def test_the_tree_is_scipys() -> None:
    tree = linkage(np.random.default_rng(0).random((40, 3)), "ward")
    order, branches = dendrogram(tree)
    theirs = scipy_dendrogram(tree, no_plot=True, distance_sort=True)
    assert order == theirs["leaves"]
    ours = sorted((*(10 * x + 5), *y) for x, y in branches)
    expected = sorted((*x, *y) for x, y in zip(theirs["icoord"], theirs["dcoord"], strict=True))
    np.testing.assert_allclose(ours, expected)


def test_a_tree_as_deep_as_it_has_leaves() -> None:
    count = 3000
    chain = np.array([[0, 1, 1.0, 2]] + [[count + i, i + 2, 2.0 + i, i + 3] for i in range(count - 2)])
    order, branches = dendrogram(chain)
    assert sorted(order) == list(range(count)) and len(branches) == count - 1


def test_the_matrix_shows_the_blocks(tmp_path: Path) -> None:
    found = discover_categories(features())
    assert found.assignment.tolist() == BLOCK.tolist()
    path = tmp_path / "categories.png"
    draw_categories(found, NAMES, path)
    draw_categories(found, NAMES, path)
    assert [file.name for file in tmp_path.iterdir()] == ["categories.png"]
    picture = np.asarray(Image.open(path).convert("RGB")).astype(float)
    height, width = picture.shape[:2]
    # The matrix lies at 0.16 ... 0.82 of the width and 0.14 ... 0.74 of the height from below.
    order = dendrogram(found.linkage)[0]
    for i in range(0, 20, 3):
        for j in range(1, 20, 3):
            y = int(height * (1 - 0.74 + 0.6 * (i + 0.5) / 20))
            x = int(width * (0.16 + 0.66 * (j + 0.5) / 20))
            is_together = BLOCK[order[i]] == BLOCK[order[j]]
            assert (picture[y, x].sum() > 300) == is_together, (i, j)
    # The bar of categories above it: a colour for each.
    bar = picture[int(height * (1 - 0.7575))]
    colours = [tuple(bar[int(width * (0.16 + 0.66 * (j + 0.5) / 20))]) for j in range(20)]
    assert len(set(colours)) == 3
    for j in range(20):
        assert colours[j] == colours[order.index(next(i for i in order if BLOCK[i] == BLOCK[order[j]]))]


def test_many_features_and_many_categories(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 70))
    found = discover_categories(x, categories=60, min_features=2, reassign_orphans=False)
    assert (found.assignment == -1).any()
    draw_categories(found, [str(i) for i in range(70)], tmp_path / "a.png")
    each = discover_categories(x, categories=45, min_features=1)
    draw_categories(each, [str(i) for i in range(70)], tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_mistakes_are_named(tmp_path: Path) -> None:
    found = discover_categories(features())
    with pytest.raises(ValueError, match=r"NAME\.png"):
        draw_categories(found, NAMES, tmp_path / "a.svg")
    with pytest.raises(FileNotFoundError, match="folder"):
        draw_categories(found, NAMES, tmp_path / "none" / "a.png")
    with pytest.raises(ValueError, match=r"names: expected 20.*got 1"):
        draw_categories(found, NAMES[:1], tmp_path / "a.png")
    by_hand = manual_categories({"all": ["*"]}, NAMES)
    with pytest.raises(ValueError, match="categories: expected correlations"):
        draw_categories(by_hand, NAMES, tmp_path / "a.png")
    measured = manual_categories({"all": ["*"]}, NAMES, features=features())
    draw_categories(measured, NAMES, tmp_path / "a.png")
    assert not list(tmp_path.glob(".*"))
