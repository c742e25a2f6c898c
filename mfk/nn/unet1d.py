"""A U-Net along the time of a motion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mfk.nn.checks import check_choice, check_condition, check_frames, check_key, check_sizes
from mfk.nn.dropout import check_rate, dropout
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
        _check_levels(widths, attention, groups)
        self.inputs, self.condition, self.returns = inputs, condition, returns
        sites = iter(range(2 * blocks * len(widths) + 2))

        def level(before: int, width: int, attends: bool) -> nn.ModuleList:
            return nn.ModuleList(
                _with_attention(
                    ResidualBlock(width if i else before, width, condition, groups, dropout, next(sites)),
                    Attention(width, heads, groups) if attends else None,
                )
                for i in range(blocks)
            )

        attends = [i in attention for i in range(len(widths))]
        starts = (widths[0], *widths[:-1])  # a level keeps the channels of the one before until its own block
        self.enter = nn.Conv1d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(level(*sizes) for sizes in zip(starts, widths, attends, strict=True))
        self.halve = nn.ModuleList(nn.Conv1d(w, w, 2, stride=2) for w in widths[:-1])
        width = widths[-1]
        self.middle = nn.ModuleList(
            (
                _with_attention(
                    ResidualBlock(width, width, condition, groups, dropout, next(sites)),
                    Attention(width, heads, groups),
                ),
                _with_attention(ResidualBlock(width, width, condition, groups, dropout, next(sites)), None),
            )
        )
        # From the shortest level to the longest, as they are run.
        ends = (width, *widths[:0:-1])
        self.skips = nn.ModuleList(nn.Conv1d(w, e, 1) for w, e in zip(widths[::-1], ends, strict=True))
        self.up = nn.ModuleList(
            level(*sizes) for sizes in zip(ends, widths[::-1], attends[::-1], strict=True)
        )
        self.double = nn.ModuleList(nn.ConvTranspose1d(w, w, 2, stride=2) for w in widths[:0:-1])
        self.project = nn.Conv1d(widths[0], outputs, 1)
        self.leave = nn.Linear(outputs, outputs)
