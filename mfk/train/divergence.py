"""When a run is stopped because its numbers are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from mfk.core import ranks, tree
from mfk.train import checkpoint
from mfk.train.state import TrainState


class TrainingDiverged(RuntimeError):
    """The run was stopped because its steps, or its parameters, were no longer finite."""


def check_guard(state: TrainState, figures: Mapping[str, float], limit: int, folder: Path) -> None:
    """TrainingDiverged if `limit` steps in a row were skipped; `figures` are those that were logged last."""
    # Of an ensemble: a member that diverged stands still, and the run ends with the last one.
    skipped = int(state.guard.worst.min())
    if skipped >= limit:
        names = [name for name, value in figures.items() if not math.isfinite(value)] or ["loss or gradient"]
        raise TrainingDiverged(
            f"step {state.step}: {', '.join(names)} not finite, {skipped} steps in a row were skipped. "
            f"{last_good(folder)} Lower the learning rate, or look for bad values in the data."
        )


def check_params(state: TrainState, folder: Path) -> None:
    """TrainingDiverged if parameters are not finite on any rank; of an ensemble, those of every member."""
    if state.best is not None:
        finite = [x.reshape(len(x), -1).isfinite().all(-1) for x in tree.leaves((state.params, state.ema))]
        if bool(torch.stack(finite).all(0).any()):
            return
    elif not ranks.highest(int(not bool(tree.all_finite((state.params, state.ema))))):
        return
    leaves = tree.named_leaves((state.params, state.ema))
    bad = [name for name, x in leaves if not bool(torch.isfinite(x).all())]
    raise TrainingDiverged(
        f"step {state.step}: parameters {bad[:4]} are not finite. {last_good(folder)} "
        "Lower the learning rate."
    )


def last_good(folder: Path) -> str:
    """A sentence that names the last complete checkpoint."""
    listed = checkpoint.saved(folder)
    return f"Last good checkpoint: {listed[-1].path}." if listed else "There is no checkpoint yet."
