"""Quaternions, rotation matrices and poses.

A quaternion is [..., 4] in the order w x y z; a pose is [..., 7] = x y z [m], qw qx qy qz; a rotation
matrix acts on column vectors. Every function takes any leading shape in float32 or float64, has no
data-dependent branch, and has finite gradients at the identity and at half turns: where a formula has
a removable singularity, a series takes over, and the argument of the other branch is replaced before
it is evaluated (a NaN in the branch not taken would still reach the gradient).

No 0-dimensional tensor meets a Python number: its tangent would come back in float64.

A function of two arguments takes equal leading shapes, or one argument without leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core.types import describe

_SMALL = 1e-6  # below this square of an angle (or of a sine) a series is used


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product a b: the rotation b, then the rotation a. [..., 4] each."""
    _check_pair("a", a, 4, "b", b, 4)
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def quaternion_conjugate(q: Tensor) -> Tensor:
    """The inverse of a unit quaternion, [..., 4]."""
    _check("q", q, 4)
    return torch.cat((q[..., :1], -q[..., 1:]), dim=-1)


def quaternion_normalize(q: Tensor) -> Tensor:
    """The unit quaternion q / |q|, [..., 4]; a zero quaternion has no direction and stays zero."""
    _check("q", q, 4)
    return _unit(q)


def quaternion_canonical(q: Tensor) -> Tensor:
    """The one of q and -q that has qw >= 0, [..., 4]: both are the same rotation."""
    _check("q", q, 4)
    return torch.where(q[..., :1] < 0, -q, q)


def quaternion_rotate(q: Tensor, v: Tensor) -> Tensor:
    """Rotate v [..., 3] by the unit quaternion q [..., 4]: v + 2 w (u x v) + 2 u x (u x v)."""
    _check_pair("q", q, 4, "v", v, 3)
    w, u = q[..., :1], q[..., 1:]
    twice = 2.0 * _cross(u, v)
    return v + w * twice + _cross(u, twice)


def quaternion_angle(a: Tensor, b: Tensor) -> Tensor:
    """The angle between two rotations in [0, pi] rad, [...]; blind to the signs of a and b.

    2 atan2(|u|, |w|) of conj(a) b = (w, u): accurate for small angles, where acos of the dot product
    has lost half of its digits. The gradient at zero angle, where the angle has a cone, is zero.
    """
    _check_pair("a", a, 4, "b", b, 4)
    relative = quaternion_multiply(quaternion_conjugate(a), b)
    half = torch.atan2(_norm(relative[..., 1:]), relative[..., 0].abs())
    return half + half


def quaternion_log(q: Tensor) -> Tensor:
    """Rotation vector [..., 3] in rad (axis times angle, angle <= pi) of a unit quaternion [..., 4].

    2 atan2(|u|, w) / |u| * u for q = (w, u) with w >= 0. It jumps where the angle passes pi.
    """
    q = quaternion_canonical(q)
    w, u = q[..., :1], q[..., 1:]
    square = (u * u).sum(-1, keepdim=True)
    small = square < _SMALL
    n = torch.sqrt(torch.where(small, 1.0, square))
    exact = 2.0 * torch.atan2(n, w) / n
    inverse = 1.0 / torch.where(small, w, 1.0)
    x = torch.where(small, square, 0.0) * inverse * inverse
    series = 2.0 * inverse * (1.0 - x * (1.0 / 3.0 - x / 5.0))
    return torch.where(small, series, exact) * u


def quaternion_exp(v: Tensor) -> Tensor:
    """Unit quaternion [..., 4] of a rotation vector [..., 3] in rad: (cos |v|/2, sin(|v|/2)/|v| v)."""
    _check("v", v, 3)
    square = (v * v).sum(-1, keepdim=True)
    small = square < _SMALL
    angle = torch.sqrt(torch.where(small, 1.0, square))
    x = torch.where(small, square, 0.0)
    w = torch.where(small, 1.0 - x * (1.0 / 8.0 - x / 384.0), torch.cos(0.5 * angle))
    factor = torch.where(small, 0.5 - x * (1.0 / 48.0 - x / 3840.0), torch.sin(0.5 * angle) / angle)
    return torch.cat((w, factor * v), dim=-1)


def wxyz_to_xyzw(q: Tensor) -> Tensor:
    """Move the real part from first to last place, [..., 4]."""
    _check("q", q, 4)
    return torch.cat((q[..., 1:], q[..., :1]), dim=-1)


def xyzw_to_wxyz(q: Tensor) -> Tensor:
    """Move the real part from last to first place, [..., 4]."""
    _check("q", q, 4)
    return torch.cat((q[..., 3:], q[..., :3]), dim=-1)


