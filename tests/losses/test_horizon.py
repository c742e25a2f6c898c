"""Weights over the horizon, errors of responses that padding cannot touch, and smoothness."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from mfk.losses import (
    horizon_absolute_error,
    horizon_squared_error,
    horizon_weights,
    own_shocks,
    smoothness,
    sum_shocks,
)
from mfk.losses.horizon import SCHEMES


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("last", [1, 4, 40, 200])
def test_weights_sum_to_one_and_never_grow(scheme: str, last: int) -> None:
    weights = horizon_weights(last, scheme, dtype=torch.float64)
    assert weights.shape == (last + 1,) and (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-15)
    if scheme != "impact" or last > 2:  # 0.7 / 2 is more than 0.3
        assert (weights.diff() <= 0).all()
    torch.testing.assert_close(horizon_weights(last, scheme), weights.float())


def test_weights_are_the_documented() -> None:
    uniform, exponential, impact, doubled = (horizon_weights(40, s, dtype=torch.float64) for s in SCHEMES)
    torch.testing.assert_close(uniform, torch.full((41,), 1 / 41, dtype=torch.float64))
    assert [round(float(exponential[h]), 6) for h in (0, 1, 40)] == [0.055977, 0.053247, 0.007576]
    assert float(exponential[20] / exponential[0]) == pytest.approx(math.exp(-1), rel=1e-12)
    assert [round(float(impact[h]), 6) for h in (0, 1, 40)] == [0.3, 0.0175, 0.0175]
    assert [round(float(doubled[h]), 6) for h in (0, 4, 5, 40)] == [0.043478, 0.043478, 0.021739, 0.021739]
    short = horizon_weights(10, "exponential", tau=5.0)
    assert float(short[5] / short[0]) == pytest.approx(math.exp(-1), rel=1e-6)


def test_errors_are_their_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 4, 3, 41, 3, generator=generator, dtype=torch.float64)
    weights = horizon_weights(40, "impact", dtype=torch.float64)
    squared, absolute = (f(pred, target, weights) for f in (horizon_squared_error, horizon_absolute_error))
    assert squared.shape == absolute.shape == (4, 3)
    for error, power in ((squared, 2), (absolute, 1)):
        terms = [
            float(weights[h]) * abs(float(pred[1, 2, h, v] - target[1, 2, h, v])) ** power
            for h in range(41)
            for v in range(3)
        ]
        assert float(error[1, 2]) == pytest.approx(math.fsum(terms), rel=1e-12)
        assert (error > 0).all()
    for error in (horizon_squared_error, horizon_absolute_error):
        assert (error(pred, pred, weights) == 0).all()
        # An error of 1 everywhere, by any weights: one for each variable.
        torch.testing.assert_close(error(pred + 1, pred, weights), torch.full_like(squared, 3.0))
        torch.testing.assert_close(
            vmap(error, (0, 0, None))(pred, target, weights), error(pred, target, weights)
        )


def total(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The loss of each sample, [B]."""
    pred, target = own_shocks(pred, mask), own_shocks(target, mask)
    weights = horizon_weights(40, "exponential")
    errors = horizon_squared_error(pred, target, weights) + horizon_absolute_error(pred, target, weights)
    return sum_shocks(errors + 0.01 * smoothness(pred), mask)


@pytest.mark.parametrize("fill", [0.0, 7.0, math.nan, math.inf])
@pytest.mark.parametrize("padding", [1, 2, 6])
@pytest.mark.parametrize("shocks", [1, 2, 3, 5])
def test_padding_changes_neither_loss_nor_gradient(shocks: int, padding: int, fill: float) -> None:
    generator = torch.Generator().manual_seed(1)
    pred, target = torch.randn(2, 5, shocks, 41, 3, generator=generator)
    other, truth = torch.randn(2, 4, shocks + padding, 41, 3, generator=generator)
    mask = torch.ones(5, shocks, dtype=torch.bool)

    def padded(x: Tensor, below: Tensor) -> Tensor:
        return torch.cat((torch.cat((x, torch.full((5, padding, 41, 3), fill)), 1), below))

    wide = torch.zeros(9, shocks + padding, dtype=torch.bool)
    wide[:5, :shocks], wide[5:] = True, True
    alone = total(pred, target, mask)
    together = total(padded(pred, other), padded(target, truth), wide)
    assert torch.equal(together[:5], alone) and together.isfinite().all()
    gradient = grad(lambda pred: total(pred, target, mask).sum())(pred)
    wider = grad(lambda pred: total(pred, padded(target, truth), wide)[:5].sum())(padded(pred, other))
    assert torch.equal(wider[:5, :shocks], gradient) and gradient.abs().min() > 0
    assert (wider[:5, shocks:] == 0).all() and (wider[5:] == 0).all()


