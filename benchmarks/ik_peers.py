"""Inverse kinematics beside other libraries, on the same held-out poses, judged by one outside check.

Claims: of 10,000 uniform reachable Panda poses mfk.kinematics.solve answers all at 1e-6 (m and rad) inside
the limits, for at most half of roboticstoolbox's CPU time a pose; and never says converged of what is not.

Every solver is asked for 1e-6, keeps the limits, and has its CPU time taken (of the process, one thread). The
judge is Pinocchio's forward kinematics in float64, of the same URDF, with rotation matrices compared; limits
are read from the URDF too. Rows of mfk: starts spread evenly, from the table of reachable poses, and from the
shipped network, each with what its starts cost; plain, and with the step compiled. The others are called as
they are made to be: one pose at a time, pytorch_kinematics in one batch.

    pip install -e ".[bench]"
    python benchmarks/ik_peers.py [--poses N] [--repeats N] [--out FILE] [--plot FILE]

A library that is not installed is left out, and said.
"""

from __future__ import annotations

import importlib
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timing
import torch
from torch import Tensor

import mfk
from mfk import kinematics as kin
from mfk.core import rng
from mfk.core.types import Rows
from mfk.data.ik import sampling_range

LIMIT = 0.5  # of roboticstoolbox's CPU time
BATCHES = (1, 100)
REPEATED = 20  # calls for the figures of small batches


class Answers(NamedTuple):
    """What a solver returned."""

    q: np.ndarray  # [n, dof]
    said: np.ndarray  # [n], bool: what it says of itself


Solver = Callable[[Tensor], Answers]
"""Poses [n, 7] in float64 -> answers."""


def main() -> None:
    """Measure, print the table and the checks, and write the JSON and the plot."""
    parser = timing.parser(__doc__, repeats=3)
    parser.add_argument("--poses", type=int, default=10_000)
    parser.add_argument("--plot", type=Path, help="write a plot to this file")
    parser.set_defaults(threads=1)
    arguments = timing.parse(parser)
    if arguments.poses < BATCHES[-1]:
        parser.error(f"--poses: expected at least {BATCHES[-1]}")
    tables: dict[str, list[dict[str, Any]]] = {}
    checks: list[timing.Check] = []
    left_out: list[str] = []
    for robot in ("panda", "ur10"):
        rows, missing = compare(robot, arguments.poses, arguments.repeats)
        show(robot, rows)
        tables[robot] = [{"solver": name, **row} for name, row in rows.items()]
        checks += claims(robot, rows)
        left_out += [f"{robot}: {line}" for line in missing]
    for line in left_out:
        print(f"left out: {line}")
    timing.report(checks)
    packages = [p for p in ("roboticstoolbox-python", "pytorch-kinematics", "pin") if installed(p)]
    timing.write(
        arguments.out,
        {
            "poses": arguments.poses,
            "tables": tables,
            "checks": [check.record() for check in checks],
            "left_out": left_out,
            "repeats": arguments.repeats,
            "versions": timing.facts(*packages),
        },
    )
    if arguments.plot is not None:
        plot(tables, arguments.plot)


