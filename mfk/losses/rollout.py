"""Training on a network's own predictions: what later steps weigh, and how often the truth is fed back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mfk.core.types import describe


def step_weights(steps: int, decay: float = 0.05) -> Tensor:
    """Weights of a rollout's steps, which grow less certain: w_k = 1 / (1 + decay k), k = 0, ..., steps - 1.

    Args:
        steps: of the rollout, an int >= 1.
        decay: finite, >= 0; 0 weighs all steps alike.

    Returns:
        [steps], float32.

    Raises:
        ValueError: out of range.
    """
    _check_count("steps", steps)
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < math.inf:
        raise ValueError(f"decay: expected a finite number >= 0, got {describe(decay)}")
    return torch.tensor([1 / (1 + decay * k) for k in range(steps)], dtype=torch.float32, device="cpu")


def teacher_ratio(step: int, decay_steps: int) -> float:
    """The share of rollout steps that start from the true frame: 1 - step / decay_steps, then 0.

    1 at the first step of a training, 0 from step `decay_steps` on.

    Args:
        step: of the training, an int >= 0.
        decay_steps: an int >= 1.

    Raises:
        ValueError: out of range.

    Source: Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks",
    arXiv:1506.03099, the linear decay.
    """
    _check_count("step", step, least=0)
    _check_count("decay_steps", decay_steps)
    return max(0.0, 1.0 - step / decay_steps)


def _check_count(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
