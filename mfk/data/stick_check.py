"""Whether clips of stick figures can be what they say: findings, which drop nothing by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.data.stick import (
    ACTIONS,
    ENVIRONMENTS,
    FPS,
    SEGMENTS,
    StickClip,
    segment_lengths,
    shared_point_gap,
    stick_physics,
)

_EPSILON = torch.finfo(torch.float32).eps
_PRESENT = 1e-3  # units: a segment that is shorter on average has no length to be kept


class StickLimits(NamedTuple):
    """What a clip may show; the numbers are the document's (src/data_gen/validator.py)."""

    speed: float = 20.0  # of the neck, in units/s
    acceleration: float = 100.0  # of the neck, in units/s²
    length: float = 0.15  # by which a segment may differ from its mean length, relative
    gap: float = 1e-5  # between places that should hold one point, in units


class StickFinding(NamedTuple):
    """What is wrong with a clip; of each rule (and figure) the worst frame."""

    clip: int  # its place among the clips
    rule: str  # one of RULES
    frame: int | None  # None: not of one frame
    value: float | None  # what was found
    limit: float | None  # what it should not exceed
    detail: str = ""  # such as the figure and the segment


RULES = (
    "text",
    "short",
    "zero",
    "finite",
    "speed",
    "acceleration",
    "length",
    "gap",
    "actions",
    "physics",
    "environment",
)
"""text: there is none. short: of one frame, of which nothing else is said. zero: all numbers of all figures
are 0. finite: a number is not. speed, acceleration, length, gap: see `StickLimits`. actions: a number that is
no place in ACTIONS. physics: not the motion's. environment: a name without a class."""

DEFAULT_LIMITS = StickLimits()

# (rule, frame, value, limit, detail)
Found: TypeAlias = Callable[[str, int | None, float | None, float | None, str], None]


def check_stick(
    clips: Sequence[StickClip], limits: StickLimits = DEFAULT_LIMITS, fps: float = FPS
) -> list[StickFinding]:
    """What is wrong with clips, in the order of clips and of `RULES`; nothing is changed or dropped.

    A figure that is 0 throughout beside others is taken for the padding of clips with fewer figures, and a
    number that is not finite is all that is said of a clip's motion and physics. Speeds are those of the
    motion, not of the stored physics, which are compared with it up to what float32 can tell apart.

    Raises:
        TypeError: something else than clips, or one without a text or a motion.
        ValueError: motion of another shape than `StickClip` says.
    """
    findings: list[StickFinding] = []
    for number, clip in enumerate(clips):
        if not isinstance(clip, StickClip):
            raise TypeError(f"clips[{number}]: expected a StickClip, got {describe(clip)}")
        if not isinstance(clip.description, str):
            raise TypeError(f"clips[{number}]: description: expected text, got {describe(clip.description)}")
        motion = clip.motion
        if not isinstance(motion, Tensor) or not motion.is_floating_point():
            raise TypeError(
                f"clips[{number}]: motion: expected a tensor of floating point, got {describe(motion)}"
            )
        if motion.ndim not in (2, 3) or motion.shape[-1] not in SEGMENTS or not len(motion):
            raise ValueError(
                f"clips[{number}]: motion: expected [T, D] or [T, A, D], T >= 1 and D 20 or 48, "
                f"got {tuple(motion.shape)}"
            )
        findings += _check(number, clip, limits, fps)
    return findings


def drop_found(clips: Sequence[StickClip], findings: Sequence[StickFinding]) -> list[StickClip]:
    """The clips that no finding is about, in their order.

    Raises:
        ValueError: a finding about a clip that is not there.
    """
    for finding in findings:
        if not 0 <= finding.clip < len(clips):
            raise ValueError(f"findings: expected clips in [0, {len(clips)}), got {finding.clip}")
    found = {finding.clip for finding in findings}
    return [clip for number, clip in enumerate(clips) if number not in found]


