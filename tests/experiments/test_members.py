"""An ensemble as a user trains it: --members, its report, its answers, its resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_panda import TINY, run

from mfk import train
from mfk.core import tree

TRAIN = [*TINY, "--members", "3", "--steps", "16"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, *TRAIN, "--out", str(folder))
    return folder


def test_the_report_has_the_ensemble(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    names = [row["solver"] for row in report["results"]]
    assert names[names.index("network, 1 step") + 1] == "ensemble of 3, 1 step"
    for quantity in ("position", "rotation"):
        found = report["uncertainty"][quantity]
        assert sum(b["poses"] for b in found["bins"]) == 200 and set(found["coverage"]) == {"1", "2", "3"}
        assert -1 <= found["rank_correlation"] <= 1
    assert report["uncertainty"]["members"] == 3 and "3 of them" in report["facts"]["network"]
    assert "## Uncertainty" in (finished / "report.md").read_text()
    last = [r for r in train.read_history(finished) if "val/position_mm" in r][-1]
    assert last["val/position_mm_spread"] > 0


def test_evaluate_and_solve(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, "evaluate", "--checkpoint", str(finished), "--poses", "50", "--out", str(tmp_path))
    assert (
        json.loads((tmp_path / "report.json").read_text())["uncertainty"]["position"]["bins"][0]["poses"] == 5
    )
    capfd.readouterr()
    run(monkeypatch, "solve", "--checkpoint", str(finished), "--pose", *"0.4 -0.1 0.5 0 1 0 0".split())
    printed = capfd.readouterr().out
    assert printed.count(" rad\n") == 7 and "spread of 3 networks" in printed


def test_resumed_and_dry(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # The same schedule, ended by hand: what was saved at step 8 goes on.
    run(monkeypatch, *TRAIN, "--keep-last", "9", "--out", str(folder))
    for path in (folder / "checkpoints").iterdir():
        if int(path.name) > 8:
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            path.rmdir()
    run(monkeypatch, "--resume", str(folder))
    one, other = (train.find(f / "checkpoints") for f in (finished, folder))
    assert one.step == other.step == 16 and one.leaves == other.leaves
    model = {"params": _leaves(finished), "again": _leaves(folder)}
    assert all(torch.equal(x, y) for x, y in zip(model["params"], model["again"], strict=True))
    capfd.readouterr()
    run(monkeypatch, *TRAIN, "--dry-run")
    printed = capfd.readouterr().out
    assert ", 3 members of " in printed and "each member at its best" in printed


def _leaves(folder: Path) -> list[torch.Tensor]:
    import ik_runs
    import inverse_kinematics as shared

    settings = ik_runs.settings_of(folder)
    task = train.ensemble(shared.ik.ik_task(shared.load_robot(settings.robot), settings.ik), 3)
    params, state = task.init(0)
    return tree.leaves((train.load_members(folder, params, state), train.load_params(folder, params)))
