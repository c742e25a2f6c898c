"""The generator as a user runs it: its lines, its errors, and processes that are stopped from outside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import generate
import numpy as np
import pytest
import torch

from mfk import kinematics
from mfk.core import cli
from mfk.data import IKDataConfig, generate_ik
from mfk.data.ik_generate import BLOCK
from mfk.losses import TimeConfig

SCRIPT = Path(__file__).parents[2] / "experiments" / "generate.py"
ROWS = 600_000  # about two seconds of work
ARM = """<robot name="arm">
  <link name="base"/><link name="upper"/><link name="tool"/>
  <joint name="shoulder" type="revolute"><parent link="base"/><child link="upper"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
  <joint name="slide" type="prismatic"><parent link="upper"/><child link="tool"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="0.5" effort="1" velocity="1"/></joint>
</robot>"""


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", *words])
    cli.main(generate.main)


def fails(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a command that must end with exit code 2 and one screen of text."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *words)
    out, err = capfd.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in out + err and len((out + err).splitlines()) < 25
    return " ".join((out + err).split())


def start(path: Path, *words: str) -> subprocess.Popen[str]:
    """The command in a process of its own, in which Ctrl-C works even if the tests run under nohup."""
    prelude = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{prelude}; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(SCRIPT), "--output", str(path), "--num-samples", str(ROWS), *words],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_done(path: Path) -> int:
    """Rows of the blocks that unfinished work has marked, 0 without any."""
    try:
        return min(ROWS, BLOCK * sum((path.with_name(path.name + ".parts") / "done").read_bytes()))
    except FileNotFoundError:
        return 0


def wait_for(path: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while rows_done(path) < rows and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of the default settings."""
    path = tmp_path_factory.mktemp("generate") / "whole.pt"
    generate_ik(path, kinematics.panda(), rows=ROWS)
    return path.read_bytes()


def test_flags_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "--robot ur10 --num_samples 1000 --seed 4 --reference mixture --uniform-share 0.25 --sigma 0.2"
    run(monkeypatch, *words.split(), "--times", "mfik", "--output", str(tmp_path / "cli.npz"))
    out, err = capfd.readouterr()
    assert not err and out.splitlines()[0] == (
        f"{tmp_path}/cli.npz: 1,000 rows of ur10, base_link to tool0; 0.1 MB"
    )
    assert f"wrote {tmp_path}/cli.npz: 1,000 rows, 0.1 MB, in " in out
    generate_ik(
        tmp_path / "library.npz",
        kinematics.ur10(),
        rows=1000,
        config=IKDataConfig("mixture", sigma=0.2, uniform_share=0.25),
        times=TimeConfig("mfik", jvp_share=1.0),
        seed=4,
    )
    assert (tmp_path / "cli.npz").read_bytes() == (tmp_path / "library.npz").read_bytes()


