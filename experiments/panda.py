"""Train, resume and use a one-step inverse-kinematics network for the Franka Panda.

python experiments/panda.py                      # the default preset: minutes on two cores
python experiments/panda.py quick --lr 5e-4
python experiments/panda.py --resume             # go on with the newest run
python experiments/panda.py solve --checkpoint outputs/panda/latest --pose 0.4 0.1 0.5 0 1 0 0
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from mfk import train
from mfk.core import cli, config, tree
from mfk.core.types import Model, Params
from mfk.kinematics import Chain, panda
from mfk.losses import TimeConfig
from mfk.tasks import ik, ik_compare, ik_report, ik_solve
from mfk.train import TrainConfig

NAME = "panda"
Seven = tuple[float, float, float, float, float, float, float]


@dataclass(frozen=True)
class PandaConfig:
    """A training run."""

    frame: str = "panda_hand"
    """Link whose pose is solved for: panda_link1 to panda_link8, panda_hand or panda_hand_tcp."""
    ik: ik.IKConfig = field(default_factory=ik.IKConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation_poses: int = 2_000
    """Poses of the validation during training."""
    report_poses: int = 5_000
    """Held-out poses of the final report."""
    out: str | None = None
    """Folder of the run; None takes a fresh number under outputs/panda."""
    resume: str | None = None
    """Folder of a run to go on with; alone: --out, or else the newest."""
    dry_run: bool = False
    """Print the resolved config and the network's size, and stop."""


@dataclass(frozen=True)
class Solve:
    """Solve one pose with a trained network."""

    checkpoint: str
    """Folder of a run, such as outputs/panda/latest."""
    pose: Seven
    """Target of the frame in the robot's base frame: X Y Z in m, then the unit quaternion."""
    reference: tuple[float, ...] | None = None
    """Configuration to start from, in rad, one number a joint; None starts from 256 and keeps the best."""
    steps: int = 1
    """Network steps."""
    refine: int = 10
    """Least-squares steps after the network."""


_DOCUMENTED = PandaConfig(
    ik=ik.IKConfig(
        net=ik.NetConfig(network="documented"),
        times=TimeConfig("mfik", jvp_share=0.25),
        loss=ik.LossConfig("distance", weight_c=1e-4, weight_p=0.5),
    ),
    train=TrainConfig(
        steps=390_600, batch_size=256, lr=1e-4, min_lr=1e-6, warmup_steps=1_000, weight_decay=1e-5,
        ema_decay=None, validate_every=3_906, checkpoint_every=3_906, best_metric="val_loss",
    ),
)  # fmt: skip
_DEFAULT = PandaConfig(
    train=TrainConfig(
        steps=2_000, batch_size=1_024, lr=1e-3, min_lr=1e-5, warmup_steps=100, weight_decay=1e-5,
        ema_decay=0.998, validate_every=100, checkpoint_every=500, best_metric="position_mm",
    )
)  # fmt: skip
PRESETS = {
    "default": ("the kinematics-aware network; under five minutes on two CPU cores", _DEFAULT),
    "quick": (
        "the same network, a short look in under 45 seconds",
        replace(
            _DEFAULT,
            train=replace(
                _DEFAULT.train,
                steps=150,
                warmup_steps=25,
                ema_decay=0.98,
                validate_every=50,
                checkpoint_every=150,
            ),
        ),
    ),
    "documented": (
        "the original document's 17.9M network and settings, with the sound identity; days on a CPU",
        _DOCUMENTED,
    ),
}


def run(settings: PandaConfig) -> None:
    """Train as configured, then report on held-out poses."""
    started = time.perf_counter()
    for name in ("validation_poses", "report_poses"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(settings, name)}")
    chain = panda(settings.frame)
    task = ik.ik_task(chain, settings.ik)
    validation = ik.validation_batches(task, settings.train.seed, settings.validation_poses)
    train.check_fit(task, settings.train, validation)
    if settings.dry_run:
        params, _ = task.init(settings.train.seed)
        print(config.to_yaml(settings), end="")
        print(f"# {chain}\n# {tree.size(params):,} parameters")
        return
    folder = train.claim_run(settings.out, NAME, resume=settings.resume is not None)
    with suppress(OSError):
        # Nobody may be reading, or the disk behind it may be full: no reason not to train.
        print(f"run: {folder}", flush=True)
    record = config.to_dict(replace(settings, out=None, resume=None))
    result = train.fit(
        task,
        settings.train,
        run=folder,
        record=record,
        validation=validation,
        resume=settings.resume is not None,
        resume_hint=f"python experiments/panda.py --resume {folder}",
        roots=ik.ROOTS,
        fixed=("frame", "ik", "validation_poses", "train.seed", "train.best_metric"),
    )
    if result.interrupted:
        raise SystemExit(128 + result.interrupted)
    trained = time.perf_counter() - started
    report(settings, chain, folder, trained)


