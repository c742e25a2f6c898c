"""Velocities, unit quaternions and sliding feet against values by hand and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import grad, jvp, vmap

from mfk.losses import finite_difference_velocity, foot_sliding, quaternion_distance, quaternion_norm


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_velocity_is_the_difference_of_neighbours() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    assert finite_difference_velocity(x, 0.5).tolist() == [[2.0, 0.0], [0.0, -4.0]]
    many = numbers(2, 3, 7, 5)
    torch.testing.assert_close(finite_difference_velocity(many, 0.1), torch.diff(many, dim=-2) / 0.1)
    torch.testing.assert_close(
        vmap(lambda row: finite_difference_velocity(row, 0.1))(many), finite_difference_velocity(many, 0.1)
    )
    assert gradcheck(lambda x: finite_difference_velocity(x, 0.1), many[:, 0].clone().requires_grad_())


def test_velocity_refuses_what_has_none() -> None:
    for shape in ((5,), (1, 5), (3, 0, 5)):
        with pytest.raises(ValueError, match="x: expected a shape"):
            finite_difference_velocity(numbers(*shape), 0.1)
    for dt in (0.0, -0.1, math.nan, math.inf, True, torch.tensor(0.1)):
        bad: Any = dt
        with pytest.raises(ValueError, match="dt: expected a finite number > 0"):
            finite_difference_velocity(numbers(2, 5), bad)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        finite_difference_velocity(torch.zeros(2, 5, dtype=torch.int64), 0.1)


def test_norm_by_hand_and_at_zero() -> None:
    q = torch.tensor([[1.0, 0, 0, 0], [0, 3, 4, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0]], requires_grad=True)
    found = quaternion_norm(q)
    assert found.tolist() == [0.0, 16.0, 0.0, 1.0]
    (slope,) = torch.autograd.grad(found.sum(), q)
    torch.testing.assert_close(slope[1], 8 * torch.tensor([0.0, 0.6, 0.8, 0.0]))
    assert slope[3].tolist() == [0.0] * 4


def test_norm_has_the_gradient_of_finite_differences() -> None:
    q = numbers(6, 4)
    assert gradcheck(quaternion_norm, q.clone().requires_grad_(), check_forward_ad=True)
    torch.testing.assert_close(vmap(quaternion_norm)(q), quaternion_norm(q))
    assert jvp(quaternion_norm, (q[0].float(),), (q[1].float(),))[1].dtype == torch.float32


def test_distance_is_that_of_rotations() -> None:
    q, p = (torch.nn.functional.normalize(numbers(50, 4, seed=seed), dim=-1) for seed in (0, 1))
    found = quaternion_distance(q, p)
    angle = 2 * torch.acos((q * p).sum(-1).abs())
    torch.testing.assert_close(found, 4 * torch.sin(angle / 4) ** 2)
    for a, b in ((-q, p), (q, -p), (-q, -p), (p, q)):
        assert torch.equal(quaternion_distance(a, b), found)
    assert not quaternion_distance(q, -q).any()
    both = torch.stack(((q - p).square().sum(-1), (q + p).square().sum(-1)))
    assert torch.equal(found, both.amin(0)) and (both[0] < both[1]).any() and (both[0] > both[1]).any()


def test_distance_has_the_gradient_of_finite_differences() -> None:
    q, p = numbers(6, 4), numbers(6, 4, seed=1)
    assert gradcheck(
        quaternion_distance, (q.clone().requires_grad_(), p.clone().requires_grad_()), check_forward_ad=True
    )
    torch.testing.assert_close(vmap(quaternion_distance)(q, p), quaternion_distance(q, p))


def test_distance_has_a_finite_gradient_where_both_signs_are_as_near() -> None:
    q, p = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 0, 0])
    slope = grad(quaternion_distance)(q, p)
    torch.testing.assert_close(slope, 2 * q)  # the mean of 2 (q - p) and 2 (q + p)
    assert grad(quaternion_distance)(torch.zeros(4), torch.zeros(4)).tolist() == [0.0] * 4


def test_quaternions_have_four_numbers_and_equal_shapes() -> None:
    with pytest.raises(ValueError, match=r"q: expected a shape \[..., 4\]"):
        quaternion_norm(numbers(3))
    with pytest.raises(ValueError, match=r"q: expected a shape \[..., 4\]"):
        quaternion_distance(numbers(2, 3), numbers(2, 3))
    with pytest.raises(ValueError, match="p: expected the shape of q"):
        quaternion_distance(numbers(2, 4), numbers(4))
    with pytest.raises(TypeError, match="p: expected the dtype of q"):
        quaternion_distance(numbers(4), numbers(4).float())


def feet(up: int, height: float) -> Tensor:
    """One foot at a height for three frames: 0.1 m along one horizontal axis, then 0.2 m along the other."""
    one, other = (axis for axis in range(3) if axis != up)
    position = torch.zeros(3, 1, 3, dtype=torch.float64)
    position[..., up] = height
    position[1:, :, one] = 0.1
    position[2, :, other] = 0.2
    return position


@pytest.mark.parametrize("up", [0, 1, 2])
def test_sliding_by_hand(up: int) -> None:
    speed = 30 * (0.1 + 0.2) / 2
    for height, weight in ((0.0, 1.0), (0.0125, 2 - math.sqrt(2)), (0.025, 0.0), (0.3, 0.0), (-0.1, 1.0)):
        found = foot_sliding(feet(up, height), up=up, fps=30, ground=0.0)
        assert found.item() == pytest.approx(speed * weight, abs=1e-12)
    assert foot_sliding(feet(up, 0.3), up=up, fps=30).item() == pytest.approx(speed)
    assert foot_sliding(feet(up, 0.3), up=up, fps=30, ground=0.2, height=0.2).item() == pytest.approx(
        speed * (2 - math.sqrt(2))
    )


def test_sliding_counts_every_foot_above_its_own_ground() -> None:
    standing, sliding = torch.zeros(3, 1, 3, dtype=torch.float64), feet(1, 0.4)
    both = torch.cat((standing, sliding), dim=-2)
    alone = foot_sliding(sliding, up=1, fps=30)
    torch.testing.assert_close(foot_sliding(both, up=1, fps=30), alone / 2)
    assert foot_sliding(both, up=1, fps=30, ground=0.0).item() == 0.0
    lifted = sliding.clone()
    lifted[0, :, 1] += 1.0  # from high above down to its lowest: the first step counts no more
    assert foot_sliding(lifted, up=1, fps=30).item() == pytest.approx(30 * 0.2 / 2)


def test_sliding_is_one_value_a_sequence_with_finite_gradients() -> None:
    position = 0.02 * numbers(3, 5, 2, 3).abs()
    found = foot_sliding(position, up=2, fps=30)
    assert found.shape == (3,)
    torch.testing.assert_close(found, vmap(lambda one: foot_sliding(one, up=2, fps=30))(position))
    assert gradcheck(lambda x: foot_sliding(x, up=2, fps=30, ground=-0.01), position.requires_grad_())
    at_rest = torch.zeros(4, 2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(foot_sliding(at_rest, up=2, fps=30), at_rest)
    assert slope.isfinite().all()


def test_sliding_refuses_what_it_cannot_read() -> None:
    for shape in ((4, 3), (1, 2, 3), (4, 0, 3), (4, 2, 2)):
        with pytest.raises(ValueError, match="position: expected a shape"):
            foot_sliding(numbers(*shape), up=2, fps=30)
    wrong: list[tuple[str, Any]] = [
        ("up", 3), ("up", -1), ("up", "z"), ("up", True), ("fps", 0), ("fps", math.inf), ("fps", True),
        ("height", 0.0), ("height", math.nan), ("ground", math.nan), ("ground", "floor"),
    ]  # fmt: skip
    for name, value in wrong:
        options: dict[str, Any] = {"up": 2, "fps": 30, name: value}
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            foot_sliding(numbers(4, 2, 3), **options)
