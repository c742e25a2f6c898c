"""Motion from text: the transformer's own frames, one after another, and their refinement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Params, Rows, Tree, describe
from mfk.data.stick import ACTIONS, StickClip
from mfk.nn import StickCache, StickOutput
from mfk.tasks.stick_features import Seen, anchored, hip_columns, meant, see
from mfk.tasks.stick_net import StickNets
from mfk.tasks.stick_refine import refine

OPENING = 5  # frames that a generated motion begins with
_KEPT = 8  # openings of each action


class Made(NamedTuple):
    """A generated motion."""

    motion: Tensor  # [T, D], in units; the first OPENING frames are those of a training clip
    actions: Tensor  # [T], int64, what the network was told, or else what its head says
    plain: Tensor | None  # [T, D], before the refinement; None: there is none


def openings(clips: Sequence[StickClip], seed: int) -> Params:
    """The first frames of training clips, a few for each action, for `generate` to begin with.

    Returns:
        "opening_motion" [N, 5, D], the hip of the first frame at x = 0, and "opening_action" [N], int64.

    Raises:
        ValueError: no clip has five frames.
    """
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "openings")))
    found: dict[int, list[Tensor]] = {}
    for i in generator.permutation(len(clips)).tolist():
        clip = clips[i]
        action = -1 if clip.actions is None else int(clip.actions[0])
        if len(clip.motion) >= OPENING and len(found.setdefault(action, [])) < _KEPT:
            frames = clip.motion[:OPENING].clone()
            frames[:, 0::2] -= frames[0, hip_columns(frames.shape[1])[0]].clone()
            found[action].append(frames)
    if not any(found.values()):
        raise ValueError(f"data: expected a training clip of at least {OPENING} frames")
    actions = [action for action, some in found.items() for _ in some]
    return {
        "opening_motion": torch.stack([x for some in found.values() for x in some]),
        "opening_action": torch.tensor(actions),
    }


def opening(scale: Params, action: int, seed: int) -> Tensor:
    """The frames [5, D] with which a motion begins that first does `action`; -1: any.

    Raises:
        ValueError: the training clips have labels, and none is of this action.
    """
    known, motion = scale["opening_action"], scale["opening_motion"]
    chosen = torch.arange(len(known))
    if action >= 0 and bool((known >= 0).any()):
        chosen = (known == action).nonzero()[:, 0]
    if not len(chosen):
        names = [ACTIONS[a] for a in sorted(set(known.tolist()) - {-1})]
        raise ValueError(
            f"actions: expected to begin with one that the training data had, {', '.join(names)}, "
            f"got {ACTIONS[action]!r}"
        )
    pick = int(rng.uniform(rng.key(seed, "opening"), Rows.all(1), (), torch.float64)[0] * len(chosen))
    return motion[chosen[pick]]


@torch.no_grad()
def generate(
    nets: StickNets,
    params: Params,
    state: Tree,
    text: Tensor,
    frames: int,
    *,
    seed: int = 0,
    actions: Tensor | None = None,
    lean: float = 0.15,
    cached: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> Made:
    """A motion of `frames` frames; the same for the same arguments.

    It begins with the opening of a training clip, of the first action where there is one and the training
    clips have labels; `seed` draws which, and the noise of the refinement. Every further frame is what the
    transformer says comes after those before it, moved by the share `lean` to where its anchor says that the
    frame is: errors of single frames, tiny as they are, would add up. A refinement then takes all of it at
    once, and leaves the opening alone.

    Args:
        nets: as of `stick_nets`.
        params: of the task.
        state: of the task, with the `openings`.
        text: embedding, [E].
        frames: of the motion, at least 6.
        seed: see above.
        actions: what to do, [frames], int64, -1: nothing is said; None: text alone.
        lean: in [0, 1]; 0 follows the movement alone, 1 the anchor.
        cached: whether keys and values of earlier frames are kept; off, each frame sees all anew.
        progress: called after each frame with (frames done, frames).

    Raises:
        ValueError: another shape, too few frames, or no opening of the first action.
    """
    width = nets.width
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
    motion = torch.zeros(1, frames, width)
    motion[0, :OPENING] = opening(state["scale"], int(told[0]), seed)
    said = told.clone()
    step = (
        _cached_steps(nets, params, state, text, frames, lean)
        if cached
        else _whole_steps(nets, params, state, text, lean)
    )
    for t in range(frames - 1):
        out = step(motion, told, t)
        if t + 1 >= OPENING:
            motion[:, t + 1] = out.pose
        if int(told[t + 1]) < 0:
            said[t + 1] = out.actions[0, : len(ACTIONS)].argmax()  # the head may have more
        if progress is not None:
            progress(t + 2, frames)
    if nets.denoiser is None:
        return Made(motion[0], said, None)
    noise = rng.normal(rng.key(seed, "refinement"), Rows.all(1), (frames - 1, width))
    better = refine(nets, params["refine"], state, motion[:, 1:], text[None], noise)
    refined = motion.clone()
    refined[:, OPENING:] = better[:, OPENING - 1 :]
    return Made(refined[0], said, motion[0])


def _whole_steps(
    nets: StickNets, params: Params, state: Tree, text: Tensor, lean: float
) -> Callable[[Tensor, Tensor, int], StickOutput]:
    """The frame after frame t, by all frames before it at once."""

    def step(motion: Tensor, told: Tensor, t: int) -> StickOutput:
        seen = see(state["scale"], motion[:, : t + 1])
        actions = told[None, : t + 1] if nets.config.condition_actions else None
        out = nets.model.apply(
            params["net"], state["buffers"]["net"], seen.features, text[None], actions, None, None, None
        )
        return _last(state["scale"], seen, motion[:, : t + 1], out, lean)

    return step


def _cached_steps(
    nets: StickNets, params: Params, state: Tree, text: Tensor, frames: int, lean: float
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
            cache=cache,
        )
        return _last(state["scale"], seen, motion[:, : t + 1], out, lean)

    return step


def _last(scale: Params, seen: Seen, motion: Tensor, out: StickOutput, lean: float) -> StickOutput:
    """What is said after the last of the frames `motion` [1, T, D], its pose [1, D] in units."""
    raw, anchor = out.pose[:, -1:].chunk(2, -1)
    moved = meant(Seen(*(x[:, -1:] for x in seen)), raw)
    # The anchor's height is above the first frame's.
    ends = motion[:, [0, -1]]
    there = anchored(scale, ends, anchor.expand(-1, 2, -1))[:, 1:]
    pose = moved + lean * (there - moved)
    return StickOutput(*(x[:, -1] for x in out._replace(pose=pose)))
