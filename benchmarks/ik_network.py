"""The shipped inverse-kinematics networks on held-out poses, beside least-squares steps.

Claims: one network step from references 0.1 rad (standard deviation, each joint) away is within 5 mm and
5 deg for at least 95 % of the poses, for Panda and UR10; from 0.3 and 0.5 rad its mean errors are below those
of two damped least-squares steps. Without a claim: references anywhere in the limits, and proposals from the
table of reachable poses, the best of 1, 8 and 64, beside what is published for generative networks (which
return any solution, as these proposals do, and not the one near a reference).

    python benchmarks/ik_network.py [--poses N] [--threads N] [--out FILE]

CPU time is of the whole call, the lookup in the table included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import Tensor

import mfk
from mfk.data import IKDataConfig
from mfk.tasks import IK
from mfk.tasks.ik import pose_errors, within
from mfk.tasks.ik_compare import held_out
from mfk.tasks.ik_solve import DAMPING, refine

SIGMAS = (0.1, 0.3, 0.5)  # rad
PUBLISHED = {  # Panda, mean over poses: mm, deg
    "IKFlow (Ames et al. 2022), one sample": (6.83, 2.28),
    "PAIK (Park et al. 2024), one sample": (3.56, 1.94),
}


def main() -> None:
    """Measure, print the tables and the checks, and write the JSON."""
    parser = timing.parser(__doc__, repeats=1)
    parser.add_argument("--poses", type=int, default=5_000)
    arguments = timing.parse(parser)
    tables, checks = {}, []
    for robot in ("panda", "ur10"):
        network = mfk.load_ik(robot)
        rows = local(network, arguments.poses) + anywhere(network, arguments.poses)
        tables[robot] = rows
        show(robot, rows)
        by_name = {(row["references"], row["solver"]): row for row in rows}
        share = by_name["sigma 0.1", "network, 1 step"]["within_5mm_5deg"]
        checks.append(timing.Check(f"{robot}: share outside 5 mm and 5 deg, sigma 0.1", 1 - share, 0.05))
        for sigma in SIGMAS[1:]:
            ours, theirs = (
                by_name[f"sigma {sigma}", name] for name in ("network, 1 step", "2 least-squares steps")
            )
            for what in ("mm", "deg"):
                ratio = ours[what] / theirs[what]
                checks.append(
                    timing.Check(f"{robot}: {what}, network / two steps, sigma {sigma}", ratio, 1.0)
                )
    timing.report(checks)
    timing.write(
        arguments.out,
        {
            "poses": arguments.poses,
            "tables": tables,
            "published": PUBLISHED,
            "checks": [check.record() for check in checks],
            "versions": timing.facts(),
        },
    )


def local(network: IK, poses: int) -> list[dict[str, Any]]:
    """References near a solution."""
    rows = []
    for sigma in SIGMAS:
        problems = held_out(network.chain, IKDataConfig(sigma=sigma), poses)
        rows += _rows(network, f"sigma {sigma}", problems.q_target, problems.q_reference)
    return rows


def anywhere(network: IK, poses: int) -> list[dict[str, Any]]:
    """References uniform in the limits, and proposals from the table."""
    problems = held_out(network.chain, IKDataConfig("uniform"), poses)
    rows = _rows(network, "uniform", problems.q_target, problems.q_reference)
    target = mfk.kinematics.forward(network.chain, problems.q_target.double())
    for num in (1, 8, 64):
        for steps in (1, 2, 4):
            row = judged(network, target, lambda n=num, k=steps: network.propose(target, num=n, steps=k))
            rows.append({"references": "table", "solver": f"best of {num}, {steps} steps", **row})
    return rows


def _rows(network: IK, references: str, q_target: Tensor, q_reference: Tensor) -> list[dict[str, Any]]:
    chain = network.chain
    target = mfk.kinematics.forward(chain, q_target.double())
    solvers: dict[str, Callable[[], Tensor]] = {
        "do nothing": lambda: q_reference,
        "1 least-squares step": lambda: refine(chain, q_reference, target, [DAMPING]),
        "2 least-squares steps": lambda: refine(chain, q_reference, target, [DAMPING] * 2),
    }
    for steps in (1, 2, 4):
        solvers[f"network, {steps} step{'s' * (steps > 1)}"] = lambda k=steps: network.propose(
            target, q_reference, steps=k
        )
    return [
        {"references": references, "solver": name, **judged(network, target, solve)}
        for name, solve in solvers.items()
    ]


def judged(network: IK, target: Tensor, solve: Callable[[], Tensor]) -> dict[str, float]:
    """Errors of what `solve` returns, [n, dof] or [n, num, dof]: of the best, where there are several."""
    solve()
    begun = time.process_time()
    q = solve()
    spent = time.process_time() - begun
    q = q.reshape(len(target), -1, q.shape[-1])
    errors = pose_errors(network.chain, q, target.unsqueeze(1).expand(*q.shape[:2], 7))
    # A degree counts as much as a millimetre.
    best = (errors.position * 1e3 + torch.rad2deg(errors.rotation)).argmin(1, keepdim=True)
    errors = type(errors)(*(x.gather(1, best)[:, 0] for x in errors))
    return {
        "mm": float(errors.position.mean()) * 1e3,
        "median_mm": float(errors.position.median()) * 1e3,
        "deg": float(torch.rad2deg(errors.rotation).mean()),
        "within_5mm_5deg": float(within(errors, 5.0, 5.0).double().mean()),
        "us": spent / len(target) * 1e6,
    }


def show(robot: str, rows: list[dict[str, Any]]) -> None:
    """Print one robot's table."""
    print(f"\n{robot}")
    print(f"{'references':<12}{'solver':<24}{'mm':>9}{'median':>9}{'deg':>9}{'5mm 5deg':>10}{'us':>9}")
    for row in rows:
        print(
            f"{row['references']:<12}{row['solver']:<24}{row['mm']:>9.3f}{row['median_mm']:>9.3f}"
            f"{row['deg']:>9.3f}{100 * row['within_5mm_5deg']:>9.2f}%{row['us']:>9.1f}"
        )


if __name__ == "__main__":
    main()
