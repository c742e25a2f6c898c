"""Forward kinematics against Pinocchio's Python loop, on one core.

    python benchmarks/fk.py --out FILE

The claim: `forward` at 10,000 rows in float64 takes a third of the time, or less, of the fastest
honest Python loop over Pinocchio (`forwardKinematics` and `updateFramePlacement` per row, poses left
inside Pinocchio; a second loop also copies them into an array). Both read the same URDF and the same
joint values, and their repeats are interleaved, so that a noisy neighbour slows both. The table also
has float32, other batch sizes, the Jacobian, one damped least-squares step, and two threads.

Needs Pinocchio: `pip install mfk[bench]`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfk import kinematics as kin

ROWS = 10_000
SHARE = 0.01  # s, that a case runs for in each round


def main() -> None:
    """Measure, print the table, and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats; medians are shown")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats: expected at least 1")
    pin = pinocchio()
    chain = kin.panda()
    model = pin.buildModelFromXML(kin.urdf_text("panda"))
    data, frame = model.createData(), model.getFrameId(chain.tip)
    q = joint_values(chain, 100_000)

    worst = largest_difference(pin, model, data, frame, chain, q[:1000])
    main_cases: dict[str, tuple[int, int, Callable[[], Any]]] = {
        "Pinocchio loop": (ROWS, 1, loop(pin, model, data, frame, q[:ROWS].numpy())),
        "Pinocchio loop, poses to an array": (
            ROWS,
            1,
            copying_loop(pin, model, data, frame, q[:ROWS].numpy()),
        ),
        "forward float64": (ROWS, 1, lambda rows=q[:ROWS]: kin.forward(chain, rows)),
    }
    seconds = interleaved(main_cases, arguments.repeats)
    seconds |= interleaved(other_cases(chain, q, threads=1), max(3, arguments.repeats // 2))
    seconds |= interleaved(other_cases(chain, q, threads=2), max(3, arguments.repeats // 2))
    table = [
        {
            "case": case,
            "rows": rows,
            "threads": threads,
            "seconds": value,
            "microseconds_per_row": value / rows * 1e6,
        }
        for (case, rows, threads), value in seconds.items()
    ]
    ours = seconds["forward float64", ROWS, 1]
    ratio = seconds["Pinocchio loop", ROWS, 1] / ours
    copied = seconds["Pinocchio loop, poses to an array", ROWS, 1] / ours
    report(table)
    print(f"\nforward, float64, {ROWS} rows, 1 thread: {ROWS / ours / 1e6:.2f} million poses per second")
    print(f"times faster than Pinocchio's loop: {ratio:.2f}; with poses copied to an array: {copied:.2f}")
    print(f"largest difference from Pinocchio: {worst:.1e}")
    if arguments.out:
        results = {
            "ratio_to_pinocchio_loop": ratio,
            "ratio_to_pinocchio_loop_with_poses": copied,
            "largest_difference": worst,
            "repeats": arguments.repeats,
            "table": table,
            "machine": machine(pin),
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def pinocchio() -> Any:
    """The module, or an exit that says how to get it."""
    try:
        # By name, so that type checking does not need an optional package.
        return importlib.import_module("pinocchio")
    except ImportError as error:
        sys.exit(
            f"benchmarks/fk.py compares with Pinocchio, which is missing: pip install mfk[bench] ({error})"
        )


def joint_values(chain: kin.Chain, rows: int) -> torch.Tensor:
    """Uniform within the limits, [rows, dof], float64."""
    u = torch.rand(rows, chain.dof, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return chain.lower + u * (chain.upper - chain.lower)


def loop(pin: Any, model: Any, data: Any, frame: int, q: np.ndarray) -> Callable[[], None]:
    """The shortest loop there is: rows split beforehand, functions bound to local names."""
    rows, solve, update = list(q), pin.forwardKinematics, pin.updateFramePlacement

    def run() -> None:
        for row in rows:
            solve(model, data, row)
            update(model, data, frame)

    return run


def copying_loop(pin: Any, model: Any, data: Any, frame: int, q: np.ndarray) -> Callable[[], np.ndarray]:
    """The same with every pose copied to one array [rows, 7], x y z qx qy qz qw."""
    rows, solve, update, convert = list(q), pin.forwardKinematics, pin.updateFramePlacement, pin.SE3ToXYZQUAT

    def run() -> np.ndarray:
        poses = np.empty((len(rows), 7))
        for i, row in enumerate(rows):
            solve(model, data, row)
            poses[i] = convert(update(model, data, frame))
        return poses

    return run


def other_cases(
    chain: kin.Chain, q: torch.Tensor, threads: int
) -> dict[str, tuple[int, int, Callable[[], Any]]]:
    """Name -> (rows, threads, call); a second thread is of use to large batches only."""
    cases: dict[str, tuple[int, int, Callable[[], Any]]] = {}
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        for rows in (1, 1000, ROWS, len(q)) if threads == 1 else (len(q),):
            x = q[:rows].to(dtype)
            target = kin.forward(chain, x + 0.05)
            calls: dict[str, Callable[[], Any]] = {
                "forward": lambda x=x: kin.forward(chain, x),
                "pose_and_jacobian": lambda x=x: kin.pose_and_jacobian(chain, x),
                "least_squares_step": lambda x=x, target=target: kin.least_squares_step(chain, x, target),
            }
            for function, call in calls.items():
                cases[f"{function} {name}|{rows}"] = (rows, threads, call)
    cases.pop(f"forward float64|{ROWS}", None)
    return cases


def interleaved(
    cases: dict[str, tuple[int, int, Callable[[], Any]]], repeats: int
) -> dict[tuple[str, int, int], float]:
    """Median seconds per call; a round gives every case about the same time, in as many calls as fit."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    calls: dict[str, int] = {}
    for name, (_, threads, call) in cases.items():
        torch.set_num_threads(threads)
        call()
        calls[name] = max(1, round(SHARE / timed(call, 1)))
    for _ in range(repeats):
        for name, (_, threads, call) in cases.items():
            torch.set_num_threads(threads)
            times[name].append(timed(call, calls[name]))
    torch.set_num_threads(1)
    return {
        (name.split("|")[0], rows, threads): statistics.median(times[name])
        for name, (rows, threads, _) in cases.items()
    }


def timed(call: Callable[[], Any], calls: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def largest_difference(
    pin: Any, model: Any, data: Any, frame: int, chain: kin.Chain, q: torch.Tensor
) -> float:
    """Over positions in m and orientations in rad: a fast wrong answer is no answer."""
    theirs = torch.from_numpy(copying_loop(pin, model, data, frame, q.numpy())())
    ours = kin.forward(chain, q)
    angle = kin.quaternion_angle(kin.xyzw_to_wxyz(theirs[:, 3:]), ours[:, 3:])
    worst = max(float((theirs[:, :3] - ours[:, :3]).abs().max()), float(angle.max()))
    if not worst < 1e-9:
        sys.exit(f"benchmarks/fk.py: poses differ from Pinocchio's by {worst}; expected less than 1e-9")
    return worst


def report(table: list[dict[str, Any]]) -> None:
    """Print one line per case."""
    print(f"{'case':<36}{'rows':>8}{'threads':>9}{'ms':>11}{'us/row':>11}")
    for row in table:
        print(
            f"{row['case']:<36}{row['rows']:>8}{row['threads']:>9}{row['seconds'] * 1e3:>11.3f}"
            f"{row['microseconds_per_row']:>11.4f}"
        )


def machine(pin: Any) -> dict[str, Any]:
    """Versions and hardware."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "pinocchio": pin.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


if __name__ == "__main__":
    main()
