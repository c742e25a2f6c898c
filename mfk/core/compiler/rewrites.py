"""Operators that torch cannot trace under forward mode, written with others that it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mfk.core.norms import affine
from mfk.core.replacing import Replacing


class Rewriting(Replacing):
    """While it is active, calls of the operators below are answered by their equivalents.

    Two kinds: normalisations with a gain and an offset, whose forward mode mixes devices when it is
    traced, and sums with a scaled operand (``alpha=``, ``beta=``), whose forward mode crashes the tracer.

    Args:
        further: functions and what stands for them, which may return NotImplemented.
    """

    def __init__(self, further: Mapping[Any, Callable[..., Any]]) -> None:
        """Nothing is called yet."""
        super().__init__({**_EQUIVALENTS, **further})


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    if weight is None and bias is None:
        return NotImplemented
    return affine(torch.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    small = torch.finfo(wide.dtype).eps if eps is None else eps
    scaled = wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + small)
    return affine(scaled.to(input.dtype), weight, None)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    if weight is None and bias is None:
        return NotImplemented
    spread = (-1,) + (1,) * (input.ndim - 2)
    gain, offset = (None if x is None else x.reshape(spread) for x in (weight, bias))
    return affine(torch.group_norm(input, num_groups, None, None, eps), gain, offset)


def _add(input: Any, other: Any, *, alpha: Any = 1, out: None = None) -> Any:
    return NotImplemented if alpha == 1 or out is not None else input + other * alpha


def _sub(input: Any, other: Any, *, alpha: Any = 1, out: None = None) -> Any:
    return NotImplemented if alpha == 1 or out is not None else input - other * alpha


def _rsub(input: Any, other: Any, *, alpha: Any = 1) -> Any:
    return NotImplemented if alpha == 1 else other - input * alpha


def _fused(product: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The sum beta input + alpha product(first, second)."""

    def call(input: Any, first: Any, second: Any, *, beta: Any = 1, alpha: Any = 1, out: None = None) -> Any:
        if (beta == 1 and alpha == 1) or out is not None:
            return NotImplemented
        result = product(first, second)
        result = result if alpha == 1 else result * alpha
        if beta == 0:
            return result
        return result + (input if beta == 1 else input * beta)

    return call


def _scaled(combine: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The sum input + value combine(first, second)."""

    def call(input: Any, first: Any, second: Any, *, value: Any = 1, out: None = None) -> Any:
        return NotImplemented if value == 1 or out is not None else input + combine(first, second) * value

    return call


_EQUIVALENTS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    torch.rsub: _rsub,
}
for _name, _equivalent in {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "addmm": _fused(lambda a, b: a @ b),
    "addmv": _fused(lambda a, b: a @ b),
    "baddbmm": _fused(lambda a, b: a @ b),
    "addbmm": _fused(lambda a, b: (a @ b).sum(0)),
    "addr": _fused(lambda a, b: a.unsqueeze(-1) * b),
    "addcmul": _scaled(lambda a, b: a * b),
    "addcdiv": _scaled(lambda a, b: a / b),
}.items():
    _EQUIVALENTS[getattr(torch, _name)] = _equivalent
    _EQUIVALENTS[getattr(Tensor, _name)] = _equivalent
