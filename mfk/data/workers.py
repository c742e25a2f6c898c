"""Worker processes that gather the rows of batches ahead of the training, and leave their end to it."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mfk.core.types import Batch


def gather(data: Mapping[str, Tensor], rows: Tensor) -> Batch:
    """The rows of each tensor [all, ...] that int64 `rows` [n] names, as new tensors [n, ...]."""
    return {name: x.index_select(0, rows.to(x.device)) for name, x in data.items()}


class _Gathered(Dataset[Batch]):
    """The data as a worker sees them: one item is a whole batch, asked for by its row numbers."""

    def __init__(self, data: Mapping[str, Tensor]) -> None:
        self.data = data

    def __getitem__(self, rows: np.ndarray) -> Batch:
        return gather(self.data, torch.from_numpy(rows))


def gather_in_workers(
    data: Mapping[str, Tensor], numbers: Iterator[Tensor], num_workers: int
) -> Iterator[Batch]:
    """`gather` for each entry of `numbers`, in their order, by forked processes that share the data.

    They end with the iterator, or with this process, and not by a SIGINT, SIGHUP or SIGTERM from elsewhere:
    those ask the training to stop, which it does after its step. ChildProcessError if one of them dies.
    """
    with warnings.catch_warnings():
        # The number is the user's, and forking is the one way to share data that nobody copies.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        # JAX, which checkpoints bring along, has threads; a worker never calls it.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        loader = DataLoader(
            _Gathered(data),
            batch_size=None,
            # As arrays: a tensor would be sent as shared memory, together with the rest of its epoch's order.
            sampler=map(Tensor.numpy, numbers),
            num_workers=num_workers,
            collate_fn=_unchanged,
            multiprocessing_context="fork",
            worker_init_fn=partial(_obey, os.getpid()),
            generator=torch.Generator(),  # its base seed would be drawn from the caller's numbers
        )
        with signals_blocked(signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            batches = iter(loader)
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:
        raise worker_died(_reason(error)) from error
    finally:
        # Not left to the garbage collector, whose errors nobody can catch: the handler of SIGCHLD raises here
        # for a worker that dies now, when nobody waits for its batches any longer.
        with suppress(RuntimeError):
            cast(Any, batches)._shutdown_workers()


def worker_died(reason: str) -> ChildProcessError:
    """What to raise: an OSError, since what kills workers is a lack of memory, or a file that was cut."""
    return ChildProcessError(f"num_workers: a worker that gathers batches died or failed: {reason}")


def _reason(error: Exception) -> str:
    """What became of a worker; a closed connection alone does not tell."""
    if not isinstance(error, RuntimeError):
        try:
            # SIGCHLD follows in a moment, and DataLoader's handler raises wherever it comes: let it be here.
            time.sleep(1.0)
        except RuntimeError as told:
            return str(told)
    return str(error) or type(error).__name__


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def signals_blocked(*numbers: signal.Signals) -> Iterator[None]:
    """Hold signals back; processes that are started meanwhile inherit that, and keep it for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(parent: int, worker: int) -> None:
    """In a worker, where SIGTERM is held back: end if the training process sends one, or has ended itself."""

    def wait() -> None:
        while os.getppid() == parent:
            received = signal.sigtimedwait({signal.SIGTERM}, 1.0)
            if received is not None and received.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
