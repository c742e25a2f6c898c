"""Errors with weights and free directions, against rotations of scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mfk import kinematics as kin
from mfk.kinematics.task_error import check_weights, task_distances, task_error, task_jacobian


def poses(rows: int, seed: int) -> Tensor:
    pose = torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat((pose[:, :3], kin.quaternion_normalize(pose[:, 3:])), dim=-1)


def rotation(pose: Tensor) -> Rotation:
    return Rotation.from_quat(kin.wxyz_to_xyzw(pose[:, 3:]).numpy())


def test_without_weights_it_is_the_pose_error() -> None:
    a, b = poses(50, 1), poses(50, 2)
    error = task_error(a, b, None)
    torch.testing.assert_close(error.twist.T, kin.pose_error(a, b), rtol=0, atol=0)
    torch.testing.assert_close(error.position.sqrt(), (a - b)[:, :3].norm(dim=-1), rtol=1e-12, atol=0)
    angle = (rotation(b) * rotation(a).inv()).magnitude()
    torch.testing.assert_close(error.rotation.sqrt(), torch.from_numpy(angle), rtol=1e-9, atol=1e-12)


def test_weights_are_along_the_axes_of_the_target() -> None:
    a, b = poses(50, 1), poses(50, 2)
    error = task_error(a, b, (1.0, 2.0, 0.0, 3.0, 1.0, 0.5))
    local = rotation(b).inv().apply((b - a)[:, :3].numpy())
    expected = local * np.array([1.0, 2.0, 0.0])
    np.testing.assert_allclose(error.twist[:3].T, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(error.position, (local[:, :2] ** 2).sum(1), rtol=1e-12)
    turn = (rotation(b) * rotation(a).inv()).as_rotvec()
    expected = rotation(b).inv().apply(turn) * np.array([3.0, 1.0, 0.5])
    np.testing.assert_allclose(error.twist[3:].T, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_free_rotation_leaves_the_angle_between_the_axes(free: int) -> None:
    a, b = poses(50, 1), poses(50, 2)
    weights = tuple(0.0 if i == 3 + free else 1.0 for i in range(6))
    error = task_error(a, b, check_weights(weights))
    one, other = (rotation(x).as_matrix()[:, :, free] for x in (a, b))
    angle = np.arctan2(np.linalg.norm(np.cross(one, other), axis=1), (one * other).sum(1))
    np.testing.assert_allclose(error.rotation.sqrt(), angle, rtol=1e-9)
    np.testing.assert_allclose(error.twist[3 + free], 0, atol=1e-9)
    # The arc brings the axis onto the other.
    local = torch.from_numpy(rotation(b).apply(error.twist[3:].T.numpy()))
    brought = Rotation.from_rotvec(local.numpy()).apply(one)
    np.testing.assert_allclose(brought, other, atol=1e-9)


def test_turns_about_a_free_axis_cost_nothing_and_its_reversal_half_a_turn() -> None:
    b = poses(4, 2)
    for axis, expected in (((0, 0, 1), 0.0), ((1, 0, 0), math.pi)):
        turn = Rotation.from_rotvec(math.pi * np.array(axis))
        turned = kin.xyzw_to_wxyz(torch.from_numpy((rotation(b) * turn).as_quat()))
        error = task_error(torch.cat((b[:, :3], turned), -1), b, (1.0, 1.0, 1.0, 1.0, 1.0, 0.0))
        np.testing.assert_allclose(error.rotation.sqrt(), expected, atol=1e-7)


def test_the_jacobian_has_the_rows_that_the_error_has() -> None:
    chain = kin.panda()
    q = torch.linspace(-0.5, 0.4, 7, dtype=torch.float64).unsqueeze(0) + torch.tensor(
        [0, 0, 0, -1.5, 0, 1.5, 0]
    )
    weights = (1.0, 2.0, 1.0, 1.0, 1.0, 0.0)
    target = kin.forward(chain, q)  # where the error is zero its derivative is the Jacobian
    columns = task_jacobian(kin.jacobian(chain, q), target, weights)[..., 0]

    def error(x: Tensor) -> Tensor:
        return task_error(kin.forward(chain, x), target, weights).twist[:, 0]

    h = 1e-6
    for i in range(7):
        step = h * torch.eye(7, dtype=torch.float64)[i]
        difference = -(error(q + step) - error(q - step)) / (2 * h)
        torch.testing.assert_close(columns[i], difference, rtol=0, atol=1e-7)


def test_distances_are_of_float64_and_nan_stays_nan() -> None:
    chain = kin.ur10()
    q = torch.zeros(2, 6)
    q[1, 3] = math.nan
    target = kin.forward(chain, torch.zeros(2, 6, dtype=torch.float64)).float()
    position, rotated = task_distances(chain, q, target, None)
    assert position.dtype == torch.float64 and float(position[0]) < 1e-7 and float(rotated[0]) < 1e-3
    assert bool(position[1].isnan())
