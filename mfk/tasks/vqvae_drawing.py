"""The codebooks of a tokenizer as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mfk.core.types import Tree
from mfk.tasks.vqvae import VQVAEConfig, codebook
from mfk.tasks.vqvae_net import VQVAENets


def draw_codebooks(
    path: Path,
    nets: VQVAENets,
    config: VQVAEConfig,
    params: Tree,
    state: Tree,
    method: Literal["tsne", "umap"] = "tsne",
) -> Path:
    """Draw each category's codes in two dimensions, a panel a category, a colour a level; larger: used more.

    Codes of different levels have different widths: those of a category are filled up with zeros to one, each
    level in its own deviation, and laid out together.

    Raises:
        ModuleNotFoundError: scikit-learn (extra `vqvae`), or umap-learn (extra `umap`), is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(nets.categories)
    wide = min(count, 4)
    tall = -(-count // wide)
    figure = Figure(figsize=(3.0 * wide, 2.9 * tall), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(tall, wide, squeeze=False).ravel()
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_visible(False)
    for g, category in enumerate(nets.categories):
        axis = axes[g]
        axis.set_visible(True)
        codes, levels, sizes = _codes(nets, config, params, state, g)
        places = _flatten(codes, method)
        for level in sorted(set(levels)):
            own = [i for i, x in enumerate(levels) if x == level]
            axis.scatter(places[own, 0], places[own, 1], s=6 + 160 * sizes[own], c=f"C{level}", alpha=0.6,
                         linewidths=0, label=f"level {level}")  # fmt: skip
        axis.set_title(category, fontsize=9)
    axes[0].legend(fontsize=7, frameon=False)
    name = {"tsne": "t-SNE", "umap": "UMAP"}[method]
    figure.suptitle(f"codes of each category, {name}; area: share of the training rows", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _codes(
    nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, g: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """A category's codes [K, D], filled up to one width, the level of each, its share of the rows."""
    own = [(j, level) for j, (k, level) in enumerate(nets.codebooks) if k == g]
    wide = max(nets.levels[j].latent_dim for j, _ in own)
    blocks, levels, sizes = [], [], []
    for j, level in own:
        book = codebook(config, params, state, j)
        codes = book.codes.double()
        codes = (codes - codes.mean(0)) / codes.std().clamp(min=1e-12) / codes.shape[1] ** 0.5
        blocks.append(torch.nn.functional.pad(codes, (0, wide - codes.shape[1])))
        levels += [level] * len(codes)
        sizes.append(book.count.double() / book.count.double().sum())
    return torch.cat(blocks).numpy(), levels, torch.cat(sizes).numpy()


def _flatten(points: np.ndarray, method: str) -> np.ndarray:
    if method == "umap":
        try:
            from umap import UMAP  # pyright: ignore[reportMissingImports]  # optional
        except ModuleNotFoundError:
            raise ModuleNotFoundError('method: "umap" needs umap-learn: pip install "mfk[umap]"') from None
        return UMAP(n_neighbors=min(15, len(points) - 1), random_state=0).fit_transform(points)
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        raise ModuleNotFoundError('method: "tsne" needs scikit-learn: pip install "mfk[vqvae]"') from None
    if points.shape[1] == 1:  # its start by principal components wants two
        points = np.pad(points, ((0, 0), (0, 1)))
    perplexity = min(15.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
