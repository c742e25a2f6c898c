"""What a dry run tells of a run: shapes, the number of parameters, and the memory that a step needs."""

from __future__ import annotations

import gc
import os
import re
import resource
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mfk.core import tree
from mfk.core.memory import hand_back
from mfk.core.types import Batch, Rows, Task, Tree
from mfk.optim import constant
from mfk.train.config import TrainConfig, make_clip, make_optimizer, with_few_members
from mfk.train.device import resolve_device
from mfk.train.ensemble import with_members
from mfk.train.state import TrainState, init_state
from mfk.train.step import count_rows, make_train_step

# Rows of the micro-batches that are measured where the real one is larger.
_FEW, _MORE = 32, 128
# Of more micro-batches a step holds what it holds of three, and more sums of gradients.
_MICRO_BATCHES = 3
# Members of an ensemble that are measured where it has more.
_FEW_MEMBERS, _MORE_MEMBERS = 2, 3
# Resident memory beyond living tensors, as a share of what a step makes: 0.05 to 0.25 where it was measured,
# and up to 1 for a network of 41 parameters with a million rows.
_HEAP = 0.2
# Copies of the state while orbax writes it: 1 to 2 where it was measured.
_COPIES = 2
# Lines of a listing; what is left is summed up.
_LINES = 40


class MemoryEstimate(NamedTuple):
    """Bytes at the peak of one training step, by what they are for."""

    parameters: int
    gradients: int  # one micro-batch's, and the sums held meanwhile: of M micro-batches up to ⌊log2 M⌋
    moments: int  # the optimizer's state
    average: int  # the averaged parameters; 0 where averaging is off
    best: int  # each member's parameters and carried state at its best; 0 for a single run
    carried: int  # the task's carried state, and the guard
    batch: int  # the global batch where it is given, and what the task draws for one micro-batch
    activations: int  # what else is alive at the peak: saved tensors and temporaries of one micro-batch
    heap: int  # lost between the allocator's blocks: a fifth of gradients, batch and activations
    process: int  # Python, torch, orbax, and whatever else the calling process holds
    saving: int  # copies of the state while a checkpoint is written; no part of a step

    @property
    def device(self) -> int:
        """What lies on the device: a step without the process."""
        return sum(self[: self._fields.index("process")])

    @property
    def total(self) -> int:
        """A step on the CPU, where device and process share one memory."""
        return self.device + self.process


def describe_run(task: Task, config: TrainConfig, batch: Batch | None = None) -> str:
    """Parameters, carried state, one micro-batch and the memory of a run, as text.

    Every line begins with "# ", so that it may follow a config in YAML. Tensors whose names differ in numbers
    only, and that agree in shape and dtype, share a line. Args and errors are those of `memory_estimate`.
    """
    shapes, estimate = _examine(task, config, batch)
    lines = shapes + _table(estimate, resolve_device(config.device).type)
    return "".join(f"# {line}\n" for line in lines)


def memory_estimate(task: Task, config: TrainConfig, batch: Batch | None = None) -> MemoryEstimate:
    """The memory that `task` needs at the peak of a training step, from two small steps on the CPU.

    The real step runs with 32 and with 128 rows in a micro-batch (once with its own rows, where they
    are few), and the bytes of all living tensors are counted after every operation. Both steps make the same
    operations in the same order, so that each count lies on a line over the rows, which is followed to the
    real number; the largest is the peak. Where the operations differ (a loss that takes its rows in
    chunks), the line goes through the two peaks. An ensemble of more than three members is measured with two
    and with three, and followed to the real number likewise. What a kernel takes and frees within one
    operation is not seen.

    ``process`` is the resident memory of the calling process after these steps, with orbax imported
    and freed memory handed back; a data set in memory is part of it. On another device than the CPU it is the
    host's, and the tensors are taken to be as large as on the CPU.

    Args:
        task: the problem.
        config: what counts is batch_size, accumulate, ema_decay, members, precision, clip, seed and device.
        batch: rows of the data, of which the first ``batch_size`` (or all, if there are fewer) are the global
            batch; None or {} if the task makes its own.

    Raises:
        ValueError: the tensors of `batch` disagree on the number of rows, or there is no such device.
        Whatever the task raises: a step that fails, fails here.
    """
    return _examine(task, config, batch)[1]


def _examine(task: Task, config: TrainConfig, batch: Batch | None) -> tuple[list[str], MemoryEstimate]:
    """The lines about shapes, and the estimate: of a large ensemble, from few of its members."""
    with_members(task, config.members)  # raises where that is not possible
    if task.members is not None or config.members <= _MORE_MEMBERS:
        return _measure(task, config, batch, config.members)
    shapes, few = _measure(task, with_few_members(config, _FEW_MEMBERS), batch, config.members)
    _, more = _measure(task, with_few_members(config, _MORE_MEMBERS), batch, config.members)
    # Every member adds as much as the one before; what they share stays.
    share = (config.members - _FEW_MEMBERS) / (_MORE_MEMBERS - _FEW_MEMBERS)
    line = [round(a + share * (b - a)) for a, b in zip(few, more, strict=True)]
    return shapes, MemoryEstimate(*line)._replace(process=more.process)


