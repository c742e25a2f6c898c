"""The annealing of alpha-Flow and the weight of its rows."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.func import grad

from mfk.losses import adaptive_weight, alpha_schedule, alpha_weight


def test_alpha_falls_from_one_to_the_floor_by_a_sigmoid() -> None:
    schedule = alpha_schedule(100, 500)
    values = [schedule(step) for step in range(700)]
    assert all(isinstance(x, float) for x in values)
    assert all(later <= earlier for earlier, later in pairwise(values))
    assert set(values[:101]) == {1.0} and set(values[500:]) == {5e-3}
    assert schedule(300) == pytest.approx(0.5)
    for step in (250, 280, 320):
        assert schedule(step) == pytest.approx(1 / (1 + math.exp(25 * (step - 300) / 400)))
    # The sigmoid is left where it comes within the floor of its ends.
    inside = [x for x in values if 5e-3 < x < 1]
    assert min(inside) > 5e-3 and max(inside) <= 1 - 5e-3
    for x, mirrored in zip(inside, inside[::-1], strict=True):
        assert x + mirrored == pytest.approx(1)
    assert len({x for x in (alpha_schedule(0, 10, floor=0.2)(step) for step in range(11))} - {1.0, 0.2}) == 1


def test_the_shortest_annealing() -> None:
    schedule = alpha_schedule(0, 1)
    assert [schedule(step) for step in range(3)] == [1.0, 5e-3, 5e-3]


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: alpha_schedule(-1, 5), ValueError, "start"),
        (lambda: alpha_schedule(1.0, 5), TypeError, "start"),  # pyright: ignore[reportArgumentType]
        (lambda: alpha_schedule(True, 5), TypeError, "start"),
        (lambda: alpha_schedule(5, 5), ValueError, "end"),
        (lambda: alpha_schedule(5, 4), ValueError, "end"),
        (lambda: alpha_schedule(0, 5.5), TypeError, "end"),  # pyright: ignore[reportArgumentType]
        (lambda: alpha_schedule(0, None), TypeError, "end"),  # pyright: ignore[reportArgumentType]
        (lambda: alpha_schedule(0, 5, 0.0), ValueError, "floor"),
        (lambda: alpha_schedule(0, 5, 0.5), ValueError, "floor"),
        (lambda: alpha_schedule(0, 5, math.nan), ValueError, "floor"),
        (lambda: alpha_schedule(0, 5, True), ValueError, "floor"),
        (lambda: alpha_schedule(0, 5, "0.1"), ValueError, "floor"),  # pyright: ignore[reportArgumentType]
        (lambda: alpha_schedule(0, 5)(-1), ValueError, "step"),
        (lambda: alpha_schedule(0, 5)(1.0), TypeError, "step"),  # pyright: ignore[reportArgumentType]
        (lambda: alpha_schedule(0, 5)(torch.tensor(1)), TypeError, "step"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_schedules_out_of_range_are_refused(call, error, name) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        call()


def test_the_weight_is_the_paper_s() -> None:
    error = torch.tensor([0.0, 1e-4, 0.3, 40.0], dtype=torch.float64)
    for alpha in (1.0, 0.3, 5e-3):
        loss = error / alpha
        torch.testing.assert_close(alpha_weight(loss, alpha) * loss, error / (error + 1e-3))
        for c, p in ((1e-2, 1.0), (1e-3, 0.5), (1.0, 0.0)):
            torch.testing.assert_close(alpha_weight(loss, alpha, c, p), (alpha / (error + c)) ** p)
        tensor = torch.tensor(alpha, dtype=torch.float64)
        torch.testing.assert_close(alpha_weight(loss, tensor), alpha_weight(loss, alpha))
    torch.testing.assert_close(alpha_weight(error, 1.0), adaptive_weight(error))
    assert torch.equal(grad(lambda x: alpha_weight(x, 0.3).sum())(error), torch.zeros_like(error))


@pytest.mark.parametrize(
    ("change", "error", "name"),
    [
        ({"squared_error": torch.ones(3, dtype=torch.int64)}, TypeError, "squared_error"),
        ({"squared_error": 1.0}, TypeError, "squared_error"),
        ({"alpha": 0.0}, ValueError, "alpha"),
        ({"alpha": torch.ones(3)}, ValueError, "alpha"),
        ({"alpha": torch.tensor(0.5).double()}, TypeError, "alpha"),
        ({"c": 0.0}, ValueError, "c"),
        ({"c": math.nan}, ValueError, "c"),
        ({"c": True}, ValueError, "c"),
        ({"p": -1.0}, ValueError, "p"),
        ({"p": math.inf}, ValueError, "p"),
    ],
)
def test_weights_out_of_range_are_refused(change, error, name) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        alpha_weight(**{"squared_error": torch.ones(3), "alpha": 0.5} | change)
