"""Root mean square normalisation, which differentiates in every mode."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_sizes


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, the mean over the last axis; no mean is taken off, no offset added.

    The same function as torch.nn.RMSNorm, written with operators that have forward mode. In bf16 and fp16
    the squares are taken in fp32, and what comes out has x's dtype. The derivative at x = 0 is finite for
    eps > 0.

    Args:
        dim: width of the last axis; `weight` has as many numbers, each starts at 1.
        eps: added to the mean of the squares; finite, > 0.

    Raises:
        ValueError: `dim` is not positive, or `eps` out of range.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        """See the class."""
        super().__init__()
        check_sizes(dim=dim)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
            raise ValueError(f"eps: expected a finite number > 0, got {describe(eps)}")
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]. ValueError: another last axis. TypeError: not of floating point."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating-point tensor, got {describe(x)}")
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(f"x: expected the shape [..., {self.dim}], got {tuple(x.shape)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return ((wide * scale) * self.weight).to(x.dtype)
