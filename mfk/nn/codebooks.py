"""Vector quantisation with codes that are moving averages of the rows they stand for, as explicit state."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Metrics, describe
from mfk.nn.checks import check_exact, check_input


class CodeSums(NamedTuple):
    """What rows say about the K codes that are nearest to them; to be added over rows."""

    count: Tensor  # [K] floating, N_k, rows of each code
    total: Tensor  # [K, D] floating, Σ z of these rows


class CodebookState(NamedTuple):
    """K codes and the moving averages that they are made of; total = count · codes."""

    codes: Tensor  # [K, D] floating, e, in the unit of the rows
    count: Tensor  # [K] floating, n, moving number of rows that a batch has for each code
    total: Tensor  # [K, D] floating, m, moving sum of these rows


def init_codebook(codes: Tensor, count: float | Tensor = 1.0) -> CodebookState:
    """A codebook of given codes, whose sums agree with them.

    Args:
        codes: [K, D], K and D >= 1.
        count: how many rows of a batch each code weighs at the start; a finite number > 0, or [K] with
            entries >= 0 in the codes' dtype.

    Raises:
        ValueError: another shape, or a count out of range.
        TypeError: codes that are not of floating point, or a count of another dtype.
    """
    if not isinstance(codes, Tensor) or not codes.is_floating_point():
        raise TypeError(f"codes: expected a floating-point tensor, got {describe(codes)}")
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"codes: expected the shape [K, D] with K, D >= 1, got {tuple(codes.shape)}")
    if isinstance(count, Tensor):
        check_input("count", count, (len(codes),), codes.dtype, "the codes'")
        if not ((count >= 0) & count.isfinite()).all():
            raise ValueError(f"count: expected finite numbers >= 0, got {count.tolist()[:8]}")
    elif isinstance(count, bool) or not isinstance(count, int | float) or not 0 < count < math.inf:
        raise ValueError(f"count: expected a finite number > 0, or one for each code, got {describe(count)}")
    codes = codes.detach().clone()
    counts = count.detach().clone() if isinstance(count, Tensor) else codes.new_full((len(codes),), count)
    return CodebookState(codes, counts, counts.unsqueeze(-1) * codes)


def quantize(
    codebook: CodebookState, z: Tensor, *, decay: float = 0.99, train: bool = True
) -> tuple[Tensor, Tensor, CodebookState, Metrics]:
    """Each row's nearest code, and the codes after the rows were seen.

        k = argmin_k ‖z - e_k‖²,    of several the first
        n_k <- d n_k + (1 - d) N_k,    m_k <- d m_k + (1 - d) Σ_{rows of k} z,    e_k <- m_k / n_k

    The rows are quantised with the codes as they came. Only a code with rows moves: another's e stays bit by
    bit, while its n and m shrink together. A row that is not finite moves no code, and becomes NaN. The value
    of what is returned is exactly the code; its derivative with respect to z is that of z (straight through).
    No gradient reaches the codes.

    Args:
        codebook: codes [K, D].
        z: rows, [..., D], in the codes' dtype.
        decay: d, in [0, 1): share of the averages that stays.
        train: whether the codes move; False returns `codebook` itself.

    Returns:
        (quantized [..., D], indices [...] int64, the codebook after, metrics). The metrics, 0-dimensional:
        "perplexity", exp(-Σ p ln p) of the shares p_k = N_k / N; "used", the share of codes with rows;
        "distance", the mean of (z - e)² over rows and D.

    Raises:
        ValueError: z is not [..., D], has no rows, or the decay is out of range.
        TypeError: z's dtype is not the codes' (autocast's lower precision is widened); not a CodebookState.

    Source: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1.
    """
    codebook = _detached(codebook)
    _check_decay(decay)
    quantized, indices, sums, metrics = nearest_codes(codebook, z)
    return quantized, indices, move_codes(codebook, sums, decay=decay) if train else codebook, metrics


def nearest_codes(codebook: CodebookState, z: Tensor) -> tuple[Tensor, Tensor, CodeSums, Metrics]:
    """`quantize` that moves no code: in place of the codebook after, the sums that `move_codes` takes.

    Where rows come in parts, the parts' sums are added, and the codes moved once.
    """
    codes = _detached(codebook).codes
    rows = check_rows_of(z, codes)
    seen = rows.detach().reshape(-1, rows.shape[-1])
    with torch.autocast(z.device.type, enabled=False):
        indices = _nearest(seen, codes)
        known = seen.isfinite().all(-1, keepdim=True)
        hits = one_hot(indices, codes) * known
        sums = CodeSums(hits.sum(0), hits.mT @ torch.where(known, seen, 0.0))
        chosen = codes[indices]
        metrics = usage(sums.count) | {"distance": (seen - chosen).square().mean()}
    quantized = straight_through(chosen.reshape(rows.shape), rows)
    return quantized, indices.reshape(rows.shape[:-1]), sums, metrics


def move_codes(codebook: CodebookState, sums: CodeSums, *, decay: float = 0.99) -> CodebookState:
    """The codes after rows of these sums, by the recursion of `quantize`."""
    _check_decay(decay)
    codes, count, total = _detached(codebook)
    n = decay * count + (1 - decay) * sums.count
    m = decay * total + (1 - decay) * sums.total
    hit = sums.count > 0
    mean = m / torch.where(hit, n, 1.0).unsqueeze(-1)
    return CodebookState(torch.where(hit.unsqueeze(-1), mean, codes), n, m)


def reset_dead(
    codebook: CodebookState, candidates: Tensor, *, threshold: float, max_fraction: float
) -> tuple[CodebookState, Tensor]:
    """Codes that hardly any row uses, replaced by candidates.

    Code k is dead if n_k < threshold/100 · Σ n / K. Of the dead the least used are replaced, at most
    max_fraction · K of them, rounded down: code k becomes candidate k, its count the uniform share Σ n / K
    and its sum the product of the two, so that an update without rows leaves it where it is. The others keep
    all their numbers bit by bit. Shapes do not depend on values.

    Args:
        codebook: K codes.
        candidates: [K, D], such as random latents of a batch, in the codes' dtype.
        threshold: per cent of the uniform share, in [0, 100]; at 0 no code is dead.
        max_fraction: of the codes, in [0, 1].

    Returns:
        (the codebook after, replaced [K] bool).

    Raises:
        ValueError: another shape, or a number out of range. TypeError: another dtype than the codes'.
    """
    for name, value, top in (("threshold", threshold, 100), ("max_fraction", max_fraction, 1)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
            raise ValueError(f"{name}: expected a number in [0, {top}], got {describe(value)}")
    codes, count, total = _detached(codebook)
    check_input("candidates", candidates, tuple(codes.shape), codes.dtype, "the codes'")
    candidates = candidates.detach()
    share = count.sum() / len(codes)
    # The place of each in the order of use, equals in their own order.
    place = count.argsort(stable=True).argsort(stable=True)
    most = math.floor(max_fraction * len(codes) + 1e-9)  # 0.29 · 100 is a little less than 29
    replaced = (count < threshold / 100 * share) & (place < most)
    row = replaced.unsqueeze(-1)
    return (
        CodebookState(
            torch.where(row, candidates, codes),
            torch.where(replaced, share, count),
            torch.where(row, share * candidates, total),
        ),
        replaced,
    )


def look_up(codebook: CodebookState, indices: Tensor) -> Tensor:
    """The codes [..., D] of the indices [...]: what `quantize` returned for them, in evaluation bit by bit.

    Raises:
        TypeError: indices that are not int64. IndexError: one out of range.
    """
    check_exact("indices", indices, tuple(indices.shape), torch.int64)
    return codebook.codes[indices]


def straight_through(value: Tensor, z: Tensor) -> Tensor:
    """Exactly `value`, with z's derivative: v + (z - sg(z)), not z + sg(v - z), which rounds."""
    return value.detach() + (z - z.detach())


def one_hot(indices: Tensor, codes: Tensor) -> Tensor:
    """[N] -> [N, K] of zeros and ones in the codes' dtype; products with it add in a fixed order."""
    return (indices.unsqueeze(-1) == torch.arange(len(codes), device=codes.device)).to(codes.dtype)


def usage(hits: Tensor) -> Metrics:
    """Perplexity, and the share that is used, of numbers of rows [K]."""
    p = hits / hits.sum()
    entropy = -torch.special.xlogy(p, p).sum()
    return {"perplexity": entropy.exp(), "used": (hits > 0).to(p.dtype).mean()}


def check_rows_of(z: Tensor, codes: Tensor) -> Tensor:
    """Rows [..., D] for codes [K, D], in their dtype; widened to it where autocast made it narrower."""
    shape = tuple(z.shape[:-1]) if isinstance(z, Tensor) else ()
    check_input("z", z, (*shape, codes.shape[-1]), codes.dtype, "the codes'")
    if 0 in shape or z.ndim == 0:
        raise ValueError(f"z: expected at least one row, got the shape {tuple(z.shape)}")
    return z.to(codes.dtype)


def _detached(codebook: CodebookState) -> CodebookState:
    if not isinstance(codebook, CodebookState):
        raise TypeError(f"codebook: expected a CodebookState, got {describe(codebook)}")
    return CodebookState(*(x.detach() for x in codebook))


def _check_decay(decay: float) -> None:
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), got {describe(decay)}")


def _nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """Index [N] of the code nearest to each row; about the codes' mean, as far from 0 squares lose digits."""
    middle = codes.mean(0)
    rows, codes = rows - middle, codes - middle
    return (codes.square().sum(-1) - 2 * rows @ codes.mT).argmin(-1)