def compare(robot: str, poses: int, repeats: int) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The rows of one robot, by solver, and what was left out."""
    network = mfk.load_ik(robot)
    chain = network.chain
    lower, upper = sampling_range(chain)
    u = rng.uniform(rng.key(0, "ik_peers"), Rows.all(poses), (chain.dof,), torch.float64)
    target = kin.forward(chain, lower + u * (upper - lower)).contiguous()
    judge = Judge(robot, chain)
    solvers, missing = all_solvers(network, robot)
    for solve in solvers.values():
        for batch in (*BATCHES, poses):
            solve(target[: min(batch, 2_000)])  # compiles, and fills caches
    rows: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    for _ in range(repeats):
        for name, solve in solvers.items():
            begun = time.process_time()
            answers = solve(target)
            seconds[name].append(time.process_time() - begun)
            rows[name] = judge(answers, target)
    for name, solve in solvers.items():
        rows[name]["ms"] = statistics.median(seconds[name]) / len(target) * 1e3
        for batch in BATCHES:
            rows[name][f"ms_batch_{batch}"] = small_batch(solve, target, batch)
    return rows, missing


class Judge:
    """Pinocchio's forward kinematics of the same description."""

    def __init__(self, robot: str, chain: kin.Chain) -> None:
        """Read the description of `robot`."""
        pinocchio: Any = importlib.import_module("pinocchio")
        with tempfile.NamedTemporaryFile("w", suffix=".urdf") as file:
            file.write(kin.urdf_text(robot))
            file.flush()
            model = pinocchio.buildModelFromUrdf(file.name)
        self.model, self.data, self.pinocchio = model, model.createData(), pinocchio
        self.frame, self.base = (model.getFrameId(name) for name in (chain.tip, chain.base))
        order = [model.joints[model.getJointId(name)].idx_q for name in chain.joint_names]
        self.order = np.array(order)

    def __call__(self, answers: Answers, target: Tensor) -> dict[str, Any]:
        """Shares of poses within the tolerances and the limits, and of false claims."""
        wanted = kin.pose_to_matrix(target).numpy()
        position, rotation = np.empty(len(target)), np.empty(len(target))
        for i, q in enumerate(answers.q):
            got = self.pose(q)
            position[i] = np.linalg.norm(got[:3, 3] - wanted[i, :3, 3])
            # Of a small angle: the matrices' distance over sqrt(2).
            half = np.linalg.norm(got[:3, :3] - wanted[i, :3, :3]) / math.sqrt(8)
            rotation[i] = 2 * math.asin(min(1.0, half))
        low, high = (x[self.order] for x in (self.model.lowerPositionLimit, self.model.upperPositionLimit))
        inside = ((answers.q >= low - 1e-12) & (answers.q <= high + 1e-12)).all(1)
        fine = inside & (position <= 1e-6) & (rotation <= 1e-6)
        return {
            "success_1e-6": float(fine.mean()),
            "success_1mm_0.1deg": float(
                (inside & (position <= 1e-3) & (rotation <= math.radians(0.1))).mean()
            ),
            "false_claims": int((answers.said & ~fine).sum()),
            "inside_limits": float(inside.mean()),
        }

    def pose(self, q: np.ndarray) -> np.ndarray:
        """base_T_tip, [4, 4]."""
        full = np.zeros(self.model.nq)
        full[self.order] = q
        self.pinocchio.framesForwardKinematics(self.model, self.data, full)
        return (self.data.oMf[self.base].inverse() * self.data.oMf[self.frame]).homogeneous


def all_solvers(network: mfk.tasks.IK, robot: str) -> tuple[dict[str, Solver], list[str]]:
    """Name -> solver, and a line for each that is not there."""
    chain = network.chain

    def ours(**options: Any) -> Solver:
        def solve(target: Tensor) -> Answers:
            found = network.solve(target, **options)
            return Answers(found.q.numpy(), found.converged.numpy())

        return solve

    solvers: dict[str, Solver] = {}
    for jit in (False, True):
        for seeds in ("random", "table", "network"):
            solvers[f"mfk, {seeds} starts{', compiled' * jit}"] = ours(seeds=seeds, jit=jit)
    missing = []
    for name, make in (
        ("roboticstoolbox ik_LM", lambda: with_roboticstoolbox(chain, robot)),
        ("Pinocchio, LM in Python", lambda: with_pinocchio(chain, robot)),
        ("pytorch_kinematics PseudoInverseIK", lambda: with_pytorch_kinematics(chain, robot)),
    ):
        try:
            solvers[name] = make()
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return solvers, missing


def with_roboticstoolbox(chain: kin.Chain, robot: str) -> Solver:
    """Its C++ Levenberg-Marquardt: Chan's damping 0.1, 30 steps, 100 restarts, limits enforced."""
    roboticstoolbox: Any = importlib.import_module("roboticstoolbox")
    with tempfile.NamedTemporaryFile("w", suffix=".urdf") as file, warnings.catch_warnings():
        file.write(kin.urdf_text(robot))
        file.flush()
        warnings.simplefilter("ignore")  # it is said to be deprecated, and its successor reads no single file
        ets = roboticstoolbox.Robot.URDF(file.name).ets(end=chain.tip)

    def solve(target: Tensor) -> Answers:
        q, said = [], []
        for pose in kin.pose_to_matrix(target).numpy():
            # E = |e|^2 / 2 below this: |e| below 1e-6.
            found = ets.ik_LM(pose, ilimit=30, slimit=100, tol=5e-13, joint_limits=True, k=0.1, method="chan")
            q.append(found.q)
            said.append(found.success)
        return Answers(np.array(q), np.array(said))

    return solve


