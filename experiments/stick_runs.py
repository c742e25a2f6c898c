"""The settings of a stick-figure run, what it has come to, its report, what it generates."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from counting import counter
from places import told

from mfk import train
from mfk.core import tree
from mfk.core.types import Params, Task, Tree
from mfk.data import LoaderConfig
from mfk.data.stick import ACTIONS, FPS
from mfk.data.stick_words import action_schedule
from mfk.tasks import stick, stick_data, stick_generate, stick_measure, stick_report
from mfk.tasks.stick_drawing import contact_sheet, draw_stick, save_stick
from mfk.tasks.stick_net import RefineConfig, StickNetConfig, StickNets, stick_nets
from mfk.train import RunConfig, TrainConfig

OPENINGS = "openings.json"  # in the run's folder
DEFAULT_SAMPLE = "a person walks then jumps"
_LONGEST = 3_600  # s of a generated motion
SAMPLE_SECONDS = 6.0


@dataclass(frozen=True)
class StickRun:
    """A training run."""

    net: StickNetConfig = field(default_factory=StickNetConfig)
    diffusion: RefineConfig = field(default_factory=RefineConfig)
    stick: stick.StickConfig = field(default_factory=stick.StickConfig)
    data: stick_data.StickDataConfig = field(default_factory=stick_data.StickDataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample_text: str | None = None
    """What is generated after the training, sample.gif in the run's folder; "": nothing; None: walking and
    jumping, or what a training clip does."""
    run: RunConfig = field(default_factory=RunConfig)


class Ready(NamedTuple):
    """Data and networks of a run, before or after training."""

    data: stick_data.StickData
    nets: StickNets
    scale: Params
    openings: stick_generate.Openings


class Trained(NamedTuple):
    """What a run has come to at its best validation, in averaged parameters."""

    params: Tree
    state: Tree
    step: int


def make_ready(settings: StickRun) -> Ready:
    """Read or generate the data, build the networks, measure the training windows."""
    if settings.train.members != 1:
        raise ValueError(f"members: stick figures are trained one by one, got {settings.train.members}")
    seed = settings.train.seed
    data = stick_data.open_stick(
        settings.data, seed, settings.net.embedding_dim, settings.net.condition_camera
    )
    nets = stick_nets(settings.net, settings.diffusion, data.width)
    scale = stick_data.measure_scale(data.training)
    if settings.run.init_from is not None and settings.run.resume is None:
        # Weights that were learnt in other units would have to be learnt anew.
        source = Path(settings.run.init_from)
        with told("--init-from", source, "the folder of a run that can be read"):
            _, before = trained(settings_of(source, "--init-from"), source)
        known = {name: x for name, x in before.state["scale"].items() if name in scale}
        if any(known[name].shape != x.shape for name, x in scale.items()):
            raise ValueError(
                f"init_from: expected a run on frames of {data.width} numbers, got {settings.run.init_from}"
            )
        scale = known
    return Ready(data, nets, scale, stick_generate.openings(data.openings, seed))


def task_of(settings: StickRun, ready: Ready) -> Task:
    """The training problem."""
    return stick.stick_task(ready.nets, ready.scale, settings.stick)


def settings_of(checkpoint: Path, flag: str = "--checkpoint") -> StickRun:
    """The settings that a run, given by `flag`, was started with."""
    return train.read_settings(StickRun, checkpoint, flag)


def trained(settings: StickRun, checkpoint: Path) -> tuple[StickNets, Trained]:
    """The networks and the best checkpoint's parameters and state; no data are read."""
    found = train.find(checkpoint, "best")
    # What was measured on the training data has the shapes that it had then.
    prefix = "state/scale/"
    scale = {
        name.removeprefix(prefix): torch.zeros(leaf["shape"], dtype=getattr(torch, leaf["dtype"]))
        for name, leaf in found.leaves.items()
        if name.startswith(prefix)
    }
    nets = stick_nets(settings.net, settings.diffusion, len(scale["pose"]))
    params, state = stick.stick_task(nets, scale, settings.stick).init(settings.train.seed)
    params = train.load_params(checkpoint, params, "best")
    return nets, Trained(params, train.load_state(checkpoint, state, "best"), found.step)


