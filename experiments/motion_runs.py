"""The settings of a motion run, what it has come to, its report, its export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk import train
from mfk.core import rng, tree
from mfk.core.types import Params, Rows, Task, Tree
from mfk.data import LoaderConfig, Segments, WindowConfig, read_windows
from mfk.tasks import motion, motion_data, motion_export, motion_report
from mfk.tasks.motion_animation import animate
from mfk.tasks.motion_features import FeatureConfig, mirror_pairs, world_positions
from mfk.tasks.motion_measure import Predictor, roll
from mfk.tasks.motion_net import MotionNet, MotionNetConfig, motion_net
from mfk.train import RunConfig, TrainConfig

SAMPLES = 8  # rollouts of a generative model in its report


@dataclass(frozen=True)
class MotionRun:
    """A training run."""

    net: MotionNetConfig = field(default_factory=MotionNetConfig)
    motion: motion.MotionConfig = field(default_factory=motion.MotionConfig)
    data: motion_data.MotionDataConfig = field(default_factory=motion_data.MotionDataConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: int = 30
    """Frames of a rollout in validation and report."""
    validation_windows: int = 64
    """Held-out windows of the validation during training, spread evenly."""
    report_windows: int | None = None
    """Held-out windows of the final report, spread evenly; None: all."""
    animation: bool = True
    """Draw a held-out window and its rollout side by side, animation.gif in the run's folder."""
    export_ts: Path | None = None
    """File for the trained model as TorchScript (NAME.ts); NAME.pt2 of torch.export comes beside it."""
    run: RunConfig = field(default_factory=RunConfig)


class Ready(NamedTuple):
    """Data and network of a run, before or after training."""

    data: motion_data.MotionData
    net: MotionNet
    scale: Params


class Trained(NamedTuple):
    """What a run has come to at its best validation, in averaged parameters."""

    params: Params
    state: Tree
    step: int


