"""What is edited or replaced under a run: as a user of the scripts sees it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import inverse_kinematics
import motion
import panda
import pytest
from motions import source

from mfk import kinematics, train
from mfk.core.types import Task
from mfk.data import generate_ik, write_motion
from mfk.losses import TimeConfig

IK = [
    "--width", "16", "--blocks", "1", "--batch-size", "64", "--warmup-steps", "2", "--log-every", "4",
    "--validate-every", "8", "--checkpoint-every", "8", "--validation-poses", "64", "--report-poses", "100",
    "--steps", "16", "--threads", "1", "--no-jit",
]  # fmt: skip
MOTION = [
    "quick", "--width", "16", "--feedforward", "32", "--heads", "2", "--layers", "1", "--steps", "8",
    "--warmup-steps", "2", "--validate-every", "4", "--validation-windows", "4", "--rollout", "10",
    "--horizon", "4", "--threads", "1", "--no-animation",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, script: ModuleType, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *words])
    try:
        if script is motion:
            motion.main()
        else:
            inverse_kinematics.main("panda", panda.PRESETS, "A test.")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A data file of IK; rows are mapped from it."""
    times = TimeConfig("uniform", jvp_share=1.0)
    generate_ik(tmp_path / "rows.pt", kinematics.panda(), rows=1_000, times=times, seed=0)
    return tmp_path / "rows.pt"


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A file of motion; windows are read from it."""
    made = source((80, 80, 60))
    write_motion(
        tmp_path / "frames.h5", made.info, [made.read(0, 80), made.read(80, 160), made.read(160, 220)]
    )
    return tmp_path / "frames.h5"


def edit(folder: Path, before: str, after: str) -> None:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert text.count(before) == 1, text
    (folder / "config.yaml").write_text(text.replace(before, after), encoding="utf-8")


def refused(monkeypatch: pytest.MonkeyPatch, capfd, script: ModuleType, *words: str) -> str:
    capfd.readouterr()
    assert run(monkeypatch, script, *words) == 2
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return err


def test_an_edited_config_of_ik(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """A network of two steps has the parameters of one of a single step."""
    folder = tmp_path / "run"
    assert run(monkeypatch, panda, *IK, "--out", str(folder)) == 0
    pose = ["--pose", "0.4", "0", "0.4", "0", "1", "0", "0"]
    solve = ["solve", "--checkpoint", str(folder), *pose]
    assert run(monkeypatch, panda, *solve) in (0, 1)
    edit(folder, "base_steps: 1\n", "base_steps: 2\n")
    commands = (
        solve,
        ["evaluate", "--checkpoint", str(folder), "--out", str(tmp_path / "report")],
        ["export", "--checkpoint", str(folder), "--out", str(tmp_path / "network.npz")],
        ["--resume", str(folder), "--steps", "24"],
    )
    for words in commands:
        told = refused(monkeypatch, capfd, panda, *words)
        assert "00000016: was trained with ik.net.base_steps: 1, and now it is 2" in told, words
    assert not (tmp_path / "report").exists() and not (tmp_path / "network.npz").exists()
    assert train.find(folder).step == 16
    edit(folder, "base_steps: 2\n", "base_steps: 1\n")
    edit(folder, "report_poses: 100\n", "report_poses: 50\n")  # which nothing was trained with
    assert run(monkeypatch, panda, *commands[1]) == 0
    (tmp_path / "file").touch()
    told = refused(monkeypatch, capfd, panda, *commands[1][:-1], str(tmp_path / "file"))
    assert f"--out: {tmp_path}/file: expected a folder, got the file" in told


def test_an_edited_config_of_motion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """Two heads of 8 numbers or four of 4: the parameters are the same, and mean something else."""
    folder = tmp_path / "run"
    assert run(monkeypatch, motion, *MOTION, "--out", str(folder)) == 0
    edit(folder, "heads: 2\n", "heads: 4\n")
    for words in (["evaluate", "--checkpoint", str(folder)], ["--resume", str(folder), "--steps", "12"]):
        told = refused(monkeypatch, capfd, motion, *words)
        assert "00000008: was trained with net.heads: 2, and now it is 4. Put the run's config.yaml" in told
    assert not (folder / "evaluation").exists()
    edit(folder, "heads: 4\n", "heads: 2\n")
    assert run(monkeypatch, motion, "--resume", str(folder), "--steps", "12") == 0


def changing(monkeypatch: pytest.MonkeyPatch, place: ModuleType, name: str, step: int, file: Path) -> None:
    """Let the file be another one, of the same size, from the draw of `step` on."""
    make = getattr(place, name)

    def made(*arguments, **options) -> Task:
        task = make(*arguments, **options)

        def draw(seed, number, rows, state, batch):
            if number == step and rows.index.start == 0 and batch:
                content = bytearray(file.read_bytes())
                content[-len(content) // 2] ^= 1
                file.with_suffix(".new").write_bytes(content)
                os.replace(file.with_suffix(".new"), file)
            return task.draw(seed, number, rows, state, batch)

        return task._replace(draw=draw)

    monkeypatch.setattr(place, name, made)


def test_rows_that_change_while_they_are_trained_on(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    folder, before = tmp_path / "run", rows.read_bytes()
    with monkeypatch.context() as patch:
        changing(patch, inverse_kinematics.ik, "ik_task", 11, rows)
        told = refused(patch, capfd, panda, *IK, "--data", str(rows), "--out", str(folder))
    assert f"error: {rows}: changed while it was in use" in told
    assert train.find(folder).step == 8 and not (folder / "report.json").exists()
    assert f"error: {rows}: the file is damaged" in refused(
        monkeypatch, capfd, panda, "--resume", str(folder)
    )
    rows.write_bytes(before)
    assert run(monkeypatch, panda, "--resume", str(folder)) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 16


def test_rows_in_memory_do_not_change(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of .npz: the run ends with its report as if nothing had happened to the file."""
    file = tmp_path / "rows.npz"
    times = TimeConfig("uniform", jvp_share=1.0)
    generate_ik(file, kinematics.panda(), rows=1_000, times=times, seed=0)
    assert run(monkeypatch, panda, *IK, "--data", str(file), "--out", str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        changing(patch, inverse_kinematics.ik, "ik_task", 11, file)
        assert run(patch, panda, *IK, "--data", str(file), "--out", str(tmp_path / "run")) == 0
    reports = [
        json.loads((tmp_path / name / "report.json").read_text())["results"] for name in ("whole", "run")
    ]
    for one, other in zip(*reports, strict=True):
        assert {**one, "microseconds_per_pose": 0} == {**other, "microseconds_per_pose": 0}


def test_frames_that_change_while_they_are_trained_on(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        changing(patch, motion, "task_of", 6, frames)
        told = refused(patch, capfd, motion, *MOTION, "--data", str(frames), "--out", str(folder))
    assert f"error: {frames}: changed while it was in use" in told
    assert train.find(folder).step == 4 and not (folder / "report.json").exists()
