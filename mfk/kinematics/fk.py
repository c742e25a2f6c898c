"""Forward kinematics and the geometric Jacobian of a serial chain.

One walk from the tip to the base carries the tip's position, seen from the joint just reached, and its
orientation as a quaternion; the Jacobian adds a walk back that carries the frame's axes. Both work on
single components, each a tensor of the batch's shape: what a chain's zeros make constant stays a
Python number and costs nothing, and no matrix is ever turned into a quaternion. Sines are taken joint
by joint, which keeps the temporaries of 10^4 rows in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics import rotations
from mfk.kinematics.chain import Chain, Quaternion, Stage

Number: TypeAlias = float | Tensor


class Turn(NamedTuple):
    """Cosine, sine and negated sine of a joint's angle or half angle, each of the batch's shape."""

    cos: Tensor
    sin: Tensor
    minus_sin: Tensor


class Passed(NamedTuple):
    """What the walk back needs of a joint that the walk to the base has passed."""

    turn: Turn | None  # None for a prismatic joint
    lever: list[Number]  # x y z in m, from the joint to the tip, in the frame before the joint's motion


class Walk(NamedTuple):
    """What the walk from tip to base has found."""

    position: list[Number]  # x y z in m, tip in the base frame
    quaternion: list[Number]  # w x y z, either sign
    joints: list[Passed]  # base to tip; empty unless asked for


def forward(chain: Chain, q: Tensor) -> Tensor:
    """Pose of the tip in the base frame, [..., 7] = x y z [m], qw qx qy qz with qw >= 0.

        p_i = o_i + R(a_i, q_i) p_{i+1},    Q_i = (cos q_i/2, sin q_i/2 a_i) Q_{i+1}

    `q` is [..., dof] in rad (m for a prismatic joint), in any leading shape. A NaN in `q` gives NaN.
    The result is strided: its batch axes lie innermost in memory.

    Raises:
        TypeError: `q` is no float32 or float64 tensor.
        ValueError: the last axis of `q` is not the chain's dof.
    """
    check_joints(chain, q)
    if q.ndim == 1:
        return forward(chain, q.unsqueeze(0)).squeeze(0)
    return _pose(_walk(chain, q, keep=False), q[..., 0])


def jacobian(chain: Chain, q: Tensor) -> Tensor:
    """Geometric Jacobian of the tip's origin in the base frame, [..., 6, dof].

    Rows are linear velocity (m/s) over angular velocity (rad/s), per unit joint speed:

        J_i = (z_i x (p_tip - p_i), z_i) for a revolute joint, (z_i, 0) for a prismatic one.

    `q` as in `forward`, errors too. The result is strided: its batch axes lie innermost in memory.
    """
    return pose_and_jacobian(chain, q)[1]


def pose_and_jacobian(chain: Chain, q: Tensor) -> tuple[Tensor, Tensor]:
    """`forward` and `jacobian` together, for little more than the Jacobian alone."""
    check_joints(chain, q)
    if q.ndim == 1:
        # The tangent of a 0-dimensional tensor times a Python number would be float64 in a float32 model.
        pose, columns = pose_and_jacobian(chain, q.unsqueeze(0))
        return pose.squeeze(0), columns.squeeze(0)
    walk = _walk(chain, q, keep=True)
    return _pose(walk, q[..., 0]), _columns(chain, walk, q[..., 0])


def forward_matrix(chain: Chain, q: Tensor) -> Tensor:
    """base_T_tip as a homogeneous matrix, [..., 4, 4]; `q` and errors as in `forward`."""
    return rotations.pose_to_matrix(forward(chain, q))


def joint_positions(chain: Chain, q: Tensor) -> Tensor:
    """Where the joints are: points along the chain in the base frame, [..., dof + 2, 3] in m.

    The first point is the origin of the base frame, point i = 1 ... dof that of the link which joint i
    carries, the last one that of the tip: what `forward` gives for the chain that ends there, without a
    second walk for each. A revolute joint's point lies on its axis; a prismatic joint's moves with `q`.

        p_i = p_{i-1} + R_{i-1} o_i (+ q_i z_i for a prismatic joint),    R_i = R_{i-1} C_i J_i(q_i)

    `q` is [..., dof] in rad (m for a prismatic joint), in any leading shape; the dtype is kept. A NaN in
    `q` gives NaN in the points that the joint moves. The result is strided: its batch axes lie innermost
    in memory.

    Raises:
        TypeError: `q` is no float32 or float64 tensor.
        ValueError: the last axis of `q` is not the chain's dof.
    """
    check_joints(chain, q)
    if q.ndim == 1:
        # As in `pose_and_jacobian`: no 0-dimensional tensors.
        return joint_positions(chain, q.unsqueeze(0)).squeeze(0)
    return torch.stack([point for point, _ in walk_out(chain, q)]).movedim((0, 1), (-2, -1))


def walk_out(chain: Chain, q: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """What the walk from base to tip passes: `joint_positions`, each [3, ...], and the axes of a frame there.

    The axes, the columns of the rotation, are [3, ...] each: of the base, of every joint's frame after its
    motion (see `mfk.kinematics.chain`), and at the tip's point those of the last joint again. `q` has been
    checked, and has an axis before that of the joints.
    """
    frame = [_unit_column(k, q[..., 0]) for k in range(3)]
    point = torch.zeros_like(frame[0])
    passed = [(point, frame)]
    for stage, value in zip(chain.stages, q.unbind(-1), strict=True):
        point = point + _dot(stage.offset, frame)
        frame = list(_turned(frame, stage))
        k, i, j = _planes(stage)
        if stage.prismatic:
            point = point + (frame[k] if stage.sign > 0 else -frame[k]) * value
        else:
            turn, _ = _turn(value)
            frame[j], frame[i] = _rotated(frame[j], frame[i], turn)
        passed.append((point, frame))
    return [*passed, (point + _dot(chain.tip_offset, frame), frame)]


def check_chain(chain: Chain) -> None:
    """Raise TypeError unless `chain` is one."""
    if not isinstance(chain, Chain):
        raise TypeError(f"chain: expected a Chain, as from load_urdf or panda(), got {describe(chain)}")


def check_joints(chain: Chain, q: Tensor, name: str = "q") -> None:
    """Raise unless `q` is a float32 or float64 tensor [..., dof]; reads no values."""
    if not isinstance(q, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor [..., {chain.dof}], got {describe(q)}")
    if q.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {q.dtype}")
    if q.ndim == 0 or q.shape[-1] != chain.dof:
        raise ValueError(
            f"{name}: expected shape [..., {chain.dof}], the joints of {chain.name}, got {tuple(q.shape)}"
        )


def _walk(chain: Chain, q: Tensor, keep: bool) -> Walk:
    """From tip to base; what is not kept is freed at once, and its memory used by the next joint."""
    p: list[Number] = list(chain.tip_offset)
    w, *v = chain.tip_quaternion
    joints: list[Passed] = []
    for stage, value in zip(reversed(chain.stages), reversed(q.unbind(-1)), strict=True):
        k, i, j = _planes(stage)
        if stage.prismatic:
            turn = None
            p[k] = _sum(p[k], value if stage.sign > 0 else -value)
        else:
            turn, half = _turn(value)
            p[i], p[j] = _rotated(p[i], p[j], turn)
            v[i], v[j] = _rotated(v[i], v[j], half)
            if stage.sign > 0:
                w, v[k] = _rotated(w, v[k], half)
            else:
                v[k], w = _rotated(v[k], w, half)
        if keep:
            joints.append(Passed(turn, p.copy()))
        if stage.rotation is not None and stage.quaternion is not None:
            p = [_dot(row, p) for row in stage.rotation]
            w, *v = (_dot(row, (w, *v)) for row in _left_product(stage.quaternion))
        p = [_sum(x, o) for x, o in zip(p, stage.offset, strict=True)]
    return Walk(p, [w, *v], joints[::-1])


def _turn(angle: Tensor) -> tuple[Turn, Turn]:
    """Of an angle and of its half, by the double-angle formulas: they cost a third of a sine.

    The negated sines are kept because a scaled operand (`value=-1`) crashes a tracer under jvp.
    """
    half = 0.5 * angle
    s, c = torch.sin(half), torch.cos(half)
    minus_s = -s
    minus_twice = minus_s + minus_s
    minus_sin = minus_twice * c
    return Turn(1.0 + minus_twice * s, -minus_sin, minus_sin), Turn(c, s, minus_s)


def _pose(walk: Walk, like: Tensor) -> Tensor:
    w, x, y, z = (_full(value, like) for value in walk.quaternion)
    sign = 1.0 - 2.0 * (w < 0).to(w.dtype)
    position = [_full(value, like) for value in walk.position]
    return torch.stack([*position, sign * w, sign * x, sign * y, sign * z]).movedim(0, -1)


def _columns(chain: Chain, walk: Walk, like: Tensor) -> Tensor:
    """The walk from base to tip carries the columns of the rotation, [3, ...] each."""
    frame = [_unit_column(k, like) for k in range(3)]
    linear, angular = [], []
    for stage, (turn, lever) in zip(chain.stages, walk.joints, strict=True):
        frame = _turned(frame, stage)
        k, i, j = _planes(stage)
        along = frame[k] if stage.sign > 0 else -frame[k]
        if turn is None:
            linear.append(along)
            angular.append(torch.zeros_like(along))
            continue
        linear.append(_full(_dot((lever[i], _times(-1.0, lever[j])), (frame[j], frame[i])), along))
        angular.append(along)
        frame[j], frame[i] = _rotated(frame[j], frame[i], turn)
    by_joint = [part for pair in zip(linear, angular, strict=True) for part in pair]
    # reshape, not unflatten: torch.compile takes it.
    return torch.stack(by_joint).reshape(chain.dof, 6, *like.shape).movedim((0, 1), (-1, -2))


def _turned(frame: list[Tensor], stage: Stage) -> list[Tensor]:
    """The frame's axes, [3, ...] each, after the stage's constant rotation."""
    if stage.rotation is None:
        return frame
    return [frame[0] * x + frame[1] * y + frame[2] * z for x, y, z in zip(*stage.rotation, strict=True)]


def _planes(stage: Stage) -> tuple[int, int, int]:
    """The joint's axis and the plane that it turns, from the second index to the third."""
    k = stage.axis
    i, j = (k + 1) % 3, (k + 2) % 3
    return (k, i, j) if stage.sign > 0 else (k, j, i)


