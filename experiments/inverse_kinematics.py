"""What panda.py and ur10.py share: the settings, training, the report, evaluating, solving and viewing."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import ik_view
import torch
from torch import Tensor

from mfk import train
from mfk.core import cli, config, tree
from mfk.core.types import Batch, Model, Params, Rows
from mfk.data import IKDataConfig, LoaderConfig, draw_ik, read_ik
from mfk.kinematics import Chain, RobotConfig, forward, frames, load_robot
from mfk.losses import TimeConfig
from mfk.tasks import ik, ik_compare, ik_export, ik_files, ik_pretrained, ik_report, ik_solve, ik_uncertainty
from mfk.train import RunConfig, TrainConfig

Seven = tuple[float, float, float, float, float, float, float]
URDF, DATA = "robot.urdf", "data.txt"


@dataclass(frozen=True)
class IKRun:
    """A training run."""

    robot: RobotConfig = field(default_factory=RobotConfig)
    ik: ik.IKConfig = field(default_factory=ik.IKConfig)
    files: ik_files.IKFileConfig = field(default_factory=ik_files.IKFileConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation_poses: int = 2_000
    """Poses of the validation during training; of a data file's held-out rows the first so many."""
    report_poses: int = 5_000
    """Held-out poses of the final report; of a data file's those after the validation's, if any are left."""
    run: RunConfig = field(default_factory=RunConfig)


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


def presets(default: IKRun, steps: int = 2_000, lr: float = 1e-3) -> dict[str, tuple[str, IKRun]]:
    """The presets of a robot; `default` says which, and how its small network steps."""
    small = replace(
        default,
        train=TrainConfig(
            steps=steps, batch_size=1_024, lr=lr, min_lr=1e-5, warmup_steps=100, weight_decay=1e-5,
            ema_decay=0.998, validate_every=100, checkpoint_every=500, best_metric="position_mm",
        ),
    )  # fmt: skip
    quick = replace(
        small.train,
        jit=False,  # compiling takes longer than so few steps
        steps=150,
        warmup_steps=25,
        ema_decay=0.98,
        validate_every=50,
        checkpoint_every=150,
    )
    shipped = replace(
        small,
        ik=replace(
            small.ik,
            net=replace(small.ik.net, base_steps=2),
            data=IKDataConfig(sigma=0.05, sigma_max=0.5),
        ),
        train=replace(small.train, steps=6_000),
    )
    documented = replace(
        small,
        ik=ik.IKConfig(
            net=ik.NetConfig(network="documented"),
            times=TimeConfig("mfik", jvp_share=0.25),
            loss=ik.LossConfig("distance", weight_c=1e-4, weight_p=0.5),
        ),
        train=replace(
            small.train, epochs=100, steps_per_epoch=3_907, batch_size=256, lr=1e-4, min_lr=1e-6,
            warmup_steps=1_000, weight_decay=1e-5, ema_decay=None, validate_every=None,
            validate_every_epochs=1, checkpoint_every=None, checkpoint_every_epochs=1, best_metric="val_loss",
        ),
    )  # fmt: skip
    return {
        "default": ("the kinematics-aware network; under five minutes on two CPU cores", small),
        "shipped": (
            "what the weights of the package were trained with; ten minutes on a core or two",
            shipped,
        ),
        "quick": ("the same network, a short look in under 45 seconds", replace(small, train=quick)),
        "documented": (
            "the original document's network and settings, with the sound identity; days on a CPU",
            documented,
        ),
    }


def main(name: str, presets: Mapping[str, tuple[str, IKRun]], description: str) -> None:
    """Parse the command line of ``experiments/<name>.py`` and run it; a user's mistake ends with code 2."""

    def program() -> None:
        settings = cli.parse(
            presets,
            {
                "evaluate": ("repeat the report with a trained network", Evaluate),
                "solve": ("answer one pose with a trained network", Solve),
                "export": ("write a trained network into one file", Export),
                "view": ("watch a solver in a browser", View),
            },
            prog=f"{name}.py",
            description=description,
            root=Path("outputs") / name,
        )
        if isinstance(settings, Solve):
            solve(settings)
        elif isinstance(settings, Evaluate):
            evaluate(settings)
        elif isinstance(settings, Export):
            export(settings)
        elif isinstance(settings, View):
            view(presets["default"][1], settings)
        else:
            run(name, settings)

    cli.main(program, train.TrainingDiverged)


