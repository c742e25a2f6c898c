"""Batches in an order that a seed and a step's number decide: of tensors in memory, or from any loader."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Batch, Batches, describe
from mfk.data.passes import one_pass
from mfk.data.workers import gather, gather_in_workers


@dataclass(frozen=True)
class LoaderConfig:
    """How rows in memory become batches."""

    shuffle: bool = True
    """A new order every epoch, decided by the seed and the epoch only; off: the order of the rows."""
    num_workers: int = 0
    """Processes that gather batches ahead of the training, where rows are slow to read; 0: none of them."""
    pin_memory: bool = False
    """Batches in page-locked memory, which a CUDA device copies without waiting; needs CUDA."""


def row_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The order of the rows in one epoch: a random permutation of 0 .. rows - 1, int64 [rows]."""
    _check_count(rows, "rows")
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, epoch, "row order")))
    return torch.from_numpy(generator.permutation(rows))


def split_rows(rows: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows at random for training, and round(share * rows) of them for validation.

    Returns:
        (training, validation), int64, each in rising order; together every row once.

    Raises:
        ValueError: one of the two would be empty.
    """
    _check_count(rows, "rows")
    if not isinstance(share, float) or not 0 < share < 1:
        raise ValueError(f"share: expected a share between 0 and 1, got {describe(share)}")
    held_out = round(share * rows)
    if not 0 < held_out < rows:
        side = "validation" if held_out == 0 else "training"
        raise ValueError(f"share: {share} of {rows} rows leaves none for {side}; expected at least one")
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "split rows")))
    order = torch.from_numpy(generator.permutation(rows))
    return order[held_out:].sort().values, order[:held_out].sort().values


def batches_of(
    data: Mapping[str, Tensor],
    batch_size: int,
    *,
    seed: int,
    index: Tensor | None = None,
    config: LoaderConfig | None = None,
) -> Batches:
    """Batches of the rows of tensors in memory, or memory-mapped from a file.

    Every row comes once an epoch; the last batch of an epoch holds the rows that are left.
    ``start(k)`` reads nothing of the k batches before. Only a batch's rows are ever copied; worker
    processes are forks that share the data, so leave the data as they are while batches are taken.
    Workers live as long as the iterator. A Ctrl-C, SIGTERM or SIGHUP that reaches them, as a terminal
    sends them to all processes, does not end them, so that the training can finish its step and save.

    Args:
        data: name -> tensor [rows, ...], all with the same number of rows.
        batch_size: rows of a batch.
        seed: decides the order of every epoch.
        index: int64 [n], the rows to take, as of `split_rows`; a row that it names twice comes twice.
            None takes all.
        config: see `LoaderConfig`.

    Raises:
        TypeError: `data` holds something else than dense tensors, or `index` is not int64.
        ValueError: no rows, tensors that disagree on their number, an index out of range, a batch size below
            1, fewer than 0 workers, page-locked memory without CUDA, or data on a device where workers or
            page-locked memory need them in host memory.
        ChildProcessError: (an OSError) while iterating: a worker died.
    """
    config = config or LoaderConfig()
    rows = _count_rows(data)
    tensors = {name: x.detach() for name, x in data.items()}
    _check_count(batch_size, "batch_size")
    _check_loading(config, tensors)
    rng.key(seed)
    if index is not None:
        _check_index(index, rows)
    count = rows if index is None else len(index)
    per_epoch = -(-count // batch_size)

    def start(step: int) -> Iterator[Batch]:
        _check_count(step, "step", least=0)
        if config.num_workers:
            source = gather_in_workers(tensors, numbers(step), config.num_workers)
        else:
            source = (gather(tensors, chosen) for chosen in numbers(step))
        # A generator, so that closing it closes the source, and with it the workers.
        return (pinned(batch) for batch in source) if config.pin_memory else source

    def numbers(step: int) -> Iterator[Tensor]:
        first, position = divmod(step, per_epoch)
        for epoch in itertools.count(first):
            order = row_order(count, seed, epoch) if config.shuffle else torch.arange(count, device="cpu")
            order = order if index is None else index[order]
            for at in range(position * batch_size, count, batch_size):
                yield order[at : at + batch_size]
            position = 0

    return Batches(start, per_epoch)


def batches_from(loader: Iterable[Batch], seed: int) -> Batches:
    """Batches of a `torch.utils.data.DataLoader`, or of anything that can be iterated again and again.

    What epoch e draws depends on (seed, e) only: in every epoch the loader and its samplers find torch's,
    Python's and NumPy's global generators, and their own ones, freshly seeded; ``set_epoch(e)`` is
    called on the loader, its samplers and its data set where they have it. In between, all generators are as
    the caller left them. Random numbers drawn inside *persistent* workers are out of reach.

    ``start(k)`` reads the batches of its epoch that come before batch k, and drops them; where the
    loader has no length, it reads all k. Iterators of one loader that has persistent workers are to be used
    one at a time.

    Args:
        loader: yields dicts of tensors.
        seed: decides the order.

    Raises:
        TypeError: `loader` cannot be iterated; while iterating: a batch is not a dict of tensors.
        ValueError: it can be iterated only once, is empty, or has ``in_order=False``; while iterating:
            an epoch is empty, or is not as long as ``len(loader)`` says.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Mapping | Tensor):
        raise TypeError(
            "loader: expected a DataLoader or a list of batches (batches_of takes tensors in memory), "
            f"got {describe(loader)}"
        )
    if isinstance(loader, Iterator):
        raise ValueError(
            f"loader: expected something that every epoch can iterate anew, got {describe(loader)}, which "
            "can be iterated once"
        )
    if not getattr(loader, "in_order", True):
        raise ValueError("loader: expected in_order=True; without it the order depends on the workers' speed")
    rng.key(seed)
    try:
        per_epoch = len(loader)  # pyright: ignore[reportArgumentType]
    except (TypeError, NotImplementedError):
        per_epoch = None
    if per_epoch == 0:
        raise ValueError(f"loader: expected at least one batch, got an empty {type(loader).__name__}")

    def start(step: int) -> Iterator[Batch]:
        _check_count(step, "step", least=0)
        return _epochs(loader, seed, step, per_epoch)

    return Batches(start, per_epoch)


