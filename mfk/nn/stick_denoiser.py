"""A network that refines the motion of a stick figure, given a first attempt at it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfk.nn.checks import check_frames, check_input, check_sizes
from mfk.nn.times import time_features
from mfk.nn.unet1d import UNet1D


class StickDenoiser(nn.Module):
    """A field u(z, r, t) of whole motions: a U-Net over time that sees z and, beside it, the motion given.

    Times enter as features through Linear, SiLU, Linear, a text through one Linear; together they are the
    U-Net's condition. It is not causal, and any T >= 1 will do. MeanFlow differentiates it in z, r and t;
    of diffusion, whose step is one time, r and t are both that step over their number.

    2,958,328 parameters at inputs = 20 and the other sizes as they are. (The original has 2,727,444: other
    blocks, and no motion given. It starts from noise and ignores what it is to refine.)

    Args:
        inputs: width of a frame.
        text: width of a text's embedding; 0: there is none.
        given: width of what is said of each frame of the motion to refine; None: it is that motion, `inputs`.
        widths: channels of each level of the U-Net, multiples of 8.
        times: width of the times' features and their part of the condition, a multiple of 4.
        condition: width of the text's part of the condition.
        blocks: residual blocks of a level, on the way down and again on the way up.

    Raises:
        ValueError: sizes that are not positive or do not divide.

    Source: gestura-ai/stick-gen, src/model/diffusion.py, for widths; Geng et al. 2025, arXiv:2505.13447,
    for a field of two times.
    """

    def __init__(
        self,
        inputs: int = 20,
        text: int = 1024,
        *,
        given: int | None = None,
        widths: Sequence[int] = (64, 128, 256),
        times: int = 128,
        condition: int = 128,
        blocks: int = 1,
    ) -> None:
        """See the class."""
        super().__init__()
        check_sizes(inputs=inputs, times=times, condition=condition, blocks=blocks)
        check_sizes(0, text=text)
        given = inputs if given is None else given
        check_sizes(given=given)
        if times % 4:
            raise ValueError(f"times: expected a multiple of 4, for sines and cosines of two, got {times}")
        self.inputs, self.given, self.text, self.times = inputs, given, text, times
        self.time = nn.Sequential(nn.Linear(times, times), nn.SiLU(), nn.Linear(times, times))
        # Beside the times' bias it needs none, and no text is then one of zeros.
        self.said = nn.Linear(text, condition, bias=False) if text else None
        self.unet = UNet1D(
            inputs + given,
            inputs,
            times + (condition if text else 0),
            widths=widths,
            blocks=blocks,
            attention=(),
            returns="sequence",
        )

    def forward(self, z: Tensor, given: Tensor, r: Tensor, t: Tensor, text: Tensor | None = None) -> Tensor:
        """Motions on the way, [B, T, inputs], and those to refine, [B, T, given] -> [B, T, inputs].

        Args:
            z: [B, T, inputs].
            given: [B, T, given].
            r: time of z, [B, 1].
            t: time that the step leads to, [B, 1].
            text: [B, text]; None is the same as zeros.

        Raises:
            ValueError: shapes other than these. TypeError: dtypes other than the parameters'.
        """
        _check(z, given, r, t, (self.inputs, self.given), self.unet.leave.weight.dtype)
        half = self.times // 2
        condition = self.time(torch.cat((time_features(r, half), time_features(t, half)), -1))
        if text is not None and self.said is None:
            raise ValueError("text: expected None, as the network was built with text=0")
        if self.said is not None:
            if text is None:
                said = condition.new_zeros(len(z), self.said.out_features)
            else:
                check_input("text", text, (z.shape[0], self.text), z.dtype, "z's")
                said = self.said(text)
            condition = torch.cat((condition, said.to(condition.dtype)), -1)
        # Under autocast what a Linear returns is narrower than the frames.
        return self.unet(torch.cat((z, given), -1), condition.to(z.dtype))


def _check(
    z: Tensor, given: Tensor, r: Tensor, t: Tensor, sizes: tuple[int, int], dtype: torch.dtype
) -> None:
    check_frames(z, sizes[0], dtype, "z")
    check_input("given", given, (*z.shape[:2], sizes[1]), z.dtype, "z's")
    check_input("r", r, (z.shape[0], 1), z.dtype, "z's")
    check_input("t", t, (z.shape[0], 1), z.dtype, "z's")
