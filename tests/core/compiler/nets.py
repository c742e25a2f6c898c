"""Small networks of every kind of layer that a field may have, as fields u(z, r, t)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfk

DIMS = 8


class ResidualMLP(nn.Module):
    """Enter, blocks of h + Linear(SiLU(Linear(LN(h)))), leave: 2 + 2 blocks linear layers."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(DIMS + 2, width), nn.Linear(width, DIMS)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(blocks))
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        h = self.enter(torch.cat((z, r, t), -1))
        for norm, first, second in zip(self.norms, self.first, self.second, strict=True):
            h = h + second(F.silu(first(norm(h))))
        return self.leave(h)


class Film(nn.Module):
    """mfk's FiLM network; the pose is constant."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mfk.nn.MeanFlowNet(DIMS, width=24, blocks=2, condition=12, frequencies=4)
        self.register_buffer("pose", torch.linspace(-0.5, 0.5, 7))

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.net(z, self.get_buffer("pose").expand(*z.shape[:-1], 7), r, t)


class Transformer(nn.Module):
    """One pre-norm block over the entries of z as tokens; softmax attention written out."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter, self.leave = nn.Linear(3, width), nn.Linear(width, 1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        tokens = torch.stack((z, r.expand_as(z), t.expand_as(z)), -1)
        h = self.enter(tokens)
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).movedim(-2, -4).unbind(-2)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        h = h + self.out((weights @ v).movedim(-3, -2).flatten(-2))
        h = h + self.contract(F.gelu(self.expand(self.norm2(h))))
        return self.leave(h).squeeze(-1)


class UNet1D(nn.Module):
    """Down by a strided convolution, up by a transposed one, one skip, group norms."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv1d(3, channels, 3, padding=1)
        self.down = nn.Conv1d(channels, 2 * channels, 4, stride=2, padding=1)
        self.middle = nn.Conv1d(2 * channels, 2 * channels, 3, padding=1)
        self.up = nn.ConvTranspose1d(2 * channels, channels, 4, stride=2, padding=1)
        self.leave = nn.Conv1d(2 * channels, 1, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(2, channels), nn.GroupNorm(2, 2 * channels)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        x = torch.stack((z, r.expand_as(z), t.expand_as(z)), -2)
        skip = F.silu(self.norm1(self.enter(x)))
        h = F.silu(self.norm2(self.down(skip)))
        h = self.up(h + self.middle(h))
        return self.leave(torch.cat((h, skip), -2)).squeeze(-2)
