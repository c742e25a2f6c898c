"""Attention that can be differentiated in every mode: softmax(q kᵀ scale + mask) v.

`torch.nn.functional.scaled_dot_product_attention` (SDPA) has the same numbers and, in its fused kernels, no
forward mode, which MeanFlow's losses need. What is here is written with operators that have one, at the price
of a [L, S] matrix of weights per head in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_sizes


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ scale + mask) v, the softmax over the S keys; forward mode, reverse mode and vmap work.

    `mask` and `causal` may be given together: a query attends where both let it. (SDPA's documentation
    forbids the pair.) A query that may attend nowhere gets zeros, and zero gradients and tangents, as in
    SDPA. With fewer or more keys than queries `causal` aligns the first ones, as in SDPA.

    In bf16 and fp16 the two products are taken in that dtype, mask and softmax in fp32 between them. `scale`
    multiplies q before the product, so that fp16 scores do not overflow first.

    Args:
        q: queries, [..., L, d].
        k: keys, [..., S, d]; the leading axes are q's, nothing is broadcast.
        v: values, [..., S, e].
        mask: boolean, True where a query may attend; or added to the scores, in q's dtype or fp32 (float64
            only if q is), where -inf is no attention. Broadcastable to [..., L, S].
        causal: query i attends to the keys 0 to i only.
        scale: None: 1/√d.

    Returns:
        [..., L, e], in v's dtype, or autocast's.

    Raises:
        ValueError: shapes that do not agree; a scale that is not a finite number.
        TypeError: no floating-point tensors, or dtypes that differ (autocast lets fp32, bf16 and fp16 meet).

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    _check_tensors(q, k, v)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    elif isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number or None, got {describe(scale)}")
    scores = (q * scale) @ k.mT
    scores = scores.to(_softmax_dtype(scores.dtype))
    if mask is None and not causal:
        return scores.softmax(-1).to(v.dtype) @ v
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1) if causal else None
    if mask is None:
        assert later is not None
        return scores.masked_fill(later, -math.inf).softmax(-1).to(v.dtype) @ v
    _check_mask(mask, q, (*q.shape[:-1], k.shape[-2]))
    if mask.dtype == torch.bool:
        blocked = ~mask
    else:
        blocked = mask == -math.inf
        scores = scores + mask.to(scores.dtype)
    if later is not None:
        blocked = blocked | later
    # A row of nothing but -inf would be 0 / 0, and so its derivatives: it takes zeros, its result is dropped.
    nowhere = blocked.all(-1, keepdim=True)
    floor = torch.where(nowhere, 0.0, -math.inf).to(scores.dtype)
    out = torch.where(blocked, floor, scores).softmax(-1).to(v.dtype) @ v
    return out.masked_fill(nowhere, 0.0)


class SelfAttention(nn.Module):
    """Multi-head self-attention: Linear(attention of each head), one Linear for queries, keys and values.

    The same function as nn.MultiheadAttention(width, heads, batch_first=True) without dropout: `qkv` is its
    in_proj, `leave` its out_proj. Weights start as nn.Linear's do.

    Args:
        width: of the residual stream; a multiple of `heads`.
        heads: each is width / heads wide.
        causal: a position attends to itself and to those before it only.
        bias: whether the two Linears have one.

    Raises:
        ValueError: sizes that are not positive, or do not divide.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False, bias: bool = True) -> None:
        """See the class."""
        super().__init__()
        check_sizes(width=width, heads=heads)
        if width % heads:
            raise ValueError(f"width: expected a multiple of heads, {heads}, got {width}")
        self.width, self.heads, self.causal = width, heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.leave = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[..., L, width] -> [..., L, width].

        `mask` is that of `attention`: [L, L] for all heads and sequences, or [..., heads, L, L] with all of
        x's leading axes; each size may be 1. With axes in between it would not be clear which one the heads
        are, and a mask of them raises ValueError.
        """
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-1] != self.width:
            raise ValueError(f"x: expected the shape [..., L, {self.width}], got {describe(x)}")
        if isinstance(mask, Tensor) and mask.ndim not in (2, x.ndim + 1):
            raise ValueError(
                f"mask: expected 2 axes, [L, L], or {x.ndim + 1}, x's leading ones and [heads, L, L], "
                f"got {describe(mask)}; x is {tuple(x.shape)}"
            )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(-3)
        heads = attention(q, k, v, mask, causal=self.causal)
        return self.leave(heads.transpose(-3, -2).flatten(-2))


def _softmax_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {describe(x)}")
        if x.dtype != q.dtype and not _meet(x, q):
            raise TypeError(f"{name}: expected the dtype of q, {q.dtype}, got {x.dtype}")
    if q.ndim < 2 or q.shape[-1] < 1:
        raise ValueError(f"q: expected a shape [..., L, d] with d >= 1, got {tuple(q.shape)}")
    lead, width = tuple(q.shape[:-2]), q.shape[-1]
    if k.ndim != q.ndim or k.shape[:-2] != lead or k.shape[-1] != width:
        raise ValueError(
            f"k: expected the shape {_shape(*lead, 'S', width)}, got {tuple(k.shape)}; q is {tuple(q.shape)}"
        )
    if v.ndim != q.ndim or v.shape[:-1] != k.shape[:-1]:
        raise ValueError(
            f"v: expected the shape {_shape(*k.shape[:-1], 'e')}, got {tuple(v.shape)}; k is {tuple(k.shape)}"
        )


def _check_mask(mask: Tensor, q: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"mask: expected a boolean or floating-point tensor, got {describe(mask)}")
    if mask.dtype not in (torch.bool, q.dtype, _softmax_dtype(q.dtype)) and not _meet(mask, q):
        raise TypeError(
            f"mask: expected torch.bool, q's dtype {q.dtype} or the softmax's {_softmax_dtype(q.dtype)}, "
            f"got {mask.dtype}"
        )
    given = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    if not 1 <= mask.ndim <= len(shape) or any(a not in (1, b) for a, b in zip(given, shape, strict=True)):
        raise ValueError(
            f"mask: expected a shape that broadcasts to [..., L, S], {shape}, got {tuple(mask.shape)}"
        )


def _meet(x: Tensor, q: Tensor) -> bool:
    """Whether autocast brings the two dtypes to one; it leaves float64 alone."""
    return torch.is_autocast_enabled(q.device.type) and torch.float64 not in (x.dtype, q.dtype)


def _shape(*sizes: int | str) -> str:
    return f"({', '.join(map(str, sizes))})"
