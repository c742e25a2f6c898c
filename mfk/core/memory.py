"""Memory that ran out, whoever says so."""

from __future__ import annotations

import torch

_WORDS = ("can't allocate memory", "std::bad_alloc", "_ALLOC_FAILED", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, NumPy's, torch's on a CPU, or a device's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)
