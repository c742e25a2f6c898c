"""What panda.py and ur10.py share: the presets, the command line, and training."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ik_commands import Evaluate, Export, Solve, View, evaluate, export, solve, view
from ik_runs import URDF, IKRun, held_out_problems, report, report_rows, robot_of

from mfk import train
from mfk.core import cli, config, ranks
from mfk.data import IKDataConfig
from mfk.kinematics import load_robot
from mfk.losses import TimeConfig
from mfk.tasks import ik, ik_files
from mfk.train import TrainConfig


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
        if isinstance(settings, IKRun):
            run(name, settings)
        elif isinstance(settings, Evaluate):
            evaluate(settings)
        elif not ranks.alone():
            return
        elif isinstance(settings, Solve):
            solve(settings)
        elif isinstance(settings, Export):
            export(settings)
        else:
            view(presets["default"][1], settings)

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
        records[train.DATA] = ik_files.fingerprints(settings.files)
        for note in (
            *files.notes,
            "references and start times are the file's; --reference, --sigma, --sigma-max and --distribution "
            "are not used",
        ):
            print(f"# note: {note}")
        if settings.run.resume is not None:
            train.check_same_data(Path(settings.run.resume), records[train.DATA])
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
        if files is not None:
            files.unchanged()
        rows = None if held_out is None else report_rows(settings, held_out)
        problems = held_out_problems(chain, settings, rows, settings.report_poses)
        seconds = f"{time.perf_counter() - started:.0f} s until the report"
        try:
            report(settings, chain, problems, result.run, result.run, {"this session": seconds})
        except KeyboardInterrupt:
            print(
                f"the training is complete; evaluate --checkpoint {result.run} makes the report",
                file=sys.stderr,
            )
            raise
