from __future__ import annotations

import math
from itertools import pairwise

import pytest

from mfk.optim import constant, epochs_to_steps, warmup_constant, warmup_cosine, warmup_linear

DECAYING = [warmup_cosine, warmup_linear]


@pytest.mark.parametrize("make", DECAYING)
@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (4, 10), (10, 10), (1, 1000), (0, 1), (0, 0)])
@pytest.mark.parametrize("floor", [0.0, 1e-3, 0.3])
def test_ends_and_beyond(make, warmup, total, floor):
    schedule = make(0.3, warmup, total, floor)
    values = [schedule(step) for step in range(total + 5)]
    assert all(type(v) is float for v in values)
    assert values[:warmup] == pytest.approx([0.3 * (i + 1) / warmup for i in range(warmup)], rel=1e-15)
    if warmup < total:
        assert values[warmup] == 0.3
    assert values[total:] == [floor] * 5
    assert schedule(10**9) == floor
    assert all(a < b for a, b in pairwise(values[:warmup]))
    assert all(a >= b for a, b in pairwise(values[warmup:]))
    assert all(floor <= v <= 0.3 for v in values[warmup:])


def test_middles():
    assert warmup_cosine(1.0, 10, 30, 0.2)(20) == pytest.approx(0.6)
    assert warmup_cosine(1.0, 0, 3)(1) == pytest.approx(0.75)
    assert warmup_linear(1.0, 10, 30, 0.2)(15) == pytest.approx(0.8)
    assert warmup_cosine(1.0, 10, 30)(4) == pytest.approx(0.5)


@pytest.mark.parametrize("make", DECAYING)
def test_floor_as_a_fraction(make):
    for step in (0, 3, 7, 10, 11):
        assert make(0.4, 2, 10, floor_fraction=0.1)(step) == make(0.4, 2, 10, 0.4 * 0.1)(step)
    assert make(0.4, 2, 10, floor_fraction=0.0)(10) == 0.0
    with pytest.raises(ValueError, match="expected one of them"):
        make(0.4, 2, 10, 0.1, floor_fraction=0.1)
    with pytest.raises(ValueError, match="floor_fraction"):
        make(0.4, 2, 10, floor_fraction=1.5)


def test_constants():
    assert [constant(0.1)(s) for s in (0, 1, 10**9)] == [0.1] * 3
    assert [warmup_constant(0.4, 4)(s) for s in (0, 1, 3, 4, 10**9)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.4, 0.4]
    )


def test_epochs():
    assert epochs_to_steps(2, 390) == 780
    assert epochs_to_steps(0.5, 391) in (195, 196)
    assert epochs_to_steps(0, 10) == 0
    with pytest.raises(ValueError, match="steps_per_epoch"):
        epochs_to_steps(1, 0)
    with pytest.raises(ValueError, match="epochs"):
        epochs_to_steps(-1, 10)


@pytest.mark.parametrize("make", DECAYING)
@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ((math.nan, 0, 10), ValueError, "peak"),
        ((math.inf, 0, 10), ValueError, "peak"),
        ((-1.0, 0, 10), ValueError, "peak"),
        ((1.0, 11, 10), ValueError, "warmup_steps"),
        ((1.0, -1, 10), ValueError, "warmup_steps"),
        ((1.0, 1.5, 10), TypeError, "warmup_steps"),
        ((1.0, True, 10), TypeError, "warmup_steps"),
        ((1.0, 0, 10.0), TypeError, "total_steps"),
        ((1.0, 0, 10, 2.0), ValueError, "floor"),
        ((1.0, 0, 10, -0.1), ValueError, "floor"),
        ((1.0, 0, 10, math.nan), ValueError, "floor"),
    ],
)
def test_bad_settings(make, arguments, error, name):
    with pytest.raises(error, match=name):
        make(*arguments)


@pytest.mark.parametrize("schedule", [warmup_cosine(1.0, 2, 10), warmup_linear(1.0, 2, 10), constant(1.0)])
@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("1", TypeError)]
)
def test_bad_steps(schedule, step, error):
    with pytest.raises(error, match="step"):
        schedule(step)
