"""Small networks of each kind, and numbers for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mfk.nn import MotionMLP, MotionTransformer, UNet1D

Net = TypeVar("Net", bound=nn.Module)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def transformer(inputs: int = 5, outputs: int = 3, condition: int = 0, **options: Any) -> MotionTransformer:
    sizes = {"width": 8, "heads": 2, "feedforward": 12, "max_seq_len": 7}
    return MotionTransformer(inputs, outputs, condition, **{**sizes, **options})


def mlp(inputs: int = 5, outputs: int = 3, condition: int = 0, **options: Any) -> MotionMLP:
    return MotionMLP(inputs, outputs, condition, **{"widths": (9, 6), **options})


def unet(inputs: int = 5, outputs: int = 3, condition: int = 0, **options: Any) -> UNet1D:
    sizes = {"widths": (4, 8), "blocks": 1, "heads": 2, "groups": 2}
    return UNet1D(inputs, outputs, condition, **{**sizes, **options})


def randomised(net: Net) -> Net:
    """In float64, with biases and gains that are not their starting ones."""
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    return net.double()


NETS: dict[str, Any] = {
    "transformer, add": lambda **o: transformer(condition=4, returns="last", **o),
    "transformer, prepend": lambda **o: transformer(condition=4, conditioning="prepend", returns="last", **o),
    "mlp, flattened": lambda **o: mlp(condition=4, frames=4, **o),
    "mlp, mean": lambda **o: mlp(condition=4, flatten_sequence=False, pooling="mean", **o),
    "unet": lambda **o: unet(condition=4, **o),
}
"""Constructors of what maps [B, 4, 5] and [B, 4] to [B, 3]."""
