"""Rows of features in codes, by category and level, as a training problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mfk import losses
from mfk.core import rng, tree
from mfk.core.types import Aux, Batch, Metrics, Rows, Task, Tree
from mfk.nn import (
    CodebookState,
    CodeSums,
    init_codebook,
    kmeans_codebook,
    move_codes,
    nearest_codes,
    reset_dead,
)
from mfk.tasks.vqvae_net import VQVAENets

_BEFORE, _AFTER = 0.3, 0.7  # shares of input-latent and latent-code in the topographic loss, as documented
_START = 4096  # rows that codebooks start from, at most
_COUPLED = 3  # rows that have distances to correlate, at least


@dataclass(frozen=True)
class VQVAEConfig:
    """The training problem."""

    reconstruction_weight: float = 1.0
    """Of the mean squared error of the decoded features."""
    vq_weight: float = 1.0
    """Of the quantisation loss, a mean over all codebooks."""
    commitment_cost: float = 0.25
    """Weight of the pull of latents to their codes, within the quantisation loss."""
    orthogonality_weight: float = 0.1
    """Of the mean squared cosine of two categories' centroids."""
    informativeness_weight: float = 0.1
    """Of the error of what each code says alone."""
    topo_weight: float = 0.3
    """Of 1 - r between distances before and after: 0.3 of input to latent, 0.7 of latent to code."""
    topo_samples: int = 512
    """Rows of a batch, at most, whose distances are compared."""
    frozen_encoders: bool = False
    """Leave the families' encoders as they were drawn, like the original's (weight decay shrinks them)."""
    use_ema: bool = True
    """Codes follow moving averages of their latents; off: they learn by gradient."""
    decay: float = 0.99
    """Decay of those averages per step."""
    dead_code_reset_interval: int | None = 100
    """Epochs between resets of unused codes; None: never."""
    dead_code_threshold: float = 10.0
    """Per cent of the uniform share of rows below which a code counts as unused."""
    dead_code_max_reset_fraction: float = 0.25
    """Share of a codebook, at most, that one reset replaces."""


class Parts(NamedTuple):
    """What the network makes of rows."""

    embeddings: Tensor  # [B, G, E] of the categories
    latents: tuple[Tensor, ...]  # of each codebook [B, d]
    quantized: tuple[Tensor, ...]  # [B, d] the codes, with the latents' derivative
    codes: tuple[Tensor, ...]  # [B, d] the codes, without; with their own where they learn by gradient
    indices: Tensor  # int64 [B, J]
    decoded: Tensor  # [B, F]
    sums: tuple[CodeSums, ...]  # of each codebook, by which its codes move
    buffers: Tree  # the networks', after this batch
    usage: Metrics  # perplexity and share used, means over the codebooks


def check_vqvae(config: VQVAEConfig) -> None:
    """ValueError that names the first setting which is out of range or has no effect."""
    for name in (
        "reconstruction_weight", "vq_weight", "commitment_cost", "orthogonality_weight",
        "informativeness_weight", "topo_weight",
    ):  # fmt: skip
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    if config.topo_samples < _COUPLED:
        raise ValueError(f"topo_samples: expected at least {_COUPLED}, got {config.topo_samples}")
    if not 0 <= config.decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {config.decay}")
    if config.dead_code_reset_interval is not None and config.dead_code_reset_interval < 1:
        raise ValueError(
            f"dead_code_reset_interval: expected at least 1, got {config.dead_code_reset_interval}"
        )
    for name, top in (("dead_code_threshold", 100), ("dead_code_max_reset_fraction", 1)):
        if not 0 <= getattr(config, name) <= top:
            raise ValueError(f"{name}: expected a number from 0 to {top}, got {getattr(config, name)}")
    if not config.use_ema and config.decay != VQVAEConfig.decay:
        raise ValueError("decay: no effect without use_ema; leave it at 0.99")
    if not config.use_ema and config.dead_code_reset_interval is not None:
        raise ValueError("dead_code_reset_interval: no effect without use_ema; set it to None")