def watched(batches: Batches, unchanged: Callable[[], None]) -> Batches:
    """Batches that are handed on only while `unchanged` raises nothing, before and after each is read.

    With `mfk.core.files.watch`: no step sees rows of a file that was changed while they were read, or mapped,
    from it; and few reads meet a file that was cut, which ends a process (SIGBUS).
    """

    def start(step: int) -> Iterator[Batch]:
        return _each(batches.start(step), unchanged)

    return Batches(start, batches.per_epoch)


def _each(source: Iterator[Batch], unchanged: Callable[[], None]) -> Iterator[Batch]:
    try:
        while True:
            unchanged()
            try:
                batch = next(source)
            except StopIteration:
                return
            except Exception:
                unchanged()  # it says more than what a reader, or a worker that died, makes of it
                raise
            unchanged()
            yield batch
    finally:
        getattr(source, "close", lambda: None)()


def _epochs(loader: Iterable[Batch], seed: int, step: int, per_epoch: int | None) -> Iterator[Batch]:
    first, skip = divmod(step, per_epoch) if per_epoch else (0, step)
    for epoch in itertools.count(first):
        count = 0
        for batch in one_pass(loader, seed, epoch):
            count += 1
            if per_epoch is not None and count > per_epoch:
                break
            if skip > 0:
                skip -= 1
            else:
                yield _checked(batch)
        if count == 0:
            raise ValueError(f"loader: epoch {epoch} had no batch; can it be iterated more than once?")
        if per_epoch is not None and count != per_epoch:
            more = f"at least {count}" if count > per_epoch else str(count)
            raise ValueError(
                f"loader: expected {per_epoch} batches an epoch, its length, but epoch {epoch} had {more}"
            )


def _checked(batch: Any) -> Batch:
    if not isinstance(batch, Mapping) or not batch:
        raise TypeError(f"loader: expected dicts of tensors, got {describe(batch)}")
    for name, x in batch.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise TypeError(f"loader: expected dicts of tensors, got one with {name!r}: {describe(x)}")
    return dict(batch)


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory."""
    return {name: x.pin_memory() for name, x in batch.items()}


def _count_rows(data: Mapping[str, Tensor]) -> int:
    """Rows of the data, with everything checked that does not need its values."""
    if not isinstance(data, Mapping):
        raise TypeError(f"data: expected a dict of tensors, got {describe(data)}")
    if not data:
        raise ValueError("data: expected at least one tensor, got {}")
    for name, x in data.items():
        if not isinstance(x, Tensor) or x.layout != torch.strided:
            raise TypeError(f"data: {name}: expected a dense tensor [rows, ...], got {describe(x)}")
        if x.ndim == 0:
            raise ValueError(f"data: {name}: expected a tensor [rows, ...], got {describe(x)}")
    counts = {name: len(x) for name, x in data.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"data: expected tensors with the same number of rows, got {counts}")
    rows = next(iter(counts.values()))
    if rows == 0:
        raise ValueError("data: expected at least one row, got none")
    return rows


def _check_loading(config: LoaderConfig, data: Mapping[str, Tensor]) -> None:
    _check_count(config.num_workers, "num_workers", least=0)
    if config.pin_memory and not torch.cuda.is_available():
        raise ValueError("pin_memory: page-locked memory needs CUDA, which is not there; leave it at False")
    for name, x in data.items():
        if x.device.type != "cpu" and (config.num_workers or config.pin_memory):
            setting = "num_workers" if config.num_workers else "pin_memory"
            raise ValueError(f"{setting}: expected data in host memory, but {name} is on {x.device}")


def _check_index(index: Tensor, rows: int) -> None:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index: expected an int64 tensor [n] of row numbers, got {describe(index)}")
    if index.ndim != 1 or len(index) == 0 or index.device.type != "cpu":
        raise ValueError(
            f"index: expected a tensor [n] in host memory with n >= 1, got {describe(index)}, {index.device}"
        )
    lowest, highest = (int(x) for x in index.aminmax())
    if lowest < 0 or highest >= rows:
        raise ValueError(f"index: expected row numbers in [0, {rows}), got {lowest} to {highest}")


def _check_count(value: int, name: str, least: int = 1) -> None:
    """ValueError naming the argument unless it is an int (and no bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