def _check(number: int, clip: StickClip, limits: StickLimits, fps: float) -> list[StickFinding]:
    findings: list[StickFinding] = []

    def found(rule: str, frame: int | None, value: float | None, limit: float | None, detail: str) -> None:
        findings.append(StickFinding(number, rule, frame, value, limit, detail))

    if not clip.description.strip():
        found("text", None, None, None, "")
    if len(clip.motion) < 2:
        found("short", None, len(clip.motion), 2, "frames")
        return findings
    if not bool(clip.motion.any()):
        found("zero", None, None, None, "")
    broken = [
        (key, frame)
        for key in ("motion", "physics", "camera", "embedding")
        if (frame := _not_finite(getattr(clip, key))) is not None
    ]
    for key, frame in broken:
        found("finite", frame if key != "embedding" else None, None, None, key)
    if not broken:
        several = clip.motion.ndim == 3
        motion = (clip.motion if several else clip.motion[:, None]).double()
        physics = clip.physics
        if physics is not None and not several:
            physics = physics[:, None]
        for actor in range(motion.shape[1]):
            own, name = motion[:, actor], f"figure {actor}" if several else ""
            if bool((own == 0).all()):
                continue
            _check_motion(own, None if physics is None else physics[:, actor], limits, fps, name, found)
    if clip.actions is not None:
        off = ((clip.actions < 0) | (clip.actions >= len(ACTIONS))).reshape(len(clip.actions), -1)
        if bool(off.any()):
            frame = int(off.any(-1).nonzero()[0])
            value = clip.actions.reshape(len(off), -1)[frame][off[frame]][0]
            found("actions", frame, float(value), len(ACTIONS) - 1.0, "")
    if clip.environment_type is not None and clip.environment_type not in ENVIRONMENTS:
        found("environment", None, None, None, clip.environment_type)
    # A clip's actions stand before its physics among the rules.
    return sorted(findings, key=lambda finding: RULES.index(finding.rule))


def _check_motion(
    motion: Tensor, physics: Tensor | None, limits: StickLimits, fps: float, name: str, found: Found
) -> None:
    """The rules of one figure's motion, [T, D] in float64."""
    own = stick_physics(motion, fps)
    for rule, part, limit in (
        ("speed", own[:, :2], limits.speed),
        ("acceleration", own[:, 2:4], limits.acceleration),
    ):
        size = part.norm(dim=-1)
        if float(size.max()) > limit:
            found(rule, int(size.argmax()), float(size.max()), limit, name)
    lengths = segment_lengths(motion)
    mean = lengths.mean(0)
    off = torch.where(mean > _PRESENT, (lengths - mean).abs() / mean.clamp(min=_PRESENT), 0.0)
    if float(off.max()) > limits.length:
        frame, segment = divmod(int(off.argmax()), off.shape[1])
        part = SEGMENTS[motion.shape[-1]][segment][0]
        found("length", frame, float(off.max()), limits.length, f"{name} {part}".strip())
    gap = shared_point_gap(motion)
    if float(gap.max()) > limits.gap:
        found("gap", int(gap.argmax()), float(gap.max()), limits.gap, name)
    if physics is not None:
        # A coordinate is rounded by half of this, and an acceleration is made of four of them.
        rounding = _EPSILON * float(motion[:, :2].abs().max())
        allowed = torch.tensor([1.0, 1.0, fps, fps, 1.0, 1.0], dtype=torch.float64) * 2 * rounding * fps
        size = (physics.double() - own).abs()
        over = size - allowed - 1e-3 - 1e-5 * own.abs()
        if float(over.max()) > 0:
            frame, column = divmod(int(over.argmax()), 6)
            part = ("vx", "vy", "ax", "ay", "mx", "my")[column]
            limit = float(size[frame, column] - over[frame, column])
            found("physics", frame, float(size[frame, column]), limit, f"{name} {part}".strip())


def _not_finite(x: Tensor | None) -> int | None:
    """The first row with a number that is not finite."""
    if x is None or not x.numel():
        return None
    off = (~x.isfinite()).reshape(len(x), -1).any(-1)
    return int(off.nonzero()[0]) if bool(off.any()) else None
