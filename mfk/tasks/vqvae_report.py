"""The report of a tokenizer: its figures, and files under the documents' names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfk.core.files import write_atomically
from mfk.core.types import Tree
from mfk.tasks.report_tables import markdown, print_rows, strict
from mfk.tasks.vqvae_measure import BookRow, Score
from mfk.tasks.vqvae_net import VQVAENets
from mfk.tasks.vqvae_preparation import Preparation, feature_names
from mfk.tasks.vqvae_tokens import TokenRow, column_names


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
    codebooks, optimizer_state_dict (of the run's end), group_indices, normalization_stats, feature_names,
    config and history as JSON text, val_loss and metrics.

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
            for name, (j, book) in zip(column_names(nets), state["books"].items(), strict=True)
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


def _plain(tree: Tree) -> Any:
    """NamedTuples as dicts, which a reader without mfk can load."""
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        return {name: _plain(x) for name, x in tree._asdict().items()}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tree, dict):
        return {name: _plain(x) for name, x in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(x) for x in tree]
    return tree
