"""Nothing that stops a process changes the file that comes out in the end."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mfk import kinematics
from mfk.data import generate_ik, ik_generate
from mfk.data.resumable import write_resumably
from mfk.data.tensor_writer import lay_out

PANDA = kinematics.panda()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, for tests that need many blocks and not their numbers."""
    monkeypatch.setattr(ik_generate, "BLOCK", 64)


class Stop(BaseException):
    """Neither an Exception nor anything that the code knows."""


def interrupted(path: Path, rows: int = 300, at: int = 128, **options: Any) -> Path:
    """The work folder of a call that has been stopped."""

    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        generate_ik(path, PANDA, rows=rows, progress=stop, **options)
    assert not path.exists()
    return path.with_name(path.name + ".parts")


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_an_interrupted_call_is_gone_on_with(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    generate_ik(tmp_path / f"whole{suffix}", PANDA, rows=300)
    path = tmp_path / f"x{suffix}"
    assert {file.name for file in interrupted(path).iterdir()} == {"rows", "done", "record.json", ".lock"}
    calls, drawn, draw = [], [], ik_generate.draw_rows

    def counted(*arguments: Any) -> dict[str, Tensor]:
        drawn.append(arguments[4])
        return draw(*arguments)

    monkeypatch.setattr(ik_generate, "draw_rows", counted)
    done = generate_ik(path, PANDA, rows=300, progress=lambda *given: calls.append(given))
    assert calls == [(128, 300), (192, 300), (256, 300), (300, 300)]
    assert drawn == [0, 2, 3, 4]  # the first only tries the settings
    assert (done.path, done.size, done.found) == (path, path.stat().st_size, 128)
    assert path.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"whole{suffix}", f"x{suffix}"]


CRASHES = """
import os, signal, sys
from pathlib import Path
from mfk import kinematics
from mfk.data import generate_ik, ik_generate

ik_generate.BLOCK = 64
os.fsync = lambda descriptor: None  # SIGKILL loses nothing that the system was given
folder, suffix, chain = Path(sys.argv[1]), sys.argv[2], kinematics.panda()
NAMES = ("mkdir", "posix_fallocate", "pwrite", "ftruncate", "fsync", "replace", "rename", "unlink", "rmdir")


def crash_at(event):
    # Let the process die of SIGKILL at its event-th change of the disk, in the midst of a write.
    left = [event]

    def crashing(name, call):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                if name == "pwrite":
                    descriptor, data, offset = arguments
                    call(descriptor, bytes(data)[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return wrapped

    for name in NAMES:
        setattr(os, name, crashing(name, getattr(os, name)))


def generate(path):
    return generate_ik(path, chain, rows=100)


generate(folder / f"whole{suffix}")
whole, path = (folder / f"whole{suffix}").read_bytes(), folder / f"x{suffix}"
event, resumed, exists = 1, 0, 0
while True:
    pid = os.fork()
    if pid == 0:
        crash_at(event)
        generate(path)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (event, status)
    assert not path.exists() or path.read_bytes() == whole, event
    try:
        resumed += generate(path).found > 0
    except FileExistsError:
        exists += path.exists()
    assert path.read_bytes() == whole, event
    assert sorted(os.listdir(folder)) == [f"whole{suffix}", f"x{suffix}"], (event, os.listdir(folder))
    path.unlink()
    event += int(sys.argv[3])
print(event, resumed, exists)
"""


@pytest.mark.slow  # a process for each of sixty kills
def test_killed_at_every_change_of_the_disk(tmp_path: Path) -> None:
    events, resumed, exists = crash(tmp_path, ".pt", every=1)
    # Two blocks of six columns with their record, and the headers of the seal. Before the last step, the
    # removal of the empty folder, nothing is left that could tell whose the file is: it exists.
    assert events > 40 and resumed > 20 and exists == 1


def test_killed_at_some_changes_of_the_disk(tmp_path: Path) -> None:
    events, resumed, _ = crash(tmp_path, ".npz", every=5)
    assert events > 40 and resumed > 4


def crash(folder: Path, suffix: str, every: int) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(folder), suffix, str(every)],
        env={**os.environ, "PYTHONPATH": str(Path(kinematics.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_full_disk_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ik_generate, "BLOCK", 64)
    generate_ik(tmp_path / "whole.pt", PANDA, rows=300)
    path, pwrite, left = tmp_path / "x.pt", os.pwrite, [15]

    def full(*arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return pwrite(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"x\.pt: cannot be written: No space left on device\. .*\.parts"):
            generate_ik(path, PANDA, rows=300)
    assert generate_ik(path, PANDA, rows=300).found == 128
    assert path.read_bytes() == (tmp_path / "whole.pt").read_bytes()


def test_too_little_space_is_said_before_anything_is_made(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=r"x\.pt: needs 120,000,000,\d{3}\.\d\d MB, and its disk has"):
        generate_ik(tmp_path / "x.pt", PANDA, rows=10**15)
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"x\.pt: needs 0\.04 MB, and its disk has 0\.01 MB left"):
            generate_ik(tmp_path / "x.pt", PANDA, rows=300)
        assert not list(tmp_path.iterdir())
    interrupted(tmp_path / "x.pt")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    generate_ik(tmp_path / "x.pt", PANDA, rows=300)  # what is taken already is not asked for again


def test_a_file_size_limit(small: None, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"x\.pt: cannot be written: File too large"):
            generate_ik(tmp_path / "x.pt", PANDA, rows=300)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    generate_ik(tmp_path / "x.pt", PANDA, rows=300)
    assert len(torch.load(tmp_path / "x.pt")["q"]) == 300


def test_two_at_once(small: None, tmp_path: Path) -> None:
    path, refused = tmp_path / "x.pt", []

    def second(done: int, rows: int) -> None:
        with pytest.raises(FileExistsError, match=r"x\.pt: another process is writing it"):
            generate_ik(path, PANDA, rows=300)
        refused.append(done)

    generate_ik(path, PANDA, rows=300, progress=second)
    assert refused == [0, 64, 128, 192, 256, 300]
    assert len(torch.load(path)["q"]) == 300


def test_a_block_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    layout = lay_out(path, {"q": 2}, 100)

    def draw(block: int) -> dict[str, Tensor]:
        return {"q": torch.zeros(63, 2)}

    with pytest.raises(ValueError, match=r"^draw: expected 64 rows of each, got \{'q': 63\}"):
        write_resumably(
            path, layout, {}, 64, lambda block: {"q": torch.zeros(63, 2)}, lambda done, rows: None
        )
    assert not path.exists()
