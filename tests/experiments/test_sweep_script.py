"""The sweep as a user calls it: a real experiment end to end, the help, and the first word."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ik_runs
import inverse_kinematics
import panda
import pytest
import sweep
import torch

from mfk import kinematics, train
from mfk.core import cli

TINY = [
    "--width", "16", "--blocks", "1", "--batch-size", "64", "--warmup-steps", "2", "--log-every", "2",
    "--validate-every", "3", "--validation-poses", "64", "--report-poses", "100", "--threads", "1",
    "--no-jit",
]  # fmt: skip


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main(sweep.main)
    return caught.value.code


def figures(folder: Path) -> list[dict[str, float]]:
    """A run's history without what depends on the clock."""
    clock = ("time", "train/samples_per_second")
    return [{k: x for k, x in r.items() if k not in clock} for r in train.read_history(folder)]


def params(folder: Path) -> dict[str, torch.Tensor]:
    settings = ik_runs.settings_of(folder)
    model = inverse_kinematics.ik.ik_model(kinematics.panda(), settings.ik.net)
    return train.load_params(folder, model.init(0)[0])


@pytest.mark.slow  # five starts of Python with torch, two of them trainings with their reports
def test_a_swept_run_is_the_run_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    words = ["panda", "quick", "--steps", "6", *TINY, "--lr", "1e-4", "3e-3", "--jobs", "2"]
    assert call(monkeypatch, *words) == 0, capfd.readouterr()
    folder = tmp_path / "outputs" / "sweeps" / "panda" / "001"
    for rate in ("1e-4", "3e-3"):
        run = folder / "runs" / f"lr={rate}"
        settings = ik_runs.settings_of(run)
        assert (settings.train.lr, settings.train.steps, settings.ik.net.width) == (float(rate), 6, 16)
        assert (run / "report.json").exists() and "network, 1 step" in (run / "console.log").read_text()
    by_hand = tmp_path / "by-hand"
    line = ["quick", "--steps", "6", *TINY, "--lr", "3e-3", "--out", str(by_hand)]
    monkeypatch.setattr(sys, "argv", ["panda.py", *line])
    inverse_kinematics.main("panda", panda.PRESETS, "A test.")
    run = folder / "runs" / "lr=3e-3"
    assert (run / "config.yaml").read_text() == (by_hand / "config.yaml").read_text()
    assert figures(run) == figures(by_hand)
    swept, ours, other = params(run), params(by_hand), params(folder / "runs" / "lr=1e-4")
    assert all(torch.equal(swept[name], ours[name]) for name in ours)
    assert not all(torch.equal(other[name], ours[name]) for name in ours)
    row = json.loads((folder / "table.json").read_text())["runs"][1]
    result = json.loads((by_hand / "result.json").read_text())
    assert (row["metric"], row["best"]) == (result["best_metric"], result["best"])
    assert "| 3e-3 |" in (folder / "table.md").read_text()
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_help_names_the_experiments(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep.py", "panda", "--help"])
    sweep.main()
    printed = capfd.readouterr().out
    assert "python experiments/sweep.py panda --lr 1e-4 3e-4 --seed 0 1 2" in printed
    assert "panda" in printed.splitlines()[-1] and "ur10" in printed.splitlines()[-1]
    assert "generate" not in printed.splitlines()[-1] and max(map(len, printed.splitlines())) < 120


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            [],
            "EXPERIMENT: expected one of irf, motion, panda, stick, ur10, vqvae as the first word, got none",
        ),
        (
            ["banda", "--seed", "0", "1"],
            "expected one of irf, motion, panda, stick, ur10, vqvae as the first word, got banda",
        ),
        (
            ["--seed", "0", "1"],
            "expected one of irf, motion, panda, stick, ur10, vqvae as the first word, got --seed",
        ),
        (["panda", "evaluate", "--checkpoint", "a", "b"], "evaluate: expected a preset of panda"),
        (["panda", "--network", "deep", "wide", "--seed", "0"], "--network deep: "),
        (
            ["panda", "--lr", "1e-3", "x"],
            "--lr x: Error parsing --lr: could not convert string to float: 'x'",
        ),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *words) == 2
    out, err = capfd.readouterr()
    assert out == "" and what in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
