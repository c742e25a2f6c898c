"""Several members of one task, trained side by side as one vmapped loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from mfk.core import rng, tree
from mfk.core.types import Aux, Batch, Metrics, Rows, Task, Tree, describe


def member_seed(seed: int, member: int) -> int:
    """The seed of one member of an ensemble's run with `seed`: key(seed, "member", member) mod 2^63.

    A run of the task alone with this seed has the member's initial parameters and random numbers, and so
    ends with its parameters, up to rounding.
    """
    return rng.key(seed, "member", member) % 2**63


def ensemble(task: Task, k: int, *, vary: Mapping[str, Sequence[float] | Tensor] | None = None) -> Task:
    """As one task, `k` members of `task` that are trained side by side.

    Their loss is the vmapped loss of one::

        (totals, weights, aux) = vmap(task.loss)(params, state, batch, teacher)

    Member i is initialised, and draws, with ``member_seed(seed, i)``: it is a run of its own. Rows that are
    given (a data file's) are the same for all members, in the order of the ensemble's seed; what `draw`
    adds to them is each member's own. ``evaluate`` measures all members on the same batch. The members'
    spread is a measure of what the data and the training left undetermined.

    Members may differ by more than the seed: the learning rate and the clipping are arguments of
    `mfk.optim.stacked` and of `make_train_step`, and in `vary` stand the hyper-parameters that the loss
    reads from the batch. Such a task puts the default into what it draws, as a 0-dimensional tensor
    ``batch[name]``, where member i finds ``vary[name][i]`` in its place. Number and shape of the rows
    cannot differ. In ``evaluate`` the batch is taken as it is: the members are compared by one measure.

    Args:
        task: the problem of one member; its loss must be traceable by torch.func.vmap.
        k: members, >= 2.
        vary: name -> k numbers, in the dtype of the default.

    Returns:
        Task: with ``members = k``; every leaf has the member as its first axis (see `mfk.core.Task`).

    Raises:
        ValueError: `k` < 2, `task` is an ensemble, `vary` has not k values for a name; when a batch is
            drawn, a name that the task draws no 0-dimensional tensor for, or members whose draws
            differ in shape.
        TypeError: `task` is no Task, `vary` no mapping, or what it holds no numbers.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 2:
        raise ValueError(f"k: expected an int >= 2, got {describe(k)}; one member is the task itself")
    if not isinstance(task, Task):
        raise TypeError(f"task: expected a Task, got {describe(task)}")
    if vary is not None and not isinstance(vary, Mapping):
        raise TypeError(f"vary: expected a mapping of names to {k} numbers each, got {describe(vary)}")
    if task.members is not None:
        raise ValueError(f"task: expected a task of one member, got an ensemble of {task.members}")
    values = {name: _values(name, given, k) for name, given in (vary or {}).items()}

    def init(seed: int) -> tuple[Tree, Tree]:
        members = [task.init(member_seed(seed, i)) for i in range(k)]
        return tree.stack([params for params, _ in members]), tree.stack([state for _, state in members])

    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        drawn = [task.draw(member_seed(seed, i), step, rows, tree.member(state, i), batch) for i in range(k)]
        stacked = tree.stack(drawn)
        for name, each in values.items():
            default = stacked.get(name)
            if default is None or default.shape != (k,):
                raise ValueError(
                    f"vary: {name!r} must be a 0-dimensional tensor of the batch that task.draw returns, "
                    + (
                        f"which has {sorted(stacked)}"
                        if default is None
                        else f"got {describe(drawn[0][name])}"
                    )
                )
            stacked[name] = each.to(default)
        return stacked

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        return vmap(_tensors(task.loss))(params, state, batch, teacher)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        def one(params: Tree, state: Tree) -> Tree:
            return tree.map(torch.as_tensor, task.evaluate(params, state, batch))

        return vmap(one)(params, state)

    return task._replace(
        init=init,
        draw=draw,
        loss=loss,
        evaluate=evaluate,
        members=k,
        update=None if task.update is None else vmap(task.update),
    )


def with_members(task: Task, members: int) -> Task:
    """`task` as a run with the setting `members` trains it: itself, or an ensemble of it.

    Raises:
        ValueError: `task` is an ensemble of another number of members.
    """
    if task.members is None:
        return ensemble(task, members) if members > 1 else task
    if task.members != members:
        raise ValueError(f"members: expected {task.members}, as the task is an ensemble, got {members}")
    return task


def _tensors(loss: Callable[..., tuple[Tensor, Tensor, Aux]]) -> Callable[..., tuple[Tensor, Tensor, Aux]]:
    """`loss` with a weight that is a tensor, which vmap asks for and the step does not."""

    def one(*args: Tree) -> tuple[Tensor, Tensor, Aux]:
        total, weight, aux = loss(*args)
        return total, torch.as_tensor(weight, dtype=total.dtype, device=total.device), aux

    return one


def _values(name: str, given: Sequence[float] | Tensor, k: int) -> Tensor:
    try:
        values = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"vary: {name!r} must have {k} numbers, one for each member, got {describe(given)}"
        ) from None
    if values.shape != (k,):
        raise ValueError(f"vary: {name!r} must have {k} values, one for each member, got {describe(given)}")
    return values
