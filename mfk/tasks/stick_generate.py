"""Motion from text: the transformer's own frames, one after another, and their refinement."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.files import read_json
from mfk.core.types import Params, Rows, Tree, describe
from mfk.data.stick import ACTIONS, StickClip
from mfk.nn import StickCache, StickOutput
from mfk.tasks.stick_features import Seen, anchored, hip_columns, joined, meant, see
from mfk.tasks.stick_net import StickNets
from mfk.tasks.stick_refine import refine

OPENING = 5  # frames that a generated motion begins with
_KEPT = 16  # openings of each action
_PLACES = 4  # of each clip
_FAR = 1e6  # units; no figure is there


class Made(NamedTuple):
    """A generated motion."""

    motion: Tensor  # [T, D], in units; the first OPENING frames are those of a training clip
    actions: Tensor  # [T], int64, what the network was told, or else what its head says
    plain: Tensor | None  # [T, D], before the refinement; None: there is none


class Openings(NamedTuple):
    """How training clips begin to do something, for `generate` to begin with."""

    motion: Tensor  # [N, 5, D], the hip of the first frame at x = 0
    action: Tensor  # [N], int64, of all five frames; -1: not known
    ground: float = -math.inf  # units; no point of a training clip is lower


def openings(clips: Sequence[StickClip], seed: int) -> Openings:
    """Five frames in a row of training clips, from up to 16 places for each action; the ground of all clips.

    Raises:
        ValueError: no clip has five frames.
    """
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "openings")))
    found: dict[int, list[Tensor]] = {}
    for i in generator.permutation(len(clips)).tolist():
        clip = clips[i]
        for start in generator.permutation(max(0, len(clip.motion) - OPENING + 1)).tolist()[:_PLACES]:
            frames = clip.motion[start : start + OPENING].clone()
            labels = torch.full((1,), -1) if clip.actions is None else clip.actions[start : start + OPENING]
            some = found.setdefault(int(labels[0]), [])
            if len(some) < _KEPT and bool((labels == labels[0]).all()):
                frames[:, 0::2] -= frames[0, hip_columns(frames.shape[1])[0]].clone()
                some.append(frames)
    if not any(found.values()):
        raise ValueError(f"data: expected a training clip of at least {OPENING} frames")
    actions = [action for action, some in found.items() for _ in some]
    ground = min(float(clip.motion[..., 1::2].min()) for clip in clips if len(clip.motion))
    return Openings(torch.stack([x for some in found.values() for x in some]), torch.tensor(actions), ground)


def to_json(known: Openings) -> str:
    """Openings as text, places to a hundred-thousandth of a unit."""
    motion = [[[round(x, 5) for x in frame] for frame in frames] for frames in known.motion.tolist()]
    told = {"action": known.action.tolist(), "ground": round(known.ground, 5), "motion": motion}
    return json.dumps(told) + "\n"


def from_json(path: Path, width: int) -> Openings:
    """The inverse of `to_json`, of a figure of `width` numbers a frame.

    Raises:
        FileNotFoundError: no such file. ValueError: it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; a run of stick.py leaves it")
    said = read_json(path)
    try:
        motion = torch.tensor(said["motion"], dtype=torch.float32)
        # Runs of before have none.
        known = Openings(motion, torch.tensor(said["action"]), said.get("ground", -math.inf))
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: expected openings as stick.py writes them: {error}") from None
    fits = motion.shape[1:] == (OPENING, width) and len(motion)
    if not fits or known.action.shape != (len(motion),):
        raise ValueError(
            f"{path}: expected motion [N, {OPENING}, {width}] and an action of each of N openings, "
            f"got {tuple(motion.shape)} and {tuple(known.action.shape)}"
        )
    whole = known.action.dtype == torch.int64 and bool((motion.abs() <= _FAR).all())
    if not whole or not -1 <= int(known.action.min()) <= int(known.action.max()) < len(ACTIONS):
        raise ValueError(
            f"{path}: expected places within {_FAR:,.0f} units, and actions from -1 to {len(ACTIONS) - 1}, "
            "got others"
        )
    low = known.ground
    if isinstance(low, bool) or not isinstance(low, int | float) or not low <= motion[..., 1::2].min():
        raise ValueError(f"{path}: expected a ground under all points, got {low!r:.80}")
    return known._replace(ground=float(low))


