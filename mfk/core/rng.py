"""Randomness as data: keys, and draws that do not depend on how a batch is split.

A key is a 128-bit hash of a seed and a path such as ``(step, "noise")``. Each draw makes the
numbers of the *global* batch and returns the rows asked for, so a sample's numbers are the same
on one rank or four, in one micro-batch or eight, and there is no generator state to checkpoint.

Numbers come from NumPy's Philox: torch's CPU generator keeps only the low 32 bits of a seed, so
that among 10^5 of its streams some would coincide.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from mfk.core.types import Rows, describe


def key(seed: int, *path: int | str) -> int:
    """A 128-bit key: blake2b of the seed and the path.

    Different paths give independent keys; ``key(s, 12, 3)``, ``key(s, 1, 23)`` and
    ``key(s, "12", 3)`` all differ.

    Raises:
        TypeError: an entry is neither an int nor a str.
    """
    digest = hashlib.blake2b(digest_size=16)
    for entry in (seed, *path):
        if isinstance(entry, bool) or not isinstance(entry, int | str):
            raise TypeError(f"key: expected ints and strings, got {describe(entry)}")
        text = f"{type(entry).__name__}:{entry}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def normal(key: int, rows: Rows, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, [len(rows.index), *shape]."""
    return _rows(_generator(key).standard_normal((rows.total, *shape), dtype=_numpy(dtype)), rows)


def uniform(key: int, rows: Rows, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers uniform in [0, 1), [len(rows.index), *shape]."""
    return _rows(_generator(key).random((rows.total, *shape), dtype=_numpy(dtype)), rows)


def beta(
    key: int, rows: Rows, a: float, b: float, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Beta(a, b) numbers in [0, 1], [len(rows.index), *shape]."""
    numbers = _generator(key).beta(a, b, (rows.total, *shape)).astype(_numpy(dtype))
    return _rows(numbers, rows)


def _generator(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def _rows(numbers: np.ndarray, rows: Rows) -> Tensor:
    index = rows.index
    if not index:
        return torch.from_numpy(numbers[:0])
    if not (0 <= min(index[0], index[-1]) and max(index[0], index[-1]) < rows.total):
        raise ValueError(f"rows: expected positions in [0, {rows.total}), got {index}")
    # A copy: it has no negative strides, and does not keep the global batch in memory.
    return torch.from_numpy(numbers[_slice(index)].copy())


def _slice(index: range) -> slice:
    """The slice that picks a range; a range counting down to 0 has no stop that a slice could take."""
    return slice(index.start, index.stop if index.stop >= 0 else None, index.step)


def _numpy(dtype: torch.dtype) -> type:
    if dtype == torch.float32:
        return np.float32
    if dtype == torch.float64:
        return np.float64
    raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
