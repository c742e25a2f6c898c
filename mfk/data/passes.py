"""One pass over a loader that is not ours, with random numbers that a seed and the epoch decide."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.data.workers import signals_blocked


class _Random(NamedTuple):
    """States of everything that a loader may draw random numbers from."""

    torch: list[Tensor]  # of torch's global generator on the CPU, then of the loader's own
    python: Any  # of `random`
    numpy: Any  # of `np.random`'s global functions


def one_pass(loader: Any, seed: int, epoch: int) -> Iterator[Any]:
    """One pass over a loader, which sees its own random numbers while it works, and the caller never."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    parts = [loader, getattr(loader, "dataset", None), sampler, batch_sampler]
    parts.append(getattr(batch_sampler, "sampler", None))
    parts = list({id(part): part for part in parts}.values())
    found = [getattr(part, "generator", None) for part in parts]
    found = [generator for generator in found if isinstance(generator, torch.Generator)]
    generators = list(dict.fromkeys([torch.default_generator, *found]))
    own = _seeded(generators, seed, epoch)

    def working(call: Callable[[], Any]) -> Any:
        nonlocal own
        callers = _states(generators)
        _restore(generators, own)
        try:
            return call()
        finally:
            own = _states(generators)
            _restore(generators, callers)

    def begin() -> Iterator[Any]:
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        # Workers would die of a Ctrl-C before the training has finished its step.
        with signals_blocked(*((signal.SIGINT, signal.SIGHUP) if getattr(loader, "num_workers", 0) else ())):
            return iter(loader)

    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is None:
        # Workers that are started draw their seed from the order's numbers; those that are used again do not.
        working(begin)
        own = _seeded(generators, seed, epoch)
    iterator, end = working(begin), object()
    while (batch := working(lambda: next(iterator, end))) is not end:
        yield batch


def _seeded(generators: list[torch.Generator], seed: int, epoch: int) -> _Random:
    keys = [rng.key(seed, epoch, "loader", i) % 2**63 for i in range(len(generators))]
    return _Random(
        [torch.Generator(g.device).manual_seed(k).get_state() for g, k in zip(generators, keys, strict=True)],
        random.Random(keys[0]).getstate(),
        np.random.RandomState(np.random.MT19937(keys[0])).get_state(),
    )


def _states(generators: list[torch.Generator]) -> _Random:
    return _Random([g.get_state() for g in generators], random.getstate(), np.random.get_state())


def _restore(generators: list[torch.Generator], states: _Random) -> None:
    for generator, state in zip(generators, states.torch, strict=True):
        generator.set_state(state)
    random.setstate(states.python)
    np.random.set_state(states.numpy)
