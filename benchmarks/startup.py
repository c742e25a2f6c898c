"""How long a compiled training run takes to start, in fresh processes.

Claims: from the start of the process to the first gradient of the inverse-kinematics task takes at most 20 s
where nothing was ever compiled (cold), and at most 5 s where the same program ran before (warm), for the
default network at batch 1024 and for the documented one (17.9M parameters) at batch 256.

Each run is a process of its own, with a cache folder that is new (cold) or that of the run before (warm).
Stated apart: imports, making the task with its first batch, tracing, compiling, the whole first call with
these two, and a second call.

    python benchmarks/startup.py [--threads N] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"cold": 20.0, "warm": 5.0}  # s
TASKS = {"default": ("kinematic", 1024), "documented": ("documented", 256)}

# perf_counter of Linux counts for all processes alike.
PROGRAM = """
import json, sys, time
begun, network, rows, threads = float(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
import torch
torch.set_num_threads(threads)
import mfk
from mfk.core import Rows
from mfk.kinematics import panda
from mfk.tasks.ik import IKConfig, NetConfig, ik_task
imported = time.perf_counter()
task = ik_task(panda(), IKConfig(net=NetConfig(network=network)))
params, state = task.init(0)
batch = task.draw(0, 0, Rows.all(rows), state, {})
ready = time.perf_counter()
def loss(params, state, batch):
    total, weight, aux = task.loss(params, state, batch, params)
    return total / weight, aux.metrics
gradient = mfk.jit(torch.func.grad_and_value(loss, has_aux=True))
gradient(params, state, batch)
first = time.perf_counter()
gradient(params, state, batch)
second = time.perf_counter()
report = gradient.report(params, state, batch)
print(json.dumps({
    "interpreter": started - begun,
    "imports": imported - started,
    "make_task": ready - imported,
    "trace": report.trace_seconds,
    "compile": report.compile_seconds,
    "first_call": first - ready,
    "second_call": second - first,
    "until_first_gradient": first - begun,
    "parameters": sum(x.numel() for x in params.values()),
}))
"""


def main() -> None:
    """Measure, print the table and the checks, and write the JSON."""
    parser = timing.parser(__doc__, repeats=3)
    arguments = timing.parse(parser)
    before = timing.facts()
    found: dict[tuple[str, str], list[dict[str, float]]] = {(t, c): [] for t in TASKS for c in LIMITS}
    for _ in range(arguments.repeats):
        for task in TASKS:
            with tempfile.TemporaryDirectory() as cache:
                for state in LIMITS:
                    found[task, state].append(run(task, arguments.threads, cache))
    table, made = [], []
    columns = (
        "imports",
        "make_task",
        "trace",
        "compile",
        "first_call",
        "second_call",
        "until_first_gradient",
    )
    print(f"{'task':<12}{'cache':<6}" + "".join(f"{name:>21}" for name in columns) + "   (s)")
    for (task, state), runs in found.items():
        medians = {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        row = {"task": task, "batch": TASKS[task][1], "cache": state, **medians}
        table.append(row)
        print(f"{task:<12}{state:<6}" + "".join(f"{medians[name]:>21.2f}" for name in columns))
        what = f"{task}, {state}: seconds from the first call to the first gradient"
        made.append(timing.Check(what, medians["first_call"], LIMITS[state]))
        what = f"{task}, {state}: seconds from the process's start to the first gradient"
        made.append(timing.Check(what, medians["until_first_gradient"], LIMITS[state]))
    timing.report(made)
    timing.write(
        arguments.out,
        {
            "table": table,
            "checks": [check.record() for check in made],
            "repeats": arguments.repeats,
            "versions": before,
        },
    )


def run(task: str, threads: int, cache: str) -> dict[str, Any]:
    """Seconds of the parts of one process."""
    network, rows = TASKS[task]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-c", PROGRAM, str(time.perf_counter()), network, str(rows), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"benchmarks/startup.py: {task} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
