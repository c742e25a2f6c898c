"""Stick figures in the plane: frames of line segments, the names of actions and environments, one clip.

A frame is a row of segments, (x1, y1, x2, y2) each, y up, in figure units of 0.68 m: five of them (20
numbers) or twelve (48). Names, order and units are those of stick-gen's schema (gestura-ai/stick-gen
@c36d8a9, src/data_gen/schema.py and joint_utils.py). Segments that meet repeat their common point, and the
pelvis of 48 numbers is the middle of the hips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfk.core.types import describe

FPS = 25
"""Frames per second."""

UNIT = 0.68
"""Metres in a figure unit: a figure of 2.5 units is 1.7 m tall."""

GRAVITY = 9.8 / UNIT
"""Of the earth, in units/s²."""

SEGMENTS: dict[int, tuple[tuple[str, str, str], ...]] = {
    20: (
        ("torso", "neck", "hip"),
        ("left_leg", "hip", "left_foot"),
        ("right_leg", "hip", "right_foot"),
        ("left_arm", "neck", "left_hand"),
        ("right_arm", "neck", "right_hand"),
    ),
    48: (
        ("head", "neck", "head"),
        ("upper_torso", "neck", "chest"),
        ("lower_torso", "chest", "pelvis"),
        ("left_upper_arm", "left_shoulder", "left_elbow"),
        ("left_forearm", "left_elbow", "left_wrist"),
        ("right_upper_arm", "right_shoulder", "right_elbow"),
        ("right_forearm", "right_elbow", "right_wrist"),
        ("left_thigh", "left_hip", "left_knee"),
        ("left_shin", "left_knee", "left_ankle"),
        ("right_thigh", "right_hip", "right_knee"),
        ("right_shin", "right_knee", "right_ankle"),
        ("pelvis_width", "left_hip", "right_hip"),
    ),
}
"""Numbers in a frame -> (name, first point, second point) of each segment, in their order."""

DOCUMENTED_ACTIONS = 46
"""So many of `ACTIONS` are those of stick-gen's enum, in its order; a class's number is its place."""

ACTIONS: tuple[str, ...] = (
    *("idle", "walk", "run", "sprint", "jump"),
    *("wave", "talk", "shout", "whisper", "sing", "point", "clap"),
    *("batting", "pitching", "catching", "running_bases", "fielding", "throwing"),
    *("kicking", "dribbling", "shooting"),
    *("fight", "punch", "kick", "dodge"),
    *("sit", "stand", "kneel", "lie_down", "eating", "drinking", "reading", "typing"),
    *("looking_around", "climbing", "crawling", "swimming", "flying"),
    *("celebrate", "dance", "cry", "laugh"),
    *("handshake", "hug", "high_five", "fight_stance"),
    # What recordings show beside these.
    *("bend", "block", "dab", "dance_indian", "dance_salsa", "elbow_strike", "hop", "jumping_jacks"),
    *("kata", "swing", "swordplay", "walk_uneven", "wash", "zombie_walk"),
)
"""The documented actions, then those of recordings that have no documented name, in alphabetical order."""

ENVIRONMENTS: tuple[str, ...] = (
    *("earth_normal", "grassland", "forest", "desert", "beach", "mountain", "arctic", "jungle", "swamp"),
    *("cave", "volcano", "city_street", "city_park", "gym"),
    *("underwater", "ocean_surface", "river", "lake", "pool"),
    *("space_vacuum", "moon", "mars", "asteroid", "alien_planet_low_g", "alien_planet_high_g"),
    *("cloud_realm", "ice_realm", "stadium", "arena", "rink", "track", "field"),
)
"""The 32 classes of the environment's head: of the 64 documented names, those whose physics the document sets
apart and the commonest places outdoors, in the documented order. Other names have no class."""

GRAVITIES: Mapping[str, float] = {
    "space_vacuum": 0.0,
    "moon": 0.16,
    "mars": 0.38,
    "asteroid": 0.05,
    "alien_planet_low_g": 0.3,
    "alien_planet_high_g": 2.0,
}
"""Environment -> gravity in units of the earth's; 1 elsewhere. (Of a world of high gravity the
document says 2.0 in the loss, 2.5 in the environment's profile.)"""


class StickClip(NamedTuple):
    """One clip of one or several figures; all but text and motion may be missing."""

    description: str
    motion: Tensor  # [T, D] or [T, A, D] of A actors, float32, D 20 or 48, in figure units
    actions: Tensor | None = None  # [T] or [T, A], int64, places in ACTIONS
    physics: Tensor | None = None  # [T, 6] or [T, A, 6], float32: see `stick_physics`
    camera: Tensor | None = None  # [T, 3], float32: x, y, zoom
    embedding: Tensor | None = None  # [E], float32, of the description
    source: str | None = None
    meta: dict[str, Any] | None = None
    environment_type: str | None = None
    enhanced_meta: dict[str, Any] | None = None


