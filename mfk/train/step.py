"""One training step of any task: micro-batches and ranks, one division, clip, guard, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.func import grad_and_value

from mfk.core import jit, ranks, tree
from mfk.core.compiler import prepare
from mfk.core.sums import in_pairs
from mfk.core.types import Batch, Metrics, Optimizer, Rows, Schedule, Task, Tree, describe
from mfk.optim import clip_factor, ema_update
from mfk.optim.layout import dense
from mfk.optim.members import check_each
from mfk.train.shards import Shards
from mfk.train.state import Guard, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
"""Of the loss's matrix products, by torch.autocast; parameters, moments and sums stay in fp32."""

_OWN_METRICS = ("loss", "grad_norm", "lr", "skipped", "weight")
# An fp16 loss's scale: halved by a step that overflows, doubled after so many that do not.
_SCALE_EVERY, _SCALE_LEAST, _SCALE_MOST = 1_000, 2.0**-14, 2.0**24


def make_train_step(
    task: Task,
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    seed: int,
    batch_size: int | None = None,
    accumulate: int = 1,
    clip: float | Sequence[float] | None = None,
    ema_decay: float | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
    compiled: bool = False,
    note: Callable[[str], object] | None = None,
    shards: Shards | None = None,
) -> TrainStep:
    """A function (state, batch) -> (state, metrics) that makes one step.

    The global batch of B rows is split into `accumulate` micro-batches, row i into number
    i mod accumulate. Their gradients, values and weights are *summed* and divided once::

        g = sum_k grad(total_k) / sum_k weight_k

    so that the split changes nothing but rounding, a last, short batch included. Then: clip by the
    global norm, update at ``schedule(state.step)``, average. The carried state is made once of all sums
    (``task.update``), or goes through the micro-batches in order. The loss's teacher is the average, or the
    parameters where it is off.

    Under torchrun (`mfk.core.ranks`) each of N ranks takes a run of M / N neighbouring micro-batches, of at
    least N; every rank is given the whole batch, and the sums are added over the ranks. All of them then make
    the same update, so that N ranks compute what one does with as many micro-batches: up to the rounding of
    sums, and where M / N is a power of two to the last bit, as micro-batches are added in pairs
    (`mfk.core.sums.in_pairs`), and ranks likewise.

    A step whose loss or gradient is not finite (a weight of zero counts) leaves params, opt, ema
    and the carried state bit by bit as they were; it is counted in ``guard`` and ``step`` moves on,
    so that the next step draws other numbers. Nothing in a step waits for the device.

    In bf16 and fp16 the loss runs under torch.autocast: matrix products are rounded, everything else
    (kinematics, norms, sums, parameters, moments) stays as it is. In fp16 the total is multiplied by
    ``guard.scale`` before it is differentiated, and the gradient divided by it; a step that overflows
    is skipped and halves the scale, 1,000 steps that do not double it.

    Of an ensemble all of this holds for each member by itself: loss, norm, clipping, skipping, counts and
    loss scale are [k]. The members' totals are added before they are differentiated, which gives each
    parameter its own member's gradient, as no total depends on another's parameters; a member that is not
    finite is skipped alone.

    With `shards` a state holds each rank's part of the parameters, of their averages and of the optimizer's
    moments: the parameters are gathered for the gradient, whose sum is scattered, and the update is made of
    the parts (see `mfk.train.shards_of`).

    The step DONATES the TrainState that it is given: its memory is reused for the result.

    Args:
        task: the problem; see `mfk.core.Task`.
        optimizer: ``update`` must take ``found_inf``, as `mfk.optim.adamw` does; for an ensemble as
            `mfk.optim.stacked` does.
        schedule: step -> learning rate.
        seed: of every random number that ``task.draw`` makes.
        batch_size: rows of the global batch where the task makes its own data and the batch is {}.
        accumulate: micro-batches a step; those that would have no row are left out.
        clip: largest global norm of the gradient; None does not clip. For an ensemble also k of them.
        ema_decay: decay of the average; None if the state has none.
        precision: fp32, bf16 or fp16.
        device: where the loss is computed; the same as the state's.
        compiled: compute the gradient by `mfk.jit`, once compiled for each shape of a micro-batch.
        note: as for `mfk.jit`.
        shards: how the state's parameters are shared out; None where every rank has all of them.

    Returns:
        The step. Its metrics are 0-dimensional tensors: loss, grad_norm (before clipping), lr, skipped
        (1 if this step was), weight (the sum of the rows' weights), loss_scale in fp16, and the task's own,
        divided by the weight. Of an ensemble they are [k], but for lr, the schedule's value.

    Raises:
        ValueError: a setting is out of range, the tensors of a batch disagree on the number of rows,
            the carried state changed its structure or a shape, an ensemble's total is not [k], or a state is
            handed on from micro-batch to micro-batch on more than one rank.
        TraceError: (a ValueError) `compiled`, and the loss is no pure function of tensors; see `mfk.jit`.
    """
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate: expected an int >= 1, got {describe(accumulate)}")
    members = task.members
    here = ranks.current()
    parts = micro_batches(accumulate, here.count)
    if shards is not None and members is not None:
        raise ValueError("shards: an ensemble cannot be shared out; train its members by themselves")
    limit = _limit(clip, members, device)
    rounded = _rounding(precision, torch.device(device).type)
    scaled = precision == "fp16"

    def value(params: Tree, state: Tree, batch: Batch, teacher: Tree, scale: Tensor) -> tuple[Tensor, Any]:
        with rounded():
            total, weight, aux = task.loss(params, state, batch, teacher)
        weight = torch.as_tensor(weight, dtype=total.dtype, device=total.device)
        objective = total * scale if scaled else total
        if members is not None:
            if total.shape != (members,) or weight.shape != (members,):
                raise ValueError(
                    f"task.loss: an ensemble's total and weight must have shape ({members},), "
                    f"got {describe(total)} and {describe(weight)}"
                )
            objective = objective.sum()
        return objective, (total.detach(), weight, aux)

    gradient = grad_and_value(value, has_aux=True)
    if compiled:
        prepare()
        gradient = jit(gradient, note=note)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        if (ema_decay is None) != (state.ema is None):
            raise ValueError(
                f"ema_decay: {ema_decay}, but the state holds {'no' if state.ema is None else 'an'} average; "
                "init_state(..., ema=) must agree"
            )
        rows = count_rows(batch, batch_size)
        params, teacher = state.params, state.ema
        if shards is not None:
            params = shards.gather(params)
            teacher = shards.gather(teacher) if task.teacher and teacher is not None else None
        if teacher is None or not task.teacher:
            teacher = params
        carried = state.state

        def terms(params: Tree, teacher: Tree, k: int) -> Any:
            """What the rows of micro-batch `k` add to the sums."""
            nonlocal carried
            micro = {name: x[k::parts] for name, x in batch.items()}
            drawn = task.draw(seed, state.step, Rows(range(k, rows, parts), rows), carried, micro)
            drawn = {name: x.to(device, non_blocking=True) for name, x in drawn.items()}
            grads, (_, (total, weight, aux)) = gradient(params, carried, drawn, teacher, state.guard.scale)
            moved = ()
            if task.update is not None:
                moved = tree.map(Tensor.detach, aux.state)
            elif here.count == 1:
                carried = aux.state
            else:
                _check_still(state.state, aux.state)
            return grads, total, weight, {name: x.detach() for name, x in aux.metrics.items()}, moved

        each = parts // here.count
        own = range(here.rank * each, min(rows, (here.rank + 1) * each))
        # A rank that a short batch leaves without rows needs the shape of what it adds nothing to.
        sums = in_pairs(map(partial(terms, params, teacher), own or (0,)), _add)
        if not own:
            sums = tree.map(torch.zeros_like, sums)
        del params, teacher
        if shards is None:
            grads, total, weight, metrics, moved = ranks.add_up(sums)
        else:
            total, weight, metrics, moved = ranks.add_up(sums[1:])
            grads = shards.reduce(sums[0])
        del sums

        taken = {*_OWN_METRICS, "loss_scale"} & metrics.keys()
        if taken:
            raise ValueError(f"metrics: the task reports {sorted(taken)}, names that the step uses itself")

        with torch.no_grad():
            divisor = weight * state.guard.scale if scaled else weight
            if shards is not None:
                norm = shards.norm(grads)
            else:
                norm = tree.global_norm(grads) if members is None else tree.member_norms(grads)
            loss, norm = total / weight, norm / divisor
            found_inf = 1.0 - (torch.isfinite(loss) & torch.isfinite(norm)).float()
            moves: Metrics = {}
            if task.update is not None:
                carried, moves = task.update(state.state, moved, weight)
            carried = _keep_if(found_inf, state.state, carried)
            # One pass over the gradient: the division and the clipping together.
            scale = (1.0 if limit is None else clip_factor(norm, limit)) / divisor
            grads = _scaled(grads, scale, owned=compiled)
            lr = schedule(state.step)
            params, opt = optimizer.update(grads, state.opt, state.params, lr, found_inf=found_inf)
            ema = state.ema
            if ema_decay is not None:
                ema = ema_update(ema, params, ema_decay, found_inf)
            # An overflow of the scaled loss alone is the scale's fault, until the scale can fall no further.
            innocent = torch.isfinite(loss) & (state.guard.scale > _SCALE_LEAST) if scaled else None
            guard = _count(state.guard, found_inf, innocent)
        reported: Metrics = dict(
            zip(_OWN_METRICS, (loss, norm, torch.tensor(lr), found_inf, weight), strict=True)
        )
        if scaled:
            reported["loss_scale"] = state.guard.scale
            guard = _rescale(guard, found_inf)
        reported |= {name: total / weight for name, total in metrics.items()} | moves
        return TrainState(state.step + 1, params, carried, opt, ema, guard, state.best), reported

    return step