def vqvae_task(
    nets: VQVAENets,
    config: VQVAEConfig,
    start: Tensor,
    *,
    batch_size: int,
    per_epoch: int,
) -> Task:
    """Train encoders, decoders and codebooks on rows x [F], standardised.

    With z_j the latents of codebook j, e_j their codes, q_j = e_j with z_j's derivative, and r the
    correlation of distances, those of z and of e being means over the codebooks, the loss of a batch of B
    rows is, times B::

        w_rec ‖x - D(q)‖² / F + w_vq mean_j (c (z_j - sg e_j)² [+ (sg z_j - e_j)² without use_ema])
        + w_info mean_j ‖x - D_j(q_j)‖² / F + w_ortho mean cos²(centroid_g, centroid_h)
        + w_topo (0.3 (1 - r(x, z)) + 0.7 (1 - r(z, sg e)))

    The last two couple the rows of a micro-batch, as batch norm does; r is that of its first `topo_samples`
    rows (data are shuffled), and 1 of fewer than three. The codes' moving averages and batch norm's are part
    of the carried state and move once a step, by all of its rows. Codes start at k-means of the untrained
    network's latents. Every `dead_code_reset_interval` epochs those that are hardly used become latents of
    rows of the batch, of its first micro-batch.

    A batch is {"x": [B, F]}.

    Args:
        nets: as of `vqvae_nets`.
        config: what is trained.
        start: training rows [N, F], the first of which the codebooks start from.
        batch_size: rows of a batch.
        per_epoch: batches of an epoch.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    check_vqvae(config)
    every = None if config.dead_code_reset_interval is None else config.dead_code_reset_interval * per_epoch
    most = max(level.tokens for level in nets.levels)

    def init(seed: int) -> tuple[Tree, Tree]:
        params, state = blank(nets, config, seed)
        with torch.no_grad():
            rows = start[: max(_START, most)]
            latents = nets.model.apply(params["net"], state["buffers"], "encode", rows).latents
        books = {
            str(j): kmeans_codebook(
                z, level.tokens, seed=rng.key(seed, "codes", j), batch=batch_size, starts=1
            )
            for j, (z, level) in enumerate(zip(latents, nets.levels, strict=True))
        }
        if not config.use_ema:
            params["codes"] = {j: book.codes for j, book in books.items()}
        return params, state | {"books": books}

    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        del state
        drawn = dict(batch)
        numbers = rng.uniform(rng.key(seed, step, "dropout"), rows, (), torch.float64)
        drawn["key"] = (numbers * 2**31).long()
        if every is not None:
            # Of one micro-batch alone: each would replace as many codes as a reset may.
            drawn["reset"] = torch.tensor((step + 1) % every == 0 and rows.index[0] == 0)
            count = len(rows.index)
            own = rng.uniform(
                rng.key(seed, step, "candidates", rows.index[0]), Rows.all(count), (len(nets.levels),)
            )
            order = own.argsort(dim=0, stable=True)  # a permutation of the rows for each codebook
            drawn["candidates"] = order[torch.arange(most) % count].contiguous()
        return drawn

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        del teacher
        parts = forward(nets, config, params, state, batch["x"], batch["key"], training=True)
        total, metrics = _loss(nets, config, params, state, batch["x"], parts)
        rows = total.new_full((), len(batch["x"]))
        sums = {
            "codes": parts.sums,
            "moved": {name: (parts.buffers[name] - state["buffers"][name]) * rows for name in _moving(state)},
        }
        if every is not None:
            sums["candidates"] = tuple(
                # Those of one micro-batch: of the others nothing is added.
                torch.where(batch["reset"], z.detach()[batch["candidates"][: level.tokens, j]], 0.0)
                for j, (z, level) in enumerate(zip(parts.latents, nets.levels, strict=True))
            )
            sums["candidate rows"] = batch["reset"] * rows
        return total * rows, rows, Aux(sums, {name: x.detach() * rows for name, x in metrics.items()})

    def update(state: Tree, sums: Tree, weight: Tensor) -> tuple[Tree, Metrics]:
        books = [
            move_codes(state["books"][str(j)], of_rows, decay=config.decay)
            for j, of_rows in enumerate(sums["codes"])
        ]
        metrics: Metrics = {}
        if every is not None:
            resets = [
                _reset(config, book, candidates, sums["candidate rows"])
                for book, candidates in zip(books, sums["candidates"], strict=True)
            ]
            books = [book for book, _ in resets]
            metrics["replaced"] = torch.stack([share for _, share in resets]).mean()
        moved = {name: state["buffers"][name] + x / weight for name, x in sums["moved"].items()}
        buffers = state["buffers"] | moved
        return {"buffers": buffers, "books": {str(j): book for j, book in enumerate(books)}}, metrics

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        parts = forward(nets, config, params, state, batch["x"])
        total, metrics = _loss(nets, config, params, state, batch["x"], parts)
        rows = total.new_full((), len(batch["x"]))
        found = {"val_loss": total, **metrics}
        return {name: x * rows for name, x in found.items()}, dict.fromkeys(found, rows)

    return Task(init, draw, loss, evaluate, update=update, coupled=True, teacher=False)


def blank(nets: VQVAENets, config: VQVAEConfig, seed: int) -> tuple[Tree, Tree]:
    """Untrained parameters and state, all codes zero: what a checkpoint's are loaded into."""
    net, buffers = nets.model.init(seed)
    books = {
        str(j): init_codebook(torch.zeros(level.tokens, level.latent_dim))
        for j, level in enumerate(nets.levels)
    }
    params: Tree = {"net": net}
    if not config.use_ema:
        params["codes"] = {j: book.codes for j, book in books.items()}
    return params, {"buffers": buffers, "books": books}


def codebook(config: VQVAEConfig, params: Tree, state: Tree, j: int) -> CodebookState:
    """The j-th codebook, with the parameters' codes where these learn by gradient."""
    book = state["books"][str(j)]
    return book if config.use_ema else book._replace(codes=params["codes"][str(j)])


