"""Early stopping as a pure function of the validations."""

from __future__ import annotations

import math

import pytest
import torch

from mfk.train import Guard, TrainConfig
from mfk.train.config import in_steps
from mfk.train.stopping import is_over, judge, verdict

ZERO = torch.zeros(())
START = Guard(ZERO, ZERO, ZERO, ZERO, ZERO)


def _course(scores, min_delta=0.0, every=10):
    guard, course = START, []
    for k, score in enumerate(scores):
        guard = judge(guard, score, k * every, min_delta)
        course.append((guard.best, guard.reference, guard.stalled))
    return guard, course


def test_each_fall_counts_without_a_margin():
    guard, course = _course([3.0, 2.9999, 2.9999, 3.5, 2.0])
    assert [stalled for _, _, stalled in course] == [0, 0, 1, 2, 0]
    assert (guard.best, guard.best_step, guard.reference, guard.reference_step) == (2.0, 40, 2.0, 40)


def test_crumbs_are_no_progress_but_the_best_is_the_best():
    """0.5 % at a time against a margin of 1 %: every second validation has made up 1 %."""
    scores = [100.0 * 0.995**k for k in range(6)]
    guard, course = _course(scores, min_delta=0.01)
    assert [stalled for _, _, stalled in course] == [0, 1, 2, 0, 1, 2]
    assert guard.best == scores[5] and guard.best_step == 50
    assert guard.reference == scores[3] and guard.reference_step == 30


def test_the_margin_is_a_share_at_any_size_and_sign():
    for scale in (1e-9, 1.0, 1e9):
        _, course = _course([1.0 * scale, 0.95 * scale, 0.89 * scale], min_delta=0.1)
        assert [stalled for _, _, stalled in course] == [0, 1, 0]
    _, course = _course([-1.0, -1.05, -1.11], min_delta=0.1)
    assert [stalled for _, _, stalled in course] == [0, 1, 0]


def test_values_that_are_not_finite_are_no_progress():
    guard, course = _course([math.nan, math.inf, 1.0, math.nan])
    assert [stalled for _, _, stalled in course] == [1, 2, 0, 1]
    assert guard.best == 1.0


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_in_validations(patience):
    config = in_steps(TrainConfig(patience=patience), None)
    guard, over = judge(START, 1.0, 0, 0.0), []
    for k in range(1, 6):
        guard = judge(guard, 1.0, 10 * k, 0.0)
        over.append(is_over(guard, config))
    assert over == [k >= patience for k in range(1, 6)]
    assert "val_loss has not fallen below its 1 of step 0" in verdict(guard, config)


def test_patience_in_epochs():
    """Two validations an epoch of ten steps: three epochs are six validations."""
    config = in_steps(TrainConfig(patience=3, patience_unit="epochs", min_delta=0.05), 10)
    guard = judge(START, 1.0, 0, 0.05)
    over = []
    for step in range(5, 45, 5):
        guard = judge(guard, 0.99, step, 0.05)
        over.append((step, is_over(guard, config)))
    assert [step for step, is_it in over if is_it] == [30, 35, 40]
    assert "by more than 5 %" in verdict(guard, config) and "3 epochs" in verdict(guard, config)


def test_none_never_ends():
    guard = START._replace(stalled=10**6)
    assert not is_over(guard, TrainConfig())
