"""Forward kinematics and Jacobian against products of matrices and numerical derivatives."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from mfk import kinematics as kin

# A prismatic joint, oblique axes of any length, an axis along -x, and a fixed joint in between.
MIXED = [
    kin.Joint("lift", "prismatic", (0.1, -0.2, 0.3), (0.1, 0.2, 0.3), (0.0, 0.0, -2.0), -0.5, 0.5),
    kin.Joint("swing", "revolute", (0.0, 0.3, 0.0), (0.0, math.pi / 2, 0.0), (1.0, 1.0, 0.2), -2.0, 2.0),
    kin.Joint("plate", "fixed", (0.05, 0.0, 0.1), (0.3, -0.4, 1.2)),
    kin.Joint("spin", "continuous", (0.2, 0.0, 0.0), (math.pi, 0.0, 0.0), (-1.0, 0.0, 0.0), -3.0, 3.0),
    kin.Joint("slide", "prismatic", (0.0, 0.0, 0.2), (0.0, 0.0, 0.5), (1.0, -0.3, 0.0), -0.5, 0.5),
    kin.Joint("flange", "fixed", (0.0, 0.1, 0.0), (0.0, 0.0, -math.pi / 4)),
]


def mixed() -> kin.Chain:
    return kin.serial_chain("mixed", "root", "end", MIXED)


CHAINS = [kin.panda(), kin.panda("panda_hand_tcp"), kin.ur10(), kin.ur10("ee_link"), mixed()]


def homogeneous(rotation: Rotation, xyz: tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), xyz
    return matrix


def by_matrices(joints: list[kin.Joint], q: list[float]) -> np.ndarray:
    """The plain product of 4 x 4 matrices, one joint after another."""
    total, values = np.eye(4), iter(q)
    for joint in joints:
        total = total @ homogeneous(Rotation.from_euler("xyz", joint.rpy), joint.xyz)
        if joint.kind == "fixed":
            continue
        axis, value = np.array(joint.axis) / np.linalg.norm(joint.axis), next(values)
        if joint.kind == "prismatic":
            total = total @ homogeneous(Rotation.identity(), tuple(axis * value))
        else:
            total = total @ homogeneous(Rotation.from_rotvec(axis * value), (0.0, 0.0, 0.0))
    return total


def random_q(chain: kin.Chain, *shape: int, seed: int = 0) -> Tensor:
    u = torch.rand(*shape, chain.dof, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return chain.lower + u * (chain.upper - chain.lower)


def test_mixed_joints_against_a_product_of_matrices() -> None:
    for q in random_q(mixed(), 20):
        got = kin.forward_matrix(mixed(), q)
        expected = torch.from_numpy(by_matrices(MIXED, q.tolist()))
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-15)


def points_by_matrices(joints: list[kin.Joint], q: list[float]) -> np.ndarray:
    """The base, the origin after each moving joint, the tip: products of ever more matrices."""
    moving = [i + 1 for i, joint in enumerate(joints) if joint.kind != "fixed"]
    parts = [0, *moving, len(joints)]
    return np.stack([by_matrices(joints[:count], q)[:3, 3] for count in parts])


ANGLE = st.one_of(st.sampled_from([0.0, math.pi / 2, -math.pi / 2, math.pi]), st.floats(-3.2, 3.2))
TRIPLE = st.tuples(*[st.one_of(st.just(0.0), st.floats(-1.0, 1.0))] * 3)
AXIS = st.one_of(
    st.sampled_from([(1.0, 0, 0), (0, -1.0, 0), (0, 0, 1.0), (0, 0, -3.0)]),
    TRIPLE.filter(lambda a: math.hypot(*a) > 0.1),
)
JOINT = st.builds(
    kin.Joint,
    name=st.just("joint"),
    kind=st.sampled_from(["fixed", "revolute", "revolute", "prismatic"]),
    xyz=TRIPLE,
    rpy=st.tuples(ANGLE, ANGLE, ANGLE),
    axis=AXIS,
    lower=st.just(-1.0),
    upper=st.just(1.0),
)


@settings(max_examples=60)
@given(st.lists(JOINT, min_size=1, max_size=7), st.lists(ANGLE, min_size=7, max_size=7))
def test_any_chain_is_the_product_of_its_matrices(joints: list[kin.Joint], values: list[float]) -> None:
    dof = sum(joint.kind != "fixed" for joint in joints)
    if dof == 0:
        with pytest.raises(ValueError, match="no joint moves between 'a' and 'b'"):
            kin.serial_chain("random", "a", "b", joints)
        return
    chain = kin.serial_chain("random", "a", "b", joints)
    q = torch.tensor(values[:dof], dtype=torch.float64)
    expected = torch.from_numpy(by_matrices(joints, values[:dof]))
    torch.testing.assert_close(kin.forward_matrix(chain, q), expected, rtol=0, atol=3e-14)
    check_jacobian(chain, q.unsqueeze(0))
    points = torch.from_numpy(points_by_matrices(joints, values[:dof]))
    torch.testing.assert_close(kin.joint_positions(chain, q), points, rtol=0, atol=3e-14)


def test_joint_positions_of_mixed_joints_against_a_product_of_matrices() -> None:
    for q in random_q(mixed(), 20):
        expected = torch.from_numpy(points_by_matrices(MIXED, q.tolist()))
        torch.testing.assert_close(kin.joint_positions(mixed(), q), expected, rtol=0, atol=2e-15)


@pytest.mark.parametrize(
    ("robot", "links", "tip"),
    [
        (kin.panda, [f"panda_link{i}" for i in range(1, 8)], "panda_hand_tcp"),
        (
            kin.ur10,
            [
                "shoulder_link",
                "upper_arm_link",
                "forearm_link",
                "wrist_1_link",
                "wrist_2_link",
                "wrist_3_link",
            ],
            "ee_link",
        ),
    ],
)
def test_joint_positions_are_those_of_the_links(
    robot: Callable[[str], kin.Chain], links: list[str], tip: str
) -> None:
    chain = robot(tip)
    q = random_q(chain, 2, 5)
    points = kin.joint_positions(chain, q)
    assert bool((points[..., 0, :] == 0).all())
    for i, link in enumerate(links, start=1):
        expected = kin.forward(robot(link), q[..., :i])[..., :3]
        torch.testing.assert_close(points[..., i, :], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(points[..., -1, :], kin.forward(chain, q)[..., :3], rtol=0, atol=1e-14)
    single = kin.joint_positions(chain, q.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), points, rtol=0, atol=3e-6)


def test_an_axis_of_zero_length_is_refused() -> None:
    joint = kin.Joint("j", "revolute", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), -1.0, 1.0)
    with pytest.raises(ValueError, match="arm: joint 'j': axis: expected a direction"):
        kin.serial_chain("arm", "a", "b", [joint])


def check_jacobian(chain: kin.Chain, q: Tensor) -> None:
    """Central differences: positions, and logarithms of relative rotations."""
    _, jacobian = kin.pose_and_jacobian(chain, q)
    step = 1e-5
    for i in range(chain.dof):
        move = torch.zeros(chain.dof, dtype=torch.float64)
        move[i] = step
        ahead, behind = kin.forward_matrix(chain, q + move), kin.forward_matrix(chain, q - move)
        linear = (ahead - behind)[..., :3, 3] / (2 * step)
        relative = (ahead[..., :3, :3] @ behind[..., :3, :3].mT).numpy()
        angular = torch.from_numpy(Rotation.from_matrix(relative).as_rotvec()) / (2 * step)
        expected = torch.cat((linear, angular), dim=-1)
        torch.testing.assert_close(jacobian[..., :, i], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_the_jacobian_is_the_derivative(chain: kin.Chain) -> None:
    q = random_q(chain, 8)
    check_jacobian(chain, q)
    torch.testing.assert_close(kin.jacobian(chain, q), kin.pose_and_jacobian(chain, q)[1], rtol=0, atol=0)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_the_jacobian_agrees_with_forward_mode(chain: kin.Chain) -> None:
    q, dq = random_q(chain, 6), random_q(chain, 6, seed=1)
    matrix, change = torch.func.jvp(lambda x: kin.forward_matrix(chain, x), (q,), (dq,))[:2]
    twist = (kin.jacobian(chain, q) @ dq.unsqueeze(-1)).squeeze(-1)
    spin = change[:, :3, :3] @ matrix[:, :3, :3].mT  # [w]x
    angular = torch.stack((spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]), dim=-1)
    torch.testing.assert_close(twist, torch.cat((change[:, :3, 3], angular), -1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_leading_shapes(chain: kin.Chain, shape: tuple[int, ...]) -> None:
    q = random_q(chain, *shape)
    pose, jacobian = kin.pose_and_jacobian(chain, q)
    assert pose.shape == (*shape, 7)
    assert jacobian.shape == (*shape, 6, chain.dof)
    points = kin.joint_positions(chain, q)
    assert points.shape == (*shape, chain.dof + 2, 3)
    flat = q.reshape(-1, chain.dof)
    for i, row in enumerate(flat):
        torch.testing.assert_close(pose.reshape(-1, 7)[i], kin.forward(chain, row), rtol=0, atol=1e-15)
        torch.testing.assert_close(
            jacobian.reshape(-1, 6, chain.dof)[i], kin.jacobian(chain, row), rtol=0, atol=1e-15
        )
        torch.testing.assert_close(
            points.reshape(-1, chain.dof + 2, 3)[i], kin.joint_positions(chain, row), rtol=0, atol=1e-15
        )


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_quaternions_are_unit_and_canonical(chain: kin.Chain) -> None:
    q = random_q(chain, 2000)
    pose, single = kin.forward(chain, q), kin.forward(chain, q.float())
    assert bool((pose[:, 3] >= 0).all())
    assert float((pose[:, 3:].norm(dim=-1) - 1).abs().max()) < 1e-14
    assert float((single[:, 3:].double().norm(dim=-1) - 1).abs().max()) < 1e-6
    assert single.dtype == torch.float32
    close = pose[:, 3] > 1e-4
    torch.testing.assert_close(single[close].double(), pose[close], rtol=0, atol=3e-6)


TRANSFORMED: list[Callable[[kin.Chain, Tensor], Tensor]] = [
    kin.forward,
    kin.jacobian,
    kin.joint_positions,
    lambda chain, q: kin.least_squares_step(chain, q, kin.forward(chain, torch.full_like(q, 0.1))),
]


@pytest.mark.parametrize("fn", TRANSFORMED)
@pytest.mark.parametrize("chain", [kin.panda(), mixed()], ids=repr)
def test_transforms(chain: kin.Chain, fn: Callable[[kin.Chain, Tensor], Tensor]) -> None:
    q, dq = 0.4 * random_q(chain, 4), random_q(chain, 4, seed=2)
    torch.testing.assert_close(torch.func.vmap(lambda x: fn(chain, x))(q), fn(chain, q), rtol=0, atol=1e-13)
    tangent = torch.func.jvp(lambda x: fn(chain, x), (q,), (dq,))[1]
    step = 1e-6
    expected = (fn(chain, q + step * dq) - fn(chain, q - step * dq)) / (2 * step)
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-6)
    by_rows = torch.func.vmap(torch.func.jacrev(lambda x: fn(chain, x)))(q)
    along = torch.einsum("n...j,nj->n...", by_rows, dq)
    torch.testing.assert_close(along, tangent, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        torch.func.vmap(torch.func.jacfwd(lambda x: fn(chain, x)))(q), by_rows, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("fn", TRANSFORMED)
def test_tangents_of_a_single_float32_row_are_float32(fn: Callable[[kin.Chain, Tensor], Tensor]) -> None:
    q = torch.full((7,), 0.2)
    assert torch.func.jvp(lambda x: fn(kin.panda(), x), (q,), (torch.ones(7),))[1].dtype == torch.float32
    assert (
        torch.func.vmap(torch.func.jacfwd(lambda x: fn(kin.panda(), x)))(q.expand(3, 7)).dtype
        == torch.float32
    )


def test_gradients_of_gradients() -> None:
    chain = kin.panda()
    q = random_q(chain, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: kin.forward(chain, x), q)


@pytest.mark.parametrize(
    "chain", [kin.panda("panda_link8"), kin.ur10("wrist_3_link"), kin.ur10("ee_link")], ids=repr
)
def test_gradients_are_finite_at_zero_where_qw_is_zero(chain: kin.Chain) -> None:
    q = torch.zeros(chain.dof, dtype=torch.float64)
    assert float(kin.forward(chain, q)[3]) == 0.0
    for fn in TRANSFORMED:
        assert bool(torch.isfinite(torch.func.jacrev(lambda x, fn=fn: fn(chain, x))(q)).all())
        assert bool(torch.isfinite(torch.func.jacfwd(lambda x, fn=fn: fn(chain, x))(q)).all())


def test_a_traced_step_holds_no_constants_of_the_chain_and_gives_the_same_numbers() -> None:
    chain = kin.panda()
    q, dq = random_q(chain, 3), random_q(chain, 3, seed=1)
    target = kin.forward(chain, random_q(chain, 3, seed=2))

    def tangent(q: Tensor, dq: Tensor, target: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: kin.least_squares_step(chain, x, target), (q,), (dq,))[1]

    graph = make_fx(tangent, tracing_mode="fake")(q, dq, target)
    assert not list(graph.named_buffers())
    other = random_q(chain, 3, seed=3)
    torch.testing.assert_close(graph(other, dq, target), tangent(other, dq, target), rtol=0, atol=0)


def test_real_tracing_under_jvp_does_not_crash() -> None:
    """Scaled operands (`addcmul(value=-1)`) end the process there, so this runs in another one."""
    code = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from mfk import kinematics as kin
chain, q, dq = kin.panda(), torch.zeros(2, 7), torch.ones(2, 7)
target = kin.forward(chain, torch.full_like(q, 0.1))
def tangent(q, dq):
    return torch.func.jvp(lambda x: kin.least_squares_step(chain, x, target), (q,), (dq,))[1]
torch.testing.assert_close(make_fx(tangent)(q, dq)(q, dq), tangent(q, dq))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_nan_passes_through_without_an_exception() -> None:
    q = torch.zeros(2, 7, dtype=torch.float64)
    q[1, 6] = math.nan
    pose = kin.forward(kin.panda(), q)
    assert bool(torch.isfinite(pose[0]).all())
    assert bool(pose[1].isnan().any())
    points = kin.joint_positions(kin.panda("panda_hand_tcp"), torch.tensor([0.0] * 5 + [math.nan, 0.0]))
    assert bool(torch.isfinite(points[:7]).all()) and bool(points[7:].isnan().any(-1).all())


@pytest.mark.parametrize(
    ("q", "kind", "words"),
    [
        ([0.0] * 7, TypeError, r"q: expected a tensor \[..., 7\], got \["),
        (torch.zeros(7, dtype=torch.int64), TypeError, "q: expected float32 or float64, got torch.int64"),
        (torch.zeros(7, dtype=torch.float16), TypeError, "got torch.float16"),
        (torch.zeros(3, 6), ValueError, r"q: expected shape \[..., 7\], the joints of panda, got \(3, 6\)"),
        (torch.tensor(0.0), ValueError, r"got \(\)"),
    ],
)
def test_wrong_joints(q: Tensor, kind: type[Exception], words: str) -> None:
    for fn in (kin.forward, kin.jacobian, kin.pose_and_jacobian, kin.forward_matrix, kin.joint_positions):
        with pytest.raises(kind, match=words):
            fn(kin.panda(), q)
