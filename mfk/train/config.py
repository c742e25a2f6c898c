"""The settings of a training run, their checks, and what is built from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mfk.core.config import refuse_unused
from mfk.core.types import Optimizer, Schedule, describe
from mfk.optim import adamw, decays_by_name, stacked, warmup_constant, warmup_cosine, warmup_linear
from mfk.optim.members import check_each
from mfk.train.log import LogLevel
from mfk.train.step import Precision
from mfk.train.trackers import Tracker, check_trackers


@dataclass(frozen=True)
class TrainConfig:
    """How a task is trained."""

    steps: int = 10_000
    """Optimizer steps in all; --epochs takes its place."""
    epochs: int | None = None
    """Passes over the data in all, in place of steps."""
    steps_per_epoch: int | None = None
    """Length of an epoch where data are made on the fly; the epochs of a data file have their own."""
    batch_size: int = 256
    """Rows of the global batch."""
    accumulate: int = 1
    """Micro-batches that a batch is split into; changes memory and time, not the result."""
    device: str = "auto"
    """auto (CUDA if there is one, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    jit: bool = True
    """Compile the gradient before the first step (seconds, fewer the next time); off: eager torch."""
    precision: Precision = "fp32"
    """Of the loss's matrix products; parameters, moments and validation stay in fp32."""
    lr: float = 1e-3
    """Peak learning rate."""
    members: int = 1
    """Networks trained side by side, each with a seed of its own (an ensemble); 1 trains one."""
    member_lr: tuple[float, ...] = ()
    """Each member's share of the learning rate, one number a member; none: all alike."""
    member_clip: tuple[float, ...] = ()
    """Each member's largest gradient norm, in place of clip; none: all alike."""
    min_lr: float = 1e-6
    """Learning rate at the end of the schedule."""
    warmup_steps: int = 0
    """Steps of linear warm-up; --warmup-epochs takes its place."""
    warmup_epochs: int | None = None
    """Epochs of linear warm-up, in place of warmup_steps."""
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
    validate_every: int | None = 1_000
    """Steps between validations; None: only by epochs, and at both ends of the run."""
    validate_every_epochs: int | None = None
    """Epochs between validations, beside those by steps."""
    patience: int | None = None
    """Early stopping: the run ends after so long without progress; None never."""
    patience_unit: Literal["validations", "epochs"] = "validations"
    """What patience counts."""
    min_delta: float = 0.0
    """Early stopping: the share of best_metric's last counted value that it must fall by to count."""
    log_every: int | None = 50
    """Steps between log records; None: only by epochs, and at the end."""
    log_every_epochs: int | None = None
    """Epochs between log records of the metrics' means over the rows of those epochs (epoch/...)."""
    log_level: LogLevel = "info"
    """What the terminal shows: debug, info, warning or error; the files are complete in any case."""
    trackers: tuple[Tracker, ...] = ()
    """Further places for the metrics, both offline: wandb, mlflow (extras of their names)."""
    profile: tuple[int, int] | None = None
    """First and last step to trace with torch.profiler, into logs/."""
    checkpoint_every: int | None = 1_000
    """Steps between checkpoints; None: only by epochs, at a new best, and at the end."""
    checkpoint_every_epochs: int | None = None
    """Epochs between checkpoints, beside those by steps."""
    keep_last: int | None = 2
    """Checkpoints kept beside the best one; None keeps all."""
    best_metric: str = "val_loss"
    """Validation metric that picks the best checkpoint and drives early stopping; lower is better."""
    max_consecutive_skips: int = 10
    """Steps skipped in a row, because they were not finite, that stop the run."""
    seed: int = 0
    """Seed of the initial parameters and of every draw."""
    shard: bool = False
    """Under torchrun: a rank keeps its part of parameters, averages and moments alone (ZeRO)."""
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""


def make_optimizer(config: TrainConfig) -> Optimizer:
    """AdamW as configured; biases and norms are not decayed. For an ensemble it is stacked."""
    single = adamw(config.betas, config.eps, config.weight_decay, decay=decays_by_name)
    return single if config.members == 1 else stacked(single, config.members, config.member_lr or None)


def with_few_members(config: TrainConfig, members: int) -> TrainConfig:
    """The settings of the first `members` of an ensemble: enough to see what all of them do."""
    return replace(
        config,
        members=members,
        member_lr=config.member_lr[:members],
        member_clip=config.member_clip[:members],
    )


def make_clip(config: TrainConfig) -> float | tuple[float, ...] | None:
    """The largest gradient norm as configured: one for all members, or one for each."""
    return config.member_clip or config.clip


def make_schedule(config: TrainConfig) -> Schedule:
    """The learning rate as configured; `config` as from `in_steps`."""
    if config.schedule == "constant":
        return warmup_constant(config.lr, config.warmup_steps)
    shape = {"cosine": warmup_cosine, "linear": warmup_linear}[config.schedule]
    return shape(config.lr, config.warmup_steps, config.steps, config.min_lr)


def in_steps(config: TrainConfig, per_epoch: int | None) -> TrainConfig:
    """`config` with its length and its warm-up in steps.

    `per_epoch` is the length of the data's own epoch, which goes before ``config.steps_per_epoch``; None if
    they have none.

    Raises:
        ValueError: a setting in epochs where an epoch has no length; a setting out of range.
    """
    check_config(config)
    own_epochs = per_epoch is not None
    per_epoch = per_epoch or config.steps_per_epoch
    if per_epoch is None:
        named = [name for name in _IN_EPOCHS if getattr(config, name) is not None]
        named += ["patience_unit"] * (config.patience_unit == "epochs")
        if named:
            raise ValueError(
                f"{named[0]}: data that are made on the fly have no epochs; give --steps-per-epoch, or --data"
            )
    elif not own_epochs and not _uses_epochs(config):
        raise ValueError("steps_per_epoch: has no effect, no setting is in epochs; leave it out")
    steps = config.steps if config.epochs is None else config.epochs * (per_epoch or 0)
    if config.profile is not None and config.profile[0] >= steps:
        raise ValueError(
            f"profile: expected to begin before step {steps}, the run's end, got {config.profile}"
        )
    warmup = config.warmup_steps
    if config.warmup_epochs is not None:
        warmup = config.warmup_epochs * (per_epoch or 0)
    resolved = replace(
        config, steps=steps, epochs=None, steps_per_epoch=per_epoch, warmup_steps=warmup, warmup_epochs=None
    )
    if config.schedule != "constant" and warmup > steps:
        name = "warmup_steps" if config.warmup_epochs is None else "warmup_epochs"
        raise ValueError(f"{name}: expected at most the run's {steps} steps, got {warmup}; give it too")
    return resolved


def is_due(step: int, every: int | None, every_epochs: int | None, per_epoch: int | None) -> bool:
    """Whether something happens after `step` steps that happens every so many steps, or epochs, or both."""
    if every is not None and step % every == 0:
        return True
    return every_epochs is not None and per_epoch is not None and step % (every_epochs * per_epoch) == 0


_IN_EPOCHS = (
    "epochs", "warmup_epochs", "validate_every_epochs", "log_every_epochs", "checkpoint_every_epochs",
)  # fmt: skip


def _uses_epochs(config: TrainConfig) -> bool:
    return config.patience_unit == "epochs" or any(getattr(config, name) is not None for name in _IN_EPOCHS)


def check_config(config: TrainConfig) -> None:
    """ValueError that names the first setting out of range; nothing has to be built or written to know."""
    for name in ("steps", "batch_size", "accumulate", "max_consecutive_skips", "members"):
        _check_number(name, getattr(config, name), 1, whole=True)
    optional = (
        *_IN_EPOCHS, "steps_per_epoch", "validate_every", "log_every", "checkpoint_every", "keep_last",
        "patience", "threads",
    )  # fmt: skip
    for name in optional:
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name), 0 if name == "warmup_epochs" else 1, whole=True)
    if config.accumulate > config.batch_size:
        raise ValueError(
            f"accumulate: expected at most batch_size, {config.batch_size}, got {config.accumulate}"
        )
    _check_number("warmup_steps", config.warmup_steps, 0, whole=True)
    for name in ("lr", "min_lr", "weight_decay", "eps", "min_delta"):
        _check_number(name, getattr(config, name), 0)
    for name, choices in (
        ("schedule", ("cosine", "linear", "constant")),
        ("precision", get_args(Precision)),
        ("patience_unit", ("validations", "epochs")),
        ("log_level", get_args(LogLevel)),
    ):
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}: expected one of {choices}, got {getattr(config, name)!r}")
    check_trackers(config.trackers)
    if config.schedule != "constant" and config.min_lr > config.lr:
        raise ValueError(f"min_lr: expected at most lr, {config.lr}, got {config.min_lr}")
    for name in ("clip", "ema_decay"):
        if getattr(config, name) is not None:
            _check_number(name, getattr(config, name), 0)
    if config.clip == 0:
        raise ValueError("clip: expected a positive number or None, got 0")
    if config.ema_decay is not None and config.ema_decay > 1:
        raise ValueError(f"ema_decay: expected at most 1, got {config.ema_decay}")
    refuse_unused(config, config.members > 1, "member_lr", "member_clip")
    for name, positive in (("member_lr", False), ("member_clip", True)):
        if getattr(config, name):
            check_each(name, getattr(config, name), config.members, positive)
    refuse_unused(config, config.patience is not None, "patience_unit", "min_delta")
    if config.patience is not None and config.validate_every is config.validate_every_epochs is None:
        raise ValueError("patience: early stopping needs validations; give --validate-every or its epochs")
    if config.min_delta >= 1:
        raise ValueError(f"min_delta: expected a share below 1, got {config.min_delta}")
    if config.profile is not None:
        for step in config.profile:
            _check_number("profile", step, 0, whole=True)
        if config.profile[0] > config.profile[1]:
            raise ValueError(f"profile: expected the first step and the last, got {config.profile}")
    if config.shard and config.members > 1:
        raise ValueError("shard: an ensemble cannot be shared out; leave out --members")
    if config.shard and config.eps == 0:
        raise ValueError(
            "shard: parts are filled up with zeros, and an eps of 0 divides by them; expected > 0"
        )
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
