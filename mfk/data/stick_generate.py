"""Generated clips of stick figures: texts, motion without noise, labels, physics, camera, environment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows, describe
from mfk.data.stick import ACTIONS, FPS, GRAVITIES, GRAVITY, StickClip, check_width, stick_physics
from mfk.data.stick_actions import GENERATED_ACTIONS, HIP_HEIGHT, SPEEDS, jump_seconds, stick_pose
from mfk.data.stick_augment import mirror_stick, scale_stick, shift_stick
from mfk.data.stick_body import pose_frames, rounded_frames
from mfk.data.stick_words import ACTION_WORDS

_BLEND = 10  # frames in which one action becomes the next
_SHORTEST = 45  # frames that an action lasts at least beside another; on earth a jump fits into them
_WHO = ("a person", "someone", "the figure", "a man", "a woman", "a stick figure")
_PLACES: Mapping[str, str] = {
    "grassland": "in the grass",
    "forest": "in the forest",
    "desert": "in the desert",
    "beach": "on the beach",
    "arctic": "in the snow",
    "city_street": "on the street",
    "city_park": "in the park",
    "gym": "in the gym",
    "moon": "on the moon",
    "mars": "on mars",
    "alien_planet_high_g": "on a heavy planet",
    "stadium": "in the stadium",
}
_JOINTS = (" then ", " and then ", ", then ")
_EARTH = 0.6  # share of clips without another environment
_LATER = 3.0  # s, at most, that an action has been going on when a clip begins


class _Change(NamedTuple):
    """What augmentation does to a clip."""

    speed: float = 1.0
    scale: float = 1.0
    shift: float = 0.0
    mirror: bool = False


def schedule_motion(
    schedule: Sequence[tuple[str, int]],
    frames: int,
    *,
    width: int = 20,
    phases: Sequence[float] | None = None,
    speed: float = 1.0,
    gravity: float = GRAVITY,
) -> tuple[Tensor, Tensor]:
    """Motion of one figure that does one action after the other, facing and going towards +x.

    At scale 1, on the ground y = 0, the root at x = 0 in the first frame. At a switch the root goes on from
    where it is; speed and pose change smoothly within the 10 frames after it, the label at once.

    Args:
        schedule: (action, first frame) for each; the first at 0, then rising.
        frames: T >= 1.
        width: 20 or 48 numbers in a frame.
        phases: for each action, how long it has been going on when it starts, in s; None: 0. Jumps, which
            begin with their part of the schedule, need 0.
        speed: of time: frame i is at speed i / 25 s.
        gravity: of jumps per unit of that time squared, > 0.

    Returns:
        Motion [T, width] and actions [T], places in ACTIONS: float64, so that differences are exact to
        1e-12, and int64.

    Raises:
        ValueError: no such schedule, an action without a pose, or another argument out of range.
    """
    check_width("width", width)
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise ValueError(f"frames: expected an int >= 1, got {describe(frames)}")
    if not (isinstance(speed, int | float) and 0 < speed < math.inf):
        raise ValueError(f"speed: expected a positive number, got {describe(speed)}")
    starts = [first for _, first in schedule]
    rising = all(isinstance(a, int) and a < b for a, b in itertools.pairwise([*starts, frames]))
    if not starts or starts[0] != 0 or not rising:
        raise ValueError(
            f"schedule: expected first frames from 0 on that rise and are below {frames}, got {starts}"
        )
    before = [0.0] * len(starts) if phases is None else list(phases)
    if len(before) != len(starts):
        raise ValueError(f"phases: expected one for each of {len(starts)} actions, got {len(before)}")
    step = torch.arange(frames, dtype=torch.float64)
    pose, pace = torch.zeros(frames, 6, 2, dtype=torch.float64), torch.zeros(frames, dtype=torch.float64)
    labels = torch.empty(frames, dtype=torch.int64)
    for place, ((action, first), phase) in enumerate(zip(schedule, before, strict=True)):
        last = (starts[place + 1] if place + 1 < len(starts) else frames) - 1
        time = (step - first) * speed / FPS + phase
        own = stick_pose(action, time, gravity=gravity, until=(last - first) * speed / FPS + phase)
        part = ((step - first) / _BLEND).clamp(0.0, 1.0) if place else torch.ones_like(step)
        part = part * part * (3 - 2 * part)
        pose = pose.lerp(own, part[:, None, None])
        pace = pace.lerp(torch.full_like(pace, SPEEDS.get(action, 0.0)), part)
        labels[first:] = ACTIONS.index(action)
    x = torch.cat((pace.new_zeros(1), (pace[:-1] * speed / FPS).cumsum(0)))
    root = torch.stack((x, torch.full_like(x, HIP_HEIGHT)), -1)
    return pose_frames(pose + root[:, None], width), labels


def generate_stick(
    count: int,
    *,
    seed: int,
    frames: int = 250,
    width: int = 20,
    transitions: float = 0.5,
    augment: bool = False,
    actions: Sequence[str] | None = None,
    actors: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> list[StickClip]:
    """Clips of random actions, alone or one after the other, with texts that say what is done and where.

    Clip i depends on `seed`, i and the other arguments, not on `count`. Augmentation changes the speed,
    U(.8, 1.2), the size, U(.9, 1.1), the place, U(-.5, .5) along x alone, so that the ground stays at y = 0,
    and in half of the clips left and right. Poses are computed for the frames' own times: nothing is
    interpolated or padded. In flight the neck's acceleration is that of the environment's gravity, whatever
    speed and size. The camera is at the first figure's hip in x and in standing height, with zoom 1.
    A clip's meta says seed, number, actions with their first frames, and what was changed.

    Args:
        count: how many clips.
        seed: of the random numbers.
        frames: T of each clip. Below 90 there is one action in a clip, below 45 no jump among all actions.
        width: 20 or 48 numbers in a frame.
        transitions: share of clips (figures) with two or, a third of them from 135 frames on, three actions.
        augment: whether to change speed, size, place and side.
        actions: to draw from; None: all of `GENERATED_ACTIONS`.
        actors: figures in a clip, 1 to 4; one: motion is [T, D], several: [T, A, D].
        progress: called after each clip with (clips done, clips).

    Returns:
        The clips; there are no embeddings.

    Raises:
        ValueError: an argument out of range, or an action that there is no pose for.
    """
    for name, value, least in (("count", count, 0), ("frames", frames, 2), ("actors", actors, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int >= {least}, got {describe(value)}")
    if actors > 4:
        raise ValueError(f"actors: expected 1 to 4, got {actors}")
    check_width("width", width)
    if isinstance(transitions, bool) or not isinstance(transitions, int | float) or not 0 <= transitions <= 1:
        raise ValueError(f"transitions: expected a share in [0, 1], got {describe(transitions)}")
    chosen = tuple(GENERATED_ACTIONS if actions is None else actions)
    if isinstance(actions, str) or not chosen or (wrong := [a for a in chosen if a not in GENERATED_ACTIONS]):
        got = actions if isinstance(actions, str) or not chosen else wrong[0]
        raise ValueError(f"actions: expected some of {', '.join(GENERATED_ACTIONS)}, got {describe(got)}")
    if frames < _SHORTEST:
        if chosen == ("jump",):
            raise ValueError(f"frames: expected at least {_SHORTEST} for a jump, got {frames}")
        chosen = tuple(action for action in chosen if action != "jump")
    made = []
    for number in range(count):
        made.append(_clip(seed, number, frames, width, float(transitions), augment, chosen, actors))
        if progress is not None:
            progress(number + 1, count)
    return made


def _clip(
    seed: int,
    number: int,
    frames: int,
    width: int,
    transitions: float,
    augment: bool,
    actions: tuple[str, ...],
    actors: int,
) -> StickClip:
    u = _numbers(seed, number, "clip")
    environment = "earth_normal" if next(u) < _EARTH else _pick([*_PLACES], next(u))
    change = _Change()
    if augment:
        change = _Change(0.8 + 0.4 * next(u), 0.9 + 0.2 * next(u), next(u) - 0.5, next(u) < 0.5)
    schedules = [
        _schedule(_numbers(seed, number, who), frames, transitions, actions) for who in range(actors)
    ]
    gravity = GRAVITY * GRAVITIES.get(environment, 1.0) / (change.speed**2 * change.scale)
    shortest = min((n for schedule in schedules for n in _jumps(schedule, frames)), default=None)
    if shortest is not None and jump_seconds(gravity) > (shortest - 1) * change.speed / FPS:
        environment = "earth_normal"
        gravity = GRAVITY / (change.speed**2 * change.scale)
    motions, labels, texts = [], [], []
    for who, schedule in enumerate(schedules):
        v = _numbers(seed, number, who, "pose")
        phases = [0.0 if action == "jump" else _LATER * next(v) for action, _ in schedule]
        motion, label = schedule_motion(
            schedule, frames, width=width, phases=phases, speed=change.speed, gravity=gravity
        )
        # Figures stand beside each other.
        motion = shift_stick(scale_stick(motion, change.scale), change.shift + 3.0 * who)
        motions.append(mirror_stick(motion) if change.mirror else motion)
        labels.append(label)
        texts.append(_text([action for action, _ in schedule], v, who))
    motion = rounded_frames(torch.stack(motions, 1))
    # Of motion before it is rounded, since 25² would enlarge that.
    physics = torch.stack([stick_physics(one) for one in motions], 1)
    hip = motions[0][:, 2] if width == 20 else motions[0][:, 10]
    camera = torch.stack((hip, torch.full_like(hip, HIP_HEIGHT * change.scale), torch.ones_like(hip)), -1)
    place = _PLACES.get(environment, "")
    one = actors == 1
    return StickClip(
        description=" while ".join(texts) + (f" {place}" if place else ""),
        motion=motion[:, 0] if one else motion,
        actions=labels[0] if one else torch.stack(labels, 1),
        physics=(physics[:, 0] if one else physics).float(),
        camera=camera.float(),
        source="generated",
        meta={
            "seed": seed,
            "number": number,
            "schedule": [[[action, first] for action, first in schedule] for schedule in schedules],
            **change._asdict(),
        },
        environment_type=environment,
    )


def _schedule(
    u: Iterator[float], frames: int, transitions: float, actions: tuple[str, ...]
) -> list[tuple[str, int]]:
    """One to three different actions, each for 45 frames or more, and when they begin."""
    several, three = next(u) < transitions, next(u) < 1 / 3
    count = min(1 + several + (several and three), max(1, frames // _SHORTEST), len(actions))
    left, chosen = list(actions), []
    for _ in range(count):
        chosen.append(_pick(left, next(u)))
        left.remove(chosen[-1])
    spare = frames - count * _SHORTEST
    cuts = sorted(int(next(u) * (spare + 1)) for _ in range(count - 1))
    starts = [0, *(cut + (place + 1) * _SHORTEST for place, cut in enumerate(cuts))]
    return list(zip(chosen, starts, strict=True))


def _jumps(schedule: list[tuple[str, int]], frames: int) -> list[int]:
    """How many frames there are for each jumping part."""
    ends = [*(first for _, first in schedule[1:]), frames]
    return [end - first for (action, first), end in zip(schedule, ends, strict=True) if action == "jump"]


def _text(actions: list[str], u: Iterator[float], who: int) -> str:
    name = _pick(_WHO, next(u)) if who == 0 else ("another", "a third one", "a fourth one")[who - 1]
    forms = []
    for action in actions:
        said = ACTION_WORDS[action]
        place = 3 * int(next(u) * (len(said) // 3))
        forms.append(said[place : place + 3])
    style = next(u)
    first = f"{name} {forms[0][1]}"
    if style < 0.3:
        first = f"{name} is {forms[0][2]}"
    elif style < 0.5 and len(actions) > 1:
        first = f"{name} starts {forms[0][2]}"
    return first + "".join(_pick(_JOINTS, next(u)) + form[1] for form in forms[1:])


def _pick(values: Sequence[Any], u: float) -> Any:
    return values[int(u * len(values))]


def _numbers(seed: int, *path: int | str) -> Iterator[float]:
    """Numbers in [0, 1) of a key, without end."""
    for block in itertools.count():
        key = rng.key(seed, "stick", *path, block)
        yield from rng.uniform(key, Rows.all(1), (16,), torch.float64)[0].tolist()