def forward(
    nets: VQVAENets,
    config: VQVAEConfig,
    params: Tree,
    state: Tree,
    x: Tensor,
    key: Tensor | None = None,
    *,
    training: bool = False,
) -> Parts:
    """Encode, quantise and decode rows [B, F]; the buffers are changed only in training."""
    net = params["net"]
    if config.frozen_encoders:
        net = {name: p.detach() if name.startswith("encoders.") else p for name, p in net.items()}
    # A single row has no variance for batch norm; the running one stands in.
    encoded = nets.model.apply(net, state["buffers"], "encode", x, key, training and len(x) > 1)
    # Under autocast a network's products come out narrower; codes, distances and errors stay in x's dtype.
    encoded = encoded._replace(
        latents=tuple(z.to(x.dtype) for z in encoded.latents), embeddings=encoded.embeddings.to(x.dtype)
    )
    quantized, codes, indices, sums, usage = [], [], [], [], []
    for j, z in enumerate(encoded.latents):
        book = codebook(config, params, state, j)
        q, index, of_rows, metrics = nearest_codes(book, z)
        quantized.append(q)
        indices.append(index)
        codes.append(q.detach() if config.use_ema else book.codes[index])
        sums.append(of_rows)
        usage.append(metrics)
    named = {name: torch.stack([one[name] for one in usage]).mean() for name in ("perplexity", "used")}
    decoded = nets.model.apply(params["net"], state["buffers"], "decode", quantized).to(x.dtype)
    return Parts(
        encoded.embeddings,
        encoded.latents,
        tuple(quantized),
        tuple(codes),
        torch.stack(indices, -1),
        decoded,
        tuple(sums),
        encoded.buffers,
        named,
    )


def _loss(
    nets: VQVAENets, config: VQVAEConfig, params: Tree, state: Tree, x: Tensor, parts: Parts
) -> tuple[Tensor, Metrics]:
    """The loss a row, and its parts."""
    error = losses.squared_error(parts.decoded, x).mean()
    pairs = list(zip(parts.latents, parts.codes, strict=True))
    commitment = torch.stack([losses.commitment(z, e).mean() for z, e in pairs]).mean()
    total = config.reconstruction_weight * error + config.vq_weight * config.commitment_cost * commitment
    metrics = {"mse": error, "commitment": commitment, **parts.usage}
    if not config.use_ema:
        codebook = torch.stack([losses.codebook_error(z, e).mean() for z, e in pairs]).mean()
        total = total + config.vq_weight * codebook
        metrics["codebook"] = codebook
    if config.orthogonality_weight > 0:
        metrics["orthogonality"] = losses.orthogonality(parts.embeddings.mean(0))
        total = total + config.orthogonality_weight * metrics["orthogonality"]
    if config.informativeness_weight > 0:
        alone = nets.model.apply(params["net"], state["buffers"], "partial", list(parts.quantized))
        metrics["informativeness"] = losses.informativeness(torch.stack(alone).to(x.dtype), x).mean()
        total = total + config.informativeness_weight * metrics["informativeness"]
    if config.topo_weight > 0:
        # Of fewer rows there is at most one distance, with which any other agrees.
        before, after = error.new_ones(2)
        if len(x) >= _COUPLED:
            before, after = distances_kept(x[: config.topo_samples], parts)
        metrics |= {"topo_pre": before, "topo_post": after}
        total = total + config.topo_weight * (_BEFORE * (1 - before) + _AFTER * (1 - after))
    return total, metrics


def distances_kept(x: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """Correlations of distances: of rows to latents, and of latents to codes, both means over the codebooks.

    `x` are the first rows of those that `parts` were made of. No derivative goes through the codes: they
    follow the latents, and would take back what the loss asks of these.
    """
    latents = [z[: len(x)] for z in parts.latents]
    codes = [e[: len(x)].detach() for e in parts.codes]
    return 1 - losses.topographic(x, latents), 1 - losses.topographic(latents, codes)


def _moving(state: Tree) -> list[str]:
    """The buffers that are numbers which may move, as batch norm's do."""
    return [name for name, x in state["buffers"].items() if x.is_floating_point()]


def _reset(
    config: VQVAEConfig, book: CodebookState, candidates: Tensor, rows: Tensor
) -> tuple[CodebookState, Tensor]:
    """The codebook with unused codes replaced, and the share that was; none where there are no rows for it.

    Of fewer rows than codes each becomes one code at most: rounding would decide between two that are alike.
    """
    place = book.count.argsort(stable=True).argsort(stable=True)
    few = rows < len(place)
    fresh, replaced = reset_dead(
        book,
        candidates[torch.where(few, place, torch.arange(len(place), device=place.device))],
        threshold=config.dead_code_threshold,
        max_fraction=config.dead_code_max_reset_fraction,
    )
    due = place < torch.where(few, rows, len(place))
    kept = (torch.where(tree.along(due, old), new, old) for new, old in zip(fresh, book, strict=True))
    return CodebookState(*kept), (replaced & due).to(candidates.dtype).mean()