def stick_physics(motion: Tensor, fps: float = FPS) -> Tensor:
    """Velocity, acceleration and momentum of the first point, the neck: vx vy ax ay mx my.

    v[t] = (x[t + 1] - x[t]) fps and a[t] = (v[t + 1] - v[t]) fps, of which the last is repeated, so that
    v[t + 1] = v[t] + a[t] / fps throughout; the momentum is the velocity, of mass 1.

    Args:
        motion: [..., T, D], T >= 2.
        fps: frames per second, > 0.

    Returns:
        [..., T, 6], units/s and units/s².

    Raises:
        TypeError, ValueError: no such motion, fewer than two frames, or `fps` not positive.

    Source: gestura-ai/stick-gen @c36d8a9, src/data_gen/dataset_generator.py.
    """
    _check_motion(motion)
    if motion.ndim < 2 or motion.shape[-2] < 2:
        raise ValueError(f"motion: expected [..., T, D] of two frames or more, got {tuple(motion.shape)}")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise ValueError(f"fps: expected a positive number, got {describe(fps)}")
    velocity = _forward(motion[..., :2]) * fps
    return torch.cat((velocity, _forward(velocity) * fps, velocity), -1)


def stick_points(motion: Tensor) -> dict[str, Tensor]:
    """The points of frames by name, each [..., 2]; of a point that segments share, the first of its places.

    Args:
        motion: [..., D], D 20 or 48.

    Raises:
        TypeError, ValueError: no such motion.
    """
    _check_motion(motion)
    points: dict[str, Tensor] = {}
    for place, (_, first, second) in enumerate(SEGMENTS[motion.shape[-1]]):
        points.setdefault(first, motion[..., 4 * place : 4 * place + 2])
        points.setdefault(second, motion[..., 4 * place + 2 : 4 * place + 4])
    return points


def stick_frames(points: Mapping[str, Tensor], width: int) -> Tensor:
    """Frames from points by name, the inverse of `stick_points`; names that the frames lack are left out.

    Args:
        points: name -> [..., 2], all of one shape.
        width: of a frame, 20 or 48.

    Returns:
        [..., width].

    Raises:
        ValueError: an unknown width, a missing point, or shapes that differ.
    """
    check_width("width", width)
    names = [name for _, *ends in SEGMENTS[width] for name in ends]
    if missing := [name for name in names if name not in points]:
        raise ValueError(f"points: expected {missing[0]!r} for frames of {width}, got {sorted(points)}")
    shape = points[names[0]].shape
    for name in names:
        if points[name].shape != shape or shape[-1:] != (2,):
            raise ValueError(
                f"points: {name!r}: expected [..., 2] as {names[0]!r}, {tuple(shape)}, "
                f"got {describe(points[name])}"
            )
    return torch.cat([points[name] for name in names], -1)


def five_segments(motion: Tensor) -> Tensor:
    """Frames of 48 numbers as frames of 20: pelvis, ankles and wrists are hip, feet and hands.

    Args:
        motion: [..., 48].

    Returns:
        [..., 20].

    Raises:
        TypeError, ValueError: no such motion.
    """
    _check_motion(motion)
    if motion.shape[-1] != 48:
        raise ValueError(f"motion: expected frames of 48 numbers, got {tuple(motion.shape)}")
    points = stick_points(motion)
    found = {"neck": points["neck"], "hip": points["pelvis"]}
    for side in ("left", "right"):
        found[f"{side}_foot"], found[f"{side}_hand"] = points[f"{side}_ankle"], points[f"{side}_wrist"]
    return stick_frames(found, 20)


def shared_point_gap(motion: Tensor) -> Tensor:
    """How far apart the places are that should hold one point: the greatest coordinate's difference, [...].

    In frames of 48 the pelvis should also be the middle of the hips. 0 for a connected figure.

    Args:
        motion: [..., D], D 20 or 48.

    Raises:
        TypeError, ValueError: no such motion.
    """
    points = stick_points(motion)
    connected = stick_frames(points, motion.shape[-1])
    gap = (motion - connected).abs().amax(-1)
    if motion.shape[-1] == 48:
        middle = (points["left_hip"] + points["right_hip"]) / 2
        gap = torch.maximum(gap, (points["pelvis"] - middle).abs().amax(-1))
    return gap


def segment_lengths(motion: Tensor) -> Tensor:
    """Of each segment, [..., D / 4] in figure units.

    Args:
        motion: [..., D], D 20 or 48.

    Raises:
        TypeError, ValueError: no such motion.
    """
    _check_motion(motion)
    ends = motion.unflatten(-1, (-1, 4))
    return (ends[..., 2:] - ends[..., :2]).norm(dim=-1)


def check_width(name: str, width: object) -> None:
    """Raise ValueError unless a frame may have so many numbers."""
    if isinstance(width, bool) or not isinstance(width, int) or width not in SEGMENTS:
        raise ValueError(f"{name}: expected 20 or 48 numbers in a frame, got {describe(width)}")


def _forward(x: Tensor) -> Tensor:
    """x[t + 1] - x[t] along the axis before the last, the last difference repeated."""
    steps = x.diff(dim=-2)
    return torch.cat((steps, steps[..., -1:, :]), -2)


def _check_motion(motion: object) -> None:
    if not isinstance(motion, Tensor) or not motion.is_floating_point():
        raise TypeError(f"motion: expected a tensor of floating point, got {describe(motion)}")
    if motion.ndim == 0 or motion.shape[-1] not in SEGMENTS:
        raise ValueError(
            f"motion: expected a last axis of 20 or 48 numbers, got a shape of {tuple(motion.shape)}"
        )
