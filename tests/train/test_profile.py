from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from mfk.train.profile import profiled

# One operator for each step, so that a trace says which steps it holds.
STEPS = {
    0: torch.sin,
    1: torch.cos,
    2: torch.exp,
    3: torch.tanh,
    4: torch.erf,
    5: torch.floor,
    6: torch.log1p,
}


def train(run, steps, first=0, stop=7, fail=None):
    """Make the steps first..stop-1; returns what was noted."""
    notes = []
    with profiled(run, steps, first, note=notes.append) as advance:
        for k in range(first, stop):
            STEPS[k](torch.ones(3, 4))
            if k == fail:
                raise RuntimeError(f"step {k}")
            advance(k + 1)
    return notes


def traced(path):
    """The numbers of the steps whose operators, and those whose marks, are in the trace."""
    events = json.loads(path.read_text(), parse_constant=pytest.fail)["traceEvents"]
    names = Counter(event["name"] for event in events)
    operators = [k for k, f in STEPS.items() if names[f"aten::{f.__name__}"]]
    return operators, [k for k in STEPS if names[f"step {k}"] == 1]


def files(run):
    return sorted(path.name for path in (run / "logs").iterdir()) if (run / "logs").exists() else []


def test_exactly_these_steps(tmp_path, capfd):
    notes = train(tmp_path, (2, 4))
    assert files(tmp_path) == ["profile_2_4.json", "profile_2_4.txt"]
    assert traced(tmp_path / "logs" / "profile_2_4.json") == ([2, 3, 4], [2, 3, 4])
    table = (tmp_path / "logs" / "profile_2_4.txt").read_text().splitlines()
    (line,) = [line for line in table if "aten::exp " in line]
    assert "[[3, 4]]" in line and "Input Shapes" in table[1]
    assert len(notes) == 1 and str(tmp_path / "logs" / "profile_2_4.json") in notes[0]
    assert capfd.readouterr() == ("", "")


def test_one_step_the_first_and_the_last(tmp_path):
    for k in (0, 6):
        train(tmp_path, (k, k))
        assert traced(tmp_path / "logs" / f"profile_{k}_{k}.json") == ([k], [k])


def test_shapes_are_apart(tmp_path):
    with profiled(tmp_path, (0, 0), 0) as advance:
        for rows in (2, 2, 5):
            torch.ones(rows, 3).sin()
        advance(1)
    table = (tmp_path / "logs" / "profile_0_0.txt").read_text().splitlines()
    rows = sorted(line.split()[-3:] for line in table if "aten::sin " in line)
    assert rows == [["1", "[[5,", "3]]"], ["2", "[[2,", "3]]"]]


def test_a_run_that_ends_inside(tmp_path):
    train(tmp_path, (4, 20))
    assert files(tmp_path) == ["profile_4_6.json", "profile_4_6.txt"]
    assert traced(tmp_path / "logs" / "profile_4_6.json")[0] == [4, 5, 6]


def test_a_run_that_fails_inside(tmp_path):
    with pytest.raises(RuntimeError, match="step 5"):
        train(tmp_path, (3, 6), fail=5)
    assert files(tmp_path) == ["profile_3_4.json", "profile_3_4.txt"]
    assert traced(tmp_path / "logs" / "profile_3_4.json") == ([3, 4, 5], [3, 4, 5])
    # The tracer is free again.
    train(tmp_path, (0, 0))


def test_resumed_inside_both_parts_are_kept(tmp_path):
    train(tmp_path, (2, 5), stop=4)
    train(tmp_path, (2, 5), first=4)
    assert traced(tmp_path / "logs" / "profile_2_3.json")[0] == [2, 3]
    assert traced(tmp_path / "logs" / "profile_4_5.json") == ([4, 5], [4, 5])


@pytest.mark.parametrize(
    ("steps", "first", "stop", "said"),
    [
        ((1, 3), 4, 7, "steps 1 to 3 were made before this start"),
        ((8, 9), 0, 7, "steps 8 to 9: the run ended before"),
        ((3, 5), 0, 3, "steps 3 to 5: the run ended before"),
    ],
)
def test_nothing_to_trace_is_said(tmp_path, steps, first, stop, said):
    (note,) = train(tmp_path, steps, first, stop)
    assert said in note and files(tmp_path) == []


def test_a_first_step_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="step 3"):
        train(tmp_path, (3, 5), fail=3)
    assert files(tmp_path) == []


def test_no_window_does_nothing(tmp_path):
    assert train(tmp_path, None) == [] and files(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(FileExistsError, match="logs"):
        train(tmp_path, (0, 1))
    (tmp_path / "logs").unlink()
    train(tmp_path, (0, 1))
    assert len(files(tmp_path)) == 2
