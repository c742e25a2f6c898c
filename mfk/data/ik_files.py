"""Inverse-kinematics data from files: which tensor means what, and whether it is true.

Two families of files are read, both of mfik: the documented one and what its generator writes. The key
of the state decides what the times mean: `q` is the state at time r, `q_t` the state at time t. mfk's
u(z, r, t) starts at r, so that a row of `q_t` starts at its t, and its end time is to be drawn.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.data.ik_frames import check_poses
from mfk.data.tensors import read_tensors
from mfk.kinematics import Chain, clip_to_limits, quaternion_canonical

EndTimes: TypeAlias = Literal["auto", "file", "redraw"]

_WIDTHS = {"r": 1, "t": 1, "target_pose": 7, "target_pos": 3, "target_quat": 4, "pos_t": 3, "quat_t": 4}
_JOINTS = ("q", "q_t", "q_target", "q_star", "v_t")  # as wide as the robot has joints
_BEYOND = 1e-5  # rad or m; joints further outside their limits are refused
_UNIT, _ROUNDING = 1e-3, 1e-6  # norms further from 1 than the first are refused, than the second mended
_REMAINING = 1e-3  # least 1 - r by which a difference of float32 numbers may be divided
_STRAIGHT = 1e-3  # rad or m; velocities that miss the solution by more are told of


class IKRows(NamedTuple):
    """Rows of straight paths from a reference (time 0) to a solution (time 1); float32, contiguous."""

    q: Tensor  # [rows, dof], the state at time r; rad or m
    v: Tensor  # [rows, dof], velocity along the path; rad or m per unit of time
    q_target: Tensor  # [rows, dof], the solution; rad or m
    pose: Tensor  # [rows, 7], of the tip at q_target: x y z [m], qw qx qy qz, with qw >= 0
    r: Tensor  # [rows, 1], start time in [0, 1]
    t: Tensor | None  # [rows, 1], end time in [r, 1]; None: to be drawn


class IKFile(NamedTuple):
    """What a file holds."""

    rows: IKRows
    notes: tuple[str, ...]  # what a user should know, one line each


class _Keys(NamedTuple):
    """Which key of a file plays which part."""

    state: str  # q or q_t
    start: str  # r or t, the time of the state
    end: str | None  # t; None where end times are to be drawn
    target: str  # q_target or q_star
    pose: tuple[str, ...]  # target_pose, or target_pos and target_quat
    velocity: str | None  # v_t

    @property
    def used(self) -> list[str]:
        return [k for k in (self.state, self.start, self.end, self.target, *self.pose, self.velocity) if k]


def read_ik(
    path: str | os.PathLike[str],
    chain: Chain,
    *,
    frames: Callable[[], Iterable[Chain]] = tuple,
    end_times: EndTimes = "auto",
) -> IKFile:
    """Read and check the rows of a ``.pt`` or ``.npz`` file (see `read_tensors`).

    Its keys, those of one column each in one family of files or the other::

        q [N, dof], the state at time r          q_t [N, dof], the state at time t
        q_target [N, dof], the solution          q_star [N, dof]
        target_pose [N, 7], its pose             target_pos [N, 3] and target_quat [N, 4], w x y z
        r [N, 1] or [N], t likewise: times       t; r is not used
        v_t [N, dof], the velocity: optional; else (q_target - q) / (1 - r)

    Every row is checked: finite, times in order, joints within their limits (up to 1e-5 beyond is clipped),
    unit quaternions (within 1e-3, then normalised), and the pose that the solution has by forward kinematics
    (within 1e-4 m and 1e-3 rad). float64 is checked as such, then rounded. What is right already is not
    copied: tensors of a ``.pt`` file stay mapped.

    Args:
        path: the file.
        chain: the robot.
        frames: gives the same robot between other links (see `mfk.kinematics.frames`); called only where
            the poses are not those of `chain`, to say whose they are.
        end_times: "file" takes the file's t as end times, "redraw" leaves them to be drawn, "auto" takes
            them where the state is `q`; with `q_t` there are none to take.

    Raises:
        FileNotFoundError, OSError: as `read_tensors`.
        ValueError: as `read_tensors`, or for a key, shape, dtype or number that is wrong; names the file,
            the key and the first row at fault.
    """
    if end_times not in ("auto", "file", "redraw"):
        raise ValueError(f"end_times: expected auto, file or redraw, got {end_times!r}")
    path = Path(path)
    tensors = read_tensors(path)
    keys = _keys(path, tensors, end_times)
    given = {key: _columns(path, key, tensors[key], chain) for key in keys.used}
    q, q_target, start = given[keys.state], given[keys.target], given[keys.start]
    for key, value in given.items():
        if len(value) != len(q):
            raise ValueError(f"{path}: {key}: expected {len(q)} rows, as {keys.state} has, got {len(value)}")
    _check_times(path, keys, given)
    for key in (keys.state, keys.target):
        _check_limits(path, key, given[key], chain)
    pose = _unit_pose(f"{path}: {keys.pose[-1]}", [given[key] for key in keys.pose])
    check_poses(f"{path}: {keys.pose[0]}", chain, frames, q_target, pose)
    v = given["v_t"] if keys.velocity else (q_target.double() - q.double()) / (1 - start.double())
    rows = IKRows(
        q=_clipped(chain, q),
        v=v.float().contiguous(),
        q_target=_clipped(chain, q_target),
        pose=pose.float().contiguous(),
        r=start.float().contiguous(),
        t=None if keys.end is None else given[keys.end].float().contiguous(),
    )
    return IKFile(rows, tuple(_notes(tensors, keys, given)))


def _keys(path: Path, tensors: Mapping[str, Tensor], end_times: EndTimes) -> _Keys:
    known = (*_JOINTS, *_WIDTHS)
    if unknown := [key for key in tensors if key not in known]:
        shown = ", ".join(map(reprlib.repr, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        raise ValueError(f"{path}: unknown keys {shown}; the known ones are {', '.join(known)}")

    def choose(*choices: tuple[str, ...], why: str = "") -> tuple[str, ...]:
        found = [choice for choice in choices if any(key in tensors for key in choice)]
        if len(found) != 1 or not all(key in tensors for key in found[0]):
            wanted = " or ".join(" and ".join(choice) for choice in choices)
            either = "either " if len(choices) > 1 else ""
            raise ValueError(f"{path}: expected {either}{wanted}{why}, got the keys {', '.join(tensors)}")
        return found[0]

    (state,) = choose(("q",), ("q_t",), why=" (the state at time r, or that at time t)")
    (target,) = choose(("q_target",), ("q_star",))
    pose = choose(("target_pose",), ("target_pos", "target_quat"))
    velocity = "v_t" if "v_t" in tensors else None
    if state == "q_t":
        if end_times == "file":
            raise ValueError(
                f"{path}: q_t is the state at time t, so that the file holds no end times; "
                "expected end_times auto or redraw, got 'file'"
            )
        return _Keys(state, choose(("t",))[0], None, target, pose, velocity)
    (start,) = choose(("r",))
    end = None if end_times == "redraw" else choose(("t",), why=" (--end-times redraw does without)")[0]
    return _Keys(state, start, end, target, pose, velocity)


def _columns(path: Path, key: str, value: Tensor, chain: Chain) -> Tensor:
    """One tensor of the file as [rows, width], checked by itself."""
    where, width = f"{path}: {key}", _WIDTHS.get(key, chain.dof)
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{where}: expected float32 or float64, got {value.dtype}")
    if key in ("r", "t") and value.ndim == 1:
        value = value.unsqueeze(-1)
    if value.ndim != 2 or value.shape[-1] != width:
        joints = f" for the {width} joints of {chain.name}" if key in _JOINTS else ""
        robot = f", a robot with {value.shape[-1]}" if joints and value.ndim == 2 else ""
        raise ValueError(f"{where}: expected [rows, {width}]{joints}, got {tuple(value.shape)}{robot}")
    if not len(value):
        raise ValueError(f"{where}: expected at least one row, got none")
    _refuse(where, value, ~torch.isfinite(value.float()), "finite float32 numbers")
    return value


def _check_times(path: Path, keys: _Keys, given: Mapping[str, Tensor]) -> None:
    start = given[keys.start]
    for key in filter(None, (keys.start, keys.end)):
        _refuse(f"{path}: {key}", given[key], (given[key] < 0) | (given[key] > 1), "a time in [0, 1]")
    if keys.end is not None:
        both = torch.cat((start.double(), given[keys.end].double()), -1)
        order = "r <= t (--end-times redraw ignores the file's end times)"
        _refuse(f"{path}: t", both, both[:, :1] > both[:, 1:], order)
    if keys.velocity is None:
        apart = f"1 - {keys.start} >= {_REMAINING:g} where there is no v_t"
        _refuse(f"{path}: {keys.start}", start, 1 - start.double() < _REMAINING, apart)


def _check_limits(path: Path, key: str, q: Tensor, chain: Chain) -> None:
    bad = (q - clip_to_limits(chain, q)).abs() > _BEYOND
    if bool(bad.any()):
        row, joint = bad.nonzero()[0].tolist()
        limits = f"[{chain.lower_limits[joint]:.6g}, {chain.upper_limits[joint]:.6g}]"
        what = f"joint {chain.joint_names[joint]!r} in {limits}"
        raise ValueError(f"{path}: {key}: row {row}: expected {what}, got {float(q[row, joint]):.6g}")


def _unit_pose(where: str, parts: list[Tensor]) -> Tensor:
    """[rows, 7] with unit quaternions and qw >= 0; the tensor itself where it is so already."""
    pose = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    norm = pose[:, 3:].double().norm(dim=-1, keepdim=True)
    off = (norm - 1).abs()
    _refuse(where, norm, off > _UNIT, "a unit quaternion")
    if float(off.max()) > _ROUNDING:
        pose = torch.cat((pose[:, :3].double(), pose[:, 3:].double() / norm), -1)
    if bool((pose[:, 3] < 0).any()):
        pose = torch.cat((pose[:, :3], quaternion_canonical(pose[:, 3:])), -1)
    return pose


def _clipped(chain: Chain, q: Tensor) -> Tensor:
    q = q.float().contiguous()
    inside = clip_to_limits(chain, q)
    return q if torch.equal(q, inside) else inside


def _notes(tensors: Mapping[str, Tensor], keys: _Keys, given: Mapping[str, Tensor]) -> Iterator[str]:
    if keys.state == "q_t":
        yield "q_t is the state at time t: a row starts at its t, and its end time is drawn"
    if unused := [key for key in tensors if key not in given]:
        yield f"not used: {', '.join(unused)}"
    if doubles := [key for key, value in given.items() if value.dtype == torch.float64]:
        yield f"rounded from float64 to float32: {', '.join(doubles)}"
    if keys.velocity is None:
        return

    def missed(time: Tensor) -> Tensor:
        reached = given[keys.state] + (1 - time) * given["v_t"]
        return (reached - given[keys.target]).abs().amax(-1)

    miss = missed(given[keys.start])
    rows = (miss > _STRAIGHT).nonzero()[:, 0]
    if len(rows):
        other = "t" if keys.start == "r" else "r"
        time = tensors.get(other, torch.tensor(math.nan, device="cpu")).double().reshape(-1, 1)
        fits = len(time) == len(miss) and bool((missed(time) <= _STRAIGHT).all())
        yield (
            f"v_t does not lead straight from {keys.state} at time {keys.start} to {keys.target} in "
            f"{len(rows)} of {len(miss)} rows; row {int(rows[0])} misses it by {float(miss[rows[0]]):.3g}"
            + (f"; from time {other} it does" if fits else "")
        )


def _refuse(where: str, value: Tensor, bad: Tensor, what: str) -> None:
    """Raise with the first row of `value` in which `bad`, [rows, columns] of bool, holds."""
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        shown = ", ".join(f"{x:.6g}" for x in value[row].tolist())
        raise ValueError(f"{where}: row {row}: expected {what}, got {shown}")
