"""Whether given poses are those of given solutions, and if not, in which frame they would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mfk.kinematics import Chain, forward, quaternion_angle

POSITION, ROTATION = 1e-4, 1e-3
"""Largest distance in m and rad at which two poses are the same."""

_CHUNK = 65_536  # rows of float64 kinematics at a time
_SAMPLE = 256  # wrong rows that every other frame is tried on


def check_poses(
    where: str, chain: Chain, frames: Callable[[], Iterable[Chain]], q: Tensor, pose: Tensor
) -> None:
    """Raise unless the pose of the chain's tip at q is `pose`, row by row, within 1e-4 m and 1e-3 rad.

    Args:
        where: file and key, for the message.
        chain: the robot.
        frames: gives the robot between other links; called only if rows are wrong.
        q: [rows, dof] in rad or m, float32 or float64; the kinematics are float64.
        pose: [rows, 7] with unit quaternions of either sign.

    Raises:
        ValueError: names the first wrong row, how many there are, and the frame that most rows are in.
    """
    wrong = _wrong(chain, q, pose)
    rows = wrong.nonzero()[:, 0]
    if not len(rows):
        return
    first = int(rows[0])
    position, angle = (float(x) for x in _errors(chain, q[first : first + 1], pose[first : first + 1]))
    raise ValueError(
        f"{where}: row {first}: expected the pose of {chain.tip} in {chain.base} at the solution, got one "
        f"{position:.3g} m and {angle:.3g} rad away; {len(rows)} of {len(q)} rows are wrong"
        f"{_hint(chain, frames, q, pose, rows)}"
    )


def _hint(chain: Chain, frames: Callable[[], Iterable[Chain]], q: Tensor, pose: Tensor, rows: Tensor) -> str:
    """What else the poses of the wrong rows are."""
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE), device="cpu").long()]
    q_some, pose_some = q[some], pose[some]
    if not bool(_wrong(chain, q_some, pose_some[:, [0, 1, 2, 6, 3, 4, 5]]).any()):
        return ": their quaternions are in the order x y z w, expected w x y z"
    others = [other for other in frames() if other != chain and other.dof == chain.dof]
    if not others:
        return ""
    fits = [int((~_wrong(other, q_some, pose_some)).sum()) for other in others]
    best = others[fits.index(max(fits))]
    if not max(fits):
        return ", and no other frame of this robot fits them"
    flags = [
        f"--{flag} {link}"
        for flag, link, own in (("frame", best.tip, chain.tip), ("base", best.base, chain.base))
        if link != own
    ]
    count = int((~_wrong(best, q, pose)).sum())
    share = "every row is" if count == len(q) else f"{count} of all rows are"
    advice = "give" if count == len(q) else "for those it would be"
    return f"; {share} that of {best.tip} (base {best.base}): {advice} {' '.join(flags)}"


def _wrong(chain: Chain, q: Tensor, pose: Tensor) -> Tensor:
    """Which rows are too far apart, [rows] of bool."""
    parts = []
    for q_part, pose_part in zip(q.split(_CHUNK), pose.split(_CHUNK), strict=True):
        position, angle = _errors(chain, q_part, pose_part)
        parts.append((position > POSITION) | (angle > ROTATION))
    return torch.cat(parts)


def _errors(chain: Chain, q: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Distance in m and angle in rad, [rows] each."""
    here, there = forward(chain, q.double()), pose.double()
    return (here[:, :3] - there[:, :3]).norm(dim=-1), quaternion_angle(here[:, 3:], there[:, 3:])