def opening(known: Openings, action: int, seed: int) -> Tensor:
    """The frames [5, D] with which a motion begins that first does `action`; -1: any."""
    chosen = torch.arange(len(known.action))
    if action >= 0 and bool((known.action >= 0).any()):
        chosen = (known.action == action).nonzero()[:, 0]
    if not len(chosen):
        raise ValueError(f"action: expected one of {sorted(set(known.action.tolist()))}, got {action}")
    pick = int(rng.uniform(rng.key(seed, "opening"), Rows.all(1), (), torch.float64)[0] * len(chosen))
    return known.motion[chosen[pick]]


def check_actions(known: Openings, actions: Tensor, name: str = "actions") -> None:
    """ValueError, of `name`, if something is to be done that no labelled training clip does."""
    there = set(known.action.tolist()) - {-1}
    missing = sorted(set(actions.tolist()) - {-1} - there)
    if there and missing:
        names = ", ".join(ACTIONS[a] for a in sorted(there))
        raise ValueError(f"{name}: expected what the training clips do, {names}, got {ACTIONS[missing[0]]!r}")


@torch.no_grad()
def generate(
    nets: StickNets,
    params: Tree,
    state: Tree,
    known: Openings,
    text: Tensor,
    frames: int,
    *,
    seed: int = 0,
    actions: Tensor | None = None,
    lean: float = 0.02,
    cached: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Made:
    """A motion of `frames` frames; the same for the same arguments.

    It begins with the opening of a training clip, of the first action where there is one and the training
    clips have labels; `seed` draws which, and the noise of the refinement. Every further frame is what the
    transformer says comes after those before it, moved by the share `lean` to where its anchor says that the
    frame is: errors of single frames, tiny as they are, would add up. Points that would come under the ground
    are on it. A refinement then takes all of it at once, and leaves the opening alone.

    Args:
        nets: as of `stick_nets`.
        params: of the task.
        state: of the task.
        known: as of `openings`.
        text: embedding, [E].
        frames: of the motion, at least 6.
        seed: see above.
        actions: what to do, [frames], int64, -1: nothing is said; None: text alone.
        lean: in [0, 1]; 0 follows the movement alone, 1 the anchor.
        cached: whether keys and values of earlier frames are kept; off, each frame sees all anew.
        progress: called after each frame with (frames done, frames).

    Raises:
        ValueError: another shape, too few frames, or an action that no training clip has.
    """
    width = nets.width
    if known.motion.shape[1:] != (OPENING, width):
        raise ValueError(
            f"known: expected openings of the network's figure, [N, {OPENING}, {width}], "
            f"got {tuple(known.motion.shape)}"
        )
    if isinstance(frames, bool) or not isinstance(frames, int) or frames <= OPENING:
        raise ValueError(f"frames: expected an int > {OPENING}, got {describe(frames)}")
    if text.shape != (nets.config.embedding_dim,):
        raise ValueError(f"text: expected the shape ({nets.config.embedding_dim},), got {tuple(text.shape)}")
    if isinstance(lean, bool) or not isinstance(lean, int | float) or not 0 <= lean <= 1:
        raise ValueError(f"lean: expected a share in [0, 1], got {describe(lean)}")
    told = torch.full((frames,), -1) if actions is None else actions
    if told.shape != (frames,) or told.dtype != torch.int64:
        raise ValueError(f"actions: expected int64 of the shape ({frames},), got {describe(told)}")
    if bool(((told < -1) | (told >= len(ACTIONS))).any()):
        raise ValueError(f"actions: expected places in ACTIONS, 0 to {len(ACTIONS) - 1}, or -1, got others")
    if actions is not None and not nets.config.condition_actions and bool((told >= 0).any()):
        raise ValueError("actions: the network was built without condition_actions")
    check_actions(known, told)
    motion = torch.zeros(1, frames, width)
    motion[0, :OPENING] = opening(known, int(told[0]), seed)
    said = told.clone()
    step = (
        _cached_steps(nets, params, state, text, frames, lean)
        if cached
        else _whole_steps(nets, params, state, text, lean)
    )
    for t in range(frames - 1):
        out = step(motion, told, t)
        if t + 1 >= OPENING:
            motion[:, t + 1] = _on_ground(out.pose, known.ground)
        if int(told[t + 1]) < 0:
            said[t + 1] = out.actions[0, : len(ACTIONS)].argmax()  # the head may have more
        if progress is not None:
            progress(t + 2, frames)
    if nets.denoiser is None:
        return Made(motion[0], said, None)
    noise = rng.normal(rng.key(seed, "refinement"), Rows.all(1), (frames - 1, width))
    better = refine(nets, params["refine"], state, motion[:, 1:], text[None], noise)
    refined = motion.clone()
    refined[:, OPENING:] = _on_ground(better[:, OPENING - 1 :], known.ground)
    return Made(refined[0], said, motion[0])


def _on_ground(frames: Tensor, ground: float) -> Tensor:
    """Frames [..., D] whose points under the ground are lifted onto it: where a foot lands, it stands."""

    def lifted(frames: Tensor) -> Tensor:
        return torch.stack((frames[..., 0::2], frames[..., 1::2].clamp(min=ground)), -1).flatten(-2)

    # The pelvis is in the middle of hips that were lifted; a mean may be rounded to below the ground.
    return lifted(joined(lifted(frames)))


def _whole_steps(
    nets: StickNets, params: Tree, state: Tree, text: Tensor, lean: float
) -> Callable[[Tensor, Tensor, int], StickOutput]:
    """The frame after frame t, by all frames before it at once."""

    def step(motion: Tensor, told: Tensor, t: int) -> StickOutput:
        seen = see(state["scale"], motion[:, : t + 1])
        actions = told[None, : t + 1] if nets.config.condition_actions else None
        out = nets.model.apply(
            params["net"],
            state["buffers"]["net"],
            seen.features,
            text[None],
            actions,
            _camera(nets, motion[:, : t + 1]),
        )
        return _last(state["scale"], seen, motion[:, : t + 1], out, lean)

    return step


def _cached_steps(
    nets: StickNets, params: Tree, state: Tree, text: Tensor, frames: int, lean: float
) -> Callable[[Tensor, Tensor, int], StickOutput]:
    """The frame after frame t, by it and what is kept of those before; t counts up from 0."""
    cache: int | StickCache = frames

    def step(motion: Tensor, told: Tensor, t: int) -> StickOutput:
        nonlocal cache
        seen = Seen(*(x[:, -1:] for x in see(state["scale"], motion[:, : t + 1])))
        out, cache = nets.model.apply(
            params["net"],
            state["buffers"]["net"],
            seen.features,
            text[None] if t == 0 else None,
            told[None, t : t + 1] if nets.config.condition_actions else None,
            None if (camera := _camera(nets, motion[:, : t + 1])) is None else camera[:, -1:],
            cache=cache,
        )
        return _last(state["scale"], seen, motion[:, : t + 1], out, lean)

    return step


def _camera(nets: StickNets, motion: Tensor) -> Tensor | None:
    """Where the camera is that a network may be told, [1, T, 3]: it follows the hip along, at one height."""
    if not nets.config.condition_camera:
        return None
    hip = motion[..., hip_columns(nets.width)]
    height = hip[:, :1, 1:].expand(-1, motion.shape[1], -1)
    return torch.cat((hip[..., :1], height, torch.ones_like(height)), -1)


def _last(scale: Params, seen: Seen, motion: Tensor, out: StickOutput, lean: float) -> StickOutput:
    """What is said after the last of the frames `motion` [1, T, D], its pose [1, D] in units."""
    raw, anchor = out.pose[:, -1:].chunk(2, -1)
    moved = meant(Seen(*(x[:, -1:] for x in seen)), raw)
    # The anchor's height is above the first frame's.
    ends = motion[:, [0, -1]]
    there = anchored(scale, ends, anchor.expand(-1, 2, -1))[:, 1:]
    pose = moved + lean * (there - moved)
    return StickOutput(*(x[:, -1] for x in out._replace(pose=pose)))
