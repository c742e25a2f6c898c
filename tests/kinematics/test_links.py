"""Poses along a chain against the two functions that walk it already, and against products of matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import jvp, vmap

from mfk import kinematics as kin

MIXED = kin.serial_chain(
    "mixed",
    "root",
    "end",
    [
        kin.Joint("lift", "prismatic", (0.1, -0.2, 0.3), (0.1, 0.2, 0.3), (0.0, 0.0, -2.0), -0.5, 0.5),
        kin.Joint("swing", "revolute", (0.0, 0.3, 0.0), (0.0, math.pi / 2, 0.0), (1.0, 1.0, 0.2), -2.0, 2.0),
        kin.Joint("spin", "continuous", (0.2, 0.0, 0.0), (math.pi, 0.0, 0.0), (-1.0, 0.0, 0.0)),
        kin.Joint("flange", "fixed", (0.0, 0.1, 0.0), (0.0, 0.0, -math.pi / 4)),
    ],
)
CHAINS = [kin.panda(), kin.ur10(), MIXED]
each = pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)


def random_q(chain: kin.Chain, *shape: int) -> Tensor:
    numbers = torch.rand(*shape, chain.dof, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.lerp(chain.lower, chain.upper, numbers)


@each
@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (2, 3)])
def test_positions_and_the_tip_are_known(chain: kin.Chain, shape: tuple[int, ...]) -> None:
    q = random_q(chain, *shape)
    poses = kin.link_poses(chain, q)
    assert poses.shape == (*shape, chain.dof + 2, 7)
    torch.testing.assert_close(poses[..., :3], kin.joint_positions(chain, q), rtol=0, atol=0)
    torch.testing.assert_close(poses[..., -1, :], kin.forward(chain, q), rtol=0, atol=1e-13)
    identity = torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).double().expand(*shape, 7)
    assert torch.equal(poses[..., 0, :], identity)
    assert bool((poses[..., 3] >= 0).all())
    torch.testing.assert_close(poses[..., 3:].norm(dim=-1), torch.ones(*shape, chain.dof + 2).double())


@each
def test_every_frame_is_the_product_of_its_stages(chain: kin.Chain) -> None:
    for q in random_q(chain, 10):
        rotation = torch.eye(3).double()
        for i, (stage, value) in enumerate(zip(chain.stages, q, strict=True), start=1):
            if stage.rotation is not None:
                rotation = rotation @ torch.tensor(stage.rotation).double()
            if not stage.prismatic:
                rotation = rotation @ kin.so3_exp(stage.sign * value * torch.eye(3).double()[stage.axis])
            found = kin.quaternion_to_matrix(kin.link_poses(chain, q)[i, 3:])
            torch.testing.assert_close(found, rotation, rtol=0, atol=1e-7)


@each
def test_a_link_turns_by_its_joint_alone(chain: kin.Chain) -> None:
    """In the local frames, a revolute joint moves the quaternion of its own bone by its angle."""
    parents = range(-1, chain.dof + 1)
    q = random_q(chain, 4)
    before = kin.local_from_world(kin.link_poses(chain, q), parents)
    for joint, kind in enumerate(chain.kinds):
        moved = q.clone()
        moved[:, joint] += 0.1
        after = kin.local_from_world(kin.link_poses(chain, moved), parents)
        angle = kin.quaternion_angle(before[..., 3:], after[..., 3:])
        expected = torch.zeros_like(angle)
        if kind != "prismatic":
            expected[:, joint + 1] = 0.1
        torch.testing.assert_close(angle, expected, rtol=0, atol=1e-12)


def test_derivatives_and_vmap() -> None:
    chain, q = kin.panda(), random_q(kin.panda(), 3)
    assert gradcheck(lambda q: kin.link_poses(chain, q), q[0].clone().requires_grad_(), check_forward_ad=True)
    torch.testing.assert_close(
        vmap(lambda q: kin.link_poses(chain, q))(q), kin.link_poses(chain, q), rtol=0, atol=1e-14
    )
    single = jvp(lambda q: kin.link_poses(chain, q), (q[0].float(),), (q[1].float(),))
    assert single[0].dtype == single[1].dtype == torch.float32
    zero = torch.zeros(chain.dof, requires_grad=True)
    (slope,) = torch.autograd.grad(kin.link_poses(chain, zero).sum(), zero)
    assert slope.isfinite().all()


def test_joints_are_checked() -> None:
    with pytest.raises(ValueError, match=r"q: expected shape \[..., 7\]"):
        kin.link_poses(kin.panda(), torch.zeros(6))
    bad: Any = torch.zeros(7, dtype=torch.int64)
    with pytest.raises(TypeError, match="q: expected float32 or float64"):
        kin.link_poses(kin.panda(), bad)