def report(settings: PandaConfig, chain: Chain, folder: Path, seconds: float) -> None:
    """Compare the run's best network with the baselines, and leave the report in its folder."""
    model, params, buffers = trained(settings, chain, folder)
    untrained, _ = model.init(settings.train.seed)
    results, errors = ik_compare.compare(
        chain,
        settings.ik.data,
        ik_compare.solvers(chain, model, untrained, params, buffers),
        poses=settings.report_poses,
    )
    history = train.read_history(folder)
    curves = ik_report.Curves(
        *(
            [(record["step"], record[name]) for record in history if name in record]
            for name in ("train/raw_error", "val/position_mm")
        )
    )
    facts = {
        "robot": repr(chain),
        "network": f"{settings.ik.net.network}, {tree.size(params):,} parameters",
        "references": f"{settings.ik.data.reference}, sigma {settings.ik.data.sigma} rad",
        "held-out poses": settings.report_poses,
        "training": f"{settings.train.steps} steps of {settings.train.batch_size} rows",
        "this session": f"{seconds:.0f} s until the report",
        **train.versions(settings.train.seed),
    }
    files = ik_report.write_report(folder, results, errors, curves, facts)
    ik_report.print_table(results, f"{settings.report_poses} held-out poses of {chain.name}, {chain.tip}")
    print("wrote " + ", ".join(str(file) for file in files))


def trained(
    settings: PandaConfig, chain: Chain, folder: Path, step: Literal["best", "latest"] = "best"
) -> tuple[Model, Params, Params]:
    """The network of a run, its averaged parameters and its buffers."""
    model = ik.ik_model(chain, settings.ik.net)
    params, buffers = model.init(settings.train.seed)
    best = settings.train.best_metric
    params = train.load_params(folder, params, step, best_metric=best)
    return model, params, train.load_state(folder, buffers, step, best_metric=best)


def solve(command: Solve) -> None:
    """Answer one pose with joints and the error by forward kinematics."""
    folder = Path(command.checkpoint)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"--checkpoint: {folder} is not the folder of a run: it has no config.yaml")
    settings = config.load_yaml(PandaConfig, folder / "config.yaml")
    chain = panda(settings.frame)
    model, params, buffers = trained(settings, chain, folder)
    solution = ik_solve.solve_best(
        chain,
        model,
        params,
        buffers,
        torch.tensor(command.pose, dtype=torch.float64),
        ik_solve.starts(chain, command.reference),
        steps=command.steps,
        refinements=command.refine,
    )
    for name, angle in zip(chain.joint_names, solution.q.tolist(), strict=True):
        print(f"{name}: {angle:+.6f} rad")
    print(f"position error {float(solution.errors.position) * 1e3:.4f} mm")
    print(f"rotation error {float(torch.rad2deg(solution.errors.rotation)):.4f} deg")
    if not bool(ik.within(solution.errors, 5.0, 5.0)):
        print("not solved within 5 mm and 5 deg: out of reach, or too far from --reference", file=sys.stderr)
        raise SystemExit(1)


def main() -> None:
    """Parse the command line and run it."""
    settings = cli.parse(
        PRESETS,
        {"solve": ("answer one pose with a trained network", Solve)},
        prog="panda.py",
        description="One-step inverse kinematics for the Franka Panda, trained with MeanFlow.",
        root=Path("outputs") / NAME,
    )
    if isinstance(settings, Solve):
        solve(settings)
    else:
        run(settings)


if __name__ == "__main__":
    cli.main(main, train.TrainingDiverged)
