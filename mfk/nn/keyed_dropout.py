"""Dropout whose mask is a function of a key, so that a loss with dropout is a pure function."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.nn.checks import check_key

_32_BITS = 0xFFFF_FFFF
# Both below 2^31 in size: times 32 bits they stay within int64. The second is 0x846CA68B modulo 2^32.
_FIRST, _SECOND = 0x7FEB_352D, 0x846C_A68B - (1 << 32)


def dropout(x: Tensor, rate: float, key: Tensor | None, site: int) -> Tensor:
    """Elements of x set to zero with probability `rate`, the others divided by 1 - rate.

    Element i of a row is kept where hash(key, site, i) >= rate 2³². No generator is read, so that the
    function differentiates in every mode, compiles, gives the same numbers each time, and draws a row's mask
    from that row's key alone: how a batch is split changes nothing. One number per row and step is enough
    for a network, which gives each place where it drops a `site` of its own.

    Args:
        x: [B, ...], or one row [...] where the key has no axis.
        rate: probability of a zero, in [0, 1).
        key: int64, [B] or [], numbers in [0, 2³¹); higher bits than 32 are not looked at. None: x as it is.
        site: which of a network's dropouts this is, 0 <= site < 2³¹; others have independent masks.

    Returns:
        A tensor like x; x itself where the rate is 0 or the key None.

    Raises:
        ValueError: a rate outside [0, 1), a negative site, a key that is not one number per row.
        TypeError: a key that is not int64; an x that is not floating-point.

    Source: Srivastava et al. 2014, JMLR 15. The mixer is lowbias32 of Wellons' hash-prospector.
    """
    check_rate(rate)
    if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site < 1 << 31:
        raise ValueError(f"site: expected an int in [0, 2**31), got {describe(site)}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {describe(x)}")
    if key is None:
        return x
    check_key(key, tuple(x.shape[: min(key.ndim, 1)]) if isinstance(key, Tensor) else ())
    if rate == 0:
        return x
    shape = x.shape[key.ndim :]
    # Zero is what the mixer leaves as it is, hence the ones. Both sides are mixed before they meet, since
    # rows whose numbers are neighbours would otherwise have one mask in two orders.
    place = _mix(torch.arange(1, shape.numel() + 1, device=x.device)).reshape(shape)
    row = _mix((key & _32_BITS) ^ _mix_number(site + 1))
    keep = _mix(row.reshape(*key.shape, *(1,) * len(shape)) ^ place) >= round(rate * 2**32)
    # A product and no choice: what is not finite must not be hidden.
    return x * (keep.to(x.dtype) / (1 - rate))


def check_rate(rate: float) -> None:
    """ValueError unless it is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"dropout rate: expected a number in [0, 1), got {describe(rate)}")


def _mix(x: Tensor) -> Tensor:
    """A bijection of the 32-bit numbers in an int64 tensor, each bit of which changes about half of them."""
    x = ((x ^ (x >> 16)) * _FIRST) & _32_BITS
    x = ((x ^ (x >> 15)) * _SECOND) & _32_BITS
    return x ^ (x >> 16)


def _mix_number(x: int) -> int:
    """`_mix` of one Python int, which a trace sees as a constant."""
    x = ((x ^ (x >> 16)) * _FIRST) & _32_BITS
    x = ((x ^ (x >> 15)) * _SECOND) & _32_BITS
    return x ^ (x >> 16)
