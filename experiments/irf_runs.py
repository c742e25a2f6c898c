"""The settings of an impulse-response run, what it has come to, its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk import train
from mfk.core import tree
from mfk.core.ranks import Ranks
from mfk.core.types import Params, Task
from mfk.data import LoaderConfig
from mfk.tasks import irf, irf_data, irf_drawing, irf_measure, irf_report
from mfk.tasks.irf_net import IRFNetConfig, IRFNets, irf_nets
from mfk.train import RunConfig, TrainConfig


@dataclass(frozen=True)
class IRFRun:
    """A training run."""

    net: IRFNetConfig = field(default_factory=IRFNetConfig)
    irf: irf.IRFConfig = field(default_factory=irf.IRFConfig)
    data: irf_data.IRFDataConfig = field(default_factory=irf_data.IRFDataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data_seed: int = 42
    """Without a folder: seed of the economies and of what is held out."""
    plots: bool = True
    """Draw exact and emulated responses, responses_<world>.png in the run's folder."""
    run: RunConfig = field(default_factory=RunConfig)


class Ready(NamedTuple):
    """Data and network of a run, before or after training."""

    data: irf_data.IRFData
    nets: IRFNets
    scale: Params


class Trained(NamedTuple):
    """What a run has come to at its best validation, in averaged parameters."""

    members: list[irf_measure.Member]  # of a single run, one
    step: int


def make_ready(settings: IRFRun) -> Ready:
    """Open the data, build the network, measure the training rows."""
    data = irf_data.open_irf(settings.data, settings.data_seed)
    nets = irf_nets(settings.net, data.worlds, data.horizon)
    return Ready(data, nets, irf_data.measure_scale(nets, data))


def task_of(settings: IRFRun, ready: Ready) -> Task:
    """The training problem."""
    return irf.irf_task(ready.nets, ready.scale, settings.irf)


def settings_of(checkpoint: Path) -> IRFRun:
    """The settings that a run was started with."""
    return train.read_settings(IRFRun, checkpoint)


def trained(settings: IRFRun, checkpoint: Path) -> tuple[IRFNets, Trained]:
    """The networks and the best checkpoint's parameters and state, each member's own; no data are read."""
    found = train.find(checkpoint, "best")
    # What was measured on the training data has the shapes that it had then.
    prefix = "state/scale/"
    drop = 1 if settings.train.members > 1 else 0
    scale = {
        name.removeprefix(prefix): torch.zeros(leaf["shape"][drop:], dtype=getattr(torch, leaf["dtype"]))
        for name, leaf in found.leaves.items()
        if name.startswith(prefix)
    }
    horizon = len(scale.pop("weights")) - 1
    nets = irf_nets(settings.net, irf_data.worlds_of(settings.data.worlds), horizon)
    params, state = irf.irf_task(nets, scale, settings.irf).init(settings.train.seed)
    if settings.train.members > 1:
        k = settings.train.members
        all_params, all_state = (tree.stack([x] * k) for x in (params, state))
        all_params, all_state, _ = train.load_members(checkpoint, all_params, all_state)
        members = [(tree.member(all_params, i), tree.member(all_state, i)) for i in range(k)]
        return nets, Trained(members, found.step)
    params = train.load_params(checkpoint, params, "best")
    return nets, Trained([(params, train.load_state(checkpoint, state, "best"))], found.step)


def report(
    settings: IRFRun,
    data: irf_data.IRFData,
    checkpoint: Path,
    out: Path,
    more: Mapping[str, Any],
    here: Ranks | None = None,
) -> None:
    """Measure a checkpoint on held-out economies; the report goes into the folder `out`.

    The ranks `here` is one of share the economies (`irf_measure.emulated`), and rank 0 writes; None: alone.
    """
    nets, found = trained(settings, checkpoint)
    if data.horizon != nets.horizon:
        raise ValueError(
            f"data: {data.name}: expected responses in periods 0 to {nets.horizon}, as the emulator was "
            f"trained on, got 0 to {data.horizon}"
        )
    params, state = found.members[0]
    rows, covered = irf_measure.measure(nets, found.members, data, here=here)
    if here is not None and here.rank:
        return
    splits = irf_measure.summarise(nets, state, data, rows, covered)
    facts: dict[str, Any] = {
        "data": data.name,
        "worlds": ", ".join(world.name for world in nets.worlds),
        "network": f"{settings.net.arch}, {settings.net.coordinates} coordinates, "
        f"{tree.size(params):,} parameters"
        + ("" if len(found.members) == 1 else f", {len(found.members)} of them; their mean is judged"),
        "training": f"step {found.step}, {settings.train.batch_size} rows each",
        **more,
        **train.versions(settings.train.seed),
    }
    written = irf_report.write_report(out, splits, rows, facts)
    if settings.plots:
        factors = {row.world: row.factor for row in splits}
        written += irf_drawing.draw_responses(out, nets, found.members, data, factors)
    irf_report.print_table(splits, f"{data.name}: held-out economies")
    print("wrote " + ", ".join(str(file) for file in written))
