"""What a stick-figure model is judged by: next frames by action, recognised actions, smoothness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core.types import Batch, Params, Tree
from mfk.data.stick import ACTIONS, StickClip
from mfk.nn import StickOutput
from mfk.tasks.stick_data import windows_of
from mfk.tasks.stick_net import StickNets, next_frames

_ROWS = 32  # windows at a time
_KNOWN = 2  # frames that constant velocity needs before it predicts


class NextFrames(NamedTuple):
    """One number for each predicted frame of held-out windows, [R, T - 2]."""

    persistence: Tensor  # squared error, mean over a frame's numbers, in units squared
    velocity: Tensor  # of constant velocity
    model: Tensor
    action: Tensor  # int64, of the predicted frame; -1: not known
    guess: Tensor  # int64, the action that the head says, neither text nor actions told
    valid: Tensor  # bool


@torch.no_grad()
def next_frame_errors(
    nets: StickNets, params: Params, state: Tree, clips: Sequence[StickClip], frames: int
) -> NextFrames:
    """Errors of the frame after each of the clips' windows of `frames`, from the third frame on.

    Poses are predicted with text, and with the actions of the frames seen where the network takes them;
    actions are recognised from the motion alone.
    """
    found = []
    for batch in held_out_batches(nets, clips, frames):
        truth = batch["motion"]
        out = _predict(nets, params, state, batch, told=True)
        alone = _predict(nets, params, state, batch, told=False)
        target = truth[:, _KNOWN:]

        def error(made: Tensor, target: Tensor = target) -> Tensor:
            return (made - target).double().square().mean(-1)

        found.append(
            NextFrames(
                error(truth[:, 1:-1]),
                error(2 * truth[:, 1:-1] - truth[:, :-2]),
                error(out.pose[:, 1:]),
                batch["actions"][:, _KNOWN:],
                alone.actions[:, 1:].argmax(-1),
                batch["valid"][:, _KNOWN:],
            )
        )
    return NextFrames(*(torch.cat(x) for x in zip(*found, strict=True)))


class ActionRow(NamedTuple):
    """Figures of the frames of one action, or of all."""

    action: str
    frames: int
    persistence: float
    velocity: float
    model: float
    accuracy: float | None  # share of frames whose action is recognised; None: no labels


def by_action(found: NextFrames) -> list[ActionRow]:
    """A row for each action that occurs, and one for all frames."""
    rows = []
    for number in sorted(set(found.action[found.valid].tolist())):
        if number >= 0:
            rows.append(_row(found, ACTIONS[number], found.valid & (found.action == number)))
    return [*rows, _row(found, "all", found.valid)]


def held_out_batches(nets: StickNets, clips: Sequence[StickClip], frames: int) -> Iterator[Batch]:
    """Windows of the clips, 32 at a time."""
    batch = windows_of(clips, frames, nets.config.condition_camera, "held-out clips")
    for first in range(0, len(batch["motion"]), _ROWS):
        yield {name: x[first : first + _ROWS] for name, x in batch.items()}


@torch.no_grad()
def predictions(nets: StickNets, params: Params, state: Tree, batch: Batch) -> Tensor:
    """What the transformer predicts for frames 1 ... of a window, from those before each, [B, T - 1, D]."""
    return _predict(nets, params, state, batch, told=True).pose


def _predict(nets: StickNets, params: Params, state: Tree, batch: Batch, told: bool) -> StickOutput:
    actions = batch["actions"][:, :-1]
    text = batch["text"]
    return next_frames(
        nets,
        params["net"],
        state["buffers"]["net"],
        state["scale"],
        batch["motion"][:, :-1],
        text if told else torch.zeros_like(text),
        (actions if told else torch.full_like(actions, -1)) if nets.config.condition_actions else None,
        batch["camera"][:, :-1] if nets.config.condition_camera else None,
    )


def _row(found: NextFrames, name: str, chosen: Tensor) -> ActionRow:
    labelled = chosen & (found.action >= 0)
    right = (found.guess == found.action)[labelled]
    return ActionRow(
        name,
        int(chosen.sum()),
        *(float(x[chosen].mean()) for x in (found.persistence, found.velocity, found.model)),
        float(right.double().mean()) if len(right) else None,
    )
