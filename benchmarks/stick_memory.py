"""Memory and time of a training step of stick figures, each preset in a process of its own.

Claim: a step of medium, 64 windows of 250 frames, 2 at a time as documented, needs at most 12 GB of RAM (the
document says 8 to 12).

    python benchmarks/stick_memory.py [--threads N] [--presets NAME ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from timing import Check, facts, report, write

ROOT = Path(__file__).resolve().parents[1]
# Windows at a time, as documented.
PRESETS = {"small": 1, "medium": 2, "large": 16}


def main() -> None:
    """Measure every preset, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--presets", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--child", choices=list(PRESETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(step(options.child, options.threads)))
        return
    rows = [measure(name, options.threads) for name in options.presets]
    for row in rows:
        print(
            f"{row['preset']}: {row['parameters']:,} parameters, {row['windows']} windows at a time: "
            f"peak {row['peak_gb']:.2f} GB, {row['seconds']:.0f} s a step of 64"
        )
    checks = [Check("medium: peak memory in GB", r["peak_gb"], 12) for r in rows if r["preset"] == "medium"]
    report(checks)
    write(
        options.out,
        {"versions": facts(), "threads": options.threads, "rows": rows,
         "claims": [check.record() for check in checks]},
    )  # fmt: skip


def measure(name: str, threads: int) -> dict[str, Any]:
    """`step` in a fresh process, whose peak is its own."""
    command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def step(name: str, threads: int) -> dict[str, Any]:
    """Two training steps of a preset: the second one's time, and the process's peak of memory."""
    import torch

    sys.path.insert(0, str(ROOT / "experiments"))
    from dataclasses import replace

    from stick import PRESETS as RUNS
    from stick_runs import make_ready, task_of

    from mfk import train
    from mfk.core import tree
    from mfk.train.config import make_clip, make_optimizer

    torch.set_num_threads(threads)
    settings = RUNS[name][1]
    settings = replace(settings, data=replace(settings.data, clips=80, frames=250))
    ready = make_ready(settings)
    task, optimizer = task_of(settings, ready), make_optimizer(settings.train)
    state = train.init_state(task, optimizer, 0, ema=True)
    one = train.make_train_step(
        task, optimizer, lambda step: 3e-4, seed=0, batch_size=64, accumulate=64 // PRESETS[name],
        clip=make_clip(settings.train), ema_decay=0.99,
    )  # fmt: skip
    batch = {key: x[:64] for key, x in ready.data.training.items()}
    seconds = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        state, _ = one(state, batch)
        seconds = time.perf_counter() - begun
    return {
        "preset": name,
        "parameters": tree.size(state.params),
        "windows": PRESETS[name],
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    main()
