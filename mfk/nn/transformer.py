"""A transformer encoder over the frames of a motion."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mfk.nn.checks import check_choice, check_condition, check_frames, check_key, check_sizes
from mfk.nn.keyed_dropout import check_rate, dropout
from mfk.nn.self_attention import SelfAttention

Conditioning = Literal["add", "prepend"]
Returns = Literal["sequence", "last"]


class MotionTransformer(nn.Module):
    """Frames to frames: Linear, sinusoidal positions, post-norm ReLU encoder layers, Linear.

    6,771,655 parameters at inputs = outputs = 455 and the other sizes as they are. Without dropout the
    layers are nn.TransformerEncoderLayer's; with it, attention weights are not dropped, all else is.

    A condition is added to every frame behind the first Linear ("add": the same function as more channels),
    or stands before the frames as a token of its own ("prepend"), which has no position, is seen by every
    frame, and whose output is dropped. Without one (None) nothing is added, no token stands there.

    Where it is causal, frames change no earlier output by one bit; a frame that is not finite does, since
    attention multiplies it by 0.

    Args:
        inputs: width of a frame.
        outputs: width of what comes out.
        condition: width of the condition; 0: there is none.
        width: of the residual stream, even and a multiple of `heads`.
        layers: number of encoder layers.
        heads: of the attention.
        feedforward: width between the two Linears of a layer.
        dropout: rate, in [0, 1); where a call has no key nothing is dropped.
        causal: a frame sees itself and those before it only.
        max_seq_len: the most frames, without the token.
        conditioning: "add" or "prepend".
        returns: "sequence", or "last": the last frame's output alone.

    Raises:
        ValueError: sizes that are not positive or do not divide, a rate outside [0, 1), other words.

    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        condition: int = 0,
        *,
        width: int = 512,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 2048,
        dropout: float = 0.0,
        causal: bool = True,
        max_seq_len: int = 64,
        conditioning: Conditioning = "add",
        returns: Returns = "sequence",
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(
            inputs=inputs,
            outputs=outputs,
            width=width,
            layers=layers,
            heads=heads,
            feedforward=feedforward,
            max_seq_len=max_seq_len,
        )
        check_sizes(0, condition=condition)
        check_rate(dropout)
        check_choice("conditioning", conditioning, get_args(Conditioning))
        check_choice("returns", returns, get_args(Returns))
        if width % 2:
            raise ValueError(f"width: expected an even number, for sines and cosines, got {width}")
        self.inputs, self.condition = inputs, condition
        self.conditioning, self.returns = conditioning, returns
        self.enter = nn.Linear(inputs, width)
        # Added to what already has a bias, it needs none, and no condition is then one of zeros.
        self.inject = nn.Linear(condition, width, bias=conditioning == "prepend") if condition else None
        self.register_buffer("positions", _positions(max_seq_len, width))
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feedforward, dropout, causal, site=3 * i) for i in range(layers)
        )
        self.leave = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None, key: Tensor | None = None) -> Tensor:
        """Frames [B, T, inputs] -> [B, T, outputs], or [B, outputs] of the last.

        Args:
            x: frames, [B, T, inputs] with T <= max_seq_len; the first has position 0.
            condition: None, [B, condition], or [B, T, condition] where it is added.
            key: of `mfk.nn.dropout`, int64 [B]; None drops nothing.

        Raises:
            ValueError: shapes other than these, or more frames than max_seq_len.
            TypeError: dtypes other than the parameters'; a key that is not int64.
        """
        check_frames(x, self.inputs, self.enter.weight.dtype)
        check_condition(condition, self.condition, x, per_frame=self.conditioning == "add")
        check_key(key, (x.shape[0],))
        frames, positions = x.shape[1], self.get_buffer("positions")
        if frames > len(positions):
            raise ValueError(f"max_seq_len: expected at most {len(positions)} frames, got {frames}")
        h = self.enter(x) + positions[:frames]
        if condition is not None and self.inject is not None:
            token = self.inject(condition if condition.ndim == 3 else condition.unsqueeze(1))
            h = h + token if self.conditioning == "add" else torch.cat((token, h), 1)
        for layer in self.layers:
            h = layer(h, key)
        return self.leave(h[:, -1] if self.returns == "last" else h[:, -frames:])


class EncoderLayer(nn.Module):
    """LN(h + attention(h)), then LN(h + Linear(ReLU(Linear(h)))), with three dropouts as in torch's."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, causal: bool, site: int
    ) -> None:
        """`site` is that of its first dropout; the others' follow."""
        super().__init__()
        self.rate, self.site = dropout, site
        self.attention = SelfAttention(width, heads, causal=causal)
        self.expand, self.contract = nn.Linear(width, feedforward), nn.Linear(feedforward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, h: Tensor, key: Tensor | None) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        h = self.norm1(h + dropout(self.attention(h), self.rate, key, self.site))
        wide = dropout(nn.functional.relu(self.expand(h)), self.rate, key, self.site + 1)
        return self.norm2(h + dropout(self.contract(wide), self.rate, key, self.site + 2))


def _positions(count: int, width: int) -> Tensor:
    """Sine and cosine by turns of position · 10000^(-2i / width), [count, width]."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(count, dtype=torch.float64).unsqueeze(1) * rates
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1).to(torch.get_default_dtype())
