"""What each part of the shipped Panda network is worth: short trainings that differ in one thing.

Each row trains `experiments/panda.py shipped` with so many steps and one change, and takes the same held-out
poses with references 0.1, 0.3 and 0.5 rad (standard deviation, each joint) away from a solution, in one
network step.

    python benchmarks/ik_ablation.py [--steps N] [--poses N] [--threads N] [--out FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timing
from ik_network import SIGMAS, judged

import mfk
from mfk.core import tree
from mfk.data import IKDataConfig
from mfk.kinematics import forward
from mfk.tasks.ik_compare import held_out

ROOT = Path(__file__).resolve().parents[1]
VARIANTS: dict[str, list[str]] = {
    "as shipped": [],
    "no base step seen twice (1 base step)": ["--base-steps", "1"],
    "3 base steps": ["--base-steps", "3"],
    "references of 0.1 rad alone": ["--sigma", "0.1", "--sigma-max", "None"],
    "references of 0.5 rad alone": ["--sigma", "0.5", "--sigma-max", "None"],
    "half of the references anywhere": ["--reference", "mixture"],
    "flow matching alone": ["--jvp-share", "0"],
    "half of the rows MeanFlow": ["--jvp-share", "0.5"],
    "improved MeanFlow": ["--objective", "improved_meanflow"],
    "shortcut": ["--objective", "shortcut"],
    "twice as wide": ["--width", "512"],
    "one block": ["--blocks", "1"],
    "less damping (0.03)": ["--damping", "0.03"],
}


def main() -> None:
    """Train, judge, print the table, and write the JSON."""
    parser = timing.parser(__doc__, repeats=1)
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--poses", type=int, default=5_000)
    arguments = timing.parse(parser)
    rows = []
    print(f"{'variant':<40}{'parameters':>11}" + "".join(f"{f'mm, {s}':>10}{'5mm 5deg':>10}" for s in SIGMAS))
    for name, flags in VARIANTS.items():
        row = one(name, flags, arguments)
        rows.append(row)
        cells = "".join(f"{row[f'mm_{s}']:>10.3f}{100 * row[f'within_{s}']:>9.2f}%" for s in SIGMAS)
        print(f"{name:<40}{row['parameters']:>11,}{cells}", flush=True)
    timing.write(
        arguments.out,
        {"steps": arguments.steps, "poses": arguments.poses, "table": rows, "versions": timing.facts()},
    )


def one(name: str, flags: list[str], arguments: Any) -> dict[str, Any]:
    """Train one variant in a process of its own, and judge it."""
    with tempfile.TemporaryDirectory() as folder:
        run, weights = Path(folder) / "run", Path(folder) / "weights.npz"
        common = ["--steps", str(arguments.steps), "--report-poses", "100", "--out", str(run)]
        call([*("shipped", *common), *flags], arguments.threads)
        call(["export", "--checkpoint", str(run), "--out", str(weights)], arguments.threads)
        network = mfk.load_ik(weights)
    row: dict[str, Any] = {"variant": name, "flags": flags, "parameters": tree.size(network.params)}
    for sigma in SIGMAS:
        problems = held_out(network.chain, IKDataConfig(sigma=sigma), arguments.poses)
        target = forward(network.chain, problems.q_target.double())
        solve = partial(network.propose, target, problems.q_reference)
        found = judged(network, target, solve)
        row |= {f"mm_{sigma}": found["mm"], f"within_{sigma}": found["within_5mm_5deg"], "us": found["us"]}
    return row


def call(flags: list[str], threads: int) -> None:
    """Run panda.py, quietly unless it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / "experiments" / "panda.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"benchmarks/ik_ablation.py: {' '.join(flags)} ended with {done.returncode}:\n{done.stderr}")


if __name__ == "__main__":
    main()
