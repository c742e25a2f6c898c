"""What a training says when the machine fails it: which settings help, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mfk.core.memory import is_out_of_memory
from mfk.data.workers import worker_died
from mfk.train.config import TrainConfig


@contextmanager
def faults_told(config: TrainConfig, kept: Callable[[], str]) -> Iterator[None]:
    """For ``with``: what torch has for a lack of memory, or for a worker that died, in a user's words.

    Args:
        config: of the run.
        kept: says what of the run is safe, in a sentence.

    Raises:
        MemoryError: memory ran out; names settings to lower.
        ChildProcessError: (an OSError) a worker that gathers batches died, whatever was done meanwhile.
    """
    try:
        yield
    except ChildProcessError as error:
        raise ChildProcessError(f"{str(error).strip()} {kept()}") from error
    except (MemoryError, RuntimeError, OSError) as error:
        if "DataLoader worker" in str(error):
            # DataLoader's handler of SIGCHLD raises wherever the training is at that moment: in a step, or in
            # the writing of a checkpoint, which then could not be written.
            raise worker_died(f"{str(error).strip()} {kept()}") from error
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
