"""Errors of rows against torch's own losses, and rows that do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vmap

from mfk.losses import (
    absolute_error,
    masked_rows,
    masked_sum,
    smooth_l1_error,
    squared_error,
    step_weights,
    teacher_ratio,
)

ERRORS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]] = {
    "squared": (squared_error, F.mse_loss),
    "absolute": (absolute_error, F.l1_loss),
    "smooth": (smooth_l1_error, F.smooth_l1_loss),
    "smooth, another beta": (
        lambda a, b: smooth_l1_error(a, b, beta=0.3),
        lambda a, b, reduction: F.smooth_l1_loss(a, b, beta=0.3, reduction=reduction),
    ),
}
each = pytest.mark.parametrize("name", ERRORS)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 0, 5), (2, 3, 1)])
def test_it_is_torchs_loss_of_every_row(name: str, shape: tuple[int, ...]) -> None:
    error, reference = ERRORS[name]
    pred, target = numbers(*shape), numbers(*shape, seed=1)
    found = error(pred, target)
    assert found.shape == shape[:-1]
    torch.testing.assert_close(found, reference(pred, target, reduction="none").mean(-1))
    if found.numel():
        torch.testing.assert_close(found.mean(), reference(pred, target, reduction="mean"))


def test_values_by_hand() -> None:
    pred, target = torch.tensor([[1.0, 4.0], [0.0, 0.5]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert squared_error(pred, target).tolist() == [5.0, 0.125]
    assert absolute_error(pred, target).tolist() == [2.0, 0.25]
    assert smooth_l1_error(pred, target).tolist() == [(0.5 + 2.5) / 2, 0.0625]
    assert smooth_l1_error(pred, target, beta=2.0).tolist() == [(0.25 + 2.0) / 2, 0.03125]


@each
def test_gradients_by_finite_differences_and_under_vmap(name: str) -> None:
    error, _ = ERRORS[name]
    pred, target = numbers(6, 5).requires_grad_(), numbers(6, 5, seed=1)
    assert torch.autograd.gradcheck(error, (pred, target.clone().requires_grad_()), check_forward_ad=True)
    pred = pred.detach()
    torch.testing.assert_close(vmap(error)(pred, target), error(pred, target))
    single = jvp(lambda x: error(x, target[0].float()), (pred[0].float(),), (target[0].float(),))[1]
    assert single.dtype == torch.float32


@each
def test_equal_rows_have_no_error_and_no_gradient(name: str) -> None:
    pred = numbers(3, 5).requires_grad_()
    loss = ERRORS[name][0](pred, pred.detach())
    (slope,) = torch.autograd.grad(loss.sum(), pred)
    assert not loss.any() and not slope.any()


@each
@pytest.mark.parametrize("shape", [(1, 5), (5,), (4, 1), (3, 5)])
def test_nothing_broadcasts(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"target: expected the shape of pred, \(4, 5\)"):
        ERRORS[name][0](numbers(4, 5), numbers(*shape))


def test_errors_name_the_argument() -> None:
    with pytest.raises(TypeError, match="target: expected the dtype of pred"):
        squared_error(numbers(3), numbers(3).float())
    with pytest.raises(TypeError, match="pred: expected a floating-point tensor"):
        absolute_error(torch.arange(3), torch.arange(3))
    with pytest.raises(ValueError, match="pred: expected at least one number"):
        squared_error(numbers(3, 0), numbers(3, 0))
    for beta in (0.0, -1.0, float("nan"), float("inf"), True, "1"):
        bad: Any = beta
        with pytest.raises(ValueError, match="beta: expected a finite number > 0"):
            smooth_l1_error(numbers(3), numbers(3), bad)


def test_masked_sum_is_that_of_the_values_that_count() -> None:
    values = torch.tensor([[1.0, 2.0], [4.0, float("nan")]])
    mask = torch.tensor([[True, False], [True, False]])
    total, weight = masked_sum(values, mask)
    assert (total.item(), weight.item()) == (5.0, 2.0) and total.dtype == weight.dtype == torch.float32
    assert [x.item() for x in masked_sum(values, torch.zeros_like(mask))] == [0.0, 0.0]
    by_rows = vmap(masked_sum)(values, mask)
    assert by_rows[0].tolist() == [1.0, 4.0] and by_rows[1].tolist() == [1.0, 1.0]


@each
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_do_not_count_may_hold_anything(name: str, bad: float) -> None:
    """The value and the gradient are those of the rows that count alone."""
    error, _ = ERRORS[name]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    x, y = numbers(6, 5), numbers(6, 5, seed=1)
    mask = torch.tensor([True, True, False, True, False, True])
    want = error(net(x[mask]), y[mask]).sum()
    want_slopes = torch.autograd.grad(want, list(net.parameters()))
    x[2], y[4, 1] = bad, bad
    total, weight = masked_sum(error(net(masked_rows(x, mask)), masked_rows(y, mask)), mask)
    torch.testing.assert_close(total, want)
    assert weight.item() == 4.0
    torch.testing.assert_close(torch.autograd.grad(total, list(net.parameters())), want_slopes)


def test_masked_rows_gives_rows_that_do_not_count_no_gradient() -> None:
    x = torch.tensor([[1.0, float("nan")], [3.0, 4.0]], requires_grad=True)
    filled = masked_rows(x, torch.tensor([False, True]), fill=2.0)
    assert filled.tolist() == [[2.0, 2.0], [3.0, 4.0]]
    (slope,) = torch.autograd.grad(filled.square().sum(), x)
    assert slope.tolist() == [[0.0, 0.0], [6.0, 8.0]]


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(3), TypeError),
        (torch.ones(1, dtype=torch.bool), ValueError),
        (torch.ones(3, 1, dtype=torch.bool), ValueError),
        ([True] * 3, TypeError),
    ],
)
def test_a_mask_is_bool_and_has_the_rows_shape(mask: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="mask: expected"):
        masked_sum(numbers(3), mask)
    with pytest.raises(error, match="mask: expected"):
        masked_rows(numbers(3, 2), mask)


def test_masked_rows_refuses_what_is_no_fill_or_no_row() -> None:
    mask = torch.ones(3, dtype=torch.bool)
    for fill in (float("nan"), float("inf"), True, None):
        bad: Any = fill
        with pytest.raises(ValueError, match="fill: expected a finite number"):
            masked_rows(numbers(3, 2), mask, bad)
    with pytest.raises(TypeError, match="x: expected a floating-point tensor"):
        masked_rows(torch.arange(3), mask)
    with pytest.raises(TypeError, match="values: expected a floating-point tensor"):
        masked_sum(torch.arange(3), mask)


def test_step_weights() -> None:
    torch.testing.assert_close(step_weights(3), torch.tensor([1.0, 1 / 1.05, 1 / 1.1]))
    assert step_weights(4, 0).tolist() == [1.0] * 4
    torch.testing.assert_close(step_weights(2, 1.0), torch.tensor([1.0, 0.5]))
    for steps in (0, -1, 2.0, True):
        bad: Any = steps
        with pytest.raises(ValueError, match="steps: expected an int >= 1"):
            step_weights(bad)
    for decay in (-0.1, float("inf"), True):
        with pytest.raises(ValueError, match="decay: expected a finite number >= 0"):
            step_weights(2, decay)


def test_teacher_ratio_falls_from_one_to_zero() -> None:
    assert [teacher_ratio(step, 4) for step in (0, 1, 2, 3, 4, 5, 100)] == [
        1.0,
        0.75,
        0.5,
        0.25,
        0.0,
        0.0,
        0.0,
    ]
    assert (teacher_ratio(0, 1), teacher_ratio(1, 1)) == (1.0, 0.0)
    for name, step, decay_steps in (
        ("step", -1, 4),
        ("step", 1.0, 4),
        ("decay_steps", 0, 0),
        ("step", True, 4),
    ):
        bad: Any = step
        with pytest.raises(ValueError, match=f"^{name}: expected an int"):
            teacher_ratio(bad, decay_steps)
