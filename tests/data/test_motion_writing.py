"""Writing files of motion: what is refused, and what an error or a kill leaves."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from motion_cases import (
    BARE,
    CLIPS,
    FORMATS,
    INFO,
    PIECES,
    SKELETON,
    draw_rows,
    equal,
    whole,
)

from mfk.data import (
    MotionInfo,
    MotionRows,
    motion_rows,
    open_motion,
    write_motion,
)


def spoilt(**changed: Any) -> list[MotionRows]:
    return [*PIECES[:2], PIECES[2]._replace(**changed)]


BAD = PIECES[2].frames.clone()
BAD[1, 2, 3:] = 0
INFINITE = whole("velocities")[6:].clone()
INFINITE[3, 1, 6] = math.inf


@pytest.mark.parametrize("suffix", [".parquet", ".h5"])
@pytest.mark.parametrize(
    ("pieces", "error", "message"),
    [
        ([], ValueError, "clips: expected the rows of at least one, got none"),
        (PIECES[:2], ValueError, "expected 10 rows, as the clips have, got 6: clip 'still' ends early"),
        ([*PIECES, PIECES[1]], ValueError, "expected 10 rows, as the clips have, got more"),
        (
            [PIECES[2], PIECES[1], PIECES[0]],
            ValueError,
            "clip 'still': expected 1 rows from row 5 to the clip's end, got 5",
        ),
        (
            spoilt(frames=BAD),
            ValueError,
            "frames: row 7: bone 'Hände': expected a unit quaternion, got 0, 0, 0, 0",
        ),
        (
            spoilt(velocities=INFINITE),
            ValueError,
            "velocities: row 9: bone 'Left Arm': expected finite numbers",
        ),
        (
            spoilt(velocities=None),
            ValueError,
            "rows from 6: expected velocities and labels beside the frames, got labels",
        ),
        (spoilt(labels=None), ValueError, "expected velocities and labels beside the frames, got velocities"),
        (spoilt(splits={}), ValueError, r"expected the splits train, val, got \(none\)"),
        (spoilt(labels=torch.zeros(4, 3)), ValueError, r"labels: expected shape \(4, 2\)"),
        (spoilt(labels=torch.full((4, 2), math.nan)), ValueError, "labels: row 6: expected finite numbers"),
        (spoilt(frames=BAD.double()), TypeError, "frames: expected torch.float32, got torch.float64"),
        (spoilt(frames=BAD[:, :2]), ValueError, r"frames: expected shape \(4, 3, 7\)"),
        (spoilt(splits={"train": torch.ones(4), "val": BAD[:, 0, 0] > 0}), TypeError, "expected torch.bool"),
        (
            spoilt(splits={"train": torch.ones(3) > 0, "val": BAD[:, 0, 0] > 0}),
            ValueError,
            "split 'train': expected",
        ),
    ],
)
def test_rows_that_are_not_written(
    tmp_path: Path, suffix: str, pieces: list[MotionRows], error: type[Exception], message: str
) -> None:
    path = tmp_path / f"m{suffix}"
    with pytest.raises(error, match=message):
        write_motion(path, INFO, pieces)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (INFO._replace(fps=math.nan), "expected what JSON can hold"),
        (INFO._replace(fps=-1.0), "fps: expected a positive number"),
        (
            INFO._replace(metadata={"up": "z"}),
            "metadata: expected other keys than clips, parents, space, up, got 'up'",
        ),
        (INFO._replace(metadata={"x": BAD}), "metadata: expected what JSON can hold"),
        (INFO._replace(metadata={"x": (1, 2)}), "metadata: expected what JSON keeps as it is"),
        (INFO._replace(metadata={1: 2}), "metadata: expected what JSON keeps as it is"),
        (INFO._replace(clips=()), "expected at least one row"),
        (INFO._replace(clips=(CLIPS[0], CLIPS[0])), "clips: expected names to differ, got 'walk 1' twice"),
        (INFO._replace(label_names=("a", "a")), "label_names: expected names to differ"),
        (INFO._replace(splits=("a", "a")), "splits: expected names to differ"),
        (INFO._replace(skeleton=SKELETON._replace(parents=(-1, 1, 0))), "parents: bone 'Left Arm'"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, info: MotionInfo, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_motion(tmp_path / "m.parquet", info, PIECES)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("suffix", [*FORMATS, ".json"])
def test_an_error_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    rows = draw_rows(6, bare=True)
    write_motion(path, BARE, [rows])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="the file exists; expected a new name, or overwrite"):
        write_motion(path, BARE, [rows])

    def failing() -> Iterator[MotionRows]:
        yield motion_rows.cut_rows(rows, 0, 3)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        write_motion(path, BARE, failing(), overwrite=True)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
    changed = draw_rows(6, seed=1, bare=True)
    write_motion(path, BARE, [changed], overwrite=True)
    assert equal(open_motion(path).read(0, 6).frames, changed.frames)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        write_motion(tmp_path / "missing" / path.name, BARE, [rows])


KILLED = """
import os, signal, sys
from pathlib import Path
from mfk.data import Clip, MotionInfo, MotionRows, Skeleton, motion_rows, write_motion
import torch
motion_rows.PIECE = 64
frames = torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).expand(50, 1, 7)
info = MotionInfo(30.0, Skeleton(("a",), None, None, None), (Clip("a", 50), Clip("b", 50)), None, (), {})
def clips():
    yield MotionRows(frames, None, None, {})
    os.kill(os.getpid(), signal.SIGKILL)
write_motion(Path(sys.argv[1]), info, clips())
"""


def test_a_killed_writer_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -9, done.stderr
    left = [file.name for file in tmp_path.iterdir()]
    assert len(left) == 1
    assert re.fullmatch(r"\.m\.parquet\.[0-9]+\.part", left[0])
    write_motion(path, INFO, PIECES)
    assert open_motion(path).info == INFO