def run(name: str, settings: IKRun) -> None:
    """Train as configured, then report on held-out poses."""
    started = time.perf_counter()
    for option in ("validation_poses", "report_poses"):
        if getattr(settings, option) < 1:
            raise ValueError(f"{option}: expected at least 1, got {getattr(settings, option)}")
    robot = robot_of(settings, settings.run.resume)
    chain = load_robot(robot)
    files = ik_files.open_files(chain, robot, settings.files, settings.train.seed)
    batches, records = None, {}
    if robot.urdf is not None:
        records[URDF] = robot.urdf.read_text(encoding="utf-8")
    if files is None:
        config.refuse_unused(settings.loader, False, "shuffle", "num_workers", "pin_memory")
    else:
        batches = ik_files.file_batches(
            files, settings.train.batch_size, settings.train.seed, settings.loader
        )
        records[DATA] = ik_files.fingerprints(settings.files)
        for note in (
            *files.notes,
            "references and start times are the file's; --reference, --sigma, --sigma-max and --distribution "
            "are not used",
        ):
            print(f"# note: {note}")
        if settings.run.resume is not None:
            _check_same(Path(settings.run.resume), records[DATA])
    task = ik.ik_task(chain, settings.ik)
    held_out = None if files is None else files.held_out
    result = train.launch(
        task,
        settings,
        name=name,
        validation=ik.validation_batches(
            chain, settings.ik, settings.train.seed, settings.validation_poses, held_out
        ),
        batches=batches,
        example=None if files is None else files.training,
        files=records,
        roots=ik.ROOTS,
        fixed=("robot", "ik", "files", "loader.shuffle", "validation_poses"),
    )
    if result is not None:
        rows = None if held_out is None else report_rows(settings, held_out)
        problems = _problems(chain, settings, rows, settings.report_poses)
        seconds = f"{time.perf_counter() - started:.0f} s until the report"
        try:
            report(settings, chain, problems, result.run, result.run, {"this session": seconds})
        except KeyboardInterrupt:
            print(
                f"the training is complete; evaluate --checkpoint {result.run} makes the report",
                file=sys.stderr,
            )
            raise


def report(
    settings: IKRun,
    chain: Chain,
    problems: ik_compare.HeldOut,
    checkpoint: Path,
    out: Path,
    more: Mapping[str, str],
) -> None:
    """Compare a checkpoint's network with the baselines, and leave the report in the folder `out`."""
    model, params, buffers, members, made = trained(settings, chain, checkpoint)
    untrained, _ = model.init(settings.train.seed)
    results, errors = ik_compare.compare(
        chain, problems, ik_compare.solvers(chain, model, untrained, params, buffers, members)
    )
    history = train.read_history(run_of(checkpoint))
    curves = ik_report.Curves(
        *(
            [(record["step"], record[name]) for record in history if name in record]
            for name in ("train/raw_error", "val/position_mm")
        )
    )
    last = max(record["step"] for record in history)
    facts = {
        "robot": repr(chain),
        "network": f"{settings.ik.net.network}, {tree.size(params):,} parameters"
        + ("" if members is None else f", {settings.train.members} of them; the network alone is the first"),
        "references": f"{settings.ik.data.reference}, sigma {settings.ik.data.sigma} rad"
        + ("" if settings.ik.data.sigma_max is None else f" to {settings.ik.data.sigma_max}"),
        "held-out poses": len(problems.q_target),
        "training": f"{made}, the best of {last}, {settings.train.batch_size} rows each, "
        f"{settings.train.precision}",
        **more,
        **train.versions(settings.train.seed),
    }
    if settings.files.data is not None:
        facts["references"] = f"those of {settings.files.data}"
    out.mkdir(parents=True, exist_ok=True)
    uncertainty = None
    targets = forward(chain, problems.q_target.double())
    if members is not None:
        spread = ik_uncertainty.predict(chain, model, *members, targets, problems.q_reference).spread
        found = ik_uncertainty.calibrations(errors[ik_compare.ensemble_name(members[0])], spread)
        uncertainty = settings.train.members, found
    files = ik_report.write_report(out, results, errors, targets, curves, facts, uncertainty)
    ik_report.print_table(results, f"{len(problems.q_target)} held-out poses of {chain.name}, {chain.tip}")
    if uncertainty is not None:
        print("\n".join(ik_uncertainty.calibration_lines(uncertainty[1])))
    print("wrote " + ", ".join(str(file) for file in files))


def evaluate(command: Evaluate) -> None:
    """Repeat a run's report, on its own held-out problems or on a file's."""
    checkpoint = Path(command.checkpoint)
    settings = settings_of(checkpoint)
    robot = robot_of(settings, run_of(checkpoint))
    chain = load_robot(robot)
    if command.data is not None:
        file = read_ik(command.data, chain, frames=lambda: frames(robot))
        held_out, more = ik_files.as_batch(file.rows), {"problems": f"those of {command.data}"}
    else:
        files = ik_files.open_files(chain, robot, settings.files, settings.train.seed)
        held_out, more = None, {"problems": "those of the run's report"}
        if files is not None:
            _check_same(run_of(checkpoint), ik_files.fingerprints(settings.files))
            held_out = report_rows(settings, files.held_out)
    poses = settings.report_poses if command.poses is None else command.poses
    if poses < 1:
        raise ValueError(f"poses: expected at least 1, got {poses}")
    problems = _problems(chain, settings, held_out, poses)
    out = command.out or run_of(checkpoint) / "evaluation"
    report(settings, chain, problems, checkpoint, out, {**more, "checkpoint": str(checkpoint)})