def test_a_robot_of_the_users_and_a_file_of_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arm.urdf").write_text(ARM)
    (tmp_path / "arm.yaml").write_text(
        f"robot: {{urdf: {tmp_path}/arm.urdf, frame: tool}}\nnum_samples: 50\ndata: {{sigma: 0.05}}\n"
    )
    run(monkeypatch, "--config", str(tmp_path / "arm.yaml"), "--output", str(tmp_path / "arm.pt"))
    file = torch.load(tmp_path / "arm.pt", weights_only=True, mmap=True)
    q, pose = file["q_target"].double().numpy(), file["target_pose"].double().numpy()
    assert q.shape == (50, 2) and (q[:, 1] >= 0).all() and (q[:, 1] <= 0.5).all()
    expected = np.stack((q[:, 1] * np.cos(q[:, 0]), q[:, 1] * np.sin(q[:, 0])), 1)
    np.testing.assert_allclose(pose[:, :2], expected, atol=1e-6)
    np.testing.assert_allclose(pose[:, 3], np.cos(q[:, 0] / 2), atol=1e-6)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--num-samples", "10"]
    (tmp_path / "mine.pt").write_text("mine")
    (tmp_path / "broken.urdf").write_text("<robot")
    (tmp_path / "bad.yaml").write_text("rows: 3\n")
    before = sorted(tmp_path.iterdir())
    for words, what in (
        (["--num-samples", "0", "--output", "x.pt"], "num_samples: expected at least 1, got 0"),
        (["--num-samples", "-5", "--output", "x.pt"], "num_samples: expected at least 1, got -5"),
        (["--num-samples", "many", "--output", "x.pt"], "--num-samples"),
        (["--num-samples", "9" * 20, "--output", "x.pt"], "x.pt: needs"),
        (few, "output: expected a file's name"),
        ([*few, "--output", "x.h5"], "x.h5: expected a file's name that ends in .pt or .npz"),
        ([*few, "--output", "mine.pt"], "mine.pt: exists already"),
        ([*few, "--output", "/proc/nowhere/x.pt"], "output: cannot make the folder /proc/nowhere: "),
        ([*few, "--output", "/proc/self/x.pt"], "/proc/self/x.pt"),
        ([*few, "--output", "x.pt", "--robot", "kuka"], "kuka"),
        ([*few, "--output", "x.pt", "--frame", "panda_foot"], "panda_foot"),
        ([*few, "--output", "x.pt", "--urdf", "no.urdf", "--frame", "tool"], "no.urdf"),
        ([*few, "--output", "x.pt", "--urdf", "broken.urdf", "--frame", "tool"], "broken.urdf"),
        ([*few, "--output", "x.pt", "--sigma", "0"], "sigma: expected"),
        ([*few, "--output", "x.pt", "--reference", "uniform", "--sigma", "0.3"], "sigma: 0.3 would have no"),
        (
            [*few, "--output", "x.pt", "--reference", "mixture", "--uniform-share", "2"],
            "uniform_share: expected",
        ),
        ([*few, "--output", "x.pt", "--times", "beta"], "beta"),
        ([*few, "--output", "x.pt", "--seed", "one"], "--seed"),
        ([*few, "--output", "x.pt", "--shuffle"], "--shuffle"),
        ([*few, "--output", "x.pt", "--config", "bad.yaml"], "bad.yaml: unknown key 'rows'"),
    ):
        assert what in fails(monkeypatch, capfd, *words), words
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow  # three processes, one after the other
def test_kill_9_again_and_again(tmp_path: Path, whole: bytes) -> None:
    """At moments drawn from a seed, the last of them as the archive is sealed: the bytes are the same."""
    path, moments, done = tmp_path / "x.pt", random.Random(0), 0
    for share in (0.2, 1.0):
        process = start(path)
        wait_for(path, int(share * ROWS), process)
        time.sleep(moments.uniform(0.0, 0.03))
        process.kill()
        process.communicate()
        if path.exists():  # so fast is no machine that we know of, but none is wrong to be
            break
        assert done < rows_done(path) <= ROWS
        done = rows_done(path)
    else:
        process = start(path)
        printed, errors = process.communicate()
        assert process.returncode == 0 and not errors
        assert f"600,000 rows ({done:,} found), " in printed
        assert os.listdir(tmp_path) == ["x.pt"]
    assert path.read_bytes() == whole


def test_ctrl_c_and_a_second_process(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pt"
    words = ["--num-samples", str(ROWS), "--output", str(path)]
    first = start(path)
    wait_for(path, 1, first)
    first.send_signal(signal.SIGSTOP)  # holds the lock, however long the second takes
    assert "x.pt: another process is writing it" in fails(monkeypatch, capfd, *words)
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate()
    assert first.returncode == 130
    assert errors == "interrupted; the same command goes on where this one stopped\n"
    assert "seed 0 -> 1" in fails(monkeypatch, capfd, *words, "--seed", "1")
    assert not path.exists()
    run(monkeypatch, *words)
    assert " found), " in capfd.readouterr().out
    assert path.read_bytes() == whole


def test_a_reader_that_goes_away_does_not_end_the_job(tmp_path: Path, whole: bytes) -> None:
    process = start(tmp_path / "x.pt")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and not errors
    assert (tmp_path / "x.pt").read_bytes() == whole


def test_a_file_size_limit_on_the_way(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "x.pt"

    def stop(done: int, rows: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_ik(path, kinematics.panda(), rows=ROWS, progress=stop)
    command = f"ulimit -f 40000; exec {sys.executable} {SCRIPT} --num-samples {ROWS} --output {path}"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"}
    limited = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert limited.returncode == 2 and len(limited.stderr.splitlines()) == 1
    assert limited.stderr.startswith(f"error: {path}: cannot be written: File too large. What is done lies")
    assert rows_done(path) > 0
    generate_ik(path, kinematics.panda(), rows=ROWS)
    assert path.read_bytes() == whole


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    import pty

    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--num-samples", "200000", "--output", str(tmp_path / "x.pt")],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "TERM": "xterm", "OMP_NUM_THREADS": "1"},
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert process.wait() == 0
    text = shown.decode()
    assert "100%" in text and "━" in text and "wrote" in text
