"""How a run begins or goes on: what its folder must hold, what may change, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import make_task
from toy_runs import CONFIG, fit_toy, same, stream

from mfk.core import Task
from mfk.train import (
    CheckpointError,
    find,
    fit,
    load_params,
    read_history,
    saved,
)
from mfk.train.runs import locked


def test_resuming_a_finished_run_does_nothing(tmp_path, undisturbed):
    fit_toy(tmp_path / "run")
    result = fit_toy(tmp_path / "run", resume=True)
    assert same(result.state, undisturbed.state)
    with pytest.raises(ValueError, match=r"steps: 10, but the run in .* has already made 20"):
        fit_toy(tmp_path / "run", replace(CONFIG, steps=10), resume=True)


def test_folders_that_hold_a_run_or_none(tmp_path, undisturbed):
    with pytest.raises(FileExistsError, match=r"already holds a run.*--resume"):
        fit_toy(undisturbed.run)
    with pytest.raises(CheckpointError, match="no such folder"):
        fit_toy(tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fit_toy(tmp_path / "file")
    with pytest.raises(OSError, match="file"):
        fit_toy(tmp_path / "file" / "run")


def test_resuming_with_another_model(tmp_path):
    fit_toy(tmp_path / "run", replace(CONFIG, steps=3))
    with pytest.raises(CheckpointError, match=r"does not know: \['ema/"):
        fit_toy(tmp_path / "run", replace(CONFIG, ema_decay=None), resume=True)


def test_a_metric_that_evaluate_lacks_is_seen_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"best_metric: expected one of .*\['val_loss'\], got 'accuracy'"):
        fit_toy(tmp_path / "run", replace(CONFIG, best_metric="accuracy"))


def test_resuming_elsewhere_is_said(tmp_path, capsys):
    fit_toy(tmp_path / "run", replace(CONFIG, steps=3))
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    (tmp_path / "run" / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    fit_toy(tmp_path / "run", replace(CONFIG, steps=4), resume=True, console=True)
    assert "another torch (1.0 -> " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (dict(steps=0), "steps"),
        (dict(batch_size=0), "batch_size"),
        (dict(log_every=0), "log_every"),
        (dict(keep_last=True), "keep_last"),
        (dict(device="gpu"), "device"),
        (dict(epochs=2), "epochs"),
        (dict(threads=0), "threads"),
        (dict(schedule="cosin"), "schedule"),
        (dict(warmup_steps=21), "warmup_steps"),
        (dict(min_lr=1.0), "min_lr"),
        (dict(betas=(1.0, 0.9)), r"betas\[0\]"),
    ],
)
def test_bad_settings_leave_no_folder(tmp_path, change, name):
    with pytest.raises(ValueError, match=name):
        fit_toy(tmp_path / "run", replace(CONFIG, **change))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_tells_what_changed_and_refuses_what_is_fixed(tmp_path, capsys):
    run = tmp_path / "run"
    fit(
        make_task(), replace(CONFIG, steps=4), run=run, record={"data": {"sigma": 0.1}, "lr": 1e-2, "x": None}
    )
    capsys.readouterr()
    longer = replace(CONFIG, steps=8)
    with pytest.raises(ValueError, match=r"cannot change data\.sigma \(0\.1 -> 0\.3\)"):
        fit(make_task(), longer, run=run, record={"data": {"sigma": 0.3}}, resume=True, fixed=("data",))
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == {"sigma": 0.1}
    changed = {"data": {"sigma": 0.1}, "lr": 2e-2, "x": None}
    fit(make_task(), longer, run=run, record=changed, resume=True, fixed=("data",))
    assert "resumed with another lr (0.01 -> 0.02)" in capsys.readouterr().out


def test_two_that_look_at_one_fresh_folder_together(tmp_path):
    """The second finds nothing there, and then the first's run, going on or ended: it writes nothing."""
    run, task = tmp_path / "run", make_task()

    def begun_meanwhile(files: dict[str, str]) -> Task:
        """Its first weights are asked for between the look and the start."""
        others: list[bool] = []

        def init(seed: int) -> Any:
            if not others:
                others.append(True)
                fit_toy(run, replace(CONFIG, steps=4), files=files)
            return task.init(seed)

        return task._replace(init=init)

    def contents() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}

    with pytest.raises(FileExistsError, match="already holds a run"):
        fit_toy(run, task=begun_meanwhile({"data.txt": "first"}), files={"data.txt": "second"})
    assert (run / "data.txt").read_text() == "first" and find(run).step == 4
    shutil.rmtree(run)
    drawn: list[dict[Path, bytes]] = []

    def draw(*args: Any) -> Any:
        if not drawn:
            drawn.append(contents())
            with pytest.raises(FileExistsError, match="another process is training"):
                fit_toy(run, files={"data.txt": "second"})
            drawn.append(contents())
        return task.draw(*args)

    fit_toy(run, replace(CONFIG, steps=4), task._replace(draw=draw), files={"data.txt": "first"})
    assert drawn[0] == drawn[1] and drawn[0][run / "data.txt"] == b"first"


