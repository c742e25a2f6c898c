"""The training loop's wall time against the bare step's, and the memory and time of each preset, in one run.

Claims: `mfk.train.fit` at the default size, with its validations, checkpoints and logs, takes at most 1.10
times as long as the bare steps; the dry run's memory estimate is near the memory that a run takes.

The two sides of the ratio take turns in one process. Memory is the peak of a process of its own for each
row, as the operating system counts it. All of it is eager torch: what compiling costs is in startup.py.

    python benchmarks/train_loop.py [--steps N] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

ROWS = {
    "default": ("panda", ["default", "--no-jit"]),
    "default, 4 micro-batches": ("panda", ["default", "--no-jit", "--accumulate", "4"]),
    "default, bf16": ("panda", ["default", "--no-jit", "--precision", "bf16"]),
    "documented": ("panda", ["documented", "--no-jit"]),
    "documented, batch 1024": ("panda", ["documented", "--no-jit", "--batch-size", "1024"]),
    "default, UR10": ("ur10", ["default", "--no-jit"]),
}


def loop_against_step(steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of `steps` bare steps and of a whole `fit` of as many, in turns, and their ratio."""
    import panda

    from mfk import kinematics, train
    from mfk.core import config
    from mfk.tasks import ik
    from mfk.train.config import make_optimizer, make_schedule

    settings = panda.PRESETS["default"][1]
    plan = replace(settings.train, steps=steps, jit=False)
    chain = kinematics.panda()
    task = ik.ik_task(chain, settings.ik)
    validation = ik.validation_batches(chain, settings.ik, 0, settings.validation_poses)
    optimizer = make_optimizer(plan)

    def bare() -> None:
        state = train.init_state(task, optimizer, 0, ema=True)
        step = train.make_train_step(
            task, optimizer, make_schedule(plan), seed=0, batch_size=plan.batch_size, clip=plan.clip,
            ema_decay=plan.ema_decay,
        )  # fmt: skip
        for _ in range(steps):
            state, _ = step(state, {})

    def loop() -> None:
        with tempfile.TemporaryDirectory() as folder:
            train.fit(
                task, plan, run=Path(folder) / "run", record=config.to_dict(settings), validation=validation,
                roots=ik.ROOTS, console=False,
            )  # fmt: skip

    times: dict[str, list[float]] = {"bare": [], "loop": []}
    for _ in range(repeats):
        for name, run in (("bare", bare), ("loop", loop)):
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "steps": steps,
        "bare_seconds": times["bare"],
        "loop_seconds": times["loop"],
        "ms_per_bare_step": 1e3 * seconds["bare"] / steps,
        "ratio": seconds["loop"] / seconds["bare"],
    }


def memory_and_time(experiment: str, words: list[str], steps: int) -> dict[str, float]:
    """A preset for `steps` steps in a process of its own: estimate, peak memory [MB], time a step [ms]."""
    script = str(ROOT / "experiments" / f"{experiment}.py")
    dry = subprocess.run(
        [sys.executable, script, *words, "--dry-run"], capture_output=True, text=True, check=True
    )
    found = re.search(r"^# +sum +([\d,.]+)", dry.stdout, re.MULTILINE)
    assert found is not None, dry.stdout
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = [
            "--out", str(run), "--steps", str(steps), "--steps-per-epoch", "None",
            "--warmup-steps", "1", "--validate-every", str(steps), "--validate-every-epochs", "None",
            "--checkpoint-every", str(steps), "--checkpoint-every-epochs", "None",
            "--log-every", str(steps // 2), "--log-level", "warning",
        ]  # fmt: skip
        code = (
            "import runpy, sys; sys.argv = sys.argv[1:]; import inverse_kinematics as i;"
            # Not getrusage, whose peak is handed down from the process that started this one.
            "status = lambda: open('/proc/self/status').read();"
            "i.report = lambda *a, **k: print(status().split('VmHWM:')[1].split()[0]);"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, script, *words, *flags],
            capture_output=True, text=True, check=True, env={**_environment()},
        )  # fmt: skip
        history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    rows = [record["train/samples_per_second"] for record in history if "train/samples_per_second" in record]
    settings = re.search(r"batch_size: (\d+)", dry.stdout)
    assert settings is not None
    return {
        "estimate_mb": float(found.group(1).replace(",", "")),
        "peak_mb": int(done.stdout.split()[-1]) * 1024 / 1e6,
        "ms_per_step": 1e3 * int(settings.group(1)) / rows[-1],
        "rows_per_second": rows[-1],
    }


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": f"{ROOT / 'experiments'}:{ROOT}"}


def main() -> None:
    """Print both tables, and write the figures where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500, help="of the ratio")
    parser.add_argument("--repeats", type=int, default=3, help="of the ratio")
    parser.add_argument("--out", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    from mfk.train import versions

    table = {}
    print(f"{'preset':28s} {'estimate MB':>12s} {'peak MB':>9s} {'ms/step':>9s} {'rows/s':>9s}")
    for name, (experiment, words) in ROWS.items():
        row = table[name] = memory_and_time(experiment, words, 20)
        print(
            f"{name:28s} {row['estimate_mb']:12.0f} {row['peak_mb']:9.0f} {row['ms_per_step']:9.1f} "
            f"{row['rows_per_second']:9.0f}",
            flush=True,
        )
    ratio = loop_against_step(arguments.steps, arguments.repeats)
    print(f"fit / bare steps, default preset, {ratio['steps']} steps: {ratio['ratio']:.3f}")
    if arguments.out is not None:
        figures = {"presets": table, "loop": ratio, "versions": versions(seed=0)}
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
