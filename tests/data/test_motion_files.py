"""Files of motion: what is written comes back, to mfk and to plain pyarrow and h5py."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from motion_cases import (
    BARE,
    BONES,
    CLIPS,
    FOREIGN,
    FORMATS,
    INFO,
    PIECES,
    SKELETON,
    TEXT,
    draw_rows,
    equal,
    hdf5,
    parquet,
    whole,
)
from torch import Tensor

from mfk.data import (
    Clip,
    MotionInfo,
    Skeleton,
    frame_velocities,
    motion_rows,
    open_motion,
    same_skeleton,
    write_motion,
)


@pytest.fixture
def four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four rows in place of 8 MB."""
    monkeypatch.setattr(motion_rows, "PIECE", 4 * 4 * 7 * len(BONES) + 3)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.usefixtures("four_rows")
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    write_motion(path, INFO, iter(PIECES))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    source = pickle.loads(pickle.dumps(open_motion(path)))
    assert source.info == INFO
    assert source.name == str(path)
    assert source.edges == (0, 4, 8, 10)
    for first, end in [(0, 10), (0, 4), (3, 9), (9, 10), (4, 5)]:
        rows = source.read(first, end)
        for field in ("frames", "velocities", "labels"):
            assert equal(getattr(rows, field), whole(field)[first:end])
        for name in INFO.splits:
            flags = torch.cat([piece.splits[name] for piece in PIECES])
            assert equal(rows.splits[name], flags[first:end])
        rows.frames.zero_()  # nobody else's
    assert equal(source.read(0, 10).frames, whole("frames"))
    for first, end in [(0, 11), (-1, 2), (3, 3), (5, 4)]:
        with pytest.raises(ValueError, match=r"expected rows within \[0, 10\), got"):
            source.read(first, end)


@pytest.mark.parametrize("suffix", [*FORMATS, ".json"])
def test_nothing_but_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    rows = draw_rows(6, bare=True)
    # A clip may come in pieces.
    parts = [motion_rows.cut_rows(rows, 0, 2), motion_rows.cut_rows(rows, 2, 6)]
    write_motion(path, BARE, parts)
    source = pickle.loads(pickle.dumps(open_motion(path, space="world")))
    assert source.info == BARE
    found = source.read(0, 6)
    assert equal(found.frames, rows.frames)
    assert equal(source.read(2, 3).frames, rows.frames[2:3])
    assert (found.velocities, found.labels, found.splits) == (None, None, {})
    with pytest.raises(ValueError, match=r"expected rows within \[0, 6\), got \[2, 7\)"):
        source.read(2, 7)


def file_order(frames: Tensor) -> np.ndarray:
    """px py pz qx qy qz qw of each bone, bone by bone."""
    rows = [[[*pose[:3], *pose[4:], pose[3]] for pose in frame] for frame in frames.tolist()]
    return np.array(rows, np.float32).reshape(len(frames), -1)


@pytest.mark.usefixtures("four_rows")
def test_what_pyarrow_reads(tmp_path: Path) -> None:
    write_motion(tmp_path / "m.parquet", INFO, PIECES)
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.column_names == ["frames", "velocities", "labels", "split_train", "split_val"]
    floats, flags = pa.list_(pa.float32()), pa.bool_()
    assert table.schema.types == [floats, floats, floats, flags, flags]
    for name in ("frames", "velocities"):
        np.testing.assert_array_equal(np.stack(table[name].to_numpy()), file_order(whole(name)))
    np.testing.assert_array_equal(np.stack(table["labels"].to_numpy()), whole("labels"))
    footer = pq.ParquetFile(tmp_path / "m.parquet").metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [4, 4, 2]
    assert json.loads((table.schema.metadata or {})[b"optiq_metadata"]) == {
        "fps": 29.97,
        "bone_names": list(BONES),
        "metadata": {
            "unit": "m",
            "notes": [1, None],
            "clips": [clip._asdict() for clip in CLIPS],
            "parents": [-1, 0, 1],
            "space": "world",
            "up": "y",
        },
        "has_velocities": True,
        "has_labels": True,
        "label_names": ["run", "walk"],
        "seq_labels": ["walk", None, "run"],
        "splits": ["train", "val"],
    }


def test_what_h5py_reads(tmp_path: Path) -> None:
    clips = tuple(Clip(f"{i:04d} {'long ' * 20}", 1) for i in range(2000))  # attributes beyond 64 KB
    info = INFO._replace(clips=clips)
    rows = draw_rows(2000)
    write_motion(tmp_path / "m.h5", info, (motion_rows.cut_rows(rows, i, i + 1) for i in range(2000)))
    with h5py.File(tmp_path / "m.h5") as file:
        contents: Any = file
        assert sorted(contents) == ["frames", "labels", "splits", "velocities"]
        np.testing.assert_array_equal(contents["frames"][:], file_order(rows.frames))
        np.testing.assert_array_equal(contents["splits/val"][:], rows.splits["val"])
        assert contents["frames"].dtype == np.float32
        assert contents["splits/val"].dtype == bool
        assert contents.attrs["fps"] == 29.97
        assert json.loads(contents.attrs["bone_names"]) == list(BONES)
        assert json.loads(contents.attrs["label_names"]) == ["run", "walk"]
        assert json.loads(contents.attrs["metadata"])["parents"] == [-1, 0, 1]
    assert open_motion(tmp_path / "m.h5").info == info


def test_what_stands_in_json(tmp_path: Path) -> None:
    rows = draw_rows(6, bare=True)
    write_motion(tmp_path / "m.json", BARE, [rows])
    said = json.loads((tmp_path / "m.json").read_text())
    assert list(said["bones"]) == list(BONES)
    numbers = file_order(rows.frames)[2]
    pose = said["bones"]["Left Arm"][2]
    np.testing.assert_array_equal([*pose["position"], *pose["quaternion"]], numbers[7:14])