def test_a_refused_resume_changes_nothing(tmp_path):
    """Another process in the folder, or a history that is none: config.yaml stays as it was."""
    run = tmp_path / "run"
    fit(make_task(), replace(CONFIG, steps=4), run=run, record={"lr": 1e-2}, console=False)
    before = (run / "config.yaml").read_bytes()
    longer = replace(CONFIG, steps=8)
    with locked(run), pytest.raises(FileExistsError, match="another process"):
        fit(make_task(), longer, run=run, record={"lr": 2e-2}, resume=True, console=False)
    with (run / "history.jsonl").open("a") as file:
        file.write("[1, 2]\n")
    with pytest.raises(ValueError, match=r"history\.jsonl: expected one record"):
        fit(make_task(), longer, run=run, record={"lr": 2e-2}, resume=True, console=False)
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, undisturbed):
    run = tmp_path / "run"
    fit_toy(run)
    shutil.rmtree(run / "checkpoints")
    # After steps without a checkpoint something is lost: that is an error, not a new start.
    with pytest.raises(CheckpointError, match="run: holds no complete checkpoint"):
        fit_toy(run, resume=True)
    first = (run / "history.jsonl").read_text().splitlines()[0]
    (run / "history.jsonl").write_text(first + "\n")
    result = fit_toy(run, resume=True)
    assert same(result.state, undisturbed.state)
    steps = [r["step"] for r in read_history(undisturbed.run)]
    assert [r["step"] for r in read_history(run)] == steps


def test_patience_without_validation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="patience: early stopping needs validation"):
        fit_toy(tmp_path / "run", replace(CONFIG, patience=2), validation=())


def test_what_a_resumed_run_takes_back(tmp_path):
    """It is not over any more; and without validation it still keeps the best."""
    fit_toy(tmp_path / "run", replace(CONFIG, steps=12, keep_last=1))
    best = find(tmp_path / "run", "best").step
    fit_toy(tmp_path / "run", replace(CONFIG, steps=24, keep_last=1), batches=stream(15), resume=True)
    assert not (tmp_path / "run" / "result.json").exists()
    fit_toy(tmp_path / "run", replace(CONFIG, steps=24, keep_last=1), resume=True, validation=())
    assert best in [c.step for c in saved(tmp_path / "run" / "checkpoints")]


def test_initial_weights_of_another_run(tmp_path, undisturbed):
    """The best, averaged weights; the step, the moments and the schedule are new."""
    config = replace(CONFIG, steps=1, lr=0.0, min_lr=0.0, warmup_steps=0, seed=3)
    result = fit_toy(tmp_path / "run", config, init_from=undisturbed.run)
    task = make_task()
    best = load_params(undisturbed.run, task.init(0)[0], "best")
    assert same(result.state.params, best) and same(result.state.ema, best)
    assert int(result.state.opt.step) == 1 and result.state.step == 1
    first = next(r for r in read_history(tmp_path / "run") if "val/val_loss" in r)
    assert first["step"] == 0 and first["val/val_loss"] == pytest.approx(undisturbed.best, rel=1e-6)
    with pytest.raises(CheckpointError, match=r"init_from: .*no such folder"):
        fit_toy(tmp_path / "other", config, init_from=tmp_path / "nowhere")
    assert not (tmp_path / "other").exists()
    # A run that goes on has its own weights, and does not read those again.
    again = fit_toy(tmp_path / "run", replace(config, steps=2), init_from=tmp_path / "nowhere", resume=True)
    assert again.state.step == 2
