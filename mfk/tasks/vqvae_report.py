"""The report of a tokenizer: its figures, its codebooks as a picture, files under the documents' names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mfk.core.files import write_atomically
from mfk.core.types import Tree
from mfk.tasks.report_tables import markdown, print_rows, strict
from mfk.tasks.vqvae import VQVAEConfig
from mfk.tasks.vqvae_data import Preparation, feature_names
from mfk.tasks.vqvae_measure import BookRow, Score
from mfk.tasks.vqvae_net import VQVAENets
from mfk.tasks.vqvae_tokens import TokenRow


def score_table(rows: Mapping[str, Score]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows."""
    titles = [
        "",
        "rows",
        "bits",
        "quality",
        "utilisation",
        "perplexity",
        "orthogonality",
        "topo pre",
        "topo post",
    ]
    shown = [
        [
            name, f"{r.rows:,}", f"{r.bits:.0f}", f"{r.quality:.4f}", f"{100 * r.utilisation:.1f} %",
            f"{100 * r.perplexity:.1f} %", f"{r.orthogonality:.3f}", f"{r.topo_pre:.3f}",
            f"{r.topo_post:.3f}",
        ]
        for name, r in rows.items()
    ]  # fmt: skip
    return titles, shown


def book_table(rows: Sequence[BookRow]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows, of each codebook."""
    titles = ["category", "level", "features", "codes", "used", "perplexity", "commonest", "alone, mse"]
    shown = [
        [
            r.category, f"{r.level}", f"{r.features}", f"{r.tokens}", f"{r.used}", f"{r.perplexity:.1f}",
            f"{100 * r.most:.1f} %", f"{r.alone:.3f}",
        ]
        for r in rows
    ]  # fmt: skip
    return titles, shown


def token_table(rows: Sequence[TokenRow]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows, of each category."""
    titles = ["category", "features", "codes", "used", "bits a token", "bits together", "bits shared, most"]
    shown = [
        [
            r.category, f"{r.features}", f"{r.codes}", f"{r.used}", f"{r.entropy:.2f}", f"{r.joint:.2f}",
            f"{r.shared:.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    return titles, shown


def write_report(
    folder: Path,
    scores: Mapping[str, Score],
    books: Sequence[BookRow],
    tokens: Sequence[TokenRow],
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write report.json and report.md into `folder`; the files written."""
    report = {
        "facts": dict(facts),
        "scores": {name: one._asdict() for name, one in scores.items()},
        "codebooks": [r._asdict() for r in books],
        "categories": [r._asdict() for r in tokens],
    }
    lines = ["# Tokens of feature families: held-out rows", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", *markdown(*score_table(scores)), ""]
    lines += [
        "quality: 1 - mean squared error in the features' deviations; utilisation: codes these rows use;",
        "perplexity: exp(entropy) of a codebook's tokens / its codes; orthogonality: mean |cosine| of two",
        "categories' mean embeddings; topo: correlation of distances, features to latents, latents to codes.",
        "",
        *markdown(*book_table(books)),
        "",
        "alone: error of the category's features as this code by itself says them.",
        "",
        *markdown(*token_table(tokens)),
        "",
        "bits together: entropy of a category's tokens; shared: largest mutual information with another's.",
        "",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json", folder / "report.md"]
    write_atomically(written[0], json.dumps(strict(report), indent=1, allow_nan=False) + "\n")
    write_atomically(written[1], "\n".join(lines))
    return written


def print_scores(scores: Mapping[str, Score], books: Sequence[BookRow], title: str) -> None:
    """Print the figures on the terminal."""
    print_rows(*score_table(scores), title)
    print_rows(*book_table(books), "codebooks")


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


def write_documented(
    folder: Path,
    nets: VQVAENets,
    prepared: Preparation,
    params: Tree,
    state: Tree,
    optimizer: Tree,
    score: Score,
    val_loss: float,
) -> list[Path]:
    """Write normalization_stats.npz and best_model.pt, the names under which the documents have them.

    Both are plain: arrays, and ``torch.load(weights_only=True)``. best_model.pt holds model_state_dict,
    codebooks, optimizer_state_dict, group_indices, normalization_stats, feature_names, config and history as
    JSON text, val_loss and metrics.

    Raises:
        FileNotFoundError: the run's exports are not there. OSError: the folder cannot be written to.
    """
    names = feature_names(prepared)
    stats: dict[str, np.ndarray] = {
        "mean": prepared.mean,
        "std": prepared.std,
        "feature_names": np.array(names),
    }
    for g, category in enumerate(nets.categories):
        own = list(nets.groups[g])
        stats |= {f"{category}/mean": prepared.mean[own], f"{category}/std": prepared.std[own]}
    buffer = io.BytesIO()
    np.savez(buffer, **stats)  # pyright: ignore[reportArgumentType]  # its stubs take no mapping
    written = [folder / "normalization_stats.npz", folder / "best_model.pt"]
    write_atomically(written[0], buffer.getvalue())
    best = {
        "model_state_dict": {**params["net"], **state["buffers"]},
        "codebooks": {
            name: {"codes": params.get("codes", {}).get(j, book.codes), "count": book.count}
            for name, (j, book) in zip(_book_names(nets), state["books"].items(), strict=True)
        },
        "optimizer_state_dict": _plain(optimizer),
        "group_indices": {name: list(own) for name, own in zip(nets.categories, nets.groups, strict=True)},
        "normalization_stats": {
            "mean": torch.from_numpy(prepared.mean),
            "std": torch.from_numpy(prepared.std),
        },
        "feature_names": names,
        "config": (folder / "config.json").read_text(encoding="utf-8"),
        "history": (folder / "training_history.json").read_text(encoding="utf-8"),
        "val_loss": val_loss,
        "metrics": score._asdict(),
    }
    buffer = io.BytesIO()
    torch.save(best, buffer)
    write_atomically(written[1], buffer.getvalue())
    return written


def _book_names(nets: VQVAENets) -> list[str]:
    return [f"{nets.categories[g]}/{level}" for g, level in nets.codebooks]


def _plain(tree: Tree) -> Any:
    """NamedTuples as dicts, which a reader without mfk can load."""
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return {name: _plain(x) for name, x in tree._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tree, dict):
        return {name: _plain(x) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(x) for x in tree]
    return tree


def _codes(
    nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, g: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """A category's codes [K, D], filled up to one width, the level of each, its share of the rows."""
    own = [(j, level) for j, (k, level) in enumerate(nets.codebooks) if k == g]
    wide = max(nets.levels[j].latent_dim for j, _ in own)
    blocks, levels, sizes = [], [], []
    for j, level in own:
        book = state["books"][str(j)]
        codes = (book.codes if config.use_ema else params["codes"][str(j)]).double()
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
    perplexity = min(15.0, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
