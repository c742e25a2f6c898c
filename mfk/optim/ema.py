"""Exponential moving average of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Tree, describe
from mfk.optim.layout import check_like


@torch.no_grad()
def ema_update(ema: Tree, params: Tree, decay: float, found_inf: Tensor | None = None) -> Tree:
    """One step of the average: ema <- decay ema + (1 - decay) params.

    DONATES `ema`: its memory is reused for the result.

    Args:
        ema: tree of floating-point tensors.
        params: tree of the same structure, shapes, dtypes and device.
        decay: in [0, 1]; the average looks back about 1 / (1 - decay) updates.
        found_inf: 0-dimensional, 0 or 1; a 1 leaves `ema` as it was, without a host synchronisation. Of
            an ensemble [k], for the leaves' members along their first axis.

    Raises:
        ValueError: `decay` is out of range, or the trees do not match (names the leaf).
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
        raise ValueError(f"decay: expected a number in [0, 1], got {describe(decay)}")
    check_like("params", params, "ema", ema)
    averages, current = tree.leaves(ema), tree.leaves(params)
    if not averages:
        return ema
    if found_inf is None:
        torch._foreach_lerp_(averages, current, 1 - decay)
        return ema
    share = (1 - decay) * (1 - found_inf.double())
    weights = {dtype: share.to(dtype) for dtype in {x.dtype for x in averages}}
    torch._foreach_lerp_(averages, current, [tree.along(weights[x.dtype], x) for x in averages])
    return ema