def _measure(
    task: Task, config: TrainConfig, batch: Batch | None, members: int
) -> tuple[list[str], MemoryEstimate]:
    """The lines about shapes as if there were so many `members`, and the estimate, from one initial state."""
    task = with_members(task, config.members)
    resolve_device(config.device)
    split = _split(config, batch)
    state = init_state(task, make_optimizer(config), config.seed, ema=config.ema_decay is not None)
    micro = {name: x[:: split.parts] for name, x in split.given.items()}
    index = range(0, split.rows, split.parts)
    drawn = task.draw(config.seed, 0, Rows(index, split.rows), state.state, micro)
    shown, shown_drawn = (state, drawn) if task.members is None else _widened(state, drawn, members)
    shapes = _shapes(shown, split, shown_drawn)

    given = {x.untyped_storage().data_ptr() for x in split.given.values()}
    own = {name: x for name, x in drawn.items() if x.untyped_storage().data_ptr() not in given}
    held = _bytes(split.given) + _bytes(own)
    parameters, moments, average = (_bytes(x) for x in (state.params, state.opt, state.ema))
    best, carried = _bytes(state.best), _bytes((state.state, state.guard))
    gradients = parameters * split.parts.bit_length()
    counted = parameters * min(split.parts, _MICRO_BATCHES).bit_length()
    activations = max(0, _peak(task, config, state, split) - counted)
    # Or else they would count as the process's.
    del state, micro, drawn, own, shown, shown_drawn
    return shapes, MemoryEstimate(
        parameters=parameters,
        gradients=gradients,
        moments=moments,
        average=average,
        best=best,
        carried=carried,
        batch=held,
        activations=activations,
        heap=round(_HEAP * (gradients + held + activations)),
        process=_resident(),
        saving=_COPIES * (parameters + moments + average + best + carried),
    )


class _Split(NamedTuple):
    given: Batch  # the global batch; {} if the task makes it
    rows: int  # of the global batch
    parts: int  # micro-batches
    micro: int  # rows of the first, which has the most


class _Course(NamedTuple):
    operations: list[Any]  # in order
    living: list[int]  # bytes made by the step and not freed, after each operation


class _LivingBytes(TorchDispatchMode):
    """Counts the bytes of tensors as they come and go.

    It sits below torch.func's wrappers, where saved-tensor hooks would raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.course, self.counting = _Course([], []), True
        self._bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.counting:
            self.see(out)
            self.course.operations.append(func)
            self.course.living.append(self._bytes)
        return out

    def see(self, value: Tree, counts: bool = True) -> None:
        """Note the memory of `value`'s tensors, until it is freed; it `counts`, or is somebody else's."""
        for x in tree.leaves(value):
            if isinstance(x, Tensor) and x.layout == torch.strided:
                storage = x.untyped_storage()
                # As long as the memory is there, so is this Python object, with its address.
                if id(storage) not in self._known:
                    size = storage.nbytes() if counts else 0
                    self._bytes += size
                    self._known.add(id(storage))
                    weakref.finalize(storage, self._forget, id(storage), size).atexit = False

    def _forget(self, storage: int, size: int) -> None:
        self._known.remove(storage)
        self._bytes -= size


def _split(config: TrainConfig, batch: Batch | None) -> _Split:
    rows = min(count_rows(batch or {}, config.batch_size), config.batch_size)
    parts = min(config.accumulate, rows)
    given = {name: x[:rows] for name, x in (batch or {}).items()}
    return _Split(given, rows, parts, len(range(0, rows, parts)))


def _peak(task: Task, config: TrainConfig, state: TrainState, split: _Split) -> int:
    """Bytes that a step makes beside its state and its batch, at the most; donates `state`."""
    if split.micro <= _MORE:
        return max(_step(task, config, state, split, split.micro)[1].living)
    state, few = _step(task, config, state, split, _FEW)
    state, more = _step(task, config, state, split, _MORE)
    pairs = [(max(few.living), max(more.living))]
    if few.operations == more.operations:
        pairs = list(zip(few.living, more.living, strict=True))
    share = (split.micro - _FEW) / (_MORE - _FEW)
    return round(max(a + share * (b - a) for a, b in pairs))


def _step(
    task: Task, config: TrainConfig, state: TrainState, split: _Split, micro: int
) -> tuple[TrainState, _Course]:
    """One real step with at most `micro` rows in a micro-batch; donates `state`."""
    parts = min(split.parts, _MICRO_BATCHES)
    rows = min(split.rows, micro * parts)
    counter = _LivingBytes()

    def draw(seed: int, step: int, rows: Rows, carried: Tree, batch: Batch) -> Batch:
        counter.counting = False
        drawn = task.draw(seed, step, rows, carried, batch)
        counter.see(drawn, counts=False)
        counter.counting = True
        return drawn

    step = make_train_step(
        task._replace(draw=draw),
        make_optimizer(config),
        constant(config.lr),
        seed=config.seed,
        batch_size=rows,
        accumulate=parts,
        clip=make_clip(config),
        ema_decay=config.ema_decay,
        # fp16 takes as much memory, and is slow on a CPU.
        precision="fp32" if config.precision == "fp32" else "bf16",
    )
    given = {name: x[:rows] for name, x in split.given.items()}
    counter.see((state, given), counts=False)
    with counter:
        state, _ = step(state, given)
    return state, counter.course


def _widened(state: TrainState, drawn: Batch, members: int) -> tuple[TrainState, Batch]:
    """What `_shapes` shows of an ensemble's state and batch, for `members`, in no more memory."""

    def wide(value: Tree) -> Tree:
        return tree.map(lambda x: x[:1].expand(members, *x.shape[1:]), value)

    assert state.best is not None
    best = state.best._replace(step=wide(state.best.step))
    return state._replace(params=wide(state.params), state=wide(state.state), best=best), wide(drawn)


