"""A table with known categories: blocks of columns, each block a curved image of two hidden factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mfk.core import rng
from mfk.core.types import Rows, describe


def synthetic_blocks(
    seed: int,
    rows: int = 5000,
    widths: Sequence[int] = (8, 12, 16, 20, 10, 14),
    noise: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of blocks of columns, every block a function of two standard normal factors f of its own.

    Column j of a block is ``tanh(a_j . f) + b_j . f / 2 + noise e``, where a_j, b_j and e are standard
    normal. Columns of different blocks are independent.

    Args:
        seed: of the factors, the coefficients and the noise.
        rows: N >= 1.
        widths: columns of each block, at least one block, each >= 1.
        noise: standard deviation of what is added to a column, >= 0.

    Returns:
        x [N, sum of widths] float32, and the block of each column [sum of widths] int64.

    Raises:
        ValueError: an argument out of range.
    """
    for name, value in (("rows", rows), *((f"widths[{i}]", width) for i, width in enumerate(widths))):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {describe(value)}")
    if not len(widths):
        raise ValueError("widths: expected at least one block, got none")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < np.inf:
        raise ValueError(f"noise: expected a finite number >= 0, got {describe(noise)}")
    blocks = []
    for i, width in enumerate(widths):
        factors = _normal(seed, i, "factors", rows, 2)
        curved, straight = (_normal(seed, i, name, 2, width) for name in ("curved", "straight"))
        added = noise * _normal(seed, i, "noise", rows, width)
        blocks.append(np.tanh(factors @ curved) + factors @ straight / 2 + added)
    return np.concatenate(blocks, 1).astype(np.float32), np.repeat(np.arange(len(widths)), widths)


def _normal(seed: int, block: int, name: str, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] float64; a row's numbers do not depend on how many there are."""
    return rng.normal(rng.key(seed, block, name), Rows.all(rows), (columns,), torch.float64).numpy()
