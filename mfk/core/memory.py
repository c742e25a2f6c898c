"""Memory that ran out, whoever says so, and memory that nobody needs any more."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

_ARENA_MAX = -8  # in malloc.h of glibc
_WORDS = ("can't allocate memory", "std::bad_alloc", "_ALLOC_FAILED", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, torch's on a CPU, or a device's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def hand_back() -> None:
    """Give memory that was freed back to the system; where the C library is not glibc, nothing."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def share_freed() -> None:
    """Let the threads of this process take memory from two stores; where the C library is not glibc, nothing.

    By default glibc gives up to eight threads for each core a store of freed memory of their own. A program
    that saves and trains again and again then holds more and more that none of them uses. A user's
    MALLOC_ARENA_MAX is left alone. Source: mallopt(3), M_ARENA_MAX.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)
