"""What a tokenizer is judged by: held-out rows, by codebook, category and as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Tree
from mfk.losses import topographic
from mfk.tasks.vqvae import Parts, VQVAEConfig, distances_kept, forward
from mfk.tasks.vqvae_net import VQVAENets

_PART = 256  # rows whose distances are compared, as documented
_ROWS = 4096


class Score(NamedTuple):
    """Figures of held-out rows."""

    rows: int
    mse: float  # of all features, in their deviations
    quality: float  # 1 - mse, within 0 and 1
    utilisation: float  # mean over the codebooks of the share of their codes that the rows use
    perplexity: float  # mean over the codebooks of exp(entropy of the tokens) / number of codes
    orthogonality: float  # mean |cosine| of two categories' centroids, mean embeddings
    topo_pre: float  # correlation of distances, features to latents, the latter a mean over the codebooks
    topo_post: float  # latents to codes, both such means
    bits: float  # of a row, sum over the codebooks of log2 of the number of codes


class BookRow(NamedTuple):
    """Figures of one codebook."""

    category: str
    level: int
    features: int  # of the category
    tokens: int
    used: int  # of them, by these rows
    perplexity: float  # exp(entropy)
    most: float  # share of the rows that have the commonest token
    alone: float  # mean squared error of the category's features as this code alone says them
    topo_pre: float  # correlation of distances, the category's features to these latents
    topo_post: float  # and these latents to their codes


def measure(
    nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, x: Tensor
) -> tuple[Score, list[BookRow]]:
    """The figures of rows [N, F], N >= 3.

    Distances are compared in parts of 256 rows, the figures of which are averaged by their rows.
    """
    errors, indices, centroids, kept, alike, compared = [], [], [], [], [], 0
    books_of = range(len(nets.levels))
    alone = x.new_zeros(len(nets.levels), dtype=torch.float64)
    for rows, parts in _parts(nets, config, params, state, x):
        errors.append((parts.decoded - rows).square().mean(1))
        indices.append(parts.indices)
        centroids.append(parts.embeddings.double().sum(0))
        for some in _pieces(len(rows)):
            if len(rows[some]) >= 3:
                own = _rows_of(parts, some)
                count = len(rows[some])
                kept.append(count * torch.stack(distances_kept(rows[some], own)))
                alike.append(count * torch.stack([_alike(nets, rows[some], own, j) for j in books_of]))
                compared += count
        said = nets.model.apply(params["net"], state["buffers"], "partial", list(parts.quantized))
        for j, ((g, _), one) in enumerate(zip(nets.codebooks, said, strict=True)):
            columns = list(nets.groups[g])
            alone[j] += (one[:, columns] - rows[:, columns]).square().mean(1).double().sum()
    found = torch.cat(indices)
    before, after = torch.stack(kept).double().sum(0) / compared
    each = torch.stack(alike).double().sum(0) / compared
    books = []
    for j, ((g, level), size) in enumerate(zip(nets.codebooks, nets.levels, strict=True)):
        share = torch.bincount(found[:, j], minlength=size.tokens).double() / len(x)
        entropy = -torch.special.xlogy(share, share).sum()
        books.append(
            BookRow(
                nets.categories[g], level, len(nets.groups[g]), size.tokens, int((share > 0).sum()),
                float(entropy.exp()), float(share.max()), float(alone[j]) / len(x), *each[j].tolist(),
            )
        )  # fmt: skip
    mse = float(torch.cat(errors).double().mean())
    score = Score(
        len(x),
        mse,
        min(max(1 - mse, 0.0), 1.0),
        sum(book.used / book.tokens for book in books) / len(books),
        sum(book.perplexity / book.tokens for book in books) / len(books),
        _cosine(torch.stack(centroids).sum(0) / len(x)),
        float(before),
        float(after),
        float(torch.tensor([float(size.tokens) for size in nets.levels]).log2().sum()),
    )
    return score, books


def _parts(
    nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, x: Tensor
) -> Iterator[tuple[Tensor, Parts]]:
    with torch.no_grad():
        for rows in x.split(_ROWS):
            yield rows, forward(nets, config, params, state, rows)


def _alike(nets: VQVAENets, rows: Tensor, parts: Parts, j: int) -> Tensor:
    """Correlations of a codebook's own distances, [2]: its category's features, latents, codes."""
    x, z, e = rows[:, list(nets.groups[nets.codebooks[j][0]])], parts.latents[j], parts.codes[j]
    return torch.stack([1 - topographic(x, z), 1 - topographic(z, e)])


def _pieces(count: int) -> list[slice]:
    return [slice(at, min(at + _PART, count)) for at in range(0, count, _PART)]


def _rows_of(parts: Parts, some: slice) -> Parts:
    return parts._replace(
        latents=tuple(z[some] for z in parts.latents), codes=tuple(e[some] for e in parts.codes)
    )


def _cosine(vectors: Tensor) -> float:
    """Mean |cosine| of the pairs of vectors [G, E]; 0 of a single one."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    count = len(unit)
    if count < 2:
        return 0.0
    pairs = torch.ones(count, count, dtype=torch.bool).triu(1)
    return float((unit @ unit.mT).abs()[pairs].mean())
