"""A U-Net along the time of a motion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_choice, check_condition, check_frames, check_key, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout
from mfk.nn.self_attention import SelfAttention

Returns = Literal["sequence", "last"]


class UNet1D(nn.Module):
    """Residual blocks at halved and restored lengths, with a skip at each, around a middle with attention.

    A level is `blocks` residual blocks, in some levels with attention after each. On the way down a
    convolution of kernel 2 and stride 2 stands between levels, on the way up its transpose; there each level
    starts with the sum of what comes up and a 1x1 projection of what its twin on the way down gave. A 1x1
    convolution and a Linear lead to the outputs.

    The condition enters every block, at every length. It is **not causal**: group norms, attention and
    kernels that reach one frame ahead let each output depend on the whole window.

    542,879 parameters at inputs = outputs = 455 and the other sizes as they are. The document counts 674,591;
    with the embedding of a diffusion time that it has besides, if that is a perceptron 128-512-128 (131,712),
    the two agree. Times are a condition here, so that network is left to whoever needs it.

    Args:
        inputs: width of a frame.
        outputs: width of what comes out.
        condition: width of the condition; 0: there is none.
        widths: channels of each level, the first at full length; multiples of `groups`, the last one and
            those with attention also of `heads`.
        blocks: residual blocks of a level, on the way down and again on the way up.
        attention: the levels, counted from 0, with attention after each block.
        heads: of the attention.
        groups: of the group norms.
        dropout: rate within each block, in [0, 1); where a call has no key nothing is dropped.
        returns: "last": the last frame's output alone, or "sequence".

    Raises:
        ValueError: sizes that are not positive or do not divide, levels that are not there, other words.

    Source: Ronneberger et al. 2015, arXiv:1505.04597; Ho et al. 2020, arXiv:2006.11239, appendix B.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int = 0,
        *,
        widths: Sequence[int] = (32, 64),
        blocks: int = 2,
        attention: Sequence[int] = (1,),
        heads: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
        returns: Returns = "last",
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(inputs=inputs, outputs=outputs, blocks=blocks, heads=heads, groups=groups)
        check_sizes(0, condition=condition)
        check_rate(dropout)
        check_choice("returns", returns, get_args(Returns))
        widths = tuple(widths)
        _check_levels(widths, attention, groups)
        self.inputs, self.condition, self.returns = inputs, condition, returns
        sites = count()

        def block(before: int, after: int, attends: bool) -> Block:
            attends_with = heads if attends else None
            return Block(before, after, condition, attends_with, groups, dropout, next(sites))

        def level(before: int, after: int, attends: bool) -> Blocks:
            return Blocks(block(after if i else before, after, attends) for i in range(blocks))

        last = widths[-1]
        attends = [i in attention for i in range(len(widths))]
        # What each level is given: on the way down by the one before it, on the way up by the one after.
        given, returned = (widths[0], *widths[:-1]), (*widths[1:], last)
        self.enter = nn.Conv1d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(map(level, given, widths, attends))
        self.halve = nn.ModuleList(nn.Conv1d(w, w, 2, stride=2) for w in widths[:-1])
        self.middle = Blocks((block(last, last, True), block(last, last, False)))
        self.restore = nn.ModuleList(nn.ConvTranspose1d(w, w, 2, stride=2) for w in widths[1:])
        self.skips = nn.ModuleList(nn.Conv1d(w, r, 1) for w, r in zip(widths, returned, strict=True))
        self.up = nn.ModuleList(map(level, returned, widths, attends))
        self.project = nn.Conv1d(widths[0], outputs, 1)
        self.leave = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Frames [B, T, inputs] -> [B, outputs] of the last, or [B, T, outputs].

        Any T >= 1 will do. Where a length is odd, the convolution that halves it is given its first position
        twice, and what grows from the copy is cut off on the way up. No frame is invented by that: it is the
        border of one convolution, as zeros are of the others, and the last frame keeps its place.

        Args:
            x: frames, [B, T, inputs].
            condition: None, [B, condition]; None is the same as zeros.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.

        Raises:
            ValueError: shapes other than these.
            TypeError: dtypes other than the parameters'; a key that is not int64.
        """
        check_frames(x, self.inputs, self.leave.weight.dtype)
        check_condition(condition, self.condition, x, per_frame=False)
        check_key(key, (x.shape[0],))
        h = self.enter(x.mT)
        seen: list[Tensor] = []
        for i, level in enumerate(self.down):
            if i:
                h = self.halve[i - 1](torch.cat((h[..., :1], h), -1) if h.shape[-1] % 2 else h)
            h = level(h, condition, key)
            seen.append(h)
        h = self.middle(h, condition, key)
        for i in reversed(range(len(self.up))):
            if i < len(self.restore):
                h = self.restore[i](h)[..., -seen[i].shape[-1] :]
            h = self.up[i](h + self.skips[i](seen[i]), condition, key)
        h = self.project(h[..., -1:] if self.returns == "last" else h)
        h = self.leave(h.mT)
        return h[:, -1] if self.returns == "last" else h


class Blocks(nn.ModuleList):
    """One block after the other, all with the same condition and key."""

    def forward(self, h: Tensor, condition: Tensor | None, key: Tensor | None) -> Tensor:
        """[B, before, T] and [B, condition] -> [B, after, T]."""
        for block in self:
            h = block(h, condition, key)
        return h


class Block(nn.Module):
    """skip(h) + SiLU(GN(conv(dropout(SiLU(GN(conv(h)) + Linear(condition)))))), then attention if it attends.

    The skip is a 1x1 convolution where the channels change; attention is h + attention(GN(h)).
    """

    def __init__(
        self,
        before: int,
        after: int,
        condition: int,
        heads: int | None,
        groups: int,
        dropout: float,
        site: int,
    ) -> None:
        """From `before` to `after` channels, with attention of `heads` or, at None, without."""
        super().__init__()
        self.rate, self.site = dropout, site
        self.conv1, self.norm1 = nn.Conv1d(before, after, 3, padding=1), nn.GroupNorm(groups, after)
        # The norm has an offset already.
        self.inject = nn.Linear(condition, after, bias=False) if condition else None
        self.conv2, self.norm2 = nn.Conv1d(after, after, 3, padding=1), nn.GroupNorm(groups, after)
        self.skip = nn.Conv1d(before, after, 1) if before != after else nn.Identity()
        self.attention_norm = nn.GroupNorm(groups, after) if heads else None
        self.attention = SelfAttention(after, heads) if heads else None

    def forward(self, h: Tensor, condition: Tensor | None, key: Tensor | None) -> Tensor:
        """[B, before, T] and [B, condition] -> [B, after, T]."""
        y = self.norm1(self.conv1(h))
        if condition is not None and self.inject is not None:
            y = y + self.inject(condition).unsqueeze(-1)
        y = dropout(nn.functional.silu(y), self.rate, key, self.site)
        h = self.skip(h) + nn.functional.silu(self.norm2(self.conv2(y)))
        if self.attention is not None and self.attention_norm is not None:
            h = h + self.attention(self.attention_norm(h).mT).mT
        return h


def _check_levels(widths: Sequence[int], attention: Sequence[int], groups: int) -> None:
    if not widths:
        raise ValueError("widths: expected at least one level, got none")
    for i, width in enumerate(widths):
        check_sizes(**{f"widths[{i}]": width})
        if width % groups:
            raise ValueError(f"widths[{i}]: expected a multiple of groups, {groups}, got {width}")
    for level in attention:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(widths):
            raise ValueError(f"attention: expected levels from 0 to {len(widths) - 1}, got {describe(level)}")