def solve(command: Solve) -> None:
    """Answer one pose with joints and the error by forward kinematics."""
    checkpoint = Path(command.checkpoint)
    settings = settings_of(checkpoint)
    chain = load_robot(robot_of(settings, run_of(checkpoint)))
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
    robot = robot_of(settings, run_of(checkpoint))
    chain = load_robot(robot)
    network = trained(settings, chain, checkpoint)
    described = (
        {"name": robot.robot} if robot.urdf is None else {"urdf": robot.urdf.read_text(encoding="utf-8")}
    )
    run = run_of(checkpoint)
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
        chain = load_robot(robot_of(settings, run_of(checkpoint)))
        model, params, buffers, _, made = trained(settings, chain, checkpoint)
        title = f"**{chain.name}, {chain.tip}**: network of {checkpoint}, {made}"

        def steps_of(reference: Tensor, pose: Tensor, steps: int) -> Tensor:
            return ik_solve.solve_pose(chain, model, params, buffers, pose, reference, steps)

        network = steps_of

    def problem(number: int) -> tuple[Tensor, Tensor]:
        drawn = draw_ik(chain, settings.ik.data, command.seed, number, Rows.all(1))
        return drawn.q_reference[0].double(), forward(chain, drawn.q_target[0].double())

    ik_view.show(chain, problem, network, command.port, title)


class Trained(NamedTuple):
    """The network of a run at its best validation, in averaged parameters; of an ensemble the first."""

    model: Model
    params: Params
    buffers: Params
    members: tuple[Params, Params] | None  # all networks of an ensemble, stacked, each at its own best
    made: str  # at which step, or steps


def trained(settings: IKRun, chain: Chain, checkpoint: Path) -> Trained:
    """What a run has come to."""
    model = ik.ik_model(chain, settings.ik.net)
    params, buffers = model.init(settings.train.seed)
    if settings.train.members == 1:
        step = train.find(checkpoint, "best").step
        params = train.load_params(checkpoint, params, "best")
        return Trained(model, params, train.load_state(checkpoint, buffers, "best"), None, f"step {step}")
    all_params, all_buffers = (tree.stack([x] * settings.train.members) for x in (params, buffers))
    all_params, all_buffers, best = train.load_members(checkpoint, all_params, all_buffers)
    params, buffers = tree.member(all_params, 0), tree.member(all_buffers, 0)
    steps = ", ".join(map(str, best.step.tolist()))
    return Trained(model, params, buffers, (all_params, all_buffers), f"steps {steps} (one for each network)")


def run_of(checkpoint: Path) -> Path:
    """The run's folder, given that folder or one of its checkpoints.

    Raises:
        FileNotFoundError: it is neither.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"--checkpoint: {checkpoint} is not the folder of a run: it has no config.yaml")


def settings_of(checkpoint: Path) -> IKRun:
    """The settings that a run was started with."""
    return config.load_yaml(IKRun, run_of(checkpoint) / "config.yaml")


def robot_of(settings: IKRun, run: Path | str | None) -> RobotConfig:
    """The run's robot: of a URDF the copy that an earlier start left in its folder `run`."""
    copy = None if run is None else Path(run) / URDF
    return settings.robot if copy is None or not copy.is_file() else replace(settings.robot, urdf=copy)


def report_rows(settings: IKRun, held_out: Batch) -> Batch:
    """The held-out rows that no validation has seen, or all of them where validation takes all."""
    seen = settings.validation_poses if len(held_out["q"]) > settings.validation_poses else 0
    return {name: x[seen:] for name, x in held_out.items()}


def _problems(chain: Chain, settings: IKRun, held_out: Batch | None, poses: int) -> ik_compare.HeldOut:
    if held_out is None:
        return ik_compare.held_out(chain, settings.ik.data, poses)
    rows = {name: x[:poses] for name, x in held_out.items()}
    return ik_compare.HeldOut(rows["q_target"], rows["q"] - rows["r"] * rows["v"])


def _check_same(run: Path, now: str) -> None:
    """ValueError if the run was begun with other data; without a record it had none, which `fixed` tells."""
    file = run / DATA
    before = file.read_text(encoding="utf-8") if file.is_file() else now
    if before != now:
        raise ValueError(
            f"--data: changed since the run began: it was\n{before}and is\n{now}"
            "start a new run, or put the file back"
        )
