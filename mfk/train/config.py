"""The settings of a training run, their checks, and what is built from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from mfk.core.types import Optimizer, Schedule, describe
from mfk.optim import adamw, decays_by_name, warmup_constant, warmup_cosine, warmup_linear


@dataclass(frozen=True)
class TrainConfig:
    """How a task is trained."""

    steps: int = 10_000
    """Optimizer steps in all."""
    batch_size: int = 256
    """Rows of the global batch."""
    accumulate: int = 1
    """Micro-batches that a batch is split into; changes memory and time, not the result."""
    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up; constant ignores min_lr."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, as a share of the learning rate; biases and norms are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants for the gradient and its square."""
    eps: float = 1e-8
    """AdamW's term beside the root."""
    clip: float | None = 1.0
    """Largest global gradient norm; None does not clip."""
    ema_decay: float | None = 0.999
    """Decay of the averaged parameters per step; None keeps none."""
    validate_every: int = 1_000
    """Steps between validations."""
    log_every: int = 50
    """Steps between log records."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints."""
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    best_metric: str = "val_loss"
    """Validation metric that picks the best checkpoint; lower is better."""
    max_consecutive_skips: int = 10
    """Steps skipped in a row, because they were not finite, that stop the run."""
    seed: int = 0
    """Seed of the initial parameters and of every draw."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""


def make_optimizer(config: TrainConfig) -> Optimizer:
    """AdamW as configured; biases and norms are not decayed."""
    return adamw(config.betas, config.eps, config.weight_decay, decay=decays_by_name)


def make_schedule(config: TrainConfig) -> Schedule:
    """The learning rate as configured."""
    if config.schedule == "constant":
        return warmup_constant(config.lr, config.warmup_steps)
    shape = {"cosine": warmup_cosine, "linear": warmup_linear}[config.schedule]
    return shape(config.lr, config.warmup_steps, config.steps, config.min_lr)


def check_config(config: TrainConfig) -> None:
    """ValueError that names the first setting out of range; nothing has to be built or written to know."""
    counts = [
        "steps", "batch_size", "accumulate", "validate_every", "log_every", "checkpoint_every", "keep_last",
        "max_consecutive_skips",
    ]  # fmt: skip
    for name in counts + ["threads"] * (config.threads is not None):
        _check_number(name, getattr(config, name), 1, whole=True)
    if config.accumulate > config.batch_size:
        raise ValueError(
            f"accumulate: expected at most batch_size, {config.batch_size}, got {config.accumulate}"
        )
    _check_number("warmup_steps", config.warmup_steps, 0, whole=True)
    for name in ("lr", "min_lr", "weight_decay", "eps"):
        _check_number(name, getattr(config, name), 0)
    if config.schedule not in ("cosine", "linear", "constant"):
        raise ValueError(f"schedule: expected cosine, linear or constant, got {config.schedule!r}")
    if config.schedule != "constant" and config.min_lr > config.lr:
        raise ValueError(f"min_lr: expected at most lr, {config.lr}, got {config.min_lr}")
    if config.schedule != "constant" and config.warmup_steps > config.steps:
        raise ValueError(f"warmup_steps: expected at most steps, {config.steps}, got {config.warmup_steps}")
    for name in ("clip", "ema_decay"):
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name), 0)
    if config.clip == 0:
        raise ValueError("clip: expected a positive number or None, got 0")
    if config.ema_decay is not None and config.ema_decay > 1:
        raise ValueError(f"ema_decay: expected at most 1, got {config.ema_decay}")
    make_optimizer(config)


def _check_number(name: str, value: Any, least: int, whole: bool = False) -> None:
    kind = int if whole else int | float
    if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or not (math.isfinite(value) and value >= least)
    ):
        what = "an int" if whole else "a finite number"
        raise ValueError(f"{name}: expected {what} >= {least}, got {describe(value)}")
