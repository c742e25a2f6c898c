"""Other quantisers, called as `quantize` is: a fixed grid of scalars, and codebooks of what is left over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Protocol

import torch
from torch import Tensor

from mfk.core.types import Metrics, describe
from mfk.nn.checks import check_exact, check_input, check_sizes
from mfk.nn.codebooks import CodebookState, check_rows_of, look_up, quantize, straight_through, usage

_BEYOND = 1e-3  # how far the bounded values reach beyond the outermost numbers, so that these can be met
_MOST = 2**24


class FiniteScalar(Protocol):
    """A quantiser on a fixed grid; its state is the empty tuple."""

    def __call__(
        self, state: tuple[()], z: Tensor, *, decay: float = 0.99, train: bool = True
    ) -> tuple[Tensor, Tensor, tuple[()], Metrics]:
        """See `fsq`."""
        ...


def fsq(levels: Sequence[int]) -> FiniteScalar:
    """Finite scalar quantisation: every number of a row is bounded, then rounded to one of L_d.

        b_d = tanh(z_d + s_d) h_d - o_d,    h = (L - 1)(1 + 0.001) / 2,  o = 1/2 for even L, else 0
        q_d = round(b_d) / ⌊L_d / 2⌋,       s = artanh(o / h), so that 0 becomes 0

    The value is exactly the rounded number, the derivative that of b (straight through the rounding). There
    is nothing to learn: the state is (), `decay` and `train` change nothing, and a commitment loss would pull
    z to the rounded numbers, which it need not be near.

    Args:
        levels: L_d for each number of a row, >= 3. Two numbers would part at z = -3.8.

    Returns:
        quantise((), z [..., D]) -> (quantized [..., D], indices [...] int64, (), metrics). An index is
        Σ_d (digit_d Π_{c<d} L_c), digits from 0; `fsq_codes` is the table. The metrics are those of
        `quantize`, "distance" that of b / ⌊L/2⌋ from q.

    Raises:
        ValueError: no level, one below 3, or a product above 2^24, the indices whose use is counted; at a
            call: z of another width, or without rows.
        TypeError: at a call: z is not of floating point.

    Source: Mentzer et al. 2024, "Finite scalar quantization", arXiv:2309.15505.
    """
    sizes = _check_levels(levels)
    middle = [size // 2 for size in sizes]
    half = [(size - 1) * (1 + _BEYOND) / 2 for size in sizes]
    offset = [0.0 if size % 2 else 0.5 for size in sizes]
    shift = [math.atanh(o / h) for o, h in zip(offset, half, strict=True)]
    steps = [math.prod(sizes[:d]) for d in range(len(sizes))]

    def quantise(
        state: tuple[()], z: Tensor, *, decay: float = 0.99, train: bool = True
    ) -> tuple[Tensor, Tensor, tuple[()], Metrics]:
        if not isinstance(z, Tensor) or not z.is_floating_point():
            raise TypeError(f"z: expected a floating-point tensor, got {describe(z)}")
        check_input("z", z, (*z.shape[:-1], len(sizes)), z.dtype, "a floating-point")
        if 0 in z.shape:
            raise ValueError(f"z: expected at least one row, got the shape {tuple(z.shape)}")
        scale = z.new_tensor(middle)
        bounded = torch.tanh(z + z.new_tensor(shift)) * z.new_tensor(half) - z.new_tensor(offset)
        rounded = bounded.detach().round()
        quantized = straight_through(rounded / scale, bounded / scale)
        whole = torch.tensor([middle, sizes, steps], device=z.device)
        # Of a NaN the digit is any number; it must stay within the table.
        digits = (rounded.to(torch.int64) + whole[0]).clamp_min(0).minimum(whole[1] - 1)
        indices = (digits * whole[2]).sum(-1)
        found = indices.flatten()
        ones = torch.ones_like(found, dtype=torch.float32)
        hits = ones.new_zeros(math.prod(sizes)).index_add(0, found, ones)
        distance = ((rounded - bounded.detach()) / scale).square().mean()
        return quantized, indices, (), usage(hits) | {"distance": distance}

    return quantise


def fsq_codes(levels: Sequence[int]) -> Tensor:
    """The rows that `fsq` of these levels can return, [Π L, D] float32, in the order of the indices."""
    sizes = _check_levels(levels)
    grids = torch.meshgrid(
        *((torch.arange(size) - size // 2) / (size // 2) for size in reversed(sizes)), indexing="ij"
    )
    return torch.stack([grid.flatten() for grid in reversed(grids)], -1)


def fsq_levels(tokens: int) -> tuple[int, ...]:
    """Numbers from 3 to 8, not increasing, whose product is the largest that is no more than `tokens`.

    Of several such the shortest, then the one with the largest first. 20 gives (5, 4), 256 (8, 8, 4).

    Raises:
        ValueError: fewer than 3 tokens, or more than 8^8.
    """
    check_sizes(3, tokens=tokens)
    if tokens > 8**8:
        raise ValueError(f"tokens: expected at most {8**8}, got {tokens}")
    fitting = [
        (math.prod(levels), -n, levels)
        for n in range(1, 9)
        for levels in combinations_with_replacement(range(8, 2, -1), n)
        if math.prod(levels) <= tokens
    ]
    return max(fitting)[2]


def residual(
    codebooks: tuple[CodebookState, ...], z: Tensor, *, decay: float = 0.99, train: bool = True
) -> tuple[Tensor, Tensor, tuple[CodebookState, ...], Metrics]:
    """Residual quantisation: each codebook says what the ones before have left over.

        r_0 = z,    r_{l+1} = r_l - e(r_l),    quantized = Σ_l e(r_l)

    Args:
        codebooks: at least one, of one width D.
        z: rows, [..., D].
        decay: as in `quantize`, which each codebook sees its rows r_l by.
        train: whether the codes move.

    Returns:
        (quantized [..., D], indices [..., L] int64, the codebooks after, metrics): "perplexity" and "used"
        are means over the codebooks, "distance" is that of z from the sum.

    Raises:
        ValueError: no codebook, or as `quantize`. TypeError: as `quantize`.

    Source: Zeghidour et al. 2021, "SoundStream", arXiv:2107.03312, algorithm 1.
    """
    rows = check_rows_of(z, _check_codebooks(codebooks)[0].codes)
    left = rows.detach()
    indices, after, said = [], [], []
    total: Tensor | None = None
    for codebook in codebooks:
        e, index, new, metrics = quantize(codebook, left, decay=decay, train=train)
        total = e if total is None else total + e
        left = left - e
        indices.append(index)
        after.append(new)
        said.append(metrics)
    assert total is not None
    mean = {name: torch.stack([m[name] for m in said]).mean() for name in ("perplexity", "used")}
    distance = {"distance": (rows.detach() - total).square().mean()}
    return straight_through(total, rows), torch.stack(indices, -1), tuple(after), mean | distance


def residual_rows(codebooks: tuple[CodebookState, ...], z: Tensor) -> tuple[Tensor, ...]:
    """The rows r_l [..., D] that each codebook of `residual` sees: candidates for its dead codes."""
    rows = [check_rows_of(z, _check_codebooks(codebooks)[0].codes).detach()]
    for codebook in codebooks[:-1]:
        rows.append(rows[-1] - quantize(codebook, rows[-1], train=False)[0])
    return tuple(rows)


def residual_codes(codebooks: tuple[CodebookState, ...], indices: Tensor) -> Tensor:
    """What `residual` returned for the indices [..., L]: the sum of their codes, [..., D].

    Raises:
        ValueError: another number of indices than codebooks. TypeError: not int64. IndexError: out of range.
    """
    shape = tuple(indices.shape[:-1]) if isinstance(indices, Tensor) else ()
    check_exact("indices", indices, (*shape, len(_check_codebooks(codebooks))), torch.int64)
    total = look_up(codebooks[0], indices[..., 0])
    for i, codebook in enumerate(codebooks[1:], 1):
        total = total + look_up(codebook, indices[..., i])
    return total


def _check_levels(levels: Sequence[int]) -> tuple[int, ...]:
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
        raise ValueError(f"levels: expected an int >= 3 for each number of a row, got {describe(levels)}")
    check_sizes(3, **{f"levels[{d}]": size for d, size in enumerate(levels)})
    if math.prod(levels) > _MOST:
        raise ValueError(f"levels: expected a product of at most {_MOST:,}, got {math.prod(levels):,}")
    return tuple(levels)


def _check_codebooks(codebooks: tuple[CodebookState, ...]) -> tuple[CodebookState, ...]:
    if isinstance(codebooks, CodebookState) or not isinstance(codebooks, tuple | list) or not codebooks:
        raise ValueError(f"codebooks: expected a tuple of at least one codebook, got {describe(codebooks)}")
    return tuple(codebooks)
