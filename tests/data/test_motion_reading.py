"""Files of motion that are refused: each fault is named, with the file, the row and the bone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from motion_cases import (
    BONES,
    FOREIGN,
    FORMATS,
    GOOD,
    INFO,
    PIECES,
    POSE,
    TEXT,
    WIDE,
    hdf5,
    parquet,
)

from mfk.data import (
    open_motion,
    write_motion,
)


def ours(**metadata: Any) -> dict[str, Any]:
    return FOREIGN | {"metadata": metadata}


TWO = [{"name": "a", "frames": 2, "action": None}, {"name": "b", "frames": 2, "action": "run"}]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"{", "optiq_metadata: expected JSON, got"),
        (b"\xff\xfe\x00", "optiq_metadata: expected JSON, got"),
        (b"[1]", "optiq_metadata: expected a JSON object, got list"),
        ({"bone_names": list(BONES)}, "expected the key 'fps' in what the file says of itself, got the keys"),
        ({"fps": 30}, "expected the key 'bone_names'"),
        ({}, "expected the key 'fps' in what the file says of itself, got none"),
        (FOREIGN | {"fps": 0}, "fps: expected a positive number, got 0"),
        (FOREIGN | {"fps": math.inf}, "fps: expected a positive number, got inf"),
        (FOREIGN | {"fps": math.nan}, "fps: expected a positive number, got nan"),
        (FOREIGN | {"fps": "30"}, "fps: expected a positive number, got '30'"),
        (FOREIGN | {"fps": True}, "fps: expected a positive number, got True"),
        (FOREIGN | {"bone_names": []}, "bone_names: expected at least one"),
        (FOREIGN | {"bone_names": "Hips"}, "bone_names: expected a list of strings"),
        (FOREIGN | {"bone_names": ["a", "b", "a"]}, "bone_names: expected names to differ, got 'a' twice"),
        (FOREIGN | {"metadata": 3}, "metadata: expected an object, got 3"),
        (FOREIGN | {"has_velocities": True}, "has_velocities: expected False, as there is no such column"),
        (FOREIGN | {"has_labels": None}, "has_labels: expected False, as there is no such column, got None"),
        (FOREIGN | {"label_names": ["a"]}, "label_names: expected none, as there are no labels"),
        (FOREIGN | {"splits": ["val"]}, r"splits: expected the split columns' names \(none\), got \['val'\]"),
        (FOREIGN | {"splits": "val"}, "splits: expected a list of strings"),
        (FOREIGN | {"seq_labels": "walk"}, "seq_labels: expected a list"),
        (ours(parents=[-1, 0]), "parents: expected a list of 3"),
        (ours(parents=[0, 0, 0]), "parents: bone 'Hips': expected -1, got 0"),
        (ours(parents=[-1, 0, 2]), "parents: bone 'Hände': expected an earlier bone's index, got 2"),
        (ours(parents=[-1, -1, 0]), "parents: bone 'Left Arm': expected an earlier bone's index, got -1"),
        (ours(parents=[-1, 0.0, 0]), "parents: bone 'Left Arm': expected an earlier bone's index, got 0.0"),
        (ours(space="camera"), "space: expected one of world, local, got 'camera'"),
        (ours(up="w"), "up: expected one of x, y, z, got 'w'"),
        (ours(up=["y"]), "up: expected one of x, y, z, got"),
        (ours(clips=[]), "clips: expected a list of at least one clip"),
        (ours(clips=["a"]), "clip 0: expected name, frames and action"),
        (ours(clips=[{"name": "a", "frames": 4, "speed": 1}]), "clip 0: expected name, frames and action"),
        (ours(clips=[{"name": "a", "frames": "4"}]), "clip 0: expected a name, a number of frames"),
        (
            ours(clips=[{"name": "a", "frames": 4, "action": 1}]),
            "clip 0: expected a name, a number of frames",
        ),
        (ours(clips=[TWO[0] | {"frames": 0}]), "clip 'a': expected at least one frame, got 0"),
        (ours(clips=[TWO[0], TWO[0]]), "clips: expected names to differ, got 'a' twice"),
        (ours(clips=[TWO[0]]), "clips: expected 4 frames, one for each row, got 2"),
        (ours(clips=TWO) | {"seq_labels": ["run", None]}, "seq_labels: expected the clips' actions"),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, said: object, message: str) -> None:
    path = parquet(tmp_path / "m.parquet", said)
    with pytest.raises(ValueError, match=message) as caught:
        open_motion(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("columns", "said", "message"),
    [
        ({"frames": None, "x": [1]}, {}, "expected a column frames, got x"),
        ({"x": [1] * 4}, {}, "unknown or repeated column 'x'"),
        (
            {"frames": pa.array([GOOD] * 4, pa.list_(pa.float64()))},
            {},
            "column frames: expected a list of float32",
        ),
        (
            {"frames": pa.array([1.0] * 4, pa.float32())},
            {},
            "column frames: expected a list of float32, got float",
        ),
        ({"split_val": [1] * 4}, {"splits": ["val"]}, "column split_val: expected bool, got int64"),
        ({"frames": pa.array([], WIDE)}, {}, "expected at least one row, got none"),
        (
            {"labels": pa.array([[1.0]] * 4, WIDE)},
            {"has_labels": True, "label_names": ["a", "b"]},
            "label_names: expected 1, the width of the labels, got 2",
        ),
    ],
)
def test_columns_that_are_refused(
    tmp_path: Path, columns: dict[str, Any], said: dict[str, Any], message: str
) -> None:
    path = parquet(tmp_path / "m.parquet", FOREIGN | said, **columns)
    with pytest.raises(ValueError, match=message) as caught:
        open_motion(path)
    assert str(caught.value).startswith(f"{path}: ")


def poses(row: int, **changed: Any) -> Any:
    """The column frames with other numbers in one row: p0 is the place of the row's number 0."""
    rows: list[Any] = [list(GOOD) for _ in range(4)]
    for place, value in changed.items():
        rows[row][int(place[1:])] = value
    return pa.array(rows, WIDE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"frames": pa.array([GOOD, GOOD, GOOD, GOOD[:-1]], WIDE)},
            "frames: row 3: expected 21 numbers, got 20",
        ),
        ({"frames": pa.array([GOOD[:14]] * 4, WIDE)}, "frames: row 0: expected 21 numbers, got 14"),
        ({"frames": pa.array([GOOD] * 3 + [None], WIDE)}, "frames: row 3: expected a value, got null"),
        ({"frames": poses(1, p3=None)}, "frames: row 1: expected numbers, got a null among them"),
        (
            {"frames": poses(3, p8=math.nan)},
            "frames: row 3: bone 'Left Arm': expected finite numbers, got 0, nan",
        ),
        ({"frames": poses(2, p20=math.inf)}, "frames: row 2: bone 'Hände': expected finite numbers"),
        (
            {"frames": poses(3, p20=0.0)},
            "frames: row 3: bone 'Hände': expected a unit quaternion, got 0, 0, 0, 0",
        ),
        (
            {"frames": poses(1, p6=0.98)},
            "frames: row 1: bone 'Hips': expected a unit quaternion, got 0.98, 0",
        ),
        ({"labels": pa.array([[1.0]] * 3 + [[1.0, 2.0]], WIDE)}, "labels: row 3: expected 1 numbers, got 2"),
        (
            {"labels": pa.array([[1.0]] * 3 + [[math.nan]], WIDE)},
            "labels: row 3: expected finite numbers, got nan",
        ),
        ({"velocities": poses(3, p0=math.nan)}, "velocities: row 3: bone 'Hips': expected finite numbers"),
        ({"velocities": pa.array([GOOD[1:]] * 4, WIDE)}, "velocities: row 0: expected 21 numbers, got 20"),
        ({"split_val": [True, False, True, None]}, "split_val: row 3: expected a value, got null"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    said = {"fps": 30, "bone_names": list(BONES)}
    source = open_motion(parquet(tmp_path / "m.parquet", said, **columns))
    with pytest.raises(ValueError, match=message) as caught:
        for first, end in zip(source.edges[:-1], source.edges[1:], strict=True):
            source.read(first, end)
    assert str(caught.value).startswith(f"{source.name}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.__delitem__("frames"), "expected a dataset /frames, got nothing"),
        (lambda f: f.create_dataset("x", (4,), "f4"), "unknown dataset or group /x"),
        (lambda f: f.create_dataset("splits", (4,), "f4"), "/splits: expected a group"),
        (lambda f: f.create_group("labels"), r"/labels: expected float32 numbers \[4, width\], got no array"),
        (lambda f: f.create_dataset("labels", (4, 1), "f8"), "/labels: expected float32 .* got float64"),
        (
            lambda f: f.create_dataset("labels", (3, 1), "f4"),
            r"/labels: expected float32 .* got float32 \[3, 1\]",
        ),
        (lambda f: f.create_dataset("labels", (4,), "f4"), r"/labels: expected float32 .* got float32 \[4\]"),
        (lambda f: f.create_dataset("splits/val", (4,), "i1"), r"/splits/val: expected bool \[4\], got int8"),
        (
            lambda f: f.create_dataset("splits/val", (5,), bool),
            r"/splits/val: expected bool \[4\], got bool \[5\]",
        ),
        (lambda f: f.attrs.__delitem__("fps"), "expected the key 'fps'"),
        (lambda f: f.attrs.__setitem__("metadata", "{"), "attribute metadata: expected JSON"),
        (lambda f: f.attrs.__setitem__("metadata", 3), "attribute metadata: expected JSON"),
        (lambda f: f.attrs.__setitem__("fps", "fast"), "fps: expected a positive number, got 'fast'"),
        (lambda f: f.attrs.__setitem__("fps", [30.0]), "fps: expected a positive number, got"),
        (
            lambda f: f.attrs.__setitem__("bone_names", '["a"]'),
            "frames: expected 7 numbers, 7 for each of 1 bones",
        ),
    ],
)
def test_hdf5_that_is_refused(tmp_path: Path, change: Callable[[Any], object], message: str) -> None:
    path = hdf5(tmp_path / "m.h5", change)
    with pytest.raises(ValueError, match=message) as caught:
        open_motion(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_hdf5_rows_that_are_refused(tmp_path: Path) -> None:
    source = open_motion(hdf5(tmp_path / "m.h5", lambda file: file["frames"].__setitem__((2, 13), 0.5)))
    source.read(0, 2)
    with pytest.raises(
        ValueError, match=r"frames: row 2: bone 'Left Arm': expected a unit quaternion, got 0.5"
    ):
        source.read(1, 4)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected an object with fps, bone_names, bones, metadata"),
        (TEXT | {"more": 1}, "expected an object with fps, bone_names, bones, metadata"),
        (TEXT | {"bones": []}, "expected an object with fps"),
        (TEXT | {"bones": {}}, "expected at least one row"),
        (
            TEXT | {"bones": {"a": [POSE]}},
            "bones: expected the bones of bone_names, got 'b' in one of them only",
        ),
        (TEXT | {"bones": {"a": [POSE], "b": [POSE] * 2}}, "bone 'b': expected a list of 1 poses"),
        (TEXT | {"bones": {"a": [POSE], "b": {"0": POSE}}}, "bone 'b': expected a list of 1 poses"),
        (TEXT | {"bones": {"a": [POSE, 1], "b": [POSE] * 2}}, "bone 'a': row 1: expected a position of 3"),
        (
            TEXT | {"bones": {"a": [POSE], "b": [POSE | {"position": [0, 0]}]}},
            "bone 'b': row 0: expected a position of 3 numbers and a quaternion of 4",
        ),
        (TEXT | {"bones": {"a": [POSE], "b": [POSE | {"scale": 1}]}}, "bone 'b': row 0: expected a position"),
        (
            TEXT | {"bones": {"a": [POSE], "b": [POSE | {"position": [0, 0, "1"]}]}},
            "bone 'b': row 0: expected",
        ),
        (TEXT | {"bones": {"a": [POSE], "b": [POSE | {"position": 3}]}}, "bone 'b': row 0: expected"),
        (
            TEXT | {"bones": {"a": [POSE], "b": [POSE | {"position": [0, 0, 1e60]}]}},
            "row 0: bone 'b': expected finite numbers, got 0, 0, inf",
        ),
        (
            TEXT | {"bones": {"a": [POSE], "b": [POSE | {"quaternion": [0, 0, 0, 0]}]}},
            "row 0: bone 'b': expected a unit quaternion",
        ),
    ],
)
def test_json_that_is_refused(tmp_path: Path, said: object, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(ValueError, match=message) as caught:
        open_motion(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    with pytest.raises(FileNotFoundError):
        open_motion(path)
    write_motion(path, INFO, PIECES)
    content = path.read_bytes()
    for cut in (b"", b"no such file", content[:-40], content[: len(content) // 2]):
        path.write_bytes(cut)
        with pytest.raises(
            ValueError, match=re.escape(f"{path}: the file is damaged, or not what its name says")
        ):
            open_motion(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        open_motion(path)


def test_a_parquet_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    write_motion(tmp_path / "m.parquet", INFO, PIECES)
    source = open_motion(tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(ValueError, match="the file is damaged"):
        source.read(0, 4)
    pq.write_table(pa.table({"frames": pa.array([GOOD], WIDE)}), tmp_path / "m.parquet")
    with pytest.raises(
        ValueError, match="expected the key optiq_metadata in the schema's metadata, got none"
    ):
        open_motion(tmp_path / "m.parquet")


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_the_caller_says_of_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_motion(path, INFO, PIECES)
    assert open_motion(path, space="world", up="y").info == INFO
    with pytest.raises(ValueError, match="space: expected 'local', as the caller says, got 'world'"):
        open_motion(path, space="local")
    with pytest.raises(ValueError, match="up: expected 'z', as the caller says, got 'y'"):
        open_motion(path, up="z")
    with pytest.raises(ValueError, match="the caller: up: expected one of x, y, z, got 'w'"):
        open_motion(path, up="w")  # type: ignore[arg-type]
    for wrong in ("m.csv", "m"):
        with pytest.raises(ValueError, match=r"ends in \.parquet, \.h5, \.hdf5 or \.json"):
            open_motion(tmp_path / wrong)
        with pytest.raises(ValueError, match=r"ends in \.parquet, \.h5, \.hdf5 or \.json"):
            write_motion(tmp_path / wrong, INFO, PIECES)
