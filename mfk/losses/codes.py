"""Losses of networks that say things in codes: rows near their codes, categories apart, distances kept.

`topographic` and `orthogonality` couple the rows they are given; the others have one value a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows
from mfk.losses.regression import squared_error


def commitment(z: Tensor, e: Tensor) -> Tensor:
    """How far a row is from its code, Σ_d (z_d - sg(e_d))² / D; the gradient pulls the row, not the code.

    Args:
        z: rows before quantisation, [..., D].
        e: their codes, [..., D]; what `mfk.nn.quantize` returns is one, straight through or not.

    Returns:
        [...], in the square of the rows' unit.

    Raises:
        ValueError: shapes that differ, or D = 0. TypeError: dtypes that differ, or not of floating point.

    Source: van den Oord et al. 2017, arXiv:1711.00937, eq. 3.
    """
    check_rows({"z": z, "e": e}, {})
    return squared_error(z, e.detach())


def codebook_error(z: Tensor, e: Tensor) -> Tensor:
    """The same distance, Σ_d (sg(z_d) - e_d)² / D, whose gradient pulls the code, not the row.

    For codebooks that are parameters; `e` is then the code itself, not the straight-through value, whose
    gradient goes to z. Args and errors are those of `commitment`.
    """
    check_rows({"z": z, "e": e}, {})
    return squared_error(e, z.detach())


def orthogonality(vectors: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of vectors, 2 Σ_{g<h} cos²(v_g, v_h) / (G (G - 1)).

    Of a vector that is 0 the cosines, and the gradient, are 0; of a single vector, which has no pair, so is
    the mean.

    Args:
        vectors: [..., G, D], such as the mean embedding of each category over a batch; G and D >= 1.

    Returns:
        [...], in [0, 1].

    Raises:
        ValueError: another shape. TypeError: not of floating point.
    """
    check_rows({"vectors": vectors}, {})
    if vectors.ndim < 2 or 0 in vectors.shape[-2:]:
        raise ValueError(
            f"vectors: expected the shape [..., G, D] with G, D >= 1, got {tuple(vectors.shape)}"
        )
    # Divided by the largest number first, so that squares of small numbers do not vanish.
    top = vectors.detach().abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(top == 0, 1.0, top)
    square = scaled.square().sum(-1, keepdim=True)
    unit = scaled * torch.where(square == 0, 1.0, square).rsqrt()
    with torch.autocast(vectors.device.type, enabled=False):
        cosine = unit @ unit.mT
    G = vectors.shape[-2]
    pairs = torch.ones(G, G, dtype=vectors.dtype, device=vectors.device).triu(1)
    return (cosine.square() * pairs).sum((-2, -1)) / max(G * (G - 1) / 2, 1)


def informativeness(partial: Tensor, x: Tensor) -> Tensor:
    """What the codes tell one at a time: the mean over codes of the mean squared error of a row.

        Σ_l Σ_f (p_lf - x_f)² / (L F)

    Args:
        partial: what a decoder of each code alone says of all features, [L, ..., F], L >= 1.
        x: the features, [..., F].

    Returns:
        [...], in the square of the features' unit.

    Raises:
        ValueError: another shape. TypeError: dtypes that differ, or not of floating point.
    """
    check_rows({"x": x}, {})
    check_rows({"partial": partial}, {})
    if partial.shape != (*partial.shape[:1], *x.shape) or not partial.shape[0]:
        raise ValueError(
            f"partial: expected the shape [L, *x.shape] with L >= 1 and x {tuple(x.shape)}, "
            f"got {tuple(partial.shape)}"
        )
    return squared_error(partial, x.unsqueeze(0).expand_as(partial)).mean(0)


def topographic(x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> Tensor:
    """How badly distances among rows of x agree with those among rows of y: 1 - r.

    r is Pearson's correlation of the N² Euclidean distances |x_i - x_j| and |y_i - y_j|, each pair twice and
    the zeros of the diagonal included, as documented. Where one side is several tensors (the latents of all
    codes, say) its distances are their mean, again as documented: categories that each tell a part can agree
    with x together, though none does alone.

    One value for all rows: the mean over parts of a batch is another number. Distances below about 3e-3 of
    the rows' distance from their mean (in float32; 1e-7 in float64) count as 0 and have gradient 0. Where all
    rows of one side coincide r is undefined and taken for 0, so that the loss is 1 with gradient 0, compiled
    or not.

    Args:
        x: [N, D], N >= 3, or several such.
        y: [N, E], or several such.

    Returns:
        [], in [0, 2].

    Raises:
        ValueError: another shape, no tensor, fewer than three rows. TypeError: dtypes that differ, or not of
            floating point.
    """
    sides = {"x": _parts("x", x), "y": _parts("y", y)}
    first = sides["x"][0]
    for name, parts in sides.items():
        for rows in parts:
            if len(rows) != len(first) or len(first) < 3:
                raise ValueError(
                    f"{name}: expected as many rows as x, at least 3, got {len(rows)}; x has {len(first)}"
                )
            if rows.dtype != first.dtype:
                raise TypeError(f"{name}: expected x's dtype, {first.dtype}, got {rows.dtype}")
    with torch.autocast(first.device.type, enabled=False):
        a, b = (_distances(parts) for parts in sides.values())
    a, b = a - a.mean(), b - b.mean()
    product = a.square().sum() * b.square().sum()
    return 1 - (a * b).sum() * torch.where(product > 0, product, 1.0).rsqrt() * (product > 0)


def _parts(name: str, given: Tensor | Sequence[Tensor]) -> list[Tensor]:
    parts = [given] if isinstance(given, Tensor) else list(given) if isinstance(given, Sequence) else []
    if not parts:
        raise ValueError(f"{name}: expected rows [N, D], or a list of such, got {describe(given)}")
    for rows in parts:
        check_rows({name: rows}, {})
        if rows.ndim != 2 or rows.shape[1] < 1:
            raise ValueError(f"{name}: expected the shape [N, D] with D >= 1, got {tuple(rows.shape)}")
    return parts


def _distances(parts: list[Tensor]) -> Tensor:
    """The mean of the Euclidean ones, [N, N], in units of the largest number about the parts' means."""
    parts = [x - x.mean(0) for x in parts]
    top = torch.stack([x.detach().abs().amax() for x in parts]).amax()
    same = torch.eye(len(parts[0]), dtype=torch.bool, device=top.device)
    total = torch.zeros_like(same, dtype=top.dtype)
    for x in parts:
        x = x / torch.where(top == 0, 1.0, top)
        size = x.square().sum(-1)
        size = size.unsqueeze(-1) + size
        square = size - 2 * x @ x.mT
        # What is below the rounding of this difference is 0, and has the root's gradient of 0 there; a NaN
        # is not, and stays one.
        near = same | (square <= 32 * torch.finfo(x.dtype).eps * size)
        total = total + torch.where(near, 0.0, torch.where(near, 1.0, square).sqrt())
    return total / len(parts)