def quaternion_to_matrix(q: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of a unit quaternion [..., 4]."""
    _check("q", q, 4)
    w, x, y, z = q.unbind(-1)
    _, x2, y2, z2 = (q + q).unbind(-1)
    return _matrix3(
        (1.0 - (y * y2 + z * z2), x * y2 - w * z2, x * z2 + w * y2),
        (x * y2 + w * z2, 1.0 - (x * x2 + z * z2), y * z2 - w * x2),
        (x * z2 - w * y2, y * z2 + w * x2, 1.0 - (x * x2 + y * y2)),
    )


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternion [..., 4] with qw >= 0 of a rotation matrix [..., 3, 3].

    The matrix gives all products 4 q_i q_j linearly. The row i of the largest |q_i| >= 1/2 is taken and
    normalised: no square root comes near zero, so no half turn spoils the gradient.
    """
    _check_matrix("matrix", matrix, 3)
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    one = torch.ones_like(a)
    products = torch.stack(
        (
            torch.stack((one + a + e + i, h - f, c - g, d - b), dim=-1),
            torch.stack((h - f, one + a - e - i, b + d, c + g), dim=-1),
            torch.stack((c - g, b + d, one - a + e - i, f + h), dim=-1),
            torch.stack((d - b, c + g, f + h, one - a - e + i), dim=-1),
        ),
        dim=-2,
    )
    diagonal = torch.stack([products[..., k, k] for k in range(4)], dim=-1)
    largest = diagonal.argmax(dim=-1, keepdim=True)
    chosen = torch.arange(4, device=matrix.device) == largest
    row = torch.where(chosen.unsqueeze(-1), products, 0.0).sum(-2)
    return quaternion_canonical(row / row.square().sum(-1, keepdim=True).sqrt())


def pose_to_matrix(pose: Tensor) -> Tensor:
    """Homogeneous matrix [..., 4, 4] of a pose [..., 7]; the translation is in m."""
    _check("pose", pose, 7)
    upper = torch.cat((quaternion_to_matrix(pose[..., 3:]), pose[..., :3].unsqueeze(-1)), dim=-1)
    zero, one = torch.zeros_like(pose[..., :1]), torch.ones_like(pose[..., :1])
    last = torch.cat((zero, zero, zero, one), dim=-1)
    return torch.cat((upper, last.unsqueeze(-2)), dim=-2)


def matrix_to_pose(matrix: Tensor) -> Tensor:
    """Pose [..., 7] with qw >= 0 of a homogeneous matrix [..., 4, 4]."""
    _check_matrix("matrix", matrix, 4)
    return torch.cat((matrix[..., :3, 3], matrix_to_quaternion(matrix[..., :3, :3])), dim=-1)


def rpy_to_matrix(rpy: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of roll, pitch, yaw [..., 3] in rad about fixed axes: Rz Ry Rx (URDF)."""
    _check("rpy", rpy, 3)
    (cr, cp, cy), (sr, sp, sy) = torch.cos(rpy).unbind(-1), torch.sin(rpy).unbind(-1)
    return _matrix3(
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )


def so3_exp(v: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of a rotation vector [..., 3] in rad."""
    return quaternion_to_matrix(quaternion_exp(v))


def so3_log(matrix: Tensor) -> Tensor:
    """Rotation vector [..., 3] in rad of a rotation matrix [..., 3, 3]; it jumps at an angle of pi."""
    return quaternion_log(matrix_to_quaternion(matrix))


def matrix_to_sixd(matrix: Tensor) -> Tensor:
    """The first two columns of a rotation matrix [..., 3, 3], one after the other, [..., 6].

    Continuous, unlike any representation by four numbers or fewer (Zhou et al. 2019, arXiv 1812.07035).
    """
    _check_matrix("matrix", matrix, 3)
    return torch.cat((matrix[..., :, 0], matrix[..., :, 1]), dim=-1)


def sixd_to_matrix(sixd: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of any two columns [..., 6]: Gram-Schmidt, then the cross product.

    Two zero or parallel columns span no plane: the matrix is then no rotation (Zhou et al. 2019).
    """
    _check("sixd", sixd, 6)
    first, second = sixd[..., :3], sixd[..., 3:]
    x = _unit(first)
    y = _unit(second - (x * second).sum(-1, keepdim=True) * x)
    return torch.stack((x, y, _cross(x, y)), dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack((ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx), dim=-1)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norm over the last axis with gradient zero, not NaN, at the zero vector."""
    square = (v * v).sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, square)))


def _unit(v: Tensor) -> Tensor:
    square = (v * v).sum(-1, keepdim=True)
    return v / torch.sqrt(torch.where(square == 0, 1.0, square))


def _matrix3(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _check(name: str, value: Tensor, size: int) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a tensor [..., {size}], got {describe(value)}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"{name}: expected shape [..., {size}], got {tuple(value.shape)}")


def _check_matrix(name: str, value: Tensor, size: int) -> None:
    _check(name, value, size)
    if value.ndim < 2 or value.shape[-2] != size:
        raise ValueError(f"{name}: expected shape [..., {size}, {size}], got {tuple(value.shape)}")


def _check_pair(name_a: str, a: Tensor, size_a: int, name_b: str, b: Tensor, size_b: int) -> None:
    _check(name_a, a, size_a)
    _check(name_b, b, size_b)
    if a.dtype != b.dtype:
        raise TypeError(f"{name_b}: expected {a.dtype}, the dtype of {name_a}, got {b.dtype}")
    if a.ndim > 1 and b.ndim > 1 and a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"{name_b}: expected the leading shape of {name_a}, {tuple(a.shape[:-1])}, or none; "
            f"got {tuple(b.shape[:-1])}"
        )