def _bytes(value: Tree) -> int:
    return sum(x.numel() * x.element_size() for x in tree.leaves(value) if isinstance(x, Tensor))


def _resident() -> int:
    """Bytes of physical memory of this process, with freed memory handed back and orbax imported."""
    from mfk.train.arrays import silent_orbax

    with silent_orbax():
        gc.collect()
    hand_back()
    with suppress(OSError):
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    # Not on Linux: the most that it has held so far; macOS counts bytes, others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _shapes(state: TrainState, split: _Split, drawn: Batch) -> list[str]:
    size = f"parameters: {tree.size(state.params):,}"
    if state.best is not None:
        size += f", {(k := len(state.best.step))} members of {tree.size(state.params) // k:,}"
    lines = [size, *_listing(state.params)]
    if tree.leaves(state.state):
        lines += [f"carried state: {tree.size(state.state):,}", *_listing(state.state)]
    part = f"micro-batch 1 of {split.parts}, {split.micro:,} of " if split.parts > 1 else ""
    return [*lines, f"batch: {part}{split.rows:,} rows", *_listing(drawn)]


def _listing(value: Tree) -> list[str]:
    groups: dict[tuple[str, str], list[tuple[str, Tensor]]] = {}
    for name, x in tree.named_leaves(value):
        kind = f"{tuple(x.shape)} {x.dtype}".replace("torch.", "")
        groups.setdefault((re.sub(r"\d+", "#", name), kind), []).append((name, x))
    shown = [(_joined([name for name, _ in same]), len(same), kind) for (_, kind), same in groups.items()]
    rest = [x for same in list(groups.values())[_LINES:] for _, x in same]
    width = max((len(name) for name, _, _ in shown[:_LINES]), default=0)
    lines = [
        f"  {name:<{width}}  {f'{count} x ' if count > 1 else ''}{kind}"
        for name, count, kind in shown[:_LINES]
    ]
    return lines + ([f"  and {len(rest)} more tensors of {tree.size(rest):,}"] if rest else [])


def _joined(names: list[str]) -> str:
    """One name for several that differ in numbers only: blocks.0-5.bias."""
    texts = re.split(r"\d+", names[0])
    columns = zip(*(re.findall(r"\d+", name) for name in names), strict=True)
    numbers = [sorted({int(number) for number in column}) for column in columns]
    merged = texts[0] + "".join(_range(n) + text for n, text in zip(numbers, texts[1:], strict=True))
    return merged if merged.isprintable() else ascii(merged)


def _range(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if len(numbers) == last - first + 1:
        return str(first) if first == last else f"{first}-{last}"
    return ",".join(map(str, numbers)) if len(numbers) <= 4 else f"{first},{numbers[1]}..{last}"


def _table(estimate: MemoryEstimate, device: str) -> list[str]:
    rows = [
        ("parameters", estimate.parameters),
        ("gradients", estimate.gradients),
        ("optimizer moments", estimate.moments),
        ("average (EMA)", estimate.average),
        *([("each member at its best", estimate.best)] if estimate.best else []),
        ("carried state", estimate.carried),
        ("batch", estimate.batch),
        ("activations of one micro-batch", estimate.activations),
        ("lost in the heap, about", estimate.heap),
    ]
    process = ("Python, torch, orbax, data", estimate.process)
    if device == "cpu":
        rows += [process, ("sum", estimate.total)]
    else:
        rows += [(f"sum on {device}", estimate.device), (process[0] + " (host)", process[1])]
    rows.append(("more while a checkpoint is written", estimate.saving))
    width = max(len(name) for name, _ in rows)
    return [
        "memory of a training step, estimated, in MB (10^6 bytes)",
        *(f"  {name:<{width}}  {size / 1e6:>9,.1f}" for name, size in rows),
    ]
