"""Emulators of impulse responses: NRMSE on economies that were held out, beside the documents' MLP.

Claims, with 10,000 samples of each world, 8,000 of them trained on: the network of a world has an NRMSE of
at most 0.05 for each shock and variable of var, of at most 0.18 for lss, and of at most half the documents'
MLP's for nk; one network for all three worlds has at most 1.5 times a world's own. Beside them an ensemble of
five, and how much its error bars cover.

The documents' MLP has 256, 128 and 64 units and emulates one shock from the parameters as they stand; it is
trained with what they lacked: parameters and responses standardised, a learning rate of 1e-3 to its end. Its
figures are of nk's three shocks, and of the first of the others. The emulators are experiments/irf.py's
presets nk, var, lss and universal; they see reshaped parameters (mfk/tasks/irf_coordinates.py), and run no
recursion.

    python benchmarks/irf_models.py [--threads N] [--runs DIR] [--out FILE]

With --runs finished runs are kept there, and a later call goes on from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import Check, facts, report, write

ROOT = Path(__file__).resolve().parents[1]
BASELINE = (
    "baseline_mlp", "--lr", "1e-3", "--min-lr", "1e-5", "--epochs", "60", "--lambda-smooth", "0",
    "--patience", "None", "--patience-unit", "validations", "--min-delta", "0",
    "--validate-every-epochs", "5",
)  # fmt: skip
BASELINES = (("nk", 0), ("nk", 1), ("nk", 2), ("var", 0), ("lss", 0))
LIMITS = {"var": 0.05, "lss": 0.18}


def main() -> None:
    """Train, measure, print and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=None, help="folder to keep the runs in")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = options.runs or Path(name)
        documented = []
        for world, shock in BASELINES:
            words = [*BASELINE, "--worlds", world, "--shock", str(shock)]
            documented.append(train(folder / f"mlp_{world}_{shock}", words, options.threads))
        own = [train(folder / world, [world], options.threads) for world in ("nk", "var", "lss")]
        universal = train(folder / "universal", ["universal"], options.threads)
        ensemble = train(folder / "ensemble", ["nk", "--members", "5"], options.threads)
    checks = claims(documented, own, universal)
    report(checks)
    write(
        options.out,
        {
            "versions": facts(),
            "documented": documented,
            "own": own,
            "universal": universal,
            "ensemble": ensemble,
            "claims": [check.record() for check in checks],
        },
    )


def train(out: Path, words: list[str], threads: int) -> dict[str, Any]:
    """Run experiments/irf.py, unless the folder holds its report, and read the report."""
    words = [*words, "--threads", str(threads), "--no-plots"]
    if not (out / "report.json").is_file():
        begun = time.perf_counter()
        command = [sys.executable, str(ROOT / "experiments" / "irf.py"), *words, "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
        (out / "seconds.txt").write_text(f"{time.perf_counter() - begun:.1f}\n", encoding="utf-8")
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    seconds = float((out / "seconds.txt").read_text(encoding="utf-8"))
    for row in found["splits"]:
        print(f"{out.name}: {row['world']}, {row['split']}: {row['nrmse']:.4f}, {seconds:.0f} s")
    results = [{k: x for k, x in row.items() if k != "by_period"} for row in found["results"]]
    return {
        "words": words,
        "seconds": seconds,
        "network": found["facts"]["network"],
        "splits": found["splits"],
        "results": results,
    }


def held_out(run: dict[str, Any], world: str) -> dict[tuple[str, str], float]:
    """NRMSE of the interpolation by (shock, variable)."""
    return {
        (row["shock"], row["variable"]): row["nrmse"]
        for row in run["results"]
        if row["world"] == world and row["split"] == "test_interpolation"
    }


def claims(
    documented: list[dict[str, Any]], own: list[dict[str, Any]], universal: dict[str, Any]
) -> list[Check]:
    """Limits of each world, and of the universal network beside each world's own."""
    checks = []
    theirs: dict[tuple[str, str], float] = {}
    for run in documented:
        theirs |= held_out(run, "nk")
    for run, world in zip(own, ("nk", "var", "lss"), strict=True):
        ours = held_out(run, world)
        if world == "nk":
            worst = max(ours[key] / theirs[key] for key in theirs)
            checks.append(Check("nk, worst shock and variable: NRMSE / the documents' MLP's", worst, 0.5))
        else:
            worst = max(ours.values())
            checks.append(Check(f"{world}, worst shock and variable: NRMSE", worst, LIMITS[world]))
        shared = held_out(universal, world)
        ratio = sum(shared.values()) / sum(ours.values())
        checks.append(Check(f"{world}: NRMSE of the universal network / of the world's own", ratio, 1.5))
    return checks


if __name__ == "__main__":
    main()