def with_pinocchio(chain: kin.Chain, robot: str) -> Solver:
    """Levenberg-Marquardt with restarts in a Python loop over its kinematics."""
    judge = Judge(robot, chain)
    pinocchio, model, data = judge.pinocchio, judge.model, judge.data
    low, high = chain.lower.numpy(), chain.upper.numpy()
    pinocchio.framesForwardKinematics(model, data, np.zeros(model.nq))  # the base's placement, once for all

    def solve(target: Tensor) -> Answers:
        random = np.random.default_rng(0)
        answers, said = [], []
        for matrix in kin.pose_to_matrix(target).numpy():
            wanted = pinocchio.SE3(matrix)
            q, done = one(wanted, random)
            answers.append(q)
            said.append(done)
        return Answers(np.array(answers), np.array(said))

    def one(wanted: Any, random: np.random.Generator) -> tuple[np.ndarray, bool]:
        full = np.zeros(model.nq)
        q = low
        for _ in range(100):
            q = random.uniform(low, high)
            for _ in range(30):
                full[judge.order] = q
                pinocchio.computeJointJacobians(model, data, full)
                pinocchio.updateFramePlacement(model, data, judge.frame)
                jacobian = pinocchio.getFrameJacobian(model, data, judge.frame, pinocchio.LOCAL)
                here = data.oMf[judge.base].inverse() * data.oMf[judge.frame]
                error = pinocchio.log6(here.inverse() * wanted).vector
                if np.linalg.norm(error[:3]) < 1e-6 and np.linalg.norm(error[3:]) < 1e-6:
                    return q, True
                j = jacobian[:, judge.order]
                ridge = 0.05 * (error @ error) + 1e-9
                q = np.clip(q + j.T @ np.linalg.solve(j @ j.T + ridge * np.eye(6), error), low, high)
        return q, False

    return solve


def with_pytorch_kinematics(chain: kin.Chain, robot: str) -> Solver:
    """Its batched damped pseudo-inverse, 30 steps from 10 starts a pose."""
    pytorch_kinematics: Any = importlib.import_module("pytorch_kinematics")
    serial = pytorch_kinematics.build_serial_chain_from_urdf(
        kin.urdf_text(robot).encode(), chain.tip, chain.base
    )
    serial = serial.to(dtype=torch.float64)
    limits = torch.stack((chain.lower, chain.upper), dim=-1)

    def solve(target: Tensor) -> Answers:
        q, said = [], []
        for part in target.split(1_000):
            torch.manual_seed(0)
            inverse = pytorch_kinematics.PseudoInverseIK(
                serial,
                max_iterations=30,
                num_retries=10,
                joint_limits=limits,
                early_stopping_any_converged=True,
                early_stopping_no_improvement="all",
                pos_tolerance=1e-6,
                rot_tolerance=1e-6,
                lr=1.0,
            )
            goal = pytorch_kinematics.Transform3d(pos=part[:, :3], rot=part[:, 3:], dtype=torch.float64)
            found = inverse.solve(goal)
            best = (found.err_pos + found.err_rot).argmin(1)
            q.append(found.solutions[torch.arange(len(part)), best])
            said.append(found.converged[torch.arange(len(part)), best])
        return Answers(torch.cat(q).numpy(), torch.cat(said).numpy())

    return solve


def small_batch(solve: Solver, target: Tensor, batch: int) -> float:
    """CPU ms a pose, in batches of so many; the median of some."""
    times = []
    for k in range(min(REPEATED, len(target) // batch)):
        part = target[k * batch : (k + 1) * batch]
        begun = time.process_time()
        solve(part)
        times.append(time.process_time() - begun)
    return statistics.median(times) / batch * 1e3


def claims(robot: str, rows: dict[str, dict[str, Any]]) -> list[timing.Check]:
    """The claims that the rows bear out or not."""
    made = []
    peer = rows.get("roboticstoolbox ik_LM")
    for name, row in rows.items():
        if not name.startswith("mfk"):
            continue
        made.append(timing.Check(f"{robot}, {name}: false claims", float(row["false_claims"]), 0.0))
        made.append(timing.Check(f"{robot}, {name}: share not solved at 1e-6", 1 - row["success_1e-6"], 0.0))
        if peer is not None:
            ratio = row["ms"] / peer["ms"]
            made.append(timing.Check(f"{robot}, {name}: CPU time / roboticstoolbox's", ratio, LIMIT))
    return made


def show(robot: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one robot's table."""
    columns = ("1e-6 %", "1mm .1deg %", "false", "ms, all", *(f"ms, {b}" for b in BATCHES))
    print(f"{robot:<36}" + "".join(f"{c:>13}" for c in columns))
    for name, row in rows.items():
        cells = (
            f"{100 * row['success_1e-6']:.2f}",
            f"{100 * row['success_1mm_0.1deg']:.2f}",
            f"{row['false_claims']}",
            f"{row['ms']:.4f}",
            *(f"{row[f'ms_batch_{b}']:.3f}" for b in BATCHES),
        )
        print(f"{name:<36}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def plot(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """CPU time a pose by the size of the batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(1, len(tables), sharey=True)
    for axes, (robot, rows) in zip(panels, tables.items(), strict=True):
        for row in rows:
            sizes = [*BATCHES, 10_000]
            values = [*(row[f"ms_batch_{b}"] for b in BATCHES), row["ms"]]
            style = "o-" if row["solver"].startswith("mfk") else "s--"
            axes.plot(sizes, values, style, label=row["solver"], linewidth=1.4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("poses at once")
        axes.set_title(robot)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("CPU ms a pose, one core")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)


def installed(package: str) -> bool:
    """Whether a distribution is there."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
