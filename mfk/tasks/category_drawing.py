"""Categories of features as a picture: the clusters' tree above the correlations, in the tree's order."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mfk.core.files import write_atomically
from mfk.core.types import describe
from mfk.data import Categories
from mfk.tasks.movies import check_place

_LABELLED = 60  # features whose names can be read; more get none
_LISTED = 24  # categories that the legend names
_COLOURS = ("tab20", "tab20b")


def draw_categories(categories: Categories, names: Sequence[str], path: str | Path) -> None:
    """Draw the tree of the clusters and, in its order, |r| of every two features; replace the whole file.

    The height of a branch is Ward's distance, on a square-root axis. A bar below the tree has each feature's
    category in colour, grey for none; a feature that was reassigned to another cluster lies among its old
    neighbours, in its new colour.

    Args:
        categories: as of `discover_categories`, or of `manual_categories` with features.
        names: D names of the features; shown where they are at most 60.
        path: NAME.png.

    Raises:
        ValueError: another suffix, another number of names, or categories without correlations.
        FileNotFoundError: no such folder.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_place(path, (".png",))
    r, count = categories.correlation, len(categories.assignment)
    if len(names) != count:
        raise ValueError(f"names: expected {count}, one for each feature, got {len(names)}")
    if len(r) != count or len(categories.linkage) != count - 1:
        raise ValueError(
            "categories: expected correlations and a tree to draw, got none; manual_categories measures them "
            f"where it is given features (correlation: {describe(r.shape)})"
        )
    order, branches = dendrogram(categories.linkage)
    palette = np.array([matplotlib.colormaps[name](i)[:3] for name in _COLOURS for i in range(20)])
    members = categories.assignment[order]
    colours = np.where(members[:, None] >= 0, palette[members % len(palette)], 0.6)
    is_labelled = count <= _LABELLED
    bottom = 0.14 if is_labelled else 0.03

    figure = Figure(figsize=(9, 11), dpi=110)
    canvas = FigureCanvasAgg(figure)
    tree = figure.add_axes((0.16, 0.77, 0.66, 0.17))
    for x, y in branches:
        tree.plot(x, np.sqrt(y), color="0.25", linewidth=0.6)
    tree.set_xlim(-0.5, count - 0.5)
    tree.set_ylim(bottom=0)
    tree.set_xticks([])
    ticks = tree.get_yticks()
    tree.set_yticks(ticks, [f"{tick**2:.2g}" for tick in ticks])
    tree.set_ylabel("Ward's distance", fontsize=8)
    tree.tick_params(labelsize=7)
    bar = figure.add_axes((0.16, 0.75, 0.66, 0.015))
    bar.imshow(colours[None], aspect="auto", interpolation="nearest")
    bar.set_axis_off()
    matrix = figure.add_axes((0.16, bottom, 0.66, 0.74 - bottom))
    shown = matrix.imshow(np.abs(r)[np.ix_(order, order)], cmap="magma", vmin=0, vmax=1, aspect="auto",
                          interpolation="nearest")  # fmt: skip
    matrix.set_xticks([])
    matrix.set_yticks([])
    if is_labelled:
        words = [names[i] for i in order]
        matrix.set_xticks(range(count), words, rotation=90, fontsize=6, parse_math=False)
        matrix.set_yticks(range(count), words, fontsize=6, parse_math=False)
    scale = figure.add_axes((0.84, bottom, 0.02, 0.74 - bottom))
    figure.colorbar(shown, cax=scale).set_label("|r|", fontsize=8)
    scale.tick_params(labelsize=7)
    sizes = np.bincount(members[members >= 0], minlength=len(categories.names))
    for g, name in enumerate(categories.names[:_LISTED]):
        row = 0.93 - 0.0075 * g
        figure.text(0.835, row, "■", color=palette[g % len(palette)], fontsize=7, va="center")
        figure.text(0.855, row, f"{name} ({sizes[g]})", fontsize=5.5, va="center", parse_math=False)
    if len(categories.names) > _LISTED:
        figure.text(0.855, 0.93 - 0.0075 * _LISTED, f"{len(categories.names) - _LISTED} more", fontsize=5.5)
    figure.suptitle(
        f"{count} features in {len(categories.names)} categories: silhouette {categories.silhouette:.3f}, "
        f"largest |r| of two centroids {categories.orthogonality:.3f}, {len(categories.moved)} reassigned",
        fontsize=9,
    )
    file = io.BytesIO()
    canvas.print_png(file)
    write_atomically(path, file.getvalue())


def dendrogram(linkage: np.ndarray) -> tuple[list[int], list[tuple[np.ndarray, np.ndarray]]]:
    """The leaves from left to right, and each merge as a path of four points (x [4], heights [4]).

    Leaf k of that order stands at x = k. Of two branches the lower one is on the left; of equal ones that
    with the first leaf. Depth is no limit: nothing here calls itself.

    Args:
        linkage: [D - 1, 4], SciPy's table.
    """
    count = len(linkage) + 1
    height = np.concatenate([np.zeros(count), linkage[:, 2]])
    first = list(range(count))
    pairs: list[tuple[int, int]] = []
    for a, b in linkage[:, :2].astype(int).tolist():
        pairs.append((a, b) if (height[a], first[a]) <= (height[b], first[b]) else (b, a))
        first.append(min(first[a], first[b]))
    order, waiting = [], [2 * count - 2]
    while waiting:
        node = waiting.pop()
        if node < count:
            order.append(node)
        else:
            left, right = pairs[node - count]
            waiting += [right, left]
    place = np.zeros(2 * count - 1)
    place[order] = np.arange(count)
    branches = []
    for i, (a, b) in enumerate(pairs):
        node = count + i
        place[node] = (place[a] + place[b]) / 2
        branches.append(
            (place[[a, a, b, b]].copy(), np.array([height[a], height[node], height[node], height[b]]))
        )
    return order, branches
