"""Times as inputs of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.nn.checks import check_sizes


def time_features(t: Tensor, count: int) -> Tensor:
    """Sines and cosines of a time: sin(½πk t) for k = 1 ... count/2, then cos(½πk t).

    The frequencies grow linearly and not by powers: MeanFlow differentiates the network in its time, and a
    feature's rate, at most πk/2 (25 of 32 features), multiplies the rate of the network. The lowest pair is a
    quarter turn over [0, 1], so that no two times share their features.

    Args:
        t: times in [0, 1], floating-point, [..., 1].
        count: number of features, even.

    Returns:
        [..., count] in t's dtype, each within [-1, 1].

    Raises:
        ValueError: a last axis other than 1; a count that is not positive and even.
        TypeError: t is not floating-point.
    """
    check_sizes(count=count)
    if count % 2:
        raise ValueError(f"count: expected an even number, got {count}")
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"t: expected a floating-point tensor, got {describe(t)}")
    if t.ndim < 1 or t.shape[-1] != 1:
        raise ValueError(f"t: expected the shape [..., 1], got {tuple(t.shape)}")
    angle = t * (0.5 * math.pi * torch.arange(1, count // 2 + 1, dtype=t.dtype, device=t.device))
    return torch.cat((angle.sin(), angle.cos()), dim=-1)
