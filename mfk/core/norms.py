"""Normalisations written out, for derivatives of their forward derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mfk.core.replacing import Replacing

_HALF = (torch.float16, torch.bfloat16)


class WrittenNorms(Replacing):
    """While it is active, layer, instance and batch norms are means, squares and roots.

    torch's reverse derivative of the forward derivative of their fused kernels is wrong, in eager mode as
    in a trace, and says nothing. A loss that differentiates through a jvp calls the field under this mode.
    Group and RMS norms, and what uses running statistics, are right as they are.
    """

    def __init__(self) -> None:
        """Nothing is called yet."""
        super().__init__(_WRITTEN)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The sum x weight + bias in x's dtype: under autocast x is narrower than they are, and stays so."""
    if weight is not None:
        x = x * weight.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    shape = tuple(normalized_shape) if isinstance(normalized_shape, list | tuple) else ()
    fits = all(
        x is None or (x.shape == shape and (x.dtype == input.dtype or input.dtype in _HALF))
        for x in (weight, bias)
    )
    if not shape or input.shape[-len(shape) :] != shape or not fits:
        return NotImplemented  # torch says what is wrong
    dtype = _result_dtype(input)
    scaled = _scaled(input, tuple(range(-len(shape), 0)), eps)
    return affine(scaled, weight, bias).to(dtype)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return NotImplemented
    # Without a derivative: its checks, and its update of the running statistics.
    like = F.instance_norm(
        input.detach(), running_mean, running_var, _detached(weight), _detached(bias), True, momentum, eps
    )
    scaled = _scaled(input, tuple(range(2, input.ndim)), eps)
    return affine(scaled, _spread(weight, input), _spread(bias, input)).to(like.dtype)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return NotImplemented
    like = F.batch_norm(
        input.detach(), running_mean, running_var, _detached(weight), _detached(bias), True, momentum, eps
    )
    scaled = _scaled(input, (0, *range(2, input.ndim)), eps)
    return affine(scaled, _spread(weight, input), _spread(bias, input)).to(like.dtype)


def _scaled(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """The quotient (x - mean) / sqrt(variance + eps) over `axes`, at least in float32."""
    wide = x.float() if x.dtype in _HALF else x
    centered = wide - wide.mean(axes, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(axes, keepdim=True) + eps)


def _result_dtype(x: Tensor) -> torch.dtype:
    """What torch's layer norm of `x` has: autocast widens it on CUDA."""
    return torch.float32 if x.is_cuda and x.dtype in _HALF and torch.is_autocast_enabled("cuda") else x.dtype


def _spread(x: Tensor | None, like: Tensor) -> Tensor | None:
    """Numbers of the channels, the second axis of `like`."""
    return None if x is None else x.reshape(-1, *(1,) * (like.ndim - 2))


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


_WRITTEN: dict[Any, Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
}
