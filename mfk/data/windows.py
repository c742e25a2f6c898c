"""Which frames of a clip are seen together: indices of inputs and targets, from lengths alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import describe


class NextStepWindows(NamedTuple):
    """Single frames and those that follow them."""

    inputs: Tensor  # [n], int64
    targets: Tensor  # [n], int64


class AutoregressiveWindows(NamedTuple):
    """Runs of frames, and the same runs one frame later."""

    inputs: Tensor  # [n, chunk], int64
    targets: Tensor  # [n, chunk], int64, all of them frames of the clip
    mask: Tensor  # [n, chunk], bool: whether the target is the frame that follows; else it is not to be used


def next_step_windows(length: int, horizon: int) -> NextStepWindows:
    """Every frame that another follows `horizon` frames later: inputs i, targets i + horizon.

        n = max(0, length - horizon)

    Args:
        length: frames of the clip, an int >= 0.
        horizon: frames ahead, an int >= 1.

    Raises:
        ValueError: a number out of range, or no int.
    """
    _check("length", length, least=0)
    _check("horizon", horizon, least=1)
    inputs = torch.arange(max(0, length - horizon), dtype=torch.int64, device="cpu")
    return NextStepWindows(inputs, inputs + horizon)


def autoregressive_windows(length: int, chunk: int, stride: int) -> AutoregressiveWindows:
    """Runs of `chunk` frames that start every `stride` frames, each frame's target the one after it.

        inputs[k, j] = k stride + j,    targets = inputs + 1,
        n = 1 + (length - chunk) // stride, or 0 if length < chunk

    A run that ends with the clip has no target for its last frame: there `mask` is False, and the target
    names the last frame, so that it can be gathered. Frames behind the last whole stride are in no run.

    Args:
        length: frames of the clip, an int >= 0.
        chunk: frames of a run, an int >= 1.
        stride: frames from the start of a run to that of the next, an int >= 1.

    Raises:
        ValueError: a number out of range, or no int.
    """
    _check("length", length, least=0)
    _check("chunk", chunk, least=1)
    _check("stride", stride, least=1)
    starts = torch.arange(0, max(0, length - chunk + 1), stride, dtype=torch.int64, device="cpu")
    inputs = starts.unsqueeze(-1) + torch.arange(chunk, dtype=torch.int64, device="cpu")
    return AutoregressiveWindows(inputs, (inputs + 1).clamp(max=length - 1), inputs + 1 < length)


def _check(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
