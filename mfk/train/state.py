"""What a run carries from step to step: everything that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Optimizer, Task, Tree, describe

FIRST_SCALE = 1024.0
"""Loss scale that an fp16 run starts with; the loss is a sum over rows, so that this is large already."""


class Guard(NamedTuple):
    """What protects a run: steps that were not made, the loss scale, and the course of the validations.

    Of an ensemble the tensors are [k], a number for each member; the validations are judged by the members'
    mean, and `MemberBest` has each member's own best.
    """

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


class MemberBest(NamedTuple):
    """Each member of an ensemble as it was at its own best validation."""

    value: Tensor  # [k], float64: lowest value of the watched metric; inf before the first
    step: Tensor  # [k], int64: the step of that value; -1 before the first
    params: Tree  # the parameters' shapes and dtypes: those for inference at that step
    state: Tree  # the carried state's shapes and dtypes


class TrainState(NamedTuple):
    """The whole state of a run."""

    step: int  # steps made or skipped; the number of the next step
    params: Tree  # what is differentiated, float32 or float64
    state: Tree  # what is carried and not differentiated: tensors, as the task made them
    opt: Tree  # the optimizer's state
    ema: Tree  # average of params, in their shapes and dtypes; None where averaging is off
    guard: Guard
    best: MemberBest | None = None  # of an ensemble


def init_state(
    task: Task,
    optimizer: Optimizer,
    seed: int,
    *,
    ema: bool = False,
    device: torch.device | str = "cpu",
    split: Callable[[Tree], Tree] | None = None,
) -> TrainState:
    """The state before step 0, on `device`; it shares no memory with anything that the task holds.

    Of an ensemble (``task.members``) the guard's tensors are [k], and each member's best is kept.

    Args:
        task: supplies ``init(seed) -> (params, state)``.
        optimizer: supplies ``init(params)``.
        seed: of the initial parameters.
        ema: keep an average of the parameters, which starts as a copy of them.
        device: where all tensors live.
        split: of `mfk.train.Shards`, for a state that holds this rank's parts of the parameters; None for all
            of them.

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
    if split is not None:
        params = split(params)
    params, state = (tree.map(lambda x: _own(x, device), value) for value in (params, state))
    shape = () if task.members is None else (task.members,)
    zero = torch.zeros(shape, dtype=torch.int64, device=device)
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
            scale=torch.full(shape, FIRST_SCALE, device=device),
            clean=zero.clone(),
        ),
        best=None
        if task.members is None
        else MemberBest(
            value=torch.full(shape, math.inf, dtype=torch.float64, device=device),
            step=zero - 1,
            params=tree.clone(params),
            state=tree.clone(state),
        ),
    )


def inference_params(state: TrainState) -> Any:
    """The averaged parameters where the run keeps them, else the parameters themselves."""
    return state.params if state.ema is None else state.ema


def keep_best(state: TrainState, values: Tensor) -> TrainState:
    """`state` with each member's best after a validation in which they had `values`, [k], lower being better.

    A value that is not lower than the member's best, or is NaN, changes nothing of it.
    """
    best = state.best
    assert best is not None
    values = values.to(best.value)
    better = values < best.value

    def one(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(tree.along(better, old), new, old)

    return state._replace(
        best=MemberBest(
            value=one(best.value, values),
            step=torch.where(better, state.step, best.step),
            params=tree.map(one, best.params, inference_params(state)),
            state=tree.map(one, best.state, state.state),
        )
    )


def _own(x: Tensor, device: torch.device | str) -> Tensor:
    return x.detach().to(device, copy=True)
