from __future__ import annotations

import pytest
import torch
from torch.func import grad

from mfk.losses import adaptive_weight, distance_weight


@pytest.mark.parametrize("weight", [adaptive_weight, distance_weight])
def test_value_and_stopped_gradient(weight) -> None:
    x = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64)
    expected = torch.tensor([(v + 1e-4) ** -0.5 for v in (0.0, 0.5, 4.0)], dtype=torch.float64)
    torch.testing.assert_close(weight(x, c=1e-4, p=0.5), expected)
    # d/dx of w x is w: the weight itself is a constant.
    found = grad(lambda y: (weight(y, c=1e-4, p=0.5) * y).sum())(x)
    torch.testing.assert_close(found, expected)


def test_power_one_reads_one_and_power_zero_weighs_alike() -> None:
    x = torch.tensor([1e2, 1e4])
    torch.testing.assert_close(adaptive_weight(x, c=1e-6, p=1.0) * x, torch.ones(2))
    assert (adaptive_weight(x, c=1e-6, p=0.0) == 1).all()


@pytest.mark.parametrize(
    ("c", "p", "name"),
    [
        (None, 1.0, "c"),
        (True, 1.0, "c"),
        (1e-3, float("inf"), "p"),
        (0.0, 1.0, "c"),
        (-1.0, 1.0, "c"),
        (float("nan"), 1.0, "c"),
        (1e-3, -0.5, "p"),
    ],
)
def test_bad_constants(c: float, p: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        adaptive_weight(torch.ones(2), c=c, p=p)


def test_bad_error() -> None:
    with pytest.raises(TypeError, match=r"^squared_error: expected"):
        adaptive_weight(torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^squared_distance: expected"):
        distance_weight(1.0)  # pyright: ignore[reportArgumentType]
