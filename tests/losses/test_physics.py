"""Losses of physics and of classes against motions whose laws are known, by hand and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from mfk.losses import (
    acceleration_consistency,
    class_error,
    gravity_in_flight,
    in_flight,
    jerk,
    velocity_consistency,
)

FPS, G = 25.0, 9.8 / 0.68


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def throw(frames: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """A thing thrown up: positions of free fall, and forward differences as a file of stick figures has."""
    t = torch.arange(frames + 2).double() / FPS
    position = torch.stack((2 * t, 1 + 5 * t - G * t**2 / 2), -1)
    velocity = position.diff(dim=0) * FPS
    return position[:frames], velocity[:frames], velocity.diff(dim=0)[:frames] * FPS


def test_free_fall_is_consistent() -> None:
    position, velocity, acceleration = throw()
    for found in (
        velocity_consistency(position, velocity, FPS),
        acceleration_consistency(velocity, acceleration, FPS),
    ):
        assert found.shape == (19,)
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-18)
    flight = torch.ones(20, dtype=torch.bool)
    assert gravity_in_flight(acceleration, flight, G).max() < 1e-18
    torch.testing.assert_close(
        gravity_in_flight(acceleration, flight, 0.0), torch.full((20,), G**2, dtype=torch.float64)
    )


def test_consistency_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    b = torch.tensor([[1.0, 1.0], [3.0, -4.0], [9.0, 9.0]])  # the last is not looked at
    assert velocity_consistency(a, b, 2.0).tolist() == [1.0 + 9.0, 9.0 + 16.0]
    assert acceleration_consistency(a, b, 2.0).tolist() == [0.25 + 2.25, 2.25 + 4.0]


@pytest.mark.parametrize("loss", [velocity_consistency, acceleration_consistency])
def test_consistency_has_the_gradient_of_finite_differences(loss: Callable[..., Tensor]) -> None:
    a, b = numbers(3, 5, 2), numbers(3, 5, 2, seed=1)
    both = (a.clone().requires_grad_(), b.clone().requires_grad_())
    assert gradcheck(lambda a, b: loss(a, b, FPS), both, check_forward_ad=True)
    torch.testing.assert_close(vmap(lambda a, b: loss(a, b, FPS))(a, b), loss(a, b, FPS))


def test_gravity_counts_in_flight_only() -> None:
    acceleration = torch.tensor([[7.0, -9.0], [7.0, -12.0], [math.nan, math.nan]])
    flight = torch.tensor([False, True, False])
    assert gravity_in_flight(acceleration, flight, 10).tolist() == [0.0, 4.0, 0.0]
    slope = grad(lambda a: gravity_in_flight(a, flight, 10).sum())(acceleration)
    assert slope.tolist() == [[0.0, 0.0], [0.0, -4.0], [0.0, 0.0]]
    each = torch.tensor([1.0, 2.0, 3.0])
    assert gravity_in_flight(acceleration, flight, each).tolist() == [0.0, 100.0, 0.0]


def test_in_flight_is_every_foot_off_the_ground() -> None:
    height = torch.tensor([[0.0, 1.0], [0.3, 0.2], [0.2, 0.1], [2.0, 2.0]])
    assert in_flight(height, 0.0, 0.15).tolist() == [False, True, False, True]
    assert in_flight(height, 1.0, 0.5).tolist() == [False, False, False, True]
    assert in_flight(height[:, :1]).tolist() == [False, True, True, True]


def test_jerk_of_polynomials() -> None:
    t = torch.arange(12).double() / FPS
    parabola = torch.stack((3 - t + 4 * t**2, t), -1)
    assert jerk(parabola, FPS) < 1e-9
    cubic = torch.stack((3 * t**3, -4 * t**3), -1)  # third derivative: 6 times the coefficient
    torch.testing.assert_close(jerk(cubic, FPS), torch.tensor(30.0).double())
    still = torch.zeros(2, 6, 3)
    assert not jerk(still, FPS).any() and not grad(lambda x: jerk(x, FPS).sum())(still).any()


def test_jerk_has_the_gradient_of_finite_differences() -> None:
    x = numbers(2, 7, 3)
    assert gradcheck(lambda x: jerk(x, 2.0), x.clone().requires_grad_(), check_forward_ad=True)
    torch.testing.assert_close(vmap(lambda x: jerk(x, 2.0))(x), jerk(x, 2.0))
    assert jvp(lambda x: jerk(x, 2.0), (x[0].float(),), (x[1].float(),))[1].dtype == torch.float32


def test_class_error_is_torchs_cross_entropy() -> None:
    logits = 4 * numbers(3, 5, 7)
    labels = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(1))
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(3, 5)
    torch.testing.assert_close(class_error(logits, labels), expected)
    torch.testing.assert_close(vmap(class_error)(logits, labels), expected)
    assert gradcheck(lambda x: class_error(x, labels), logits.clone().requires_grad_(), check_forward_ad=True)


def test_a_row_without_a_label_has_no_error() -> None:
    logits, labels = numbers(4, 3), torch.tensor([0, -1, 2, -1])
    found = class_error(logits, labels)
    assert (found > 0).tolist() == [True, False, True, False] and found[1] == 0
    slope = grad(lambda x: class_error(x, labels).sum())(logits)
    assert slope.any(-1).tolist() == [True, False, True, False]


PAIR = (torch.zeros(4, 2), torch.zeros(4, 2))
FLIGHT = torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: velocity_consistency(PAIR[0], torch.zeros(3, 2), 25), ValueError, "^velocity: expected the"),
        (lambda: velocity_consistency(*PAIR, 0), ValueError, "^fps: expected a finite number > 0"),
        (
            lambda: velocity_consistency(torch.zeros(1, 2), torch.zeros(1, 2), 25),
            ValueError,
            "^position: .*T >",
        ),
        (
            lambda: acceleration_consistency(PAIR[0], PAIR[1].long(), 25),
            TypeError,
            "^acceleration: expected a f",
        ),
        (
            lambda: acceleration_consistency(PAIR[0], PAIR[1].double(), 25),
            TypeError,
            "^acceleration: expected t",
        ),
        (
            lambda: gravity_in_flight(torch.zeros(4, 3), FLIGHT, 9.8),
            ValueError,
            "^acceleration: expected a sha",
        ),
        (
            lambda: gravity_in_flight(PAIR[0], FLIGHT.float(), 9.8),
            TypeError,
            "^flight: expected a tensor of b",
        ),
        (
            lambda: gravity_in_flight(PAIR[0], FLIGHT[:3], 9.8),
            ValueError,
            "^flight: expected one for each fr",
        ),
        (lambda: gravity_in_flight(PAIR[0], FLIGHT, -1.0), ValueError, "^g: expected a finite number >= 0"),
        (lambda: gravity_in_flight(PAIR[0], FLIGHT, torch.ones(1)), ValueError, "^g: expected one for each"),
        (lambda: gravity_in_flight(PAIR[0], FLIGHT, torch.ones(4).int()), TypeError, "^g: expected the acce"),
        (lambda: in_flight(torch.zeros(4, 0)), ValueError, "^height: expected a shape"),
        (lambda: in_flight(torch.zeros(4, 2), math.nan), ValueError, "^ground: expected a finite number"),
        (
            lambda: in_flight(torch.zeros(4, 2), 0.0, -1),
            ValueError,
            "^clearance: expected a finite number >= 0",
        ),
        (lambda: jerk(torch.zeros(3, 2), 25), ValueError, "^x: expected a shape .* T >= 4"),
        (lambda: jerk(torch.zeros(4, 2), math.inf), ValueError, "^fps: expected"),
        (lambda: class_error(torch.zeros(4, 3), FLIGHT), TypeError, "^labels: expected a tensor of int64"),
        (lambda: class_error(torch.zeros(4, 3), FLIGHT[:2].long()), ValueError, "^labels: expected one for"),
        (lambda: class_error(torch.zeros(4, 0), FLIGHT.long()), ValueError, "^logits: expected at least one"),
        (
            lambda: class_error(torch.zeros(4, 3).long(), FLIGHT.long()),
            TypeError,
            "^logits: expected a float",
        ),
        (lambda: class_error(torch.zeros(4, 3), FLIGHT.long() * 3), RuntimeError, "index 3 is out of bounds"),
        (
            lambda: class_error(torch.zeros(4, 3), FLIGHT.long() * -2),
            RuntimeError,
            "index -2 is out of bounds",
        ),
    ],
)
def test_errors_name_the_argument(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