def test_a_sample_without_shocks_counts_nothing() -> None:
    values = torch.tensor([[1.0, 2.0], [math.nan, 4.0]])
    mask = torch.tensor([[False, False], [False, True]])
    assert sum_shocks(values, mask).tolist() == [0.0, 4.0]
    assert sum_shocks(values[:, :0], mask[:, :0]).tolist() == [0.0, 0.0]


def test_smoothness() -> None:
    h = torch.arange(41, dtype=torch.float64)
    shapes = torch.stack((torch.ones_like(h), 3 - 0.5 * h, h**2, (-1.0) ** h)).unsqueeze(-1).expand(4, 41, 3)
    constant, line, parabola, oscillation = smoothness(shapes).tolist()
    assert constant == line == 0.0 and parabola == 4.0 and oscillation == 16.0
    one = torch.zeros(41, 3, dtype=torch.float64)
    one[20, 1] = 1.0
    assert float(smoothness(one)) == pytest.approx((1 + 4 + 1) / (39 * 3), rel=1e-14)
    assert torch.autograd.gradcheck(smoothness, torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True))


def test_mistakes_are_named() -> None:
    x, weights, mask = torch.zeros(2, 3, 41, 3), horizon_weights(40), torch.ones(2, 3, dtype=torch.bool)
    for last in (0, True, 40.0):
        with pytest.raises(ValueError, match=r"^H: expected an int >= 1, got"):
            horizon_weights(last)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"^scheme: expected one of 'uniform', .*'impact_doubled', got 'late'"
    ):
        horizon_weights(40, "late")
    with pytest.raises(ValueError, match=r"^tau: expected a finite number > 0, got 0"):
        horizon_weights(40, "exponential", tau=0.0)
    with pytest.raises(ValueError, match=r"^target: expected the shape of pred, \(2, 3, 41, 3\)"):
        horizon_squared_error(x, x[:1], weights)
    with pytest.raises(ValueError, match=r"^weights: expected one for each period .*\(41,\), got \(40,\)"):
        horizon_absolute_error(x, x, weights[1:])
    with pytest.raises(TypeError, match=r"^weights: expected a tensor of pred's dtype, .*float64"):
        horizon_squared_error(x, x, weights.double())
    with pytest.raises(ValueError, match=r"^pred: expected a shape \[\.\.\., H \+ 1, V\]"):
        horizon_squared_error(x[0, 0, 0], x[0, 0, 0], weights)
    with pytest.raises(ValueError, match=r"^response: expected a shape .* with H >= 2, got \(2, 3, 2, 3\)"):
        smoothness(x[:, :, :2])
    with pytest.raises(ValueError, match=r"^response: expected a shape \[\.\.\., S, H \+ 1, V\]"):
        own_shocks(x[0, 0], mask)
    with pytest.raises(ValueError, match=r"^shock_mask: .* response, \(2, 3\), got \(2, 2\)"):
        own_shocks(x, mask[:, 1:])
    with pytest.raises(TypeError, match=r"^shock_mask: expected a tensor of bool, got"):
        sum_shocks(x[:, :, 0, 0], mask.float())
    with pytest.raises(ValueError, match=r"^shock_mask: .* values, \(2, 3\), got \(3,\)"):
        sum_shocks(x[:, :, 0, 0], mask[0])
