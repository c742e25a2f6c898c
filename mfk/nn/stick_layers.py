"""What a transformer of stick figures is made of: layers with a cache, ways into it and out of it."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from mfk.nn.gated_linear import SwiGLU
from mfk.nn.keyed_dropout import dropout
from mfk.nn.root_mean_square import RMSNorm
from mfk.nn.rotary import apply_rotary
from mfk.nn.self_attention import attention

Past = tuple[Tensor, Tensor]
"""Keys (turned) and values of one layer, each [B, heads, S, width / heads]."""


class StickLayer(nn.Module):
    """h + attention(RMSNorm(h)), then h + SwiGLU(RMSNorm(h)), with rotary positions and two dropouts.

    Four projections of the attention have a bias, the SwiGLU has none. The attention's weights are not
    dropped.
    """

    def __init__(self, width: int, heads: int, rate: float, site: int) -> None:
        """`site` is that of its first dropout; the other's is the next."""
        super().__init__()
        self.heads, self.rate, self.site = heads, rate, site
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.qkv, self.leave = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = SwiGLU(width, rate=rate)

    def forward(
        self,
        h: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        key: Tensor | None,
        past: Past | None = None,
        length: int = 0,
    ) -> tuple[Tensor, Past | None]:
        """[B, L, width] -> [B, L, width], and `past` with this call's keys and values from `length` on.

        Without a past the attention is causal, and `mask` says where besides; with one `mask` says it all,
        [L, length + L].
        """
        q, k, v = self.qkv(self.norm1(h)).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(-3)
        q, k = apply_rotary(q, positions), apply_rotary(k, positions)
        if past is not None:
            end = length + h.shape[1]
            past = (_written(past[0], k, length), _written(past[1], v, length))
            k, v = past[0][..., :end, :], past[1][..., :end, :]
        seen = attention(q, k, v, mask, causal=past is None)
        h = h + dropout(self.leave(seen.transpose(-3, -2).flatten(-2)), self.rate, key, self.site)
        return h + self.feedforward(self.norm2(h), key, self.site + 1), past


class Embed(nn.Module):
    """LN(Linear(GELU(Linear(x)))), or LN(Linear(x)) where there is no width between; a dropout behind it."""

    def __init__(self, inputs: int, between: int | None, width: int, rate: float, site: int) -> None:
        """`site` is that of its one dropout."""
        super().__init__()
        self.rate, self.site = rate, site
        self.enter = nn.Linear(inputs, between) if between is not None else None
        self.leave = nn.Linear(inputs if between is None else between, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, key: Tensor | None) -> Tensor:
        """[B, ..., inputs] -> [B, ..., width]."""
        if self.enter is not None:
            x = nn.functional.gelu(self.enter(x))
        return dropout(self.norm(self.leave(x)), self.rate, key, self.site)


class Head(nn.Module):
    """Linear(dropout(GELU(Linear(h))))."""

    def __init__(self, width: int, between: int, outputs: int, rate: float, site: int) -> None:
        """`site` is that of its one dropout."""
        super().__init__()
        self.rate, self.site = rate, site
        self.enter, self.leave = nn.Linear(width, between), nn.Linear(between, outputs)

    def forward(self, h: Tensor, key: Tensor | None) -> Tensor:
        """[B, T, width] -> [B, T, outputs]."""
        return self.leave(dropout(nn.functional.gelu(self.enter(h)), self.rate, key, self.site))


def start_xavier(net: nn.Module) -> None:
    """Every matrix uniform in ±sqrt(6 / (inputs + outputs)); q, k and v of one Linear are three matrices."""
    for name, p in net.named_parameters():
        if p.ndim > 1:
            for matrix in p.chunk(3) if name.endswith("qkv.weight") else (p,):
                nn.init.xavier_uniform_(matrix)


@overload
def fill(x: Tensor, valid: Tensor) -> Tensor: ...
@overload
def fill(x: Tensor | None, valid: Tensor) -> Tensor | None: ...
def fill(x: Tensor | None, valid: Tensor) -> Tensor | None:
    """Zeros where a frame [B, T, F] is not valid [B, T], whatever stands there."""
    return None if x is None else torch.where(valid.unsqueeze(-1), x, 0.0)


def seen(valid: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which places may be attended to, [B, 1, 1, 1 + T], and where each one is, [B, 1, 1 + T].

    The text is at 0 and the first valid frame at 1, wherever its row starts.
    """
    before = (valid.cumsum(1) == 0).sum(1, keepdim=True)
    mask = torch.cat((torch.ones_like(valid[:, :1]), valid), 1)
    moved = torch.cat((places[:1].expand(len(valid), 1), places[1:] - before), 1)
    return mask[:, None, None], moved.unsqueeze(1)


def _written(memory: Tensor, new: Tensor, start: int) -> Tensor:
    """A copy of the memory [B, heads, S, d] that has the new places in it; the given one stays."""
    return torch.slice_scatter(memory, new, -2, start, start + new.shape[-2])
