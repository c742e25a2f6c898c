"""Small positive definite systems, a whole batch at once: the matrix axes first, the batch innermost."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(columns: Tensor, ridge: float | Tensor) -> Tensor:
    """Sum of c c^T over the columns [m, k, ...], plus ridge I, as [k, k, ...]; a tensor ridge is [...]."""
    first, *rest = columns.unbind(0)
    eye = torch.eye(len(first), dtype=first.dtype, device=first.device)
    eye = eye.reshape(eye.shape + (1,) * (first.ndim - 1)) * ridge
    total = eye + first.unsqueeze(0) * first.unsqueeze(1)
    for column in rest:
        total = torch.addcmul(total, column.unsqueeze(0), column.unsqueeze(1))
    return total


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve positive definite systems [k, k, ...] x = [k, m, ...] by Gauss-Jordan elimination.

    Each pass scales the first row, takes it off all others, and moves it, one column shorter, to the
    end; after k passes the right sides hold x. The whole batch is one operand, which for small k costs
    less than a factorisation per matrix, and a positive definite system needs no pivoting.
    """
    rows = torch.cat((matrix, right), dim=1)
    for _ in range(len(matrix)):
        head, tail = rows[0], rows[1:]
        head = head[1:] / head[:1]
        rows = torch.cat((tail[:, 1:] - tail[:, :1] * head, head.unsqueeze(0)))
    return rows
