"""What can be done with a trained inverse-kinematics network: evaluate, solve, export, view."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import ik_view
import torch
from ik_runs import (
    IKRun,
    held_out_problems,
    report,
    report_rows,
    robot_of,
    settings_of,
    trained,
)
from places import check_folder
from torch import Tensor

from mfk import train
from mfk.core import config, ranks
from mfk.core.types import Rows
from mfk.data import draw_ik, read_ik
from mfk.kinematics import forward, frames, load_robot
from mfk.tasks import ik, ik_export, ik_files, ik_pretrained, ik_solve, ik_uncertainty
from mfk.train import RunConfig

Seven = tuple[float, float, float, float, float, float, float]


@dataclass(frozen=True)
class Evaluate:
    """Repeat the report with a trained network."""

    checkpoint: str
    """Folder of a run, such as outputs/panda/latest, or of one of its checkpoints."""
    data: Path | None = None
    """Data file whose rows are the problems; None takes those of the run's own report."""
    poses: int | None = None
    """How many problems, the first of the file's; None: as many as the run's report has."""
    out: Path | None = None
    """Folder of the report; None: evaluation/ in the run's folder."""


@dataclass(frozen=True)
class Solve:
    """Solve one pose with a trained network."""

    checkpoint: str
    """Folder of a run, such as outputs/panda/latest, or of one of its checkpoints."""
    pose: Seven
    """Target of the frame in the robot's base frame: X Y Z in m, then the unit quaternion."""
    reference: tuple[float, ...] | None = None
    """Configuration to start from, in rad, one number a joint; None starts from 256 and keeps the best."""
    steps: int = 1
    """Network steps."""
    refine: int = 10
    """Least-squares steps after the network."""


@dataclass(frozen=True)
class Export:
    """Write a trained network into one file, for `mfk.load_ik`, or as a program of torch.export."""

    checkpoint: str
    """Folder of a run, such as outputs/panda/latest, or of one of its checkpoints."""
    out: Path
    """File to write: NAME.npz for mfk.load_ik, NAME.pt2 for torch.export.load."""


@dataclass(frozen=True)
class View:
    """Watch a solver in a browser, until Ctrl-C; needs the extra `view`."""

    checkpoint: str | None = None
    """Folder of a run, or of one of its checkpoints; None shows the numerical solver."""
    port: int = 8_080
    """Where the browser finds it, on this machine; if it is taken, the next free one."""
    seed: int = 0
    """Of the random poses."""
    robot: Literal["panda", "ur10"] | None = None
    """Franka Emika Panda or Universal Robots UR10; None: the script's. A checkpoint has its own."""
    urdf: Path | None = None
    """URDF file of another robot, in place of `robot`; it needs `frame`."""
    frame: str | None = None
    """Link whose pose is solved for; None: panda_hand or tool0."""
    base: str | None = None
    """Link that poses are given in; None: the robot's root."""


def evaluate(command: Evaluate) -> None:
    """Repeat a run's report, on its own held-out problems or on a file's; all ranks share these."""
    checkpoint = Path(command.checkpoint)
    settings = settings_of(checkpoint)
    out = command.out or train.run_of(checkpoint) / "evaluation"
    check_folder("--out", out)
    robot = robot_of(settings, train.run_of(checkpoint))
    chain = load_robot(robot)
    if command.data is not None:
        file = read_ik(command.data, chain, frames=lambda: frames(robot))
        held_out, more = ik_files.as_batch(file.rows), {"problems": f"those of {command.data}"}
    else:
        files = ik_files.open_files(chain, robot, settings.files, settings.train.seed)
        held_out, more = None, {"problems": "those of the run's report"}
        if files is not None:
            train.check_same_data(train.run_of(checkpoint), ik_files.fingerprints(settings.files))
            held_out = report_rows(settings, files.held_out)
    poses = settings.report_poses if command.poses is None else command.poses
    if poses < 1:
        raise ValueError(f"poses: expected at least 1, got {poses}")
    problems = held_out_problems(chain, settings, held_out, poses)
    more["checkpoint"] = str(checkpoint)
    report(settings, chain, problems, checkpoint, out, more, ranks.current())


