"""What a tokenizer is judged by: held-out rows, by codebook, category and as a whole."""

from __future__ import annotations

from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core import ranks, tree
from mfk.core.ranks import Ranks
from mfk.core.types import Tree
from mfk.losses import topographic
from mfk.tasks.vqvae import Parts, VQVAEConfig, distances_kept, forward
from mfk.tasks.vqvae_net import VQVAENets
from mfk.tasks.vqvae_tokens import blocks_of

_PART = 256  # rows whose distances are compared, as documented


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


class _Sums(NamedTuple):
    """What is added up over rows, in float64; the counts are int64."""

    error: Tensor  # [], of the rows' mean squared errors
    centroids: Tensor  # [G, E], of the categories' embeddings
    uses: tuple[Tensor, ...]  # of each codebook, of each code
    alone: Tensor  # [J], of the errors of each code alone
    kept: Tensor  # [2], correlations of distances times the rows that were compared
    alike: Tensor  # [J, 2], of each codebook's own
    compared: Tensor  # [], these rows


def measure(
    nets: VQVAENets,
    config: VQVAEConfig,
    params: Tree,
    state: Tree,
    x: Tensor,
    *,
    here: Ranks | None = None,
) -> tuple[Score, list[BookRow]]:
    """The figures of rows [N, F], N >= 3.

    Distances are compared in parts of 256 rows, the figures of which are averaged by their rows. Several
    ranks, which must all call this, share the rows; all return the same, as one process does.

    Args:
        nets: as of `vqvae_nets`.
        config: of the task.
        params: of the network.
        state: of the task.
        x: prepared rows.
        here: this process among those that share the rows, `ranks.current()`; None: it takes all of them.
    """
    blocks = blocks_of(x, here)
    with torch.no_grad():
        own = {
            i: _sums(nets, forward(nets, config, params, state, rows), params, state, rows)
            for i, rows in blocks
        }
    if here is not None:
        own = {i: one for some in ranks.everyone(own) for i, one in some.items()}
    # In the order of the rows, whoever had them.
    found = reduce(partial(tree.map, torch.add), (own[i] for i in sorted(own)))
    before, after = (found.kept / found.compared).tolist()
    each = (found.alike / found.compared).tolist()
    books = []
    for j, ((g, level), size) in enumerate(zip(nets.codebooks, nets.levels, strict=True)):
        share = found.uses[j].double() / len(x)
        entropy = -torch.special.xlogy(share, share).sum()
        books.append(
            BookRow(
                nets.categories[g], level, len(nets.groups[g]), size.tokens, int((share > 0).sum()),
                float(entropy.exp()), float(share.max()), float(found.alone[j]) / len(x), *each[j],
            )
        )  # fmt: skip
    mse = float(found.error) / len(x)
    score = Score(
        len(x),
        mse,
        min(max(1 - mse, 0.0), 1.0),
        sum(book.used / book.tokens for book in books) / len(books),
        sum(book.perplexity / book.tokens for book in books) / len(books),
        _cosine(found.centroids / len(x)),
        before,
        after,
        float(torch.tensor([float(size.tokens) for size in nets.levels]).log2().sum()),
    )
    return score, books


def _sums(nets: VQVAENets, parts: Parts, params: Tree, state: Tree, x: Tensor) -> _Sums:
    books = range(len(nets.levels))
    kept, alike = x.new_zeros(2, dtype=torch.float64), x.new_zeros(len(books), 2, dtype=torch.float64)
    compared = 0
    for some in _pieces(len(x)):
        rows, own = x[some], _rows_of(parts, some)
        if len(rows) >= 3:
            kept += len(rows) * torch.stack(distances_kept(rows, own)).double()
            alike += len(rows) * torch.stack([_alike(nets, rows, own, j) for j in books]).double()
            compared += len(rows)
    said = nets.model.apply(params["net"], state["buffers"], "partial", list(parts.quantized))
    columns = [list(nets.groups[g]) for g, _ in nets.codebooks]
    alone = [
        (one[:, own] - x[:, own]).square().mean(1).double().sum()
        for own, one in zip(columns, said, strict=True)
    ]
    return _Sums(
        (parts.decoded - x).square().mean(1).double().sum(),
        parts.embeddings.double().sum(0),
        tuple(torch.bincount(parts.indices[:, j], minlength=nets.levels[j].tokens) for j in books),
        torch.stack(alone),
        kept,
        alike,
        torch.tensor(compared, device=x.device),
    )


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
