"""A serial kinematic chain as plain numbers.

A chain is described at its zero configuration (all joint values 0), with axes and offsets written
along the base frame's axes. The fixed rotations between joints then vanish from the walk along the
chain: the Panda's quarter turns leave joints about +-z and +-y, each a rotation in one plane.

    base_T_tip(q) = [o_1] C_1 J_1(q_1) [o_2] C_2 J_2(q_2) ... J_n(q_n) [o_{n+1}] R_tip

with [o] a translation and J_i a rotation about, or translation along, a coordinate axis. Where an axis
lies along none, the constant rotation C_i turns the frame so that it does; else C_i is absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mfk.kinematics import rotations

Kind: TypeAlias = Literal["fixed", "revolute", "continuous", "prismatic"]
Vector: TypeAlias = tuple[float, float, float]
Quaternion: TypeAlias = tuple[float, float, float, float]

_ROUNDING = 1e-14  # sines and cosines closer than this to 0 or +-1 are quarter turns: 6e-17 is cos(pi/2)


class Joint(NamedTuple):
    """One joint of a chain, as a robot description states it."""

    name: str
    kind: Kind
    xyz: Vector  # m, origin in the parent link's frame
    rpy: Vector  # rad, about fixed axes
    axis: Vector = (1.0, 0.0, 0.0)  # in the joint's frame, any length but zero
    lower: float = math.nan  # rad or m, needed unless fixed; a continuous joint has -pi, whatever is given
    upper: float = math.nan  # rad or m; a continuous joint has pi
    velocity: float = math.inf  # rad/s or m/s


class Stage(NamedTuple):
    """One moving joint, as the walk along the chain needs it."""

    offset: Vector  # m, from the joint before (or the base), in the frame of that joint
    rotation: tuple[Vector, Vector, Vector] | None  # rows of C, the frame's constant rotation
    quaternion: Quaternion | None  # w x y z, C again
    axis: int  # 0, 1, 2: the joint's axis in the rotated frame is x, y, z
    sign: float  # 1.0, or -1.0 if it points the other way
    prismatic: bool


@dataclass(frozen=True, repr=False)
class Chain:
    """A serial chain of revolute, continuous and prismatic joints; immutable, compared by value.

    It holds Python numbers and names, no tensors: forward kinematics is specialised to the robot (a
    zero offset costs nothing), a tracer sees constants, and one chain serves every device and dtype.
    """

    name: str
    base: str  # name of the base link
    tip: str  # name of the tip link
    joint_names: tuple[str, ...]  # of the moving joints, base to tip
    kinds: tuple[Kind, ...]  # "revolute", "continuous" or "prismatic"
    stages: tuple[Stage, ...]  # geometry of the joints at zero configuration
    tip_offset: Vector  # m, from the last joint to the tip, in the last joint's frame
    tip_quaternion: Quaternion  # w x y z, orientation of the tip in the last joint's frame
    lower_limits: tuple[float, ...]  # rad or m
    upper_limits: tuple[float, ...]  # rad or m
    velocity_limits: tuple[float, ...]  # rad/s or m/s
    lower_float32: tuple[float, ...]  # the lower limits as float32 numbers, none of them lower
    upper_float32: tuple[float, ...]  # the upper limits as float32 numbers, none of them higher

    @property
    def dof(self) -> int:
        """Number of moving joints."""
        return len(self.kinds)

    @property
    def lower(self) -> Tensor:
        """Lower joint limits, [dof] in rad or m, float64 on the CPU; -pi for a continuous joint."""
        return torch.tensor(self.lower_limits, dtype=torch.float64, device="cpu")

    @property
    def upper(self) -> Tensor:
        """Upper joint limits, [dof] in rad or m, float64 on the CPU; pi for a continuous joint."""
        return torch.tensor(self.upper_limits, dtype=torch.float64, device="cpu")

    @property
    def velocity(self) -> Tensor:
        """Greatest joint speeds, [dof] in rad/s or m/s, float64 on the CPU; inf where none is stated."""
        return torch.tensor(self.velocity_limits, dtype=torch.float64, device="cpu")

    @property
    def continuous(self) -> tuple[bool, ...]:
        """Which joints turn without end; their limits (-pi, pi) name each angle once and stop nothing."""
        return tuple(kind == "continuous" for kind in self.kinds)

    def __repr__(self) -> str:
        """Name, dof, base and tip, and the joints between them."""
        joints = ", ".join(
            name if kind == "revolute" else f"{name} ({kind})"
            for name, kind in zip(self.joint_names, self.kinds, strict=True)
        )
        return f"Chain({self.name}, {self.dof} dof, {self.base} -> {self.tip}: {joints})"


def serial_chain(
    name: str,
    base: str,
    tip: str,
    joints: Sequence[Joint],
    base_offset: Tensor | None = None,
    tool_offset: Tensor | None = None,
) -> Chain:
    """Build a chain from its joints, ordered from base to tip.

    Args:
        name: the robot's name.
        base: name of the link that carries the first joint.
        tip: name of the link that the last joint carries.
        joints: all joints between them, fixed ones included.
        base_offset: [4, 4], pose of the base link in the frame that poses shall be given in.
        tool_offset: [4, 4], pose of the tool in the tip link's frame.

    Raises:
        ValueError: no joint moves, or an axis is zero.
    """
    rotation, offset = _parts(base_offset)  # here_R_link at zero configuration; m since the last joint
    stages, moving = [], []
    for joint in joints:
        offset = offset + rotation @ _float64(joint.xyz)
        rotation = rotation @ _snapped(rotations.rpy_to_matrix(_float64(joint.rpy)))
        if joint.kind == "fixed":
            continue
        if joint.kind != "continuous" and not joint.lower <= joint.upper:
            raise ValueError(
                f"{name}: joint {joint.name!r}: limits: expected lower <= upper, "
                f"got {joint.lower} and {joint.upper}"
            )
        direction = _float64(joint.axis)
        if not float(direction.norm()) > 0.0:
            raise ValueError(f"{name}: joint {joint.name!r}: axis: expected a direction, got {joint.axis}")
        direction = _snapped(rotation @ (direction / direction.norm()))
        stage, turn = _stage(direction, offset, joint.kind == "prismatic")
        rotation = turn.T @ rotation
        offset = torch.zeros_like(offset)
        stages.append(stage)
        moving.append(joint)
    if not moving:
        raise ValueError(f"{name}: no joint moves between {base!r} and {tip!r}; expected at least one")
    tool_rotation, tool_xyz = _parts(tool_offset)
    offset = offset + rotation @ tool_xyz
    lower = [-math.pi if joint.kind == "continuous" else float(joint.lower) for joint in moving]
    upper = [math.pi if joint.kind == "continuous" else float(joint.upper) for joint in moving]
    return Chain(
        name=name,
        base=base,
        tip=tip,
        joint_names=tuple(joint.name for joint in moving),
        kinds=tuple(joint.kind for joint in moving),
        stages=tuple(stages),
        tip_offset=_vector(offset),
        tip_quaternion=_quaternion(rotation @ tool_rotation),
        lower_limits=tuple(lower),
        upper_limits=tuple(upper),
        velocity_limits=tuple(float(joint.velocity) for joint in moving),
        lower_float32=tuple(_float32(limit, math.inf) for limit in lower),
        upper_float32=tuple(_float32(limit, -math.inf) for limit in upper),
    )


def _stage(direction: Tensor, offset: Tensor, prismatic: bool) -> tuple[Stage, Tensor]:
    """The stage of a joint along a unit vector, and its constant rotation as a matrix [3, 3]."""
    axis = int(direction.abs().argmax())
    sign = math.copysign(1.0, float(direction[axis]))
    straight = torch.zeros_like(direction)
    straight[axis] = sign
    cross = torch.linalg.cross(straight, direction)
    sine = float(cross.norm())
    if sine == 0.0:
        return Stage(_vector(offset), None, None, axis, sign, prismatic), _identity(3)
    angle = math.atan2(sine, float(direction[axis]) * sign)
    turn = rotations.so3_exp(cross * (angle / sine))
    x, y, z = (_vector(row) for row in turn)
    return Stage(_vector(offset), (x, y, z), _quaternion(turn), axis, sign, prismatic), turn


def _parts(matrix: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rotation [3, 3] and translation [3] of a homogeneous matrix; None is the identity."""
    if matrix is None:
        matrix = _identity(4)
    return _snapped(matrix[:3, :3]), matrix[:3, 3]


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64, device="cpu")


def _float64(values: Vector) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _snapped(values: Tensor) -> Tensor:
    """Exact zeros and ones where the angles are quarter turns."""
    nearest = values.round()
    return torch.where((values - nearest).abs() < _ROUNDING, nearest, values)


def _vector(values: Tensor) -> Vector:
    """Three Python floats, rounding dust removed: lengths here are metres or 1."""
    x, y, z = torch.where(values.abs() < _ROUNDING, 0.0, values).tolist()
    return x, y, z


def _quaternion(matrix: Tensor) -> Quaternion:
    w, x, y, z = rotations.matrix_to_quaternion(matrix).tolist()
    return w, x, y, z


def _float32(limit: float, inward: float) -> float:
    """The float32 number next to a limit, on the side of `inward`."""
    with np.errstate(over="ignore"):
        nearest = np.float32(limit)
    outside = float(nearest) < limit if inward > 0 else float(nearest) > limit
    return float(np.nextafter(nearest, np.float32(inward)) if outside else nearest)
