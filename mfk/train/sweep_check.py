"""Runs tried before a sweep begins, so that a mistake in the last one does not cost all others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mfk.train.sweep_grid import SEED, Experiment, Run, flags_of
from mfk.train.sweep_process import cores, say, tail


def check(experiment: Experiment, new: Sequence[Run]) -> None:
    """Try runs with the experiment's own --dry-run: each but for the seed, and each seed.

    Raises:
        ValueError: the experiment refuses one.
    """
    if "dry-run" not in flags_of(experiment) or not new:
        return
    groups = list(dict.fromkeys(run.group for run in new))
    seeds = list(dict.fromkeys(run.values.get(SEED) for run in new))

    def beside_diagonal(run: Run) -> int:
        return (seeds.index(run.values.get(SEED)) - groups.index(run.group)) % len(seeds)

    tried: list[Run] = []
    # The diagonal of groups and seeds has all of them in the fewest runs.
    for run in sorted(new, key=beside_diagonal):
        known = {other.group for other in tried}, {other.values.get(SEED) for other in tried}
        if run.group not in known[0] or run.values.get(SEED) not in known[1]:
            tried.append(run)
    say(f"checking {len(tried)} of {len(new)} new runs with --dry-run")

    def attempt(run: Run) -> str | None:
        done = subprocess.run(
            [sys.executable, str(experiment.script), *run.words, "--dry-run"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return tail(done.stdout, 6) if done.returncode else None

    refused: dict[str, list[str]] = {}
    with ThreadPoolExecutor(min(cores(), len(tried))) as pool:
        for run, why in zip(tried, pool.map(attempt, tried), strict=True):
            if why is not None:
                refused.setdefault(why, []).append(run.name)
    if refused:
        reasons = "\n".join(f"{'; '.join(names)}:\n{why}" for why, names in refused.items())
        raise ValueError(f"nothing was started, {experiment.name} --dry-run refuses\n{reasons}")
