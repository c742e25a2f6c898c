"""Clipping of gradients by their global norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Tree, describe


def clip_by_global_norm(grads: Tree, max_norm: float) -> tuple[Tree, Tensor]:
    """Scale all gradients by min(1, max_norm / |g|), |g| their norm taken as one vector.

    Pure and without host synchronisation. A norm that is NaN or infinite makes every leaf NaN, so
    that one bad entry cannot pass unseen as a step of zeros.

    Args:
        grads: tree of tensors.
        max_norm: largest norm that is left alone, finite and > 0.

    Returns:
        (grads, norm): the scaled tree, and the norm before scaling, 0-dimensional.

    Raises:
        ValueError: `max_norm` is not finite and positive, or the tree is empty.
    """
    norm = tree.global_norm(grads)
    scaled = torch._foreach_mul(tree.leaves(grads), clip_factor(norm, max_norm))
    return tree.unflatten(grads, list(scaled)), norm


def clip_factor(norm: Tensor, max_norm: float | Tensor) -> Tensor:
    """min(1, max_norm / norm), in the norm's shape; NaN where the norm is not finite.

    For an ensemble both may be [k], one for each member. A tensor's values are not looked at, which would
    wait for the device.

    Raises:
        ValueError: a number `max_norm` that is not finite and positive, or a tensor of another shape.
    """
    if isinstance(max_norm, Tensor):
        if max_norm.shape != norm.shape:
            raise ValueError(
                f"max_norm: expected one for each norm, {tuple(norm.shape)}, got {describe(max_norm)}"
            )
        max_norm = max_norm.to(norm.dtype)
    elif isinstance(max_norm, bool) or not isinstance(max_norm, int | float) or not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm: expected a finite number > 0, got {describe(max_norm)}")
    factor = max_norm / norm.clamp(min=max_norm)
    return torch.where(torch.isfinite(norm), factor, math.nan)
