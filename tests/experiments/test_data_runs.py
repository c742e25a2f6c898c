"""Training from data files, evaluating, other robots: as a user runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ik_runs
import inverse_kinematics
import panda
import pytest
import torch
import ur10

from mfk import kinematics, train
from mfk.data import IKDataConfig, generate_ik
from mfk.losses import TimeConfig

TINY = [
    "--width", "16", "--blocks", "1", "--batch-size", "64", "--warmup-steps", "2", "--log-every", "4",
    "--validate-every", "8", "--checkpoint-every", "8", "--validation-poses", "64", "--report-poses", "100",
    "--threads", "1", "--no-jit",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, script, *words: str) -> None:
    name = script.__name__
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    inverse_kinematics.main(name, script.PRESETS, "A test.")


def fails(monkeypatch, capfd, script, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, script, *words)
    out, err = capfd.readouterr()
    assert caught.value.code == 2 and "Traceback" not in out + err
    return " ".join(err.split())


def _generate(path: Path, chain: kinematics.Chain, rows: int, seed: int = 0) -> Path:
    generate_ik(
        path, chain, rows=rows, config=IKDataConfig(), times=TimeConfig("uniform", jvp_share=1.0), seed=seed
    )
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _generate(tmp_path_factory.mktemp("data") / "panda.pt", kinematics.panda(), 1_000)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, panda, *TINY, "--data", str(data), "--epochs", "2", "--out", str(folder))
    return folder


def _params(folder: Path) -> dict[str, torch.Tensor]:
    settings = ik_runs.settings_of(folder)
    chain = kinematics.load_robot(ik_runs.robot_of(settings, folder))
    model = inverse_kinematics.ik.ik_model(chain, settings.ik.net)
    return train.load_params(folder, model.init(0)[0])


def test_epochs_are_those_of_the_training_rows(finished: Path) -> None:
    """A tenth of 1,000 rows is held out: 900 rows are 15 batches of 64, the last one short."""
    assert json.loads((finished / "result.json").read_text())["steps"] == 30
    report = json.loads((finished / "report.json").read_text())
    # The report takes those that no validation has seen.
    assert report["facts"]["held-out poses"] == 36 and "panda.pt" in report["facts"]["references"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stopped_run_goes_on_bit_identically(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    out = ["--out", str(tmp_path / "run")]
    words = [*TINY, "--data", str(data), "--epochs", "2", "--num-workers", workers]
    step = inverse_kinematics.ik.ik_task

    def stopping(chain, config):
        task = step(chain, config)

        def draw(seed, number, rows, state, batch):
            if number == 19 and batch:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return task.draw(seed, number, rows, state, batch)

        return task._replace(draw=draw)

    with monkeypatch.context() as patch:
        patch.setattr(inverse_kinematics.ik, "ik_task", stopping)
        with pytest.raises(SystemExit) as caught:
            run(patch, panda, *words, *out)
    assert caught.value.code == 128 + 15 and not (tmp_path / "run" / "report.json").exists()
    run(monkeypatch, panda, "--resume", str(tmp_path / "run"))
    whole, resumed = _params(finished), _params(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_evaluate_repeats_the_report(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.iterdir()}
    run(monkeypatch, panda, "evaluate", "--checkpoint", str(finished), "--out", str(tmp_path / "same"))
    assert {p: p.stat().st_mtime_ns for p in finished.iterdir()} == before
    reports = [json.loads((f / "report.json").read_text())["results"] for f in (finished, tmp_path / "same")]
    for one, other in zip(*reports, strict=True):
        assert {**one, "microseconds_per_pose": 0} == {**other, "microseconds_per_pose": 0}
    other_data = _generate(tmp_path / "other.npz", kinematics.panda(), 70, seed=5)
    run(
        monkeypatch,
        panda,
        "evaluate",
        "--checkpoint",
        str(finished),
        "--data",
        str(other_data),
        "--poses",
        "50",
    )
    evaluated = json.loads((finished / "evaluation" / "report.json").read_text())
    assert evaluated["facts"]["held-out poses"] == 50 and "other.npz" in evaluated["facts"]["problems"]
    assert evaluated["results"][0] != reports[0][0]


def test_changed_data_are_not_trained_on_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = _generate(tmp_path / "d.pt", kinematics.panda(), 200)
    run(monkeypatch, panda, *TINY, "--data", str(path), "--steps", "4", "--out", str(tmp_path / "run"))
    path.unlink()
    _generate(path, kinematics.panda(), 200, seed=1)
    for words in (
        ["--resume", str(tmp_path / "run"), "--steps", "8"],
        ["evaluate", "--checkpoint", str(tmp_path / "run")],
    ):
        assert "--data: changed since the run began" in fails(monkeypatch, capfd, panda, *words)


def test_a_validation_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    held_out = _generate(tmp_path / "v.npz", kinematics.panda(), 80, seed=9)
    words = [*TINY, "--data", str(data), "--validation-data", str(held_out), "--epochs", "1"]
    run(monkeypatch, panda, *words, "--out", str(tmp_path / "run"))
    # All 1,000 rows are trained on: 16 batches.
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 16
    assert json.loads((tmp_path / "run" / "report.json").read_text())["facts"]["held-out poses"] == 16
    message = fails(monkeypatch, capfd, panda, *words, "--validation-share", "0.2")
    assert "validation_share: 0.2 would have no effect" in message


def test_held_out_rows_are_not_trained_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A shorter file of the same seed is the head of the longer one."""
    head = _generate(tmp_path / "head.npz", kinematics.panda(), 70)
    for held_out, rows in ((head, 70), (data, 1_000)):
        words = ["--data", str(data), "--validation-data", str(held_out), "--dry-run"]
        message = fails(monkeypatch, capfd, panda, *TINY, *words)
        assert f"{rows} of {rows} rows are in {data} too, the first is row 0" in message