def _left_product(q: Quaternion) -> tuple[Quaternion, Quaternion, Quaternion, Quaternion]:
    """Rows of the matrix that multiplies a quaternion by q from the left."""
    w, x, y, z = q
    return (w, -x, -y, -z), (x, w, -z, y), (y, z, w, -x), (z, -y, x, w)


def _unit_column(k: int, like: Tensor) -> Tensor:
    column = torch.eye(3, dtype=like.dtype, device=like.device)[k]
    return column.reshape((3,) + (1,) * like.ndim).expand(3, *like.shape)


def _rotated(x: Any, y: Any, turn: Turn) -> tuple[Any, Any]:
    """(c x - s y, s x + c y), the rotation of a plane; x and y are numbers or tensors."""
    c, s, minus_s = turn
    if isinstance(x, float) or isinstance(y, float):
        return _dot((c, minus_s), (x, y)), _dot((s, c), (x, y))
    return torch.addcmul(c * x, minus_s, y), torch.addcmul(s * x, c, y)


def _dot(xs: Sequence[Number], ys: Sequence[Number]) -> Number:
    total: Number = 0.0
    for x, y in zip(xs, ys, strict=True):
        total = _sum(total, _times(x, y))
    return total


def _times(x: Number, y: Number) -> Number:
    """The product x y, free of charge where one of them is the Python number 0 or 1."""
    if isinstance(y, float):
        x, y = y, x
    if isinstance(x, float):
        if x == 0.0:
            return 0.0
        if x == 1.0:
            return y
        if x == -1.0:
            return -y
    return x * y


def _sum(x: Number, y: Number) -> Number:
    """The sum x + y, free of charge where one of them is the Python number 0."""
    if isinstance(x, float) and x == 0.0:
        return y
    return x if isinstance(y, float) and y == 0.0 else x + y


def _full(x: Number, like: Tensor) -> Tensor:
    return x if isinstance(x, torch.Tensor) else torch.full_like(like, x)
