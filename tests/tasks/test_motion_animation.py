"""Moving pictures, read back by Pillow, and what ffmpeg is given."""

from __future__ import annotations

import math
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mfk.tasks.motion_animation import animate

PARENTS = (-1, 0, 0)
STILL = torch.tensor([[0.0, 0, 1], [1.0, 0, 0], [-1.0, 0, 0]])  # two legs, z up


def walk(frames: int) -> Tensor:
    """The legs swing, and all goes along x."""
    found = STILL.repeat(frames, 1, 1)
    time = torch.arange(frames) / 10
    found[:, 1, 1], found[:, 2, 1] = torch.sin(time), -torch.sin(time)
    found[..., 0] += time[:, None]
    return found


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as file:
        found = []
        for frame in range(getattr(file, "n_frames", 1)):
            file.seek(frame)
            found.append(np.asarray(file.convert("RGB")).astype(int))
        return found


def seconds(path: Path) -> float:
    with Image.open(path) as file:
        total = 0
        for frame in range(getattr(file, "n_frames", 1)):
            file.seek(frame)
            total += file.info["duration"]
    return total / 1000


def body(picture: np.ndarray) -> np.ndarray:
    """What is drawn below the titles and is darker than the grid."""
    return picture[60:].min(-1) < 150


@pytest.mark.parametrize(
    ("frames", "fps", "shown"),
    [
        (12, 30.0, 12),
        (7, 24, 7),
        (5, 7.5, 5),
        (1, 30, 1),
        (10, 50, 10),
        (10, 60, 5),
        (11, 120, 4),
        (3, 1000, 1),
    ],
)
def test_every_frame_is_there_for_its_time(tmp_path: Path, frames: int, fps: float, shown: int) -> None:
    path = tmp_path / "walk.gif"
    animate(path, {"one": walk(frames)}, PARENTS, fps=fps, up=2)
    found = pictures(path)
    assert len(found) == shown and found[0].shape == (368, 320, 3)
    if frames > 1:
        assert seconds(path) == pytest.approx(max(frames / fps, 0.01), abs=0.0051)
    assert all((a != b).any() for a, b in pairwise(found))
    assert [file.name for file in tmp_path.iterdir()] == ["walk.gif"]


def test_panels_show_their_own_sequence_to_one_scale(tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    small = walk(4) * 0.5
    shown = {"truth": walk(4), "half": small, "same": walk(4)}
    animate(path, shown, PARENTS, fps=30, up=2, title="$legs_")
    for picture in pictures(path):
        assert picture.shape == (368, 960, 3)
        large, half, same = (body(picture[:, 320 * i : 320 * (i + 1)]) for i in range(3))
        assert (large == same).mean() > 0.999 and (large != half).mean() > 0.003
        heights, halves = (np.flatnonzero(x.any(1)) for x in (large, half))
        assert np.ptp(halves) == pytest.approx(np.ptp(heights) / 2, abs=4)


def test_the_camera_follows_the_root_and_the_grid_stays(tmp_path: Path) -> None:
    path = tmp_path / "along.gif"
    frames = STILL.repeat(4, 1, 1)
    frames[..., 0] += 0.13 * torch.arange(4)[:, None]
    animate(path, {"one": frames}, PARENTS, fps=30, up=2)
    first, *others = pictures(path)
    for other in others:
        assert (body(first) == body(other)).mean() > 0.999
        grid = [(picture[60:].min(-1) > 190) & (picture[60:].min(-1) < 235) for picture in (first, other)]
        assert (grid[0] != grid[1]).sum() > 0.3 * grid[0].sum() > 0


@pytest.mark.parametrize("up", [0, 1])
def test_any_axis_may_point_up(tmp_path: Path, up: int) -> None:
    """The axes are turned, not swapped: the picture is the same."""
    animate(tmp_path / "z.gif", {"one": walk(3)}, PARENTS, fps=30, up=2)
    animate(tmp_path / "up.gif", {"one": walk(3).roll(up - 2, -1)}, PARENTS, fps=30, up=up)
    assert (tmp_path / "z.gif").read_bytes() == (tmp_path / "up.gif").read_bytes()


def test_sides_have_colours_and_marks_are_in_the_title(tmp_path: Path) -> None:
    for name, options in {
        "plain": {},
        "left": {"bone_names": ("Hips", "LeftLeg", "Spine")},
        "short": {"bone_names": ("Hips", "l_leg", "LowerBack")},
        "right": {"bone_names": ("Hips", "Spine", "RHipJoint")},
        "pair": {"bone_names": ("root", "lleg", "rleg")},
        "no pair": {"bone_names": ("root", "lleg", "ribs")},
        "marks": {"marks": {2: "made"}},
    }.items():
        wanted: dict[str, Any] = dict(options)
        animate(tmp_path / f"{name}.gif", {"one": walk(4)}, PARENTS, fps=30, up=2, **wanted)
    found = {file.stem: pictures(file) for file in tmp_path.iterdir()}
    for channel, expected in ((2, {"left", "short", "pair"}), (0, {"right", "pair"})):
        counts = {k: (p[0][..., channel] - p[0][..., 2 - channel] > 60).sum() for k, p in found.items()}
        assert {name for name, count in counts.items() if count > 50} == expected
    titles = [(a[:30] != b[:30]).any() for a, b in zip(found["plain"], found["marks"], strict=True)]
    assert titles == [False, False, True, True]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"path": "walk.png"}, "path: expected NAME.gif or NAME.mp4"),
    ({"sequences": {}}, "sequences: expected at least one"),
    ({"sequences": {"a": torch.zeros(4, 2, 3)}}, r"sequences\['a'\]: expected a tensor \[T, 3, 3\]"),
    ({"sequences": {"a": torch.zeros(0, 3, 3)}}, r"sequences\['a'\]: expected a tensor \[T, 3, 3\]"),
    ({"sequences": {"a": walk(4), "b": walk(3)}}, r"sequences\['b'\]: expected 4 frames"),
    ({"sequences": {"a": walk(4) * math.nan}}, r"sequences\['a'\]: expected finite positions"),
    ({"parents": (-1, 2, 0)}, "parents: bone 1"),
    ({"fps": 0}, "fps: expected a finite number > 0"),
    ({"fps": math.inf}, "fps: expected a finite number > 0"),
    ({"up": 3}, "up: expected the axis"),
    ({"up": True}, "up: expected the axis"),
    ({"marks": {4: "late"}}, r"marks: expected frames in \[0, 4\)"),
    ({"bone_names": ("a", "b")}, "bone_names: expected 3"),
]


