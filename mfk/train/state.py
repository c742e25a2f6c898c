"""What a run carries from step to step: everything that a checkpoint holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Optimizer, Task, Tree, describe

FIRST_SCALE = 1024.0
"""Loss scale that an fp16 run starts with; the loss is a sum over rows, so that this is large already."""


class Guard(NamedTuple):
    """What protects a run: steps that were not made, the loss scale, and the course of the validations."""

    skipped: Tensor  # [], int64: steps skipped since the start, because they were not finite
    consecutive: Tensor  # [], int64: steps skipped in a row, up to now; in fp16 not those of its scale
    worst: Tensor  # [], int64: the most that were ever skipped in a row
    scale: Tensor  # [], float32: what an fp16 loss is multiplied by before it is differentiated
    clean: Tensor  # [], int64: steps made since the scale last changed
    best: float = math.inf  # lowest value of the watched validation metric
    best_step: int = -1  # the step of that value; -1 before the first
    reference: float = math.inf  # last value of it that counted as progress, for early stopping
    reference_step: int = 0  # the step of that value
    stalled: int = 0  # validations since then
    judged_step: int = 0  # the step of the last validation


class TrainState(NamedTuple):
    """The whole state of a run."""

    step: int  # steps made or skipped; the number of the next step
    params: Tree  # what is differentiated, float32 or float64
    state: Tree  # what is carried and not differentiated: tensors, as the task made them
    opt: Tree  # the optimizer's state
    ema: Tree  # average of params, in their shapes and dtypes; None where averaging is off
    guard: Guard


def init_state(
    task: Task, optimizer: Optimizer, seed: int, *, ema: bool = False, device: torch.device | str = "cpu"
) -> TrainState:
    """The state before step 0, on `device`; it shares no memory with anything that the task holds.

    Args:
        task: supplies ``init(seed) -> (params, state)``.
        optimizer: supplies ``init(params)``.
        seed: of the initial parameters.
        ema: keep an average of the parameters, which starts as a copy of them.
        device: where all tensors live.

    Raises:
        TypeError: a leaf of the task's params or state is no tensor.
    """
    params, state = task.init(seed)
    for argument, value in (("params", params), ("state", state)):
        for name, leaf in tree.named_leaves(value):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"task.init: leaf {name!r} of {argument} must be a tensor, got {describe(leaf)}"
                )
    params, state = (tree.map(lambda x: _own(x, device), value) for value in (params, state))
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return TrainState(
        step=0,
        params=params,
        state=state,
        opt=optimizer.init(params),
        ema=tree.clone(params) if ema else None,
        guard=Guard(
            skipped=zero,
            consecutive=zero.clone(),
            worst=zero.clone(),
            scale=torch.tensor(FIRST_SCALE, device=device),
            clean=zero.clone(),
        ),
    )


def inference_params(state: TrainState) -> Any:
    """The averaged parameters where the run keeps them, else the parameters themselves."""
    return state.params if state.ema is None else state.ema


def _own(x: Tensor, device: torch.device | str) -> Tensor:
    return x.detach().to(device, copy=True)
