"""What a training says when memory runs out: which settings to lower, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mfk.core.memory import is_out_of_memory
from mfk.train.config import TrainConfig


@contextmanager
def memory_told(config: TrainConfig, kept: Callable[[], str]) -> Iterator[None]:
    """For ``with``: memory that runs out is a MemoryError that names settings to lower, and what is kept.

    Args:
        config: of the run.
        kept: says what of the run is safe, in a sentence.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no more was said"
        raise MemoryError(f"out of memory ({reason}). {advice(config)} {kept()}") from error


def advice(config: TrainConfig) -> str:
    """Which settings of a run take less memory, the one that changes no result first."""
    ways = []
    if config.accumulate < config.batch_size:
        more = min(2 * config.accumulate, config.batch_size)
        ways.append(f"--accumulate {more} (the same result in more time)")
    if config.batch_size > 1:
        ways.append(f"--batch-size {config.batch_size // 2}")
    if config.precision == "fp32":
        ways.append("--precision bf16")
    if config.members > 1:
        ways.append("fewer --members")
    ways.append("a smaller network, or fewer rows to validate")
    return f"Lower what it takes: {', or '.join(ways)}."
