"""Runs of the toy task: how they are started, fed, stopped and compared."""

from __future__ import annotations

import os
import signal
from itertools import count
from pathlib import Path
from typing import Any

import torch
from toy import make_task, validation

from mfk.core import Batches, Task, tree
from mfk.train import (
    TrainConfig,
    fit,
)

CONFIG = TrainConfig(
    steps=20,
    batch_size=16,
    accumulate=2,
    lr=1e-2,
    warmup_steps=3,
    ema_decay=0.9,
    validate_every=6,
    log_every=4,
    checkpoint_every=5,
    threads=1,
    jit=False,
)


def fit_toy(run: Path, config: TrainConfig = CONFIG, task: Task | None = None, **rest):
    record = {"train": {"steps": config.steps}}
    settings: dict[str, Any] = dict(run=run, record=record, validation=validation(), console=False)
    return fit(task or make_task(), config, **(settings | rest))


def given(start: int, stop_at: int | None = None, signals: tuple[int, ...] = (signal.SIGINT,)):
    """Batches from step `start` on; while the batch of step `stop_at` is made, signals come in."""
    for step in count(start):
        if step == stop_at:
            for number in signals:
                os.kill(os.getpid(), number)
        yield {"x": torch.linspace(-1, step % 5, 48).reshape(16, 3)}


def stream(stop_at: int | None = None, signals: tuple[int, ...] = (signal.SIGINT,)) -> Batches:
    return Batches(lambda start: given(start, stop_at, signals), per_epoch=4)


def same(one, other) -> bool:
    pairs = zip(tree.named_leaves(one), tree.named_leaves(other), strict=True)
    return all(n == m and torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for (n, x), (m, y) in pairs)