def make_ready(settings: MotionRun) -> Ready:
    """Open the data, build the network, measure what the task needs to know of the training windows."""
    for name in ("rollout", "validation_windows", "report_windows"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if settings.train.members != 1:
        raise ValueError(f"members: motion models are trained one by one, got {settings.train.members}")
    data = motion_data.open_data(settings.data, settings.features, settings.train.seed)
    net = network_of(settings, data)
    return Ready(data, net, motion_data.measure_scale(data, net.config.horizon, net.config.base))


def network_of(settings: MotionRun, data: motion_data.MotionData) -> MotionNet:
    """The configured network for these data."""
    loss = settings.motion.loss
    generative = loss.objective != "regression"
    return motion_net(settings.net, 7 * data.how.bones, data.labels, generative, motion.diffusion_of(loss))


def task_of(settings: MotionRun, ready: Ready) -> Task:
    """The training problem."""
    source, pairs = ready.data.source, ()
    if settings.motion.loss.mirror:
        pairs = mirror_pairs(source.info.skeleton.bone_names, source.name)
    return motion.motion_task(ready.net, ready.data.how, ready.scale, settings.motion, pairs)


def trained(settings: MotionRun, ready: Ready, checkpoint: Path) -> Trained:
    """The best checkpoint's parameters and state, the data's scale as it was measured then."""
    params, state = task_of(settings, ready).init(settings.train.seed)
    step = train.find(checkpoint, "best").step
    params = train.load_params(checkpoint, params, "best")
    return Trained(params, train.load_state(checkpoint, state, "best"), step)


def sampler(ready: Ready, found: Trained, sample: int) -> Predictor:
    """The trained network as a predictor; sample number `sample` of a generative one."""
    net = ready.net
    if not net.generative:
        return motion.predictor_of(net, found.params, found.state)

    def predictor(x: torch.Tensor, label: torch.Tensor | None, k: int | None) -> torch.Tensor:
        noise = rng.normal(
            rng.key(sample, "next" if k is None else k, "rollout noise"), Rows.all(len(x)), (net.features,)
        )
        return motion.predictor_of(net, found.params, found.state, noise[:, None])(x, label, 0)

    return predictor


def report(
    settings: MotionRun, ready: Ready, checkpoint: Path, out: Path, more: Mapping[str, Any]
) -> list[motion_report.MotionResult]:
    """Compare a checkpoint's network with what needs no learning; the report goes into the folder `out`."""
    found = trained(settings, ready, checkpoint)
    net, data = ready.net, ready.data
    name = f"{settings.net.arch}, {settings.motion.loss.objective}"
    results = motion_report.compare(
        data,
        found.state["scale"],
        {name: partial(sampler, ready, found)},
        net.config.horizon,
        settings.rollout,
        settings.report_windows,
        SAMPLES if net.generative else 1,
    )
    info = data.source.info
    facts = {
        "data": data.source.name,
        "skeleton": f"{len(info.skeleton.bone_names)} bones, {info.fps:g} frames/s",
        "held-out clips": _names(data, data.test),
        "validation": "the same" if data.test is data.held_out else _names(data, data.held_out),
        "network": f"{settings.net.arch}, {tree.size(found.params):,} parameters",
        "horizon": f"sees {net.config.horizon} frames",
        "training": f"step {found.step}, {settings.train.batch_size} windows each",
        "rollout": f"{settings.rollout} frames",
        **more,
        **train.versions(settings.train.seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    written = motion_report.write_report(out, results, facts, info.fps)
    motion_report.print_table(
        results, f"{data.source.name}: held-out clips, rollouts of {settings.rollout} frames"
    )
    last = results[-1]
    if last.diversity_cm is not None:
        print(
            f"{SAMPLES} samples: {last.diversity_cm:.2f} cm apart at the last frame, the nearest one's "
            f"rollout {last.best_cm:.2f} cm from the truth"
        )
    print("wrote " + ", ".join(str(file) for file in written))
    return results


def _names(data: motion_data.MotionData, segments: Segments) -> str:
    return ", ".join(sorted({data.source.info.clips[i].name for i in segments.clip}))


def draw(
    settings: MotionRun, ready: Ready, checkpoint: Path, file: Path, clip: str | None, frames: int
) -> None:
    """Animate a held-out window's truth and its rollout side by side."""
    found = trained(settings, ready, checkpoint)
    data, info = ready.data, ready.data.source.info
    if info.skeleton.parents is None:
        raise ValueError(
            f"{data.source.name}: the file does not say the bones' parents, nothing can be drawn"
        )
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    seen = ready.net.config.horizon
    windows = motion_data.held_out_window(data, seen, clip)
    frames = min(frames, int(windows.end[0] - windows.start[0]) - seen)
    batch = read_windows(data.source, windows, seen + frames)
    predictor = sampler(ready, found, 0)
    with torch.no_grad():
        made = roll(
            data.how, found.state["scale"], predictor, batch["frames"][:, :seen], batch.get("labels"), frames
        )
    shown = {
        "truth": world_positions(data.how, batch["frames"][0, seen:]),
        "rollout": world_positions(data.how, made[0]),
    }
    axis = data.how.up if data.how.up is not None else 1
    name = info.clips[int(windows.clip[0])].name
    animate(
        file,
        shown,
        info.skeleton.parents,
        fps=info.fps,
        up=axis,
        title=f"{name}, {settings.net.arch}",
        bone_names=info.skeleton.bone_names,
    )
    print(f"wrote {file}")


def export(settings: MotionRun, ready: Ready, checkpoint: Path, file: Path) -> None:
    """Write the trained network as TorchScript and torch.export, both compared with it."""
    found = trained(settings, ready, checkpoint)
    windows = motion_data.some_windows(ready.data, ready.net.config.horizon, 5)
    batch = read_windows(ready.data.source, windows, ready.net.config.horizon)
    label = batch["labels"][:, -1] if ready.net.labels else None
    done = motion_export.export_motion(
        ready.net, ready.data.how, found.params, found.state, batch["frames"], label, file
    )
    for name, difference in done.items():
        print(f"wrote {name}: read back, differs from the model by at most {difference:.1e}")


def settings_of(checkpoint: Path) -> MotionRun:
    """The settings that a run was started with."""
    return train.read_settings(MotionRun, checkpoint)