def solve(command: Solve) -> None:
    """Answer one pose with joints and the error by forward kinematics."""
    checkpoint = Path(command.checkpoint)
    settings = settings_of(checkpoint)
    chain = load_robot(robot_of(settings, train.run_of(checkpoint)))
    network = trained(settings, chain, checkpoint)
    model, pose = network.model, torch.tensor(command.pose, dtype=torch.float64)
    references, spread = ik_solve.starts(chain, command.reference), None
    if network.members is None:
        solution = ik_solve.solve_best(
            chain,
            model,
            network.params,
            network.buffers,
            pose,
            references,
            steps=command.steps,
            refinements=command.refine,
        )
    else:
        poses = pose.expand(len(references), 7)
        predicted = ik_uncertainty.predict(chain, model, *network.members, poses, references, command.steps)
        solution, row = ik_solve.best_of(chain, predicted.q, pose, command.refine)
        spread = ik.PoseErrors(*(x[row] for x in predicted.spread))
    for name, angle in zip(chain.joint_names, solution.q.tolist(), strict=True):
        print(f"{name}: {angle:+.6f} rad")
    print(f"position error {float(solution.errors.position) * 1e3:.4f} mm")
    print(f"rotation error {float(torch.rad2deg(solution.errors.rotation)):.4f} deg")
    if spread is not None:
        print(
            f"spread of {settings.train.members} networks, before least squares: "
            f"{float(spread.position) * 1e3:.4f} mm, {float(torch.rad2deg(spread.rotation)):.4f} deg"
        )
    if not bool(ik.within(solution.errors, 5.0, 5.0)):
        print("not solved within 5 mm and 5 deg: out of reach, or too far from --reference", file=sys.stderr)
        raise SystemExit(1)


def export(command: Export) -> None:
    """Write a run's network into one file, and read it back before saying so."""
    if command.out.suffix not in (".npz", ".pt2"):
        raise ValueError(f"--out: expected a name that ends in .npz or .pt2, got {command.out}")
    checkpoint = Path(command.checkpoint)
    settings = settings_of(checkpoint)
    if settings.train.members > 1:
        raise ValueError(f"--checkpoint: expected one network, {checkpoint} has {settings.train.members}")
    robot = robot_of(settings, train.run_of(checkpoint))
    chain = load_robot(robot)
    network = trained(settings, chain, checkpoint)
    described = (
        {"name": robot.robot} if robot.urdf is None else {"urdf": robot.urdf.read_text(encoding="utf-8")}
    )
    run = train.run_of(checkpoint)
    record = {
        "settings": config.to_dict(replace(settings, run=RunConfig())),
        "made": network.made,
        "versions": train.read_versions(run),
    }
    if (run / "report.json").is_file():
        record["report"] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        path = command.out if command.out.suffix == ".npz" else Path(folder) / "network.npz"
        ik_pretrained.save_ik(
            path,
            network.params,
            network.buffers,
            settings.ik.net,
            {**described, "frame": chain.tip, "base": chain.base},
            record,
        )
        loaded = ik_pretrained.load_ik(path)
    print(f"{loaded}, {network.made} of {checkpoint}")
    if command.out.suffix == ".pt2":
        difference = ik_export.export_ik(loaded, command.out)
        print(f"read back and compared: differs by at most {difference:.1e} rad")
    print(f"wrote {command.out}, {command.out.stat().st_size / 1e6:.1f} MB")


def view(default: IKRun, command: View) -> None:
    """Show a trained network, or without a checkpoint the numerical solver, on the robot of `default`."""
    given = {
        name: value
        for name in ("robot", "urdf", "frame", "base")
        if (value := getattr(command, name)) is not None
    }
    network: ik_view.Network | None = None
    if command.checkpoint is None:
        settings = default
        chain = load_robot(replace(default.robot, **given))
        title = f"**{chain.name}, {chain.tip}**: `mfk.kinematics.solve` from the reference"
    else:
        if given:
            raise ValueError(
                f"{next(iter(given))}: expected none beside --checkpoint, which has its robot, got {given}"
            )
        checkpoint = Path(command.checkpoint)
        settings = settings_of(checkpoint)
        chain = load_robot(robot_of(settings, train.run_of(checkpoint)))
        model, params, buffers, _, made = trained(settings, chain, checkpoint)
        title = f"**{chain.name}, {chain.tip}**: network of {checkpoint}, {made}"

        def steps_of(reference: Tensor, pose: Tensor, steps: int) -> Tensor:
            return ik_solve.solve_pose(chain, model, params, buffers, pose, reference, steps)

        network = steps_of

    def problem(number: int) -> tuple[Tensor, Tensor]:
        drawn = draw_ik(chain, settings.ik.data, command.seed, number, Rows.all(1))
        return drawn.q_reference[0].double(), forward(chain, drawn.q_target[0].double())

    ik_view.show(chain, problem, network, command.port, title)
