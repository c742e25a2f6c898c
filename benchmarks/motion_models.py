"""Motion models on real recordings: next-step error and rollouts of every architecture beside baselines.

Claims: each architecture's next-step error is at least 25 % below the better of persistence and constant
velocity on every skeleton; the best one's rollout of 30 frames stays nearer to the truth than both. MeanFlow
stands beside regression: drift, diversity, time.

Of each skeleton some clips are held out for the report alone, others pick the checkpoint; whole clips in both
cases. What is run is experiments/motion.py, as a user runs it; its report is what is shown. The
recordings are those of MFK_DATA (mocap/), a folder that is not part of mfk: without it nothing is run.

    MFK_DATA=DIR python benchmarks/motion_models.py [--only GROUP ...] [--out FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from timing import Check, facts, report, write

ROOT = Path(__file__).resolve().parents[1]

# Skeleton -> (clips that pick the checkpoint, clips of the report).
GROUPS = {
    "asf_01": (
        ("cmu_01_05", "cmu_01_10"),
        ("cmu_01_02", "cmu_01_07", "cmu_01_09", "cmu_01_14"),
    ),
    "asf_02": (("cmu_02_09",), ("cmu_02_01", "cmu_02_08")),
    "cgspeed_daz": (
        ("cmu_60_12", "cmu_135_10", "cmu_94_13", "cmu_10_03"),
        ("cmu_11_01", "cmu_60_03", "cmu_94_08", "cmu_135_05"),
    ),
}
COMMON = ("--lr", "1e-3", "--warmup-steps", "100", "--mirror")
# Name -> words after motion.py.
MODELS = {
    "transformer": (
        "transformer", "--width", "256", "--feedforward", "512", "--horizon", "12", *COMMON,
        "--steps", "2400",
    ),
    # Chosen on the clips of cgspeed_daz that pick the checkpoint: 0.60 there; 3,000 steps of the preset 0.70.
    "mlp": (
        "mlp", "--hidden", "256", "512", "256", "--dropout", "0", *COMMON, "--eps", "1e-12",
        "--weight-decay", "1", "--batch-size", "256", "--steps", "1800",
    ),
    "unet1d": ("unet1d", "--horizon", "16", *COMMON, "--steps", "1600"),
    "transformer on its own frames": ("rollouts", "--horizon", "12", "--mirror", "--steps", "300"),
    "mlp, MeanFlow": ("meanflow", *COMMON, "--steps", "1500"),
}  # fmt: skip


def main() -> None:
    """Run every model on every skeleton, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if not os.environ.get("MFK_DATA"):
        raise SystemExit("error: MFK_DATA: expected the folder of the recordings, got nothing")
    recordings = Path(os.environ["MFK_DATA"]) / "mocap"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        files = {group: bring_in(recordings, Path(folder), group) for group in options.only}
        jobs = {
            (group, model): pool.submit(train, files[group], Path(folder) / f"{group} {model}", MODELS[model])
            for group in options.only
            for model in options.models
        }
        runs = [{"group": group, "model": model} | job.result() for (group, model), job in jobs.items()]
    checks = claims(runs)
    report(checks)
    write(
        options.out,
        {
            "versions": facts(),
            "runs": runs,
            "held_out": {group: list(GROUPS[group][1]) for group in options.only},
            "claims": [check.record() for check in checks],
        },
    )


def bring_in(recordings: Path, folder: Path, group: str) -> Path:
    """Import the recordings of one skeleton by motion.py's own command."""
    with (recordings / "index.csv").open(encoding="utf-8", newline="") as lines:
        names = {row["clip"] for row in csv.DictReader(lines) if row["skeleton"] == group}
    source = folder / f"{group} bvh"
    source.mkdir()
    with tarfile.open(recordings / "cmu_bvh30.tar.gz") as archive:
        for member in archive:
            if Path(member.name).stem in names:
                member.name = Path(member.name).name
                archive.extract(member, source, filter="data")
    output = folder / f"{group}.parquet"
    picked, reported = GROUPS[group]
    run(
        "import", "--bvh", str(source), "--output", str(output), "--actions", str(recordings / "index.csv"),
        "--held-out", *picked, "--test", *reported,
    )  # fmt: skip
    return output


def train(data: Path, out: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """One run and its report."""
    begun = time.perf_counter()
    run(*words, "--data", str(data), "--out", str(out), "--threads", "1", "--conditioning-dim", "0",
        "--no-animation")  # fmt: skip
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    print(out.name, f"{time.perf_counter() - begun:.0f} s")
    return {
        "seconds": time.perf_counter() - begun,
        "network": found["facts"]["network"],
        "training": found["facts"]["training"],
        "words": " ".join(words),
        "results": found["results"],
    }


def run(*words: str) -> None:
    """experiments/motion.py with `words`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / "motion.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def claims(runs: list[dict[str, Any]]) -> list[Check]:
    """Next-step error against the better baseline, rollouts of the best.

    A network's baselines are those of its own report: other horizons have other windows.
    """
    checks = []
    architectures = ("transformer", "mlp", "unet1d")
    ratios: dict[str, list[float]] = {name: [] for name in architectures}
    for group in dict.fromkeys(r["group"] for r in runs):
        here = [r["results"] for r in runs if r["group"] == group]
        for r in runs:
            if r["group"] == group and r["model"] in ratios:
                ratio = r["results"][-1]["mse"] / min(b["mse"] for b in r["results"][:2])
                checks.append(Check(f"{group}: mse of {r['model']} / better baseline", ratio, 0.75))
                ratios[r["model"]].append(ratio)
        best = min(here, key=lambda results: results[-1]["rollout_cm"])
        for name, values in (
            ("mean", [r["rollout_cm"] for r in best]),
            ("last frame", [r["drift_cm"][-1] for r in best]),
        ):
            what = f"{group}: rollout, {name}, of the best / better baseline"
            checks.append(Check(what, values[-1] / min(values[:2]), 1.0))
    for name, values in ratios.items():
        if values:
            what = f"all skeletons: mean of the mse of {name} / better baseline"
            checks.append(Check(what, sum(values) / len(values), 0.75))
    return checks


if __name__ == "__main__":
    main()
