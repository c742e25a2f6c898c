"""The tables and the plot of a sweep, from run folders as they may be found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_toy import Fake

from mfk.train import sweep_report, sweep_rows


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def history(folder: Path, *records: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "history.jsonl").write_text("".join(json.dumps({"time": 0.0, **r}) + "\n" for r in records))


def test_report_of_odd_runs(fake: Fake, tmp_path: Path) -> None:
    """Diverged, not begun, without validation, ties, and other versions: the table has them all."""
    grid = fake.grid("--lr 1 2 3 4 --seed 0 1")
    folders = [tmp_path / run.name for run in grid]
    history(
        folders[0],
        {"step": 0, "val/error": "nan", "train/raw_error": 8.0},
        {"step": 1, "val/error": 3.0, "val/rate": 1.0},
        {"step": 2, "val/error": 3.0, "val/rate": 2.0},
        {"step": 3, "val/error": "inf", "train/raw_error": "nan"},
    )
    (folders[0] / "outcome.json").write_text('{"code": 2, "seconds": 7}')
    history(folders[1], {"step": 1, "train/loss": 5.0})
    (folders[1] / "outcome.json").write_text('{"code": 137, "seconds": 7}')
    history(folders[2], {"step": 4, "val/error": 2.0})
    (folders[2] / "outcome.json").write_text('{"code": 255, "seconds": 7}')
    for i, torch in ((0, "2.11"), (2, "2.12")):
        (folders[i] / "versions.json").write_text(json.dumps({"torch": torch, "cpu": "one", "seed": i}))
    rows = [sweep_rows.read_row(run, folder) for run, folder in zip(grid, folders, strict=True)]
    assert [row.status for row in rows[:4]] == ["failed (2)", "failed (SIGKILL)", "failed (255)", "waiting"]
    assert (rows[0].best, rows[0].best_step, rows[0].validation) == (3.0, 1, {"error": 3.0, "rate": 1.0})
    assert (rows[1].best, rows[1].steps, rows[3].best, rows[3].steps) == (None, 1, None, 0)
    text, _ = sweep_report.write_report(tmp_path, "fake", "sweep.py", rows, 1)
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + 8 and "last raw_error" in lines[0]
    table = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
    assert table["runs"][0]["training"]["raw_error"] == "nan" and table["summary"] == []
    assert table["facts"]["cpu"] == "one" and table["facts"]["runs"] == "0 of 8 finished"
    assert table["facts"]["torch"] == "differs between runs: ['2.11', '2.12']"


def test_plot_has_a_line_for_each_run_and_a_colour_for_each_setting(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    for rates, legend in ((("1", "2"), 2), (tuple(map(str, range(1, 13))), 12)):
        grid = fake.grid(f"--lr {' '.join(rates)} --seed 0 1 --precision fp32")
        root = tmp_path / str(len(rates))
        for run in grid:
            history(
                root / run.name,
                {"step": 0, "val/error": 4.0},
                {"step": 5, "val/error": "nan"},
                {"step": 9, "val/error": float(run.values["lr"])},
            )
        rows = [sweep_rows.read_row(run, root / run.name) for run in grid]
        sweep_report.write_report(root, "fake", "sweep.py", rows, 1)
        (axes,) = figures[-1].axes
        drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
        assert drawn == [[[0, 4.0], [9, float(run.values["lr"])]] for run in grid]
        colours = [str(line.get_color()) for line in axes.lines]
        assert colours[::2] == colours[1::2] and len(set(colours)) == len(rates)
        assert [text.get_text() for text in figures[-1].legends[0].get_texts()] == [f"lr={x}" for x in rates]
        assert len(rates) == legend and axes.get_yscale() == "log"