def report(
    settings: StickRun,
    data: stick_data.StickData,
    nets: StickNets,
    found: Trained,
    out: Path,
    more: Mapping[str, Any],
) -> list[stick_measure.ActionRow]:
    """Compare a checkpoint's network with what needs no learning; the report goes into the folder `out`."""
    errors = stick_measure.next_frame_errors(nets, found.params, found.state, data.test, settings.data.frames)
    rows = stick_measure.by_action(errors)
    facts = {
        "data": data.name,
        "held-out clips": len(data.test),
        "network": f"{tree.size(found.params['net']):,} parameters",
        "training": f"step {found.step}, {settings.train.batch_size} windows each",
        "windows": f"{settings.data.frames} frames",
        **more,
        **train.versions(settings.train.seed),
    }
    written = stick_report.write_report(out, rows, facts)
    stick_report.print_table(rows, f"{data.name}: next frames of {len(data.test)} held-out clips")
    print("wrote " + ", ".join(str(file) for file in written))
    return rows


def compose(
    settings: StickRun,
    nets: StickNets,
    found: Trained,
    known: stick_generate.Openings,
    text: str,
    seconds: float,
    seed: int,
    actions: tuple[str, ...],
) -> stick_generate.Made:
    """Generate what `text` says."""
    if not re.search(r"\w\w", text):
        raise ValueError(f"text: expected words, got {text!r:.80}")
    if not (math.isfinite(seconds) and stick_generate.OPENING < round(seconds * FPS) <= _LONGEST * FPS):
        least = (stick_generate.OPENING + 1) / FPS
        raise ValueError(f"seconds: expected {least:g} to {_LONGEST}, got {seconds}")
    if actions and not nets.config.condition_actions:
        raise ValueError("actions: no effect on a network that was trained without condition_actions")
    frames, wanted = round(seconds * FPS), None
    if nets.config.condition_actions:
        wanted = schedule(text, frames, actions)
        stick_generate.check_actions(known, wanted, "actions" if actions else "text")
    embedding = stick_data.embed_one("text", text, settings.data.encoder, settings.net.embedding_dim)

    return stick_generate.generate(
        nets, found.params, found.state, known, embedding, frames, seed=seed, actions=wanted,
        progress=counter("frames"),
    )  # fmt: skip


def schedule(text: str, frames: int, actions: tuple[str, ...]) -> torch.Tensor:
    """Which action each frame has, [frames], -1: none; as named, evenly spread, or else as `text` says."""
    if unknown := [name for name in actions if name not in ACTIONS]:
        raise ValueError(f"actions: expected some of {', '.join(ACTIONS)}, got {unknown[0]!r}")
    if len(actions) > frames:
        raise ValueError(f"actions: expected at most one for each of {frames} frames, got {len(actions)}")
    if actions:
        starts = [(ACTIONS.index(name), k * frames // len(actions)) for k, name in enumerate(actions)]
    else:
        starts = action_schedule(text, frames)
    labels = torch.full((frames,), -1)
    for action, first in starts:
        labels[first:] = -1 if action is None else action
    return labels


def sample_of(settings: StickRun, ready: Ready) -> str:
    """The text of the sample that follows the training; "": none.

    Raises:
        ValueError: it cannot be generated: rather said before a training than after it.
    """
    text = settings.sample_text
    if text is None:
        texts = (DEFAULT_SAMPLE, ready.data.openings[0].description)
        return next((text for text in texts if _possible(settings, ready, text)), "")
    if text:
        try:
            _try(settings, ready, text)
        except ValueError as error:
            raise ValueError(f"sample_text: {error}") from None
    return text


def _possible(settings: StickRun, ready: Ready, text: str) -> bool:
    try:
        _try(settings, ready, text)
    except ValueError:
        return False
    return True


def _try(settings: StickRun, ready: Ready, text: str) -> None:
    """ValueError if no motion could be generated from the text."""
    stick_data.embed_one(repr(text), text, settings.data.encoder, settings.net.embedding_dim)
    if settings.net.condition_actions:
        wanted = schedule(text, round(SAMPLE_SECONDS * FPS), ())
        stick_generate.check_actions(ready.openings, wanted, repr(text))


def write_motion(made: stick_generate.Made, file: Path, text: str) -> None:
    """Draw a generated motion, or write it as numbers, as the file's suffix says."""
    names = [ACTIONS[a] if a >= 0 else "" for a in made.actions.tolist()]
    title = textwrap.shorten(text, 120, placeholder=" ...")
    if file.suffix == ".npz":
        save_stick(file, made.motion, fps=FPS, text=text, actions=made.actions)
    elif file.suffix == ".png":
        columns = min(8, len(made.motion) // 2)
        contact_sheet(file, made.motion, fps=FPS, columns=columns, rows=2, title=title, texts=names)
    else:
        draw_stick(file, made.motion, fps=FPS, title=title, texts=names)
    print(f"wrote {file}")