def test_steps_on_the_command_line_go_before_a_presets_epochs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(
        monkeypatch, panda, "documented", "--width", "256", "--steps", "7", "--warmup-steps", "1", "--dry-run"
    )
    assert "# 7 steps" in capfd.readouterr().out
    message = fails(monkeypatch, capfd, panda, "documented", "--steps", "7", "--epochs", "2", "--dry-run")
    assert "--steps: --epochs is given too" in message


def test_augmentation_changes_the_training_and_not_the_validation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = []
    for k, extra in enumerate(([], ["--joint-noise", "0.1"], ["--base-rotation"])):
        out = tmp_path / str(k)
        run(monkeypatch, panda, *TINY, "--data", str(data), "--steps", "4", *extra, "--out", str(out))
        histories.append(train.read_history(out))
    first = [history[0]["val/val_loss"] for history in histories]
    assert first[0] == first[1] == first[2]
    losses = [next(r["train/raw_error"] for r in history if "train/loss" in r) for history in histories]
    assert len(set(losses)) == 3
    # Noise of 0.1 rad on references that are 0.1 rad away: the squared velocity about doubles.
    assert losses[1] > 1.5 * losses[0]


def test_files_that_do_not_fit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    message = fails(monkeypatch, capfd, ur10, *TINY, "--data", str(data), "--dry-run")
    assert "panda.pt" in message and "6" in message
    message = fails(
        monkeypatch, capfd, panda, *TINY, "--data", str(data), "--frame", "panda_link8", "--dry-run"
    )
    assert "--frame panda_hand" in message
    message = fails(monkeypatch, capfd, panda, *TINY, "--data", str(tmp_path / "no.pt"), "--dry-run")
    assert "no.pt" in message
    message = fails(monkeypatch, capfd, panda, *TINY, "--num-workers", "2", "--dry-run")
    assert "num_workers: 2 would have no effect" in message
    message = fails(monkeypatch, capfd, panda, *TINY, "--end-times", "redraw", "--dry-run")
    assert "end_times: 'redraw' would have no effect" in message
    message = fails(monkeypatch, capfd, panda, *TINY, "--epochs", "3", "--dry-run")
    assert "epochs: data that are made on the fly have no epochs" in message


def test_the_ur10_trains_and_solves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, ur10, *TINY, "--steps", "8", "--out", str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "ur10" in report["facts"]["robot"]
    by_name = {row["solver"]: row for row in report["results"]}
    assert (
        by_name["network, 1 step"]["within_5mm_5deg"]
        > 1.5 * by_name["1 least-squares step"]["within_5mm_5deg"]
    )
    capfd.readouterr()
    run(
        monkeypatch,
        ur10,
        "solve",
        "--checkpoint",
        str(tmp_path / "run"),
        "--pose",
        *"0.6 0.3 0.5 0 1 0 0".split(),
    )
    assert capfd.readouterr().out.count(" rad") == 6


JOINT = """<joint name="{child}_joint" type="{kind}"><parent link="{parent}"/><child link="{child}"/>
<origin xyz="{xyz}"/><axis xyz="{axis}"/><limit lower="{lower}" upper="2" velocity="1" effort="1"/></joint>"""
JOINTS = (
    ("world", "a", "revolute", "0 0 0.2", "0 0 1", -2),
    ("a", "b", "revolute", "0 0 0.1", "0 1 0", -2),
    ("b", "c", "prismatic", "0 0 0.3", "0 0 1", 0),
    ("c", "tip", "fixed", "0 0 0.1", "0 0 1", 0),
)
URDF = "".join(
    (
        '<robot name="arm">',
        *(f'<link name="{name}"/>' for name in ("world", "a", "b", "c", "tip")),
        *(
            JOINT.format(parent=parent, child=child, kind=kind, xyz=xyz, axis=axis, lower=lower)
            for parent, child, kind, xyz, axis, lower in JOINTS
        ),
        "</robot>",
    )
)


@pytest.mark.parametrize("script", [panda, ur10])
def test_any_robot_by_its_urdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], script
) -> None:
    file = tmp_path / "arm.urdf"
    file.write_text(URDF)
    words = [*TINY, "--urdf", str(file), "--tip", "tip", "--steps", "4", "--out", str(tmp_path / "run")]
    run(monkeypatch, script, *words)
    assert "arm, 3 dof" in json.loads((tmp_path / "run" / "report.json").read_text())["facts"]["robot"]
    # The run keeps its robot, whatever becomes of the file.
    file.unlink()
    run(monkeypatch, script, "--resume", str(tmp_path / "run"), "--steps", "8")
    run(monkeypatch, script, "evaluate", "--checkpoint", str(tmp_path / "run"))
    file.write_text(URDF)
    message = fails(monkeypatch, capfd, script, *TINY, "--urdf", str(file), "--dry-run")
    assert message.startswith("error: frame: ") and "tip" in message


def test_initial_weights_from_another_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, "--steps", "4", "--init-from"]
    run(monkeypatch, panda, *words, str(finished), "--seed", "3", "--out", str(tmp_path / "run"))
    assert ik_runs.settings_of(tmp_path / "run").run.init_from == str(finished)
    assert "no such folder" in fails(monkeypatch, capfd, panda, *words, str(tmp_path / "nowhere"))
    # A mistake leaves no folder, in a dry run or not.
    for more in ([], ["--dry-run"]):
        other = [*words, str(finished), "--width", "32", "--out", str(tmp_path / "other"), *more]
        assert "init_from: " in fails(monkeypatch, capfd, panda, *other)
    assert not (tmp_path / "other").exists()
