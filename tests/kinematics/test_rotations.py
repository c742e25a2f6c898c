"""Rotations against scipy, numerical derivatives, and their own inverses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mfk import kinematics as kin

LIST: Any = [0.0, 0.0, 0.0]
SHAPES = [(), (0,), (5,), (2, 3)]


def quaternions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    return q / q.norm(dim=-1, keepdim=True)


def scipy_of(q: Tensor) -> Rotation:
    return Rotation.from_quat(kin.wxyz_to_xyzw(q).numpy())


def vectors(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def half_turns() -> Tensor:
    """Quaternions with qw = 0, among them the three about the axes."""
    s = math.sqrt(0.5)
    rows = [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, s, s, 0], [0, 0, s, -s], [0, 0.6, 0, 0.8]]
    return torch.tensor(rows, dtype=torch.float64)


def test_product_and_conjugate_agree_with_scipy() -> None:
    a, b = quaternions(50, seed=1), quaternions(50, seed=2)
    expected = torch.from_numpy((scipy_of(a) * scipy_of(b).inv()).as_matrix())
    got = kin.quaternion_to_matrix(kin.quaternion_multiply(a, kin.quaternion_conjugate(b)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


def test_rotating_a_vector_agrees_with_scipy() -> None:
    q, v = quaternions(50), vectors(50)
    expected = torch.from_numpy(scipy_of(q).apply(v.numpy()))
    torch.testing.assert_close(kin.quaternion_rotate(q, v), expected, rtol=0, atol=1e-14)


def test_one_rotation_is_applied_to_a_batch() -> None:
    q, v = quaternions(), vectors(4, 2)
    expected = kin.quaternion_rotate(q.expand(4, 2, 4), v)
    torch.testing.assert_close(kin.quaternion_rotate(q, v), expected, rtol=0, atol=0)


def test_logarithm_and_exponential_agree_with_scipy() -> None:
    q = torch.cat((quaternions(200), half_turns() + torch.tensor([1e-9, 0, 0, 0])))
    v = torch.from_numpy(scipy_of(q).as_rotvec())
    torch.testing.assert_close(kin.quaternion_log(kin.quaternion_normalize(q)), v, rtol=0, atol=1e-14)
    back = kin.quaternion_exp(v)
    torch.testing.assert_close(
        kin.quaternion_canonical(back), kin.quaternion_canonical(q), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-8, 1e-5, 9.99e-4, 1.001e-3, 2.1e-3, 0.1])
def test_small_angles_keep_all_digits(size: float) -> None:
    direction = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64)
    q = kin.quaternion_exp(size * direction)
    assert float(q[0]) == pytest.approx(math.cos(size / 2), rel=1e-15)
    torch.testing.assert_close(q[1:], math.sin(size / 2) * direction, rtol=2e-15, atol=0)
    torch.testing.assert_close(kin.quaternion_log(q), size * direction, rtol=2e-15, atol=0)
    angle = kin.quaternion_angle(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), q)
    assert float(angle) == pytest.approx(size, rel=1e-14, abs=0)


def test_matrix_to_quaternion_agrees_with_scipy() -> None:
    q = torch.cat((quaternions(300), half_turns()))
    got = kin.matrix_to_quaternion(torch.from_numpy(scipy_of(q).as_matrix()))
    assert bool((got[:, 0] >= 0).all())
    dot = (got * q).sum(-1).abs()
    torch.testing.assert_close(dot, torch.ones_like(dot), rtol=0, atol=1e-15)
    torch.testing.assert_close(kin.quaternion_to_matrix(got), kin.quaternion_to_matrix(q), rtol=0, atol=1e-14)


def test_roll_pitch_yaw_is_scipys_fixed_axes() -> None:
    rpy = vectors(100) * 2
    expected = torch.from_numpy(Rotation.from_euler("xyz", rpy.numpy()).as_matrix())
    torch.testing.assert_close(kin.rpy_to_matrix(rpy), expected, rtol=0, atol=1e-14)


def test_so3_maps_are_scipys_and_inverse_to_each_other() -> None:
    v = vectors(100)
    v = v * (3.1 / v.norm(dim=-1, keepdim=True).clamp(min=3.1))
    matrix = kin.so3_exp(v)
    torch.testing.assert_close(
        matrix, torch.from_numpy(Rotation.from_rotvec(v.numpy()).as_matrix()), rtol=0, atol=1e-14
    )
    torch.testing.assert_close(kin.so3_log(matrix), v, rtol=0, atol=1e-13)


def test_six_numbers_are_the_columns_and_any_six_give_a_rotation() -> None:
    matrix = kin.quaternion_to_matrix(quaternions(20))
    sixd = kin.matrix_to_sixd(matrix)
    torch.testing.assert_close(sixd[:, 3:], matrix[:, :, 1], rtol=0, atol=0)
    torch.testing.assert_close(kin.sixd_to_matrix(sixd), matrix, rtol=0, atol=1e-14)
    free = kin.sixd_to_matrix(torch.cat((vectors(20), vectors(20, seed=2)), dim=-1))
    eye = torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    torch.testing.assert_close(free @ free.mT, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(torch.linalg.det(free), torch.ones(20).double(), rtol=0, atol=1e-13)


def test_poses_and_matrices_are_inverse_to_each_other() -> None:
    pose = torch.cat((vectors(2, 3), kin.quaternion_canonical(quaternions(2, 3))), dim=-1)
    matrix = kin.pose_to_matrix(pose)
    torch.testing.assert_close(matrix[..., 3, :], torch.tensor([0.0, 0, 0, 1]).double().expand(2, 3, 4))
    torch.testing.assert_close(kin.matrix_to_pose(matrix), pose, rtol=0, atol=1e-14)


def test_the_angle_is_blind_to_signs() -> None:
    a, b = quaternions(50, seed=3), quaternions(50, seed=4)
    expected = torch.from_numpy((scipy_of(a).inv() * scipy_of(b)).magnitude())
    for first, second in ((a, b), (-a, b), (a, -b)):
        torch.testing.assert_close(kin.quaternion_angle(first, second), expected, rtol=0, atol=1e-14)


def test_orders_of_components() -> None:
    q = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert kin.wxyz_to_xyzw(q).tolist() == [2.0, 3.0, 4.0, 1.0]
    assert kin.xyzw_to_wxyz(q).tolist() == [4.0, 1.0, 2.0, 3.0]
    assert kin.quaternion_canonical(torch.tensor([-0.6, 0.0, 0.8, 0.0])).tolist() == pytest.approx(
        [0.6, 0.0, -0.8, 0.0]
    )


UNARY: list[tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = [
    (kin.quaternion_normalize, (4,)),
    (kin.quaternion_log, (4,)),
    (kin.quaternion_to_matrix, (4,)),
    (kin.quaternion_exp, (3,)),
    (kin.so3_exp, (3,)),
    (kin.rpy_to_matrix, (3,)),
    (kin.matrix_to_quaternion, (3, 3)),
    (kin.so3_log, (3, 3)),
    (kin.matrix_to_pose, (4, 4)),
    (kin.pose_to_matrix, (7,)),
    (kin.sixd_to_matrix, (6,)),
]


def example(size: tuple[int, ...], lead: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    q = quaternions(*lead, seed=7)
    if size == (3, 3):
        value = kin.quaternion_to_matrix(q)
    elif size in ((7,), (4, 4)):
        value = torch.cat((vectors(*lead), kin.quaternion_canonical(q)), dim=-1)
        value = value if size == (7,) else kin.pose_to_matrix(value)
    else:
        value = {4: q, 3: vectors(*lead), 6: torch.cat((vectors(*lead), vectors(*lead, seed=5)), -1)}[size[0]]
    return value.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("fn", "size"), UNARY)
def test_leading_shapes_and_dtypes(fn: Callable, size: tuple[int, ...], dtype: torch.dtype) -> None:
    flat = fn(example(size, (6,), dtype))
    assert flat.dtype == dtype
    for lead in SHAPES:
        x = example(size, lead, dtype)
        assert fn(x).shape[: len(lead)] == lead
    rows = example(size, (6,), dtype)
    torch.testing.assert_close(fn(rows.reshape(2, 3, *size)).reshape(flat.shape), flat, rtol=0, atol=0)
    torch.testing.assert_close(torch.func.vmap(fn)(rows), flat)
    one = example(size, (), dtype)
    assert torch.func.jvp(fn, (one,), (one,))[1].dtype == dtype


@pytest.mark.parametrize(("fn", "size"), UNARY)
def test_derivatives_of_first_and_second_order(fn: Callable, size: tuple[int, ...]) -> None:
    x = example(size, (3,)).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forward AD inside gradcheck announces itself as a beta feature
        assert torch.autograd.gradcheck(fn, x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(fn, x)


def test_derivatives_where_formulas_are_singular() -> None:
    identity = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kin.quaternion_log, identity)
    assert torch.autograd.gradcheck(kin.quaternion_exp, zero)
    assert torch.autograd.gradgradcheck(kin.quaternion_exp, zero)
    turns = kin.quaternion_to_matrix(half_turns())

    # At a half turn qw crosses zero, where the canonical sign flips: differentiate what no sign changes,
    # along rotations, since two rows are equally good there and differ only off the rotations.
    def products(v: Tensor) -> Tensor:
        q = kin.matrix_to_quaternion(kin.so3_exp(v) @ turns)
        return q.unsqueeze(-1) * q.unsqueeze(-2)

    assert torch.autograd.gradcheck(
        products, torch.zeros(len(turns), 3, dtype=torch.float64, requires_grad=True)
    )


def test_gradients_are_finite_in_the_worst_places() -> None:
    identity = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    for q in (identity, *half_turns()):
        for fn in (kin.quaternion_log, lambda x: kin.quaternion_angle(x, identity)):
            assert bool(torch.isfinite(torch.func.jacrev(fn)(q)).all())
            assert bool(torch.isfinite(torch.func.jacfwd(torch.func.jacrev(fn))(q)).all())
        matrix = kin.quaternion_to_matrix(q)
        assert bool(torch.isfinite(torch.func.hessian(kin.matrix_to_quaternion)(matrix)).all())


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: kin.quaternion_log(torch.zeros(3)), ValueError, r"q: expected shape \[..., 4\], got \(3,\)"),
        (lambda: kin.quaternion_log(torch.zeros(4).int()), TypeError, "q: expected float32 or float64"),
        (lambda: kin.quaternion_exp(LIST), TypeError, "v: expected a tensor"),
        (lambda: kin.so3_log(torch.zeros(3)), ValueError, r"matrix: expected shape \[..., 3, 3\]"),
        (lambda: kin.matrix_to_pose(torch.zeros(3, 4)), ValueError, r"\[..., 4, 4\], got \(3, 4\)"),
        (
            lambda: kin.quaternion_multiply(torch.zeros(2, 4), torch.zeros(3, 4)),
            ValueError,
            r"b: expected the leading shape of a, \(2,\)",
        ),
        (
            lambda: kin.quaternion_multiply(torch.zeros(4), torch.zeros(4).double()),
            TypeError,
            "b: expected torch.float32, the dtype of a",
        ),
    ],
)
def test_wrong_arguments(call: Callable, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