def micro_batches(accumulate: int, count: int) -> int:
    """Micro-batches of a step on `count` ranks: `accumulate`, or as few more as can be shared out evenly."""
    return -(-accumulate // count) * count


def _check_still(before: Tree, after: Tree) -> None:
    tree.map(lambda x, y: None, before, after)  # refuses another structure
    for (name, x), y in zip(tree.named_leaves(before), tree.leaves(after), strict=True):
        # Handed back as it is: nothing to look at, which would wait for the device.
        if x is y or (x.data_ptr() == y.data_ptr() and x.shape == y.shape):
            continue
        if x.shape != y.shape or not bool(((x == y) | ((x != x) & (y != y))).all()):
            raise ValueError(
                f"task.loss: leaf {name!r} of the carried state is handed on from micro-batch to "
                "micro-batch, which more than one rank cannot do; say by Task.update how it is made of sums"
            )


def _rounding(precision: str, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What the loss runs under."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision: expected fp32, bf16 or fp16, got {precision!r}")
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    # No cache of rounded weights: under torch.func it would hold tensors of a transform that has ended.
    return lambda: torch.autocast(device, dtype=dtype, cache_enabled=False)


def _limit(
    clip: float | Sequence[float] | None, members: int | None, device: torch.device | str
) -> float | Tensor | None:
    """`clip` as `clip_factor` takes it; a tensor is made once, not in every step."""
    if clip is None or not isinstance(clip, list | tuple):
        return clip  # pyright: ignore[reportReturnType]  # other types are refused by clip_factor
    if members is None:
        raise ValueError(f"clip: one for each member needs an ensemble, got {describe(clip)}")
    each = check_each("clip", clip, members, positive=True)
    return torch.tensor(each, dtype=torch.float64, device=device)


def _scaled(grads: Tree, scale: Tensor, owned: bool) -> Tree:
    """The gradient times `scale`; in its own memory where that is `owned`, and no expanded view."""
    values = tree.leaves(grads)
    if owned and scale.ndim == 0 and all(map(dense, values)):
        torch._foreach_mul_(values, scale)
        return grads
    if scale.ndim == 0:
        return tree.unflatten(grads, list(torch._foreach_mul(values, scale)))
    return tree.unflatten(grads, list(torch._foreach_mul(values, [tree.along(scale, x) for x in values])))


def count_rows(batch: Batch, batch_size: int | None) -> int:
    """Rows of the global batch: the length of its tensors, or `batch_size` for an empty batch."""
    first = None
    for name, x in batch.items():
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise ValueError(f"batch: {name!r} must be a tensor with rows, got {describe(x)}")
        first = first or (name, len(x))
        if len(x) != first[1]:
            raise ValueError(f"batch: {name!r} has {len(x)} rows, {first[0]!r} has {first[1]}")
    rows = first[1] if first else batch_size
    if rows is None or isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        where = f"batch: {first[0]!r}" if first else "batch_size"
        raise ValueError(f"{where}: expected at least one row, got {rows!r}")
    return rows


def _add(one: Any, other: Any) -> Any:
    """Sum of two micro-batches' trees, out of place: a gradient may be a view that cannot be added to."""
    if one[3].keys() != other[3].keys():
        raise ValueError(
            f"metrics: one micro-batch reports {sorted(one[3])}, another {sorted(other[3])}; "
            "expected the same"
        )
    return tree.unflatten(one, list(torch._foreach_add(tree.leaves(one), tree.leaves(other))))


def _keep_if(bad: Tensor, old: Tree, new: Tree) -> Tree:
    def one(x: Tensor, y: Tensor) -> Tensor:
        if x.shape != y.shape or x.dtype != y.dtype:
            raise ValueError(f"state: a leaf was {describe(x)}; after the step it is {describe(y)}")
        return y if x is y else torch.where(tree.along(bad, x) > 0, x, y.detach())

    return tree.map(one, old, new)


def _count(guard: Guard, bad: Tensor, innocent: Tensor | None) -> Guard:
    one = bad.to(torch.int64)
    blamed = one if innocent is None else one * ~innocent
    consecutive = (guard.consecutive + blamed) * one
    worst = torch.maximum(guard.worst, consecutive)
    return guard._replace(skipped=guard.skipped + one, consecutive=consecutive, worst=worst)


def _rescale(guard: Guard, bad: Tensor) -> Guard:
    clean = torch.where(bad > 0, 0, guard.clean + 1)
    scale = torch.where(bad > 0, guard.scale / 2, guard.scale)
    scale = torch.where(clean == _SCALE_EVERY, scale * 2, scale).clamp(_SCALE_LEAST, _SCALE_MOST)
    return guard._replace(scale=scale, clean=torch.where(clean == _SCALE_EVERY, 0, clean))
