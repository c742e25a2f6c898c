"""The settings of an inverse-kinematics run, what it has come to, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mfk import train
from mfk.core import tree
from mfk.core.ranks import Ranks
from mfk.core.types import Batch, Model, Params
from mfk.data import LoaderConfig
from mfk.kinematics import Chain, RobotConfig, forward
from mfk.tasks import ik, ik_compare, ik_files, ik_report, ik_uncertainty
from mfk.train import RunConfig, TrainConfig

URDF = "robot.urdf"


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


def report(
    settings: IKRun,
    chain: Chain,
    problems: ik_compare.HeldOut,
    checkpoint: Path,
    out: Path,
    more: Mapping[str, str],
    here: Ranks | None = None,
) -> None:
    """Compare a checkpoint's network with the baselines, and leave the report in the folder `out`.

    The ranks `here` is one of share the poses (`ik_compare.compare`), and rank 0 writes; None: one process.
    """
    model, params, buffers, members, made = trained(settings, chain, checkpoint)
    untrained, _ = model.init(settings.train.seed)
    results, errors = ik_compare.compare(
        chain, problems, ik_compare.solvers(chain, model, untrained, params, buffers, members), here=here
    )
    if here is not None and here.rank:
        return
    history = train.read_history(train.run_of(checkpoint))
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


def settings_of(checkpoint: Path) -> IKRun:
    """The settings that a run was started with."""
    return train.read_settings(IKRun, checkpoint)


def robot_of(settings: IKRun, run: Path | str | None) -> RobotConfig:
    """The run's robot: of a URDF the copy that an earlier start left in its folder `run`."""
    copy = None if run is None else Path(run) / URDF
    return settings.robot if copy is None or not copy.is_file() else replace(settings.robot, urdf=copy)


def report_rows(settings: IKRun, held_out: Batch) -> Batch:
    """The held-out rows that no validation has seen, or all of them where validation takes all."""
    seen = settings.validation_poses if len(held_out["q"]) > settings.validation_poses else 0
    return {name: x[seen:] for name, x in held_out.items()}


def held_out_problems(
    chain: Chain, settings: IKRun, held_out: Batch | None, poses: int
) -> ik_compare.HeldOut:
    """The first so many held-out rows of a file as problems, or problems that are drawn."""
    if held_out is None:
        return ik_compare.held_out(chain, settings.ik.data, poses)
    rows = {name: x[:poses] for name, x in held_out.items()}
    return ik_compare.HeldOut(rows["q_target"], rows["q"] - rows["r"] * rows["v"])
