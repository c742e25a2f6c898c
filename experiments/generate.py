"""Write inverse-kinematics training data to a file.

python experiments/generate.py --robot panda --num-samples 1000000 --output data/panda.pt
torchrun --nproc-per-node 4 experiments/generate.py --num-samples 1000000000 --output data/panda.pt
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mfk.core import cli, ranks
from mfk.data import IKDataConfig, generate_ik, plan_ik
from mfk.kinematics.robots import RobotConfig, load_robot
from mfk.losses import TimeConfig


@dataclass(frozen=True)
class GenerateConfig:
    """A data file."""

    robot: RobotConfig = field(default_factory=RobotConfig)
    num_samples: int = 1_000_000
    """Rows of the file."""
    output: str | None = None
    """The file: .pt for torch.load, .npz for numpy.load. Its folder is made if need be."""
    seed: int = 0
    """Of all draws; the first rows of a longer file are those of a shorter one."""
    data: IKDataConfig = field(default_factory=IKDataConfig)
    times: Literal["uniform", "mfik"] = "uniform"
    """uniform: r <= t are two uniform numbers in order; mfik: r ~ Beta(2, 5), t ~ U(r, 1)."""


def run(settings: GenerateConfig) -> None:
    """Write the file as configured."""
    started, output, rows = time.perf_counter(), settings.output, settings.num_samples
    if rows < 1:
        raise ValueError(f"num_samples: expected at least 1, got {rows}")
    if output is None:
        raise ValueError("output: expected a file's name that ends in .pt or .npz, got none")
    chain, times = load_robot(settings.robot), TimeConfig(settings.times, jvp_share=1.0)
    megabytes = plan_ik(output, chain, rows).size / 1e6
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"output: cannot make the folder {Path(output).parent}: {error.strerror}") from error
    say(f"{output}: {rows:,} rows of {chain.name}, {chain.base} to {chain.tip}; {megabytes:,.1f} MB")
    try:
        with progress() as show:
            done = generate_ik(
                output, chain, rows=rows, config=settings.data, times=times, seed=settings.seed, progress=show
            )
    except KeyboardInterrupt:
        if ranks.current().rank == 0:
            print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        raise SystemExit(130) from None
    seconds, found = time.perf_counter() - started, f" ({done.found:,} found)" if done.found else ""
    say(f"wrote {output}: {rows:,} rows{found}, {done.size / 1e6:,.1f} MB, in {seconds:.1f} s")


@contextmanager
def progress() -> Iterator[Callable[[int, int], None]]:
    """Show (rows there, rows in all): a bar on a terminal, elsewhere a line every few seconds."""
    from rich.progress import Progress

    terminal, shown = os.isatty(1), [time.monotonic()]
    bar = Progress(auto_refresh=False, disable=not terminal)  # no thread that could outlive the work
    job = bar.add_task("rows")

    def show(done: int, rows: int) -> None:
        with suppress(OSError):  # a terminal that has been closed is no reason to stop
            bar.start()
            bar.update(job, completed=done, total=rows, refresh=True)
        if not terminal and (now := time.monotonic()) - shown[0] > 2.0:
            shown[0] = now
            say(f"{done:,} of {rows:,} rows  ETA {bar.tasks[0].time_remaining or 0.0:.0f} s")

    try:
        yield show
    finally:
        with suppress(OSError):
            bar.stop()


def say(text: str) -> None:
    """One line on the terminal. That nobody reads any more is no reason to stop, nor to complain at exit."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Parse the command line and run it."""
    presets = {"default": ("one file", GenerateConfig())}
    run(cli.parse(presets, prog="generate.py", description="Inverse-kinematics training data from a seed."))


if __name__ == "__main__":
    cli.main(main)
