"""A codebook to start from: k-means of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.nn.checks import check_sizes
from mfk.nn.codebooks import CodebookState, init_codebook, quantize


def kmeans_codebook(
    z: Tensor, codes: int, *, seed: int, batch: int | None = None, starts: int = 8, iterations: int = 100
) -> CodebookState:
    """Codes at means of clusters: greedy k-means++, then Lloyd's iterations; the best of a few.

    Computed on the CPU in float64, whatever z is, so that equal rows give equal codes everywhere. A cluster
    that runs empty takes the row farthest from its own code. With fewer different rows than codes the last
    codes repeat some row, and count 0.

    Args:
        z: rows, [N, D], finite, N >= codes.
        codes: K.
        seed: of the first choice and the candidates.
        batch: number of rows in the batches that follow, in which counts are measured: a code that stands for
            a tenth of the rows counts batch / 10. None: N.
        starts: of which the one with the smallest sum of squared distances is kept.
        iterations: at most; a start ends as soon as no row changes its code.

    Returns:
        A codebook in z's dtype, on its device.

    Raises:
        ValueError: another shape, fewer rows than codes, rows that are not finite, or a size that
            is not positive.
        TypeError: z is not of floating point.

    Source: Arthur & Vassilvitskii 2007, "k-means++", SODA; Lloyd 1982, IEEE Trans. Inf. Theory 28.
    """
    check_sizes(
        codes=codes, starts=starts, iterations=iterations, **({} if batch is None else {"batch": batch})
    )
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise TypeError(f"z: expected a floating-point tensor, got {describe(z)}")
    if z.ndim != 2 or z.shape[1] < 1:
        raise ValueError(f"z: expected the shape [N, D] with D >= 1, got {tuple(z.shape)}")
    if len(z) < codes:
        raise ValueError(f"z: expected at least as many rows as codes, {codes}, got {len(z)}")
    rows = z.detach().to("cpu", torch.float64)
    if not rows.isfinite().all():
        wrong = int((~rows.isfinite().all(-1)).sum())
        raise ValueError(f"z: expected finite rows, got {wrong} of {len(z)} with NaN or infinity")
    middle = rows.mean(0)  # far from 0 squares lose digits
    rows = rows - middle
    largest = float(rows.abs().max())
    # A power of two, which changes no digit: squares of large numbers would overflow.
    unit = 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 1.0
    rows = rows / unit
    runs = [
        _lloyd(rows, _plus_plus(rows, codes, rng.key(seed, "kmeans", i)), iterations) for i in range(starts)
    ]
    centres, counts, _ = min(runs, key=lambda run: run[2])  # of equals the first
    scale = (len(z) if batch is None else batch) / len(z)
    return init_codebook(
        (unit * centres + middle).to(z.device, z.dtype), (counts * scale).to(z.device, z.dtype)
    )


def kmeans_residual(
    z: Tensor, codes: Sequence[int], *, seed: int, batch: int | None = None
) -> tuple[CodebookState, ...]:
    """Codebooks for `residual`: k-means of z, then of what its means leave over, and so on.

    Args and errors are those of `kmeans_codebook`, with K of each codebook.
    """
    codebooks: list[CodebookState] = []
    for i, number in enumerate(codes):
        codebooks.append(kmeans_codebook(z, number, seed=rng.key(seed, "residual", i), batch=batch))
        z = z.detach() - quantize(codebooks[-1], z, train=False)[0].detach()
    return tuple(codebooks)


def _lloyd(rows: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor, float]:
    """Centres, the rows of each, and the sum of squared distances."""
    codes = len(centres)
    nearest, counts = torch.full((len(rows),), -1), torch.zeros(codes)
    for _ in range(iterations):
        distance, now = _distances(rows, centres).min(-1)
        if torch.equal(now, nearest):
            break
        nearest = now
        counts = torch.bincount(nearest, minlength=codes)
        means = torch.zeros_like(centres).index_add_(0, nearest, rows) / counts.clamp_min(1).unsqueeze(-1)
        centres = torch.where(counts.unsqueeze(-1) > 0, means, centres)
        empty = (counts == 0).nonzero().flatten()
        centres[empty] = rows[distance.topk(len(empty)).indices]
    return centres, counts, float((rows - centres[nearest]).square().sum())


def _plus_plus(rows: Tensor, codes: int, key: int) -> Tensor:
    """Rows drawn one by one with probability d², of a few candidates the one that lowers Σ d² most."""
    tries = 2 + int(math.log(codes))
    draws = rng.uniform(key, Rows.all(codes), (tries,), torch.float64)
    picked = [min(int(draws[0, 0] * len(rows)), len(rows) - 1)]
    nearest = _distances(rows, rows[picked]).squeeze(-1)
    for k in range(1, codes):
        weights = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        upto = weights.cumsum(0)
        # The first row whose cumulated weight exceeds the draw: never one of weight 0.
        chosen = torch.searchsorted(upto, draws[k] * upto[-1], right=True).clamp_max(len(rows) - 1)
        reached = torch.minimum(nearest.unsqueeze(-1), _distances(rows, rows[chosen]))
        best = int(reached.sum(0).argmin())
        picked.append(int(chosen[best]))
        nearest = reached[:, best]
    return rows[picked].clone()


def _distances(rows: Tensor, centres: Tensor) -> Tensor:
    """Squared, [N, K]; exactly 0 where it is below the rounding of this difference. `rows` have mean 0."""
    size = rows.square().sum(-1, keepdim=True) + centres.square().sum(-1)
    square = size - 2 * rows @ centres.mT
    return torch.where(square < 1e-13 * size, 0.0, square)
