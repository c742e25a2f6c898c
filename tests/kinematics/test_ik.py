"""The pose error and the damped least-squares step against closed forms and linear algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mfk import kinematics as kin


def random_q(chain: kin.Chain, rows: int, seed: int = 0) -> Tensor:
    u = torch.rand(rows, chain.dof, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return chain.lower + u * (chain.upper - chain.lower)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poses(rows: int, seed: int = 0) -> Tensor:
    pose = normal(rows, 7, seed=seed)
    return torch.cat((pose[:, :3], kin.quaternion_normalize(pose[:, 3:])), dim=-1)


def test_the_pose_error_is_the_difference_and_the_relative_rotation_vector() -> None:
    a, b = poses(100, seed=1), poses(100, seed=2)
    error = kin.pose_error(a, b)
    torch.testing.assert_close(error[:, :3], b[:, :3] - a[:, :3], rtol=0, atol=0)
    first, second = (Rotation.from_quat(kin.wxyz_to_xyzw(x[:, 3:]).numpy()) for x in (a, b))
    expected = torch.from_numpy((second * first.inv()).as_rotvec())
    torch.testing.assert_close(error[:, 3:], expected, rtol=0, atol=1e-13)
    flip = torch.tensor([1.0, 1, 1, -1, -1, -1, -1], dtype=torch.float64)
    torch.testing.assert_close(kin.pose_error(a * flip, b), error, rtol=0, atol=0)
    torch.testing.assert_close(kin.pose_error(a, b * flip), error, rtol=0, atol=0)


def test_the_pose_error_is_smooth_at_zero_and_near_half_turns() -> None:
    pose = poses(3)
    torch.testing.assert_close(kin.pose_error(pose, pose), torch.zeros(3, 6).double(), rtol=0, atol=1e-15)

    def moved(twist: Tensor) -> Tensor:
        turned = kin.quaternion_multiply(kin.quaternion_exp(twist[:, 3:]), pose[:, 3:])
        return kin.pose_error(pose, torch.cat((pose[:, :3] + twist[:, :3], turned), dim=-1))

    zero = torch.zeros(3, 6, dtype=torch.float64)
    derivative = torch.func.vmap(torch.func.jacrev(lambda t: moved(t.expand(3, 6))[0]))(zero)
    torch.testing.assert_close(derivative, torch.eye(6).double().expand(3, 6, 6), rtol=0, atol=1e-15)
    assert torch.autograd.gradgradcheck(moved, zero.requires_grad_())
    almost = torch.zeros(3, 6, dtype=torch.float64)
    almost[:, 3] = math.pi - 1e-6
    torch.testing.assert_close(moved(almost), almost, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(moved, almost.requires_grad_())


@pytest.mark.parametrize("dof", [1, 3, 5, 6, 7, 9])
@pytest.mark.parametrize("damping", [1e-2, 0.5])
def test_damped_step_and_inverse_solve_the_least_squares_problem(dof: int, damping: float) -> None:
    jacobian, error = normal(50, 6, dof), normal(50, 6, seed=1)
    # The least-squares problem itself: |J dq - e|^2 + damping^2 |dq|^2 by QR of the stacked matrix.
    stacked = torch.cat((jacobian, damping * torch.eye(dof).double().expand(50, dof, dof)), dim=1)
    right = torch.cat((error, torch.zeros(50, dof).double()), dim=1)
    expected = torch.linalg.lstsq(stacked, right.unsqueeze(-1)).solution.squeeze(-1)
    step = kin.damped_step(jacobian, error, damping)
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-10)
    inverse = kin.damped_inverse(jacobian, damping)
    assert inverse.shape == (50, dof, 6)
    torch.testing.assert_close((inverse @ error.unsqueeze(-1)).squeeze(-1), step, rtol=1e-9, atol=1e-10)
    single = kin.damped_step(jacobian.float(), error.float(), damping)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dof", [4, 7])
def test_damped_step_is_differentiable_in_any_leading_shape(dof: int) -> None:
    jacobian, error = normal(2, 3, 6, dof), normal(2, 3, 6, seed=1)
    step = kin.damped_step(jacobian, error, 0.3)
    assert step.shape == (2, 3, dof)
    torch.testing.assert_close(step[1, 2], kin.damped_step(jacobian[1, 2], error[1, 2], 0.3))
    assert kin.damped_step(jacobian[:0], error[:0], 0.3).shape == (0, 3, dof)
    by_map = torch.func.vmap(lambda j, e: kin.damped_step(j, e, 0.3))(jacobian, error)
    torch.testing.assert_close(by_map, step, rtol=0, atol=1e-13)
    j, e = jacobian[0, :2].clone().requires_grad_(), error[0, :2].clone().requires_grad_()
    for fn in (lambda j, e: kin.damped_step(j, e, 0.3), lambda j, e: kin.damped_inverse(j, 0.3)):
        assert torch.autograd.gradcheck(fn, (j, e), check_forward_ad=False)
    tangents = (normal(2, 3, 6, dof, seed=2), normal(2, 3, 6, seed=3))
    change = torch.func.jvp(lambda j, e: kin.damped_step(j, e, 0.3), (jacobian, error), tangents)[1]
    h = 1e-6
    ahead = kin.damped_step(jacobian + h * tangents[0], error + h * tangents[1], 0.3)
    behind = kin.damped_step(jacobian - h * tangents[0], error - h * tangents[1], 0.3)
    torch.testing.assert_close(change, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chain", [kin.panda(), kin.ur10()], ids=["panda", "ur10"])
def test_steps_converge_to_a_reachable_pose(chain: kin.Chain) -> None:
    inner = 0.5 * (chain.lower + chain.upper) + 0.4 * (
        random_q(chain, 200) - 0.5 * (chain.lower + chain.upper)
    )
    q = inner + 0.05 * normal(200, chain.dof, seed=1)
    target = kin.forward(chain, inner)
    before = kin.pose_error(kin.forward(chain, q), target).norm(dim=-1)
    for _ in range(12):
        q = kin.least_squares_step(chain, q, target)
    after = kin.pose_error(kin.forward(chain, q), target).norm(dim=-1)
    assert float(before.median()) > 0.01
    assert float((after < 1e-6).double().mean()) > 0.9


def test_the_step_is_its_formula() -> None:
    chain = kin.ur10()
    q = 0.3 * random_q(chain, 20)
    target = kin.forward(chain, q + 0.05)
    pose, jacobian = kin.pose_and_jacobian(chain, q)
    error = kin.pose_error(pose, target).unsqueeze(-1)
    square = jacobian @ jacobian.mT + 0.05**2 * torch.eye(6).double()
    expected = q + (jacobian.mT @ torch.linalg.solve(square, error)).squeeze(-1)
    got = kin.least_squares_step(chain, q, target, damping=0.05)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        kin.least_squares_step(chain, q[3], target[3], 0.05), got[3], rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_stay_within_the_limits(dtype: torch.dtype) -> None:
    chain = kin.panda()
    q, target = random_q(chain, 300).to(dtype), kin.forward(chain, random_q(chain, 300, seed=1)).to(dtype)
    moved = kin.least_squares_step(chain, q, target)
    assert moved.dtype == dtype
    # Compared in float64: a float32 bound rounded outward would be over the limit.
    assert bool((moved.double() >= chain.lower).all() and (moved.double() <= chain.upper).all())
    for limit in (chain.lower, chain.upper):
        near = torch.nextafter(limit.to(dtype), torch.zeros(7, dtype=dtype))
        assert bool(((moved - limit.to(dtype)).abs() <= (near - limit.to(dtype)).abs()).any())


def test_continuous_joints_are_not_clipped() -> None:
    joints = [
        kin.Joint("free", "continuous", (0.0, 0, 0), (0.0, 0, 0), (0.0, 0, 1), -math.pi, math.pi),
        kin.Joint("held", "revolute", (0.0, 0, 1), (0.0, 0, 0), (0.0, 1, 0), -1.0, 1.0),
    ]
    chain = kin.serial_chain("two", "a", "b", joints)
    assert chain.continuous == (True, False)
    q = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    assert kin.clip_to_limits(chain, q).tolist() == [[5.0, 1.0], [-5.0, -1.0]]


LIST: Any = [0.0] * 7


def test_good_poses_pass_the_check() -> None:
    kin.check_pose(poses(4))
    kin.check_pose(poses(1)[0].float())
    kin.check_pose(torch.zeros(0, 7))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: kin.check_pose(torch.zeros(2, 6)), ValueError, r"target: expected shape \[..., 7\]"),
        (lambda: kin.check_pose(LIST), TypeError, r"target: expected a tensor"),
        (lambda: kin.check_pose(torch.zeros(7).int()), TypeError, "target: expected floating-point"),
        (
            lambda: kin.check_pose(torch.tensor([[0.0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]]), "goal"),
            ValueError,
            r"goal: expected unit quaternions .* got norm 1.41421 in row 1",
        ),
        (
            lambda: kin.check_pose(torch.tensor([0.0, math.nan, 0, 1, 0, 0, 0])),
            ValueError,
            r"target: expected finite numbers, got \[0.0, nan, .* in row 0",
        ),
        (
            lambda: kin.pose_error(torch.zeros(2, 7), torch.zeros(7)),
            ValueError,
            r"target: .* \(2, 7\), got \(7,\)",
        ),
        (lambda: kin.pose_error(torch.zeros(7), torch.zeros(7).double()), TypeError, "target: expected"),
        (
            lambda: kin.pose_error(torch.zeros(4), torch.zeros(4)),
            ValueError,
            r"pose: expected shape \[..., 7\]",
        ),
        (
            lambda: kin.least_squares_step(kin.panda(), torch.zeros(2, 7), torch.zeros(3, 7)),
            ValueError,
            r"target: expected the shape of the pose, \(2, 7\), got \(3, 7\)",
        ),
        (lambda: kin.damped_step(torch.zeros(6, 7), torch.zeros(6), 0.0), ValueError, "damping: .* got 0.0"),
        (
            lambda: kin.damped_step(torch.zeros(6, 7), torch.zeros(7), 0.1),
            ValueError,
            r"error: .* got \(7,\)",
        ),
        (
            lambda: kin.damped_step(torch.zeros(7, 6), torch.zeros(7), 0.1),
            ValueError,
            r"jacobian: .* \(7, 6\)",
        ),
        (
            lambda: kin.damped_step(torch.zeros(6, 7), torch.zeros(6).double(), 0.1),
            TypeError,
            "error: expected torch.float32",
        ),
        (lambda: kin.clip_to_limits(kin.ur10(), torch.zeros(7)), ValueError, r"q: .* got \(7,\)"),
    ],
)
def test_wrong_arguments(call: Callable, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_step_compiles_whole() -> None:
    """Under torch.compile in one graph (dynamo and autograd, without a C++ compiler), to rounding."""
    chain = kin.panda()
    q = torch.linspace(-0.3, 0.3, 21, dtype=torch.float64).reshape(3, 7) + 0.5 * (chain.lower + chain.upper)
    target = kin.forward(chain, q + 0.05)
    compiled = torch.compile(
        lambda q, target: kin.least_squares_step(chain, q, target), fullgraph=True, backend="aot_eager"
    )
    expected = kin.least_squares_step(chain, q, target)
    torch.testing.assert_close(compiled(q, target), expected, rtol=1e-12, atol=1e-12)
