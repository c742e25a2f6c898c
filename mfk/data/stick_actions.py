"""Synthetic actions of a stick figure, as pure functions of time.

Of each action there is the pose around a root, the standing figure's hip, and the speed at which the root
moves on. idle, walk, run, sprint, wave, talk, fight and dance are the documented formulas (gestura-ai/
stick-gen @c36d8a9, src/data_gen/renderer.py). Seen as segments, their limbs change in length: legs by up to
19 % of their mean (sprint), arms by 25 % (walk) to 73 % (sprint), more than the validator's 15 %. The others
are this module's own, with arms of constant length, in place of static poses and of jumps between two.

A jump is ballistic: from take-off to landing the whole figure falls at the environment's gravity. (The
original's flight is a parabola of another acceleration, and jumps by 0.2 units when it lands.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.stick import GRAVITY

POINTS = ("neck", "hip", "left_foot", "right_foot", "left_hand", "right_hand")
"""The points of a pose, in their order."""

HIP_HEIGHT = 1.5
"""Of the root over the ground, in units; documented: feet are 1.5 below the hip."""

SPEEDS: Mapping[str, float] = {"walk": 1.9, "run": 7.4, "sprint": 11.8, "fight": 0.3, "dance": 0.5}
"""Documented speeds of the root in units/s; 0 for the other actions."""

_ARM, _LEG, _SPREAD = 1.0, math.hypot(0.3, 1.5), 0.3
_REST = math.asin(0.6)  # rad from straight down, of an arm at rest
# A jump: take-off speed in units/s, the crouch's depth, seconds of rest and of going down (or up again).
_TAKE_OFF, _CROUCH, _PAUSE, _DOWN = 4.16, 0.22, 0.24, 0.28

Pose = Callable[[Tensor], list[Tensor]]


def stick_pose(action: str, time: Tensor, *, gravity: float = GRAVITY, until: float = math.inf) -> Tensor:
    """The figure of an action around its root, at scale 1, facing +x.

    Args:
        action: one of `GENERATED_ACTIONS`.
        time: since the action began, [...] in s, float64 or float32.
        gravity: of jumps, in units/s², > 0.
        until: how long the action lasts, in s: a jump that would not end by then is not begun.

    Returns:
        Points in the order of `POINTS`, [..., 6, 2] in units.

    Raises:
        ValueError: an unknown action, or a gravity at which a jump would not come down.
    """
    if action not in _POSES and action != "jump":
        raise ValueError(f"action: expected one of {', '.join(GENERATED_ACTIONS)}, got {describe(action)}")
    if action == "jump":
        return torch.stack(_jump(time, gravity, until), -2)
    return torch.stack(_POSES[action](time), -2)


def jump_seconds(gravity: float) -> float:
    """How long one jump lasts, with the rest before it; s.

    Raises:
        ValueError: a gravity at which a jump would not come down.
    """
    if not (isinstance(gravity, int | float) and 0 < gravity < math.inf):
        raise ValueError(f"gravity: expected a positive number of units/s² to jump, got {describe(gravity)}")
    return _PAUSE + 2 * _DOWN + 4 * _CROUCH / _TAKE_OFF + 2 * _TAKE_OFF / gravity


def flight(time: Tensor, gravity: float, until: float = math.inf) -> Tensor:
    """Whether a jumping figure is in the air, [...]; arguments and errors are those of `stick_pose`."""
    period = jump_seconds(gravity)
    t = torch.remainder(time, period) - (_PAUSE + _DOWN + 2 * _CROUCH / _TAKE_OFF)
    fits = (torch.div(time, period, rounding_mode="floor") + 1) * period <= until
    return (t > 0) & (t < 2 * _TAKE_OFF / gravity) & fits


def _idle(t: Tensor) -> list[Tensor]:
    sway = 0.05 * torch.sin(2 * t)
    return _body(t, left=(-0.6, sway - 0.8), right=(0.6, sway - 0.8))


def _walk(t: Tensor) -> list[Tensor]:
    return _stride(t, rate=8.0, leg=0.4, arm=0.3, spread=0.3, hand=(0.5, -0.6), bob=0.0, lean=0.0)


def _run(t: Tensor) -> list[Tensor]:
    return _stride(t, rate=15.0, leg=0.7, arm=0.5, spread=0.3, hand=(0.6, -0.4), bob=0.1, lean=0.0)


def _sprint(t: Tensor) -> list[Tensor]:
    return _stride(t, rate=20.0, leg=0.9, arm=0.7, spread=0.4, hand=(0.8, -0.3), bob=0.15, lean=0.2)


def _wave(t: Tensor) -> list[Tensor]:
    return _body(t, left=(-0.6, -0.8), right=(0.8, 0.5 + 0.3 * torch.sin(10 * t)))


def _talk(t: Tensor) -> list[Tensor]:
    gesture = 0.2 * torch.sin(4 * t)
    return _body(t, left=(-0.6, gesture - 0.3), right=(0.6, -0.3 - gesture))


def _fight(t: Tensor) -> list[Tensor]:
    first = torch.remainder(t, 1.0) < 0.5
    reach, guard = torch.where(first, 0.9, 0.5), torch.where(first, 0.5, 0.9)
    high, low = torch.where(first, 0.2, -0.5), torch.where(first, -0.5, 0.2)
    return _body(t, spread=0.4, left=(-reach, high), right=(guard, low))


def _dance(t: Tensor) -> list[Tensor]:
    beat = torch.sin(5 * t)
    body = _body(t, spread=0.4, left=(-0.7, 0.3 + 0.3 * beat), right=(0.7, 0.3 - 0.3 * beat))
    return [point + _point(0.3 * beat, 0.2 * beat.abs()) for point in body]


def _aim(t: Tensor) -> list[Tensor]:
    return _arms(t, t * 0 + _REST, _REST + 0.46 * (1 - torch.cos(2.5 * t)))


def _clap(t: Tensor) -> list[Tensor]:
    apart = 0.03 + 0.25 * (1 + torch.cos(9 * t))
    down = -torch.sqrt(0.75**2 - apart**2)
    return _body(t, left=(-apart, down), right=(apart, down))


def _throw(t: Tensor) -> list[Tensor]:
    return _arms(t, _REST + 0.5 * _pulse(t + 0.2, 1.5, 0.7), _REST + 2.2 * _pulse(t, 1.5, 0.6))


def _punch(t: Tensor) -> list[Tensor]:
    return _arms(t, 0.9 + 0.9 * _pulse(t, 0.8, 0.5), 0.9 + 0.9 * _pulse(t + 0.4, 0.8, 0.5), spread=0.4)


def _kick(t: Tensor) -> list[Tensor]:
    lift = _pulse(t, 1.2, 0.6)
    body = _arms(t, _REST + 0.4 * lift, _REST + 0.3 * lift)
    angle = math.atan2(_SPREAD, 1.5) + 1.2 * lift
    body[3] = body[1] + _LEG * _point(torch.sin(angle), -torch.cos(angle))
    return body


def _dodge(t: Tensor) -> list[Tensor]:
    side, lean = 0.35 * torch.sin(5 * t), 0.3 * torch.sin(5 * t - 0.6)
    body = _arms(t, _REST + 0.3 * lean, _REST - 0.3 * lean)
    hip = _point(side, -0.1 + 0.0 * side)
    move = hip + _point(torch.sin(lean), torch.cos(lean)) - body[0]
    # The feet stay where they are.
    return [body[0] + move, hip, body[2], body[3], body[4] + move, body[5] + move]


def _sit(t: Tensor) -> list[Tensor]:
    rest = 0.45 + 0.1 * torch.sin(2 * t)
    return _seated(t, rest, rest, 0.06 * torch.sin(1.5 * t))


def _type(t: Tensor) -> list[Tensor]:
    keys = 0.12 * torch.sin(10 * t)
    return _seated(t, 0.35 + keys, 0.35 - keys, 0.0 * t)


def _celebrate(t: Tensor) -> list[Tensor]:
    angle = 2.4 + 0.4 * torch.sin(9 * t)
    body = _arms(t, angle, angle)
    drop = _point(0.0 * t, -0.06 * (1 - torch.cos(9 * t)))
    return [point if place in (2, 3) else point + drop for place, point in enumerate(body)]


_POSES: dict[str, Pose] = {
    "idle": _idle,
    "walk": _walk,
    "run": _run,
    "sprint": _sprint,
    "wave": _wave,
    "talk": _talk,
    "point": _aim,
    "clap": _clap,
    "throwing": _throw,
    "fight": _fight,
    "punch": _punch,
    "kick": _kick,
    "dodge": _dodge,
    "sit": _sit,
    "typing": _type,
    "celebrate": _celebrate,
    "dance": _dance,
}

GENERATED_ACTIONS: tuple[str, ...] = ("jump", *_POSES)
"""The actions that there are poses for."""


def _jump(t: Tensor, gravity: float, until: float) -> list[Tensor]:
    """Rest, go down, push off at constant acceleration, fly, and the same backwards."""
    period, push, air = jump_seconds(gravity), 2 * _CROUCH / _TAKE_OFF, 2 * _TAKE_OFF / gravity
    fits = (torch.div(t, period, rounding_mode="floor") + 1) * period <= until
    s = torch.where(fits, torch.remainder(t, period), 0.0) - _PAUSE
    # Time from the middle of the jump, the same on both sides of it.
    off = air / 2 + push + _DOWN - (s - (_DOWN + push + air / 2)).abs()
    down = -_CROUCH * _smooth(off / _DOWN)
    rise = -_CROUCH + 0.5 * (_TAKE_OFF / push) * (off - _DOWN) ** 2
    up = off - _DOWN - push
    height = torch.where(off < _DOWN, down, torch.where(up < 0, rise, up * (_TAKE_OFF - gravity * up / 2)))
    flying = up > 0
    arms = _REST + 1.9 * _smooth((off - _DOWN) / (push + 0.2))
    body = _arms(t, arms, arms)
    move = _point(0.0 * t, height)
    planted = _point(0.0 * t, torch.where(flying, height, 0.0))
    return [point + (planted if place in (2, 3) else move) for place, point in enumerate(body)]


def _stride(
    t: Tensor,
    *,
    rate: float,
    leg: float,
    arm: float,
    spread: float,
    hand: tuple[float, float],
    bob: float,
    lean: float,
) -> list[Tensor]:
    """Feet and hands that swing from side to side, while the body bobs twice as fast."""
    swing = torch.sin(rate * t)
    body = _body(
        t,
        left=(-hand[0] - arm * swing, hand[1]),
        right=(hand[0] + arm * swing, hand[1]),
    )
    body[2], body[3] = _point(leg * swing - spread, -1.5), _point(spread - leg * swing, -1.5)
    move = _point(lean + 0.0 * t, bob * swing.abs())
    return [point + move for point in body]


def _body(
    t: Tensor,
    *,
    left: tuple[Tensor | float, Tensor | float],
    right: tuple[Tensor | float, Tensor | float],
    spread: float = _SPREAD,
) -> list[Tensor]:
    """A standing figure whose hands are so far from the neck."""
    zero = torch.zeros_like(t)
    neck, hip = _point(zero, 1.0), _point(zero, 0.0)
    feet = [_point(zero - spread, -1.5), _point(zero + spread, -1.5)]
    return [neck, hip, *feet, *(neck + _point(zero + x, y) for x, y in (left, right))]


def _arms(t: Tensor, left: Tensor, right: Tensor, spread: float = _SPREAD) -> list[Tensor]:
    """A standing figure whose arms are turned outwards by so much from straight down, in rad."""
    ends = [(side * _ARM * torch.sin(a), -_ARM * torch.cos(a)) for side, a in ((-1.0, left), (1.0, right))]
    return _body(t, left=ends[0], right=ends[1], spread=spread)


def _seated(t: Tensor, left: Tensor, right: Tensor, lean: Tensor) -> list[Tensor]:
    """Half a unit lower (documented), the feet on the ground, the torso turned by `lean`, in rad."""
    body = _arms(t, left, right)
    hip, out = _point(0.0 * t, -0.5), math.sqrt(_LEG**2 - 1.0)
    neck = hip + _point(torch.sin(lean), torch.cos(lean))
    hands = [neck + body[place] - body[0] for place in (4, 5)]
    return [neck, hip, _point(0.0 * t - out, -1.5), _point(0.0 * t + out, -1.5), *hands]


def _point(x: Tensor, y: Tensor | float) -> Tensor:
    return torch.stack((x, y if isinstance(y, Tensor) else torch.full_like(x, y)), -1)


def _pulse(t: Tensor, period: float, width: float) -> Tensor:
    """0, and up to 1 and back within the first `width` seconds of each period, smoothly."""
    s = torch.remainder(t, period)
    return torch.where(s < width, torch.sin(math.pi * s / width) ** 2, 0.0)


def _smooth(x: Tensor) -> Tensor:
    """0 up to x = 0, 1 from x = 1 on, level at both."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3 - 2 * x)