@pytest.mark.parametrize(("changes", "match"), WRONG)
def test_mistakes_name_the_argument_and_leave_no_file(tmp_path: Path, changes: Any, match: str) -> None:
    given: dict[str, Any] = {"sequences": {"a": walk(4)}, "parents": PARENTS, "fps": 30, "up": 2, **changes}
    path = tmp_path / given.pop("path", "walk.gif")
    with pytest.raises(ValueError, match=f"^{match}"):
        animate(path, given.pop("sequences"), given.pop("parents"), **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: expected the folder"):
        animate(tmp_path / "no" / "walk.gif", {"a": walk(4)}, PARENTS, fps=30, up=2)


def fake_ffmpeg(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called ffmpeg; the one of the machine, if any, is not found."""
    folder.mkdir()
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable} -S\nimport sys\n{script}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_an_mp4_needs_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"path: .*walk.mp4' needs ffmpeg, which is not installed"):
        animate(tmp_path / "walk.mp4", {"a": walk(4)}, PARENTS, fps=30, up=2)
    assert not os.listdir(tmp_path)


def test_ffmpeg_is_given_every_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = "open(sys.argv[-1], 'wb').write(repr(sys.argv[1:-1]).encode() + b'|' + sys.stdin.buffer.read())"
    fake_ffmpeg(tmp_path / "bin", copy, monkeypatch)
    animate(tmp_path / "walk.mp4", {"a": walk(5)}, PARENTS, fps=59.94, up=2)
    animate(tmp_path / "walk.gif", {"a": walk(5)}, PARENTS, fps=30, up=2)
    options, _, raw = (tmp_path / "walk.mp4").read_bytes().partition(b"|")
    assert b"'-s', '320x368', '-r', '59.94'" in options
    given = np.frombuffer(raw, np.uint8).reshape(5, 368, 320, 3)
    for picture, shown in zip(given, pictures(tmp_path / "walk.gif"), strict=True):
        assert np.abs(picture.astype(int) - shown).mean() < 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "walk.gif", "walk.mp4"]


def test_what_ffmpeg_says_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ffmpeg(tmp_path / "bin", "sys.exit('first\\nno such codec')", monkeypatch)
    with pytest.raises(OSError, match=r"walk.mp4: ffmpeg failed: no such codec"):
        animate(tmp_path / "walk.mp4", {"a": walk(30)}, PARENTS, fps=30, up=2)
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]
