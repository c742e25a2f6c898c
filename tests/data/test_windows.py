"""Windows against their definition, frame by frame, for every small clip."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mfk.data import autoregressive_windows, next_step_windows

LENGTHS = range(9)


@pytest.mark.parametrize("length", LENGTHS)
def test_next_step_pairs_are_all_that_lie_in_the_clip(length: int) -> None:
    for horizon in range(1, 11):
        inputs, targets = next_step_windows(length, horizon)
        pairs = [(i, j) for i in range(length) for j in range(length) if j - i == horizon]
        assert list(zip(inputs.tolist(), targets.tolist(), strict=True)) == pairs
        assert inputs.dtype == targets.dtype == torch.int64
        assert len(pairs) == max(0, length - horizon)


@pytest.mark.parametrize("length", LENGTHS)
def test_runs_are_all_that_lie_in_the_clip(length: int) -> None:
    for chunk in range(1, 11):
        for stride in range(1, 11):
            inputs, targets, mask = autoregressive_windows(length, chunk, stride)
            starts = [s for s in range(length) if s % stride == 0 and s + chunk <= length]
            assert inputs.shape == targets.shape == mask.shape == (len(starts), chunk)
            assert len(starts) == (1 + (length - chunk) // stride if length >= chunk else 0)
            assert inputs.dtype == targets.dtype == torch.int64 and mask.dtype == torch.bool
            for row, start in enumerate(starts):
                for j in range(chunk):
                    frame = start + j
                    follows = frame + 1 in range(length)
                    assert inputs[row, j] == frame
                    assert mask[row, j] == follows
                    assert targets[row, j] == (frame + 1 if follows else length - 1)


def test_the_last_frame_alone_has_no_target() -> None:
    inputs, targets, mask = autoregressive_windows(3, 1, 1)
    assert inputs.tolist() == [[0], [1], [2]]
    assert targets.tolist() == [[1], [2], [2]]
    assert mask.tolist() == [[True], [True], [False]]
    clip = torch.arange(3.0)
    assert clip[targets].shape == (3, 1)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None, torch.tensor(1)])
def test_numbers_that_are_no_ints_or_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match="horizon: expected an int >= 1"):
        next_step_windows(5, value)
    with pytest.raises(ValueError, match="chunk: expected an int >= 1"):
        autoregressive_windows(5, value, 1)
    with pytest.raises(ValueError, match="stride: expected an int >= 1"):
        autoregressive_windows(5, 1, value)
    if value != 0:
        for windows in (lambda n: next_step_windows(n, 1), lambda n: autoregressive_windows(n, 1, 1)):
            with pytest.raises(ValueError, match="length: expected an int >= 0"):
                windows(value)