@pytest.mark.parametrize("more", ["clips", "velocities", "labels", "splits"])
def test_what_does_not_fit_into_json(tmp_path: Path, more: str) -> None:
    one, info, rows = draw_rows(6), BARE, draw_rows(6, bare=True)
    if more == "clips":
        info = BARE._replace(clips=(Clip("a", 2), Clip("b", 4)))
    elif more == "velocities":
        rows = rows._replace(velocities=one.velocities)
    elif more == "labels":
        info, rows = BARE._replace(label_names=INFO.label_names), rows._replace(labels=one.labels)
    else:
        info, rows = BARE._replace(splits=INFO.splits), rows._replace(splits=one.splits)
    pieces = [motion_rows.cut_rows(rows, 0, 2), motion_rows.cut_rows(rows, 2, 6)]
    with pytest.raises(ValueError, match="expected one clip without velocities, labels and splits"):
        write_motion(tmp_path / "m.json", info, pieces)
    assert not [*tmp_path.iterdir()]


def test_velocities() -> None:
    frames = draw_rows(4).frames
    expected = torch.empty_like(frames)
    for t in range(1, 4):
        expected[t] = (frames[t] - frames[t - 1]) * 30
    expected[0] = expected[1]
    assert equal(frame_velocities(frames, 30.0), expected)
    assert equal(frame_velocities(frames[:1], 30.0), torch.zeros(1, 3, 7))
    for wrong in (frames[:0], frames[0], frames[..., :6]):
        with pytest.raises(ValueError, match=r"frames: expected \[T, bones, 7\] with T > 0, got a tensor"):
            frame_velocities(wrong, 30.0)


@pytest.mark.parametrize("kind", ["list", "large_list", "fixed_size_list"])
def test_a_foreign_file(tmp_path: Path, kind: str) -> None:
    kinds = {"list": pa.list_(pa.float32()), "large_list": pa.large_list(pa.float32())}
    column = pa.array([[0.0, 0, 0, 0, 0, 0, 1] * 3] * 4, kinds.get(kind, pa.list_(pa.float32(), 21)))
    labels = pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32()))
    path = parquet(tmp_path / "dance.parquet", FOREIGN | {"has_labels": True}, frames=column, labels=labels)
    source = open_motion(path)
    assert source.info.clips == (Clip("dance", 4),)
    assert source.info.skeleton == Skeleton(BONES, None, None, None)
    assert source.info.label_names == ("0", "1")
    assert source.info.metadata == {"author": "me"}
    assert source.edges == (0, 3, 4)
    rows = source.read(0, 4)
    assert equal(rows.frames, torch.tensor([0.0, 0, 0, 1, 0, 0, 0]).expand(4, 3, 7))
    assert equal(rows.labels, torch.tensor([1.0, 2.0]).expand(4, 2))
    given = open_motion(path, space="local", up="z").info.skeleton
    assert given == Skeleton(BONES, None, "local", "z")


def test_actions_of_foreign_files(tmp_path: Path) -> None:
    one = open_motion(parquet(tmp_path / "a.parquet", FOREIGN | {"seq_labels": ["walk"]})).info
    assert one.clips == (Clip("a", 4, "walk"),)
    assert one.metadata == {"author": "me"}
    two = open_motion(parquet(tmp_path / "b.parquet", FOREIGN | {"seq_labels": ["walk", "run"]})).info
    assert two.clips == (Clip("b", 4),)
    assert two.metadata == {"author": "me", "seq_labels": ["walk", "run"]}
    few = {"fps": 30.0, "bone_names": list(BONES)}
    assert open_motion(parquet(tmp_path / "c.parquet", few)).info.splits == ()
    source = open_motion(hdf5(tmp_path / "d.h5"))
    assert source.info == MotionInfo(30.0, Skeleton(BONES, None, None, None), (Clip("d", 4),), None, (), {})
    assert equal(source.read(1, 2).frames[0, 0], torch.tensor([0.0, 0, 0, 1, 0, 0, 0]))


def test_foreign_json(tmp_path: Path) -> None:
    path = tmp_path / "wave.json"
    path.write_text(json.dumps(TEXT))
    source = open_motion(path)
    assert source.info == MotionInfo(
        30.0, Skeleton(("a", "b"), None, None, None), (Clip("wave", 2),), None, (), {}
    )
    assert equal(source.read(0, 2).frames, torch.tensor([0, 0, 0.5, 1, 0, 0, 0]).expand(2, 2, 7))
    path.write_bytes(b'{"fps": "\xff"}')
    with pytest.raises(ValueError, match="expected text in UTF-8"):
        open_motion(path)


def test_the_same_skeleton() -> None:
    same_skeleton(SKELETON, SKELETON, "a", "b")
    same_skeleton(SKELETON, SKELETON._replace(parents=None), "a", "b")
    for other, message in [
        (
            SKELETON._replace(bone_names=("Hips", "Arm", "Hand")),
            "b: bone 1: expected 'Left Arm', as a has, got 'Arm'",
        ),
        (SKELETON._replace(bone_names=BONES[:2], parents=None), "b: bones: expected 3, as a has, got 2"),
        (
            SKELETON._replace(parents=(-1, 0, 0)),
            "b: parent of bone 'Hände': expected 'Left Arm', as a has, got 'Hips'",
        ),
        (SKELETON._replace(space=None), "b: space: expected 'world', as a has, got None"),
        (SKELETON._replace(up="z"), "b: up: expected 'y', as a has, got 'z'"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            same_skeleton(SKELETON, other, "a", "b")
