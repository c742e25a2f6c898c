"""Time and peak memory of experiments/generate.py, beside drawing all rows at once, in one run.

Claims: a million rows take less than 90 s and 2 GB on two cores; memory does not grow with the rows;
that blocks are written safely (on the disk before they are counted, resumable at any moment) costs
little beside the plain way: the same rows in memory, then one torch.save.

Each case is a process of its own, start and imports included, its peak memory counted by the operating
system; the cases take turns, so that other load on the machine falls on all of them.

    python benchmarks/generate.py [--rows N] [--repeats N] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from mfk.train import versions

ROOT = Path(__file__).resolve().parents[1]

PLAIN = """
import sys, torch
from mfk.core import Rows
from mfk.data.ik import IKDataConfig
from mfk.data.ik_generate import BLOCK, UNIFORM_TIMES, draw_rows
from mfk.kinematics import panda

rows, path = int(sys.argv[1]), sys.argv[2]
blocks = [
    draw_rows(panda(), IKDataConfig(), UNIFORM_TIMES, 0, block, Rows.all(BLOCK))
    for block in range(-(-rows // BLOCK))
]
torch.save({name: torch.cat([block[name] for block in blocks])[:rows].clone() for name in blocks[0]}, path)
"""


class Case(NamedTuple):
    """One way to make a file."""

    name: str
    robot: str  # "" for the plain way
    suffix: str
    times: int = 1  # of the rows asked for


CASES = (
    Case("panda .pt", "panda", ".pt"),
    Case("ur10 .npz", "ur10", ".npz"),
    Case("panda .pt, four times the rows", "panda", ".pt", 4),
    Case("panda .pt, all at once, torch.save", "", ".pt"),
)


def measure(case: Case, rows: int, folder: Path) -> tuple[float, float, int]:
    """(seconds, peak MB, bytes of the file) of one process."""
    path = folder / f"data{case.suffix}"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-c", PLAIN, str(rows), str(path)]
    if case.robot:
        script = str(ROOT / "experiments" / "generate.py")
        options = ["--robot", case.robot, "--num-samples", str(rows), "--output", str(path)]
        command = [sys.executable, script, *options]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"benchmarks/generate.py: {' '.join(command)} ended with {process.returncode}")
    size = path.stat().st_size
    path.unlink()
    return seconds, usage.ru_maxrss / 1e3 * 1.024, size


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5, help="medians are shown")
    parser.add_argument("--folder", help="disk to write to; the system's temporary folder by default")
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    arguments = parser.parse_args()
    if min(arguments.rows, arguments.repeats) < 1:
        parser.error("--rows, --repeats: expected at least 1")
    found: dict[str, list[tuple[float, float, int]]] = {case.name: [] for case in CASES}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for _ in range(arguments.repeats):
            for case in CASES:
                found[case.name].append(measure(case, case.times * arguments.rows, Path(folder)))
    table = []
    print(f"{'case':<38}{'rows':>11}{'MB':>9}{'seconds':>9}{'rows/s':>11}{'peak MB':>9}")
    for case in CASES:
        seconds, peak, sizes = zip(*found[case.name], strict=True)
        row = {
            "case": case.name,
            "rows": case.times * arguments.rows,
            "file_mb": sizes[0] / 1e6,
            "seconds": statistics.median(seconds),
            "rows_per_second": case.times * arguments.rows / statistics.median(seconds),
            "peak_mb": max(peak),
        }
        table.append(row)
        print(
            f"{row['case']:<38}{row['rows']:>11,}{row['file_mb']:>9.1f}{row['seconds']:>9.2f}"
            f"{row['rows_per_second']:>11,.0f}{row['peak_mb']:>9.0f}"
        )
    ratio = table[0]["seconds"] / table[3]["seconds"]
    growth = table[2]["peak_mb"] / table[0]["peak_mb"]
    print(f"\nseconds, in safe blocks / all at once: {ratio:.2f}")
    print(f"peak memory, four times the rows / once: {growth:.2f}")
    if arguments.out:
        results = {
            "seconds_ratio_to_all_at_once": ratio,
            "peak_ratio_of_four_times_the_rows": growth,
            "repeats": arguments.repeats,
            "table": table,
            "cores": os.cpu_count(),
            "load_of_the_last_minute": os.getloadavg()[0],
            "versions": versions(seed=0),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
