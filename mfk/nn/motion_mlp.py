"""A perceptron over the frames of a motion."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mfk.core.types import describe
from mfk.nn.checks import check_choice, check_condition, check_frames, check_key, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout

Pooling = Literal["last", "mean", "none"]


class MotionMLP(nn.Module):
    """Linear, ReLU and dropout for each width, then Linear: of all frames at once, of one, or of each.

    1,516,999 parameters at inputs = outputs = 455 and the other sizes as they are. With `flatten_sequence`
    the first layer sees exactly `frames` frames side by side. Without it, it sees one: the last, the mean
    over time, or ("none") every frame by itself.

    A condition is concatenated to what the first layer sees. Since that layer's width is fixed, no condition
    (None) is one of zeros.

    Args:
        inputs: width of a frame.
        outputs: width of what comes out.
        condition: width of the condition; 0: there is none.
        frames: number of frames that are flattened; 1 without `flatten_sequence`.
        widths: of the hidden layers.
        dropout: rate after each hidden layer, in [0, 1); where a call has no key nothing is dropped.
        flatten_sequence: whether the frames go in side by side.
        pooling: "last", "mean" or "none"; "last" with `flatten_sequence`, which does not pool.

    Raises:
        ValueError: sizes that are not positive, a rate outside [0, 1), a setting that would go unused.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int = 0,
        *,
        frames: int = 1,
        widths: Sequence[int] = (512, 1024, 512),
        dropout: float = 0.1,
        flatten_sequence: bool = True,
        pooling: Pooling = "last",
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(inputs=inputs, outputs=outputs, frames=frames)
        check_sizes(0, condition=condition)
        for i, width in enumerate(widths):
            check_sizes(**{f"widths[{i}]": width})
        check_rate(dropout)
        check_choice("pooling", pooling, get_args(Pooling))
        if flatten_sequence and pooling != "last":
            raise ValueError(f"pooling: expected 'last' with flatten_sequence, got {pooling!r}")
        if not flatten_sequence and frames != 1:
            raise ValueError(f"frames: expected 1 without flatten_sequence, got {frames}")
        self.inputs, self.condition, self.frames, self.rate = inputs, condition, frames, dropout
        self.flatten_sequence, self.pooling = flatten_sequence, pooling
        sizes = (frames * inputs + condition, *widths)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.leave = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Frames [B, T, inputs] -> [B, outputs], or [B, T, outputs] where pooling is "none".

        Args:
            x: frames, [B, T, inputs]; T is `frames` with `flatten_sequence`. Where frames = 1, [B, inputs]
                is taken for T = 1.
            condition: None, which is zeros, or [B, condition]; where pooling is "none" it holds for every
                frame, and [B, T, condition] is one for each.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.

        Raises:
            ValueError: shapes other than these.
            TypeError: dtypes other than the parameters'; a key that is not int64.
        """
        if isinstance(x, Tensor) and x.ndim == 2 and self.frames == 1:
            x = x.unsqueeze(1)
        check_frames(x, self.inputs, self.leave.weight.dtype)
        check_condition(condition, self.condition, x, per_frame=self.pooling == "none")
        check_key(key, (x.shape[0],))
        if self.flatten_sequence:
            if x.shape[1] != self.frames:
                raise ValueError(
                    f"x: expected {self.frames} frames, as the network was built with frames={self.frames} "
                    f"and flatten_sequence, got {describe(x)}"
                )
            h = x.flatten(1)
        elif self.pooling == "none":
            h = x
        else:
            h = x[:, -1] if self.pooling == "last" else x.mean(1)
        if self.condition:
            h = torch.cat((h, self._spread(condition, h)), -1)
        for site, layer in enumerate(self.hidden):
            h = dropout(nn.functional.relu(layer(h)), self.rate, key, site)
        return self.leave(h)

    def _spread(self, condition: Tensor | None, h: Tensor) -> Tensor:
        """The condition of each row of `h`, [B, C] or [B, T, C]."""
        shape = (*h.shape[:-1], self.condition)
        if condition is None:
            return h.new_zeros(shape)
        return condition if condition.ndim == h.ndim else condition.unsqueeze(1).expand(shape)
