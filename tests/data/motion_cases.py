"""Files of motion for the tests: ours, and somebody else's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mfk.data import (
    Clip,
    MotionInfo,
    MotionRows,
    Skeleton,
    frame_velocities,
)

BONES = ("Hips", "Left Arm", "Hände")
SKELETON = Skeleton(BONES, (-1, 0, 1), "world", "y")
CLIPS = (Clip("walk 1", 5, "walk"), Clip("still", 1), Clip("run", 4, "run"))
INFO = MotionInfo(
    29.97, SKELETON, CLIPS, ("run", "walk"), ("train", "val"), {"unit": "m", "notes": [1, None]}
)
BARE = INFO._replace(label_names=None, splits=(), clips=(Clip("one", 6),))
FORMATS = (".parquet", ".h5", ".hdf5")


def draw_rows(count: int, seed: int = 0, bare: bool = False) -> MotionRows:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(count, len(BONES), 7, generator=generator)
    frames[..., 3:] /= frames[..., 3:].norm(dim=-1, keepdim=True)
    frames[0, 0, 3:] *= 1.009  # not mended
    if bare:
        return MotionRows(frames, None, None, {})
    flags = torch.rand(count, generator=generator) < 0.5
    labels = torch.rand(count, 2, generator=generator)
    return MotionRows(frames, frame_velocities(frames, 29.97), labels, {"val": flags, "train": ~flags})


PIECES = [draw_rows(clip.frames, i) for i, clip in enumerate(CLIPS)]


def whole(field: str) -> Tensor:
    return torch.cat([getattr(piece, field) for piece in PIECES])


def equal(found: Tensor | None, expected: Tensor | None) -> bool:
    """Bit by bit."""
    if found is None or expected is None:
        return found is expected
    return found.dtype == expected.dtype and torch.equal(found, expected)


WIDE = pa.list_(pa.float32())
GOOD = [0.0, 0, 0, 0, 0, 0, 1] * 3


FOREIGN: dict[str, Any] = {
    "fps": 30,
    "bone_names": list(BONES),
    "metadata": {"author": "me"},
    "has_velocities": False,
    "has_labels": False,
    "label_names": None,
    "seq_labels": None,
    "splits": [],
}


def parquet(path: Path, said: object = None, **columns: Any) -> Path:
    """Somebody else's file, of rows that are identities if nothing else is said."""
    columns = {"frames": pa.array([[0.0, 0, 0, 0, 0, 0, 1] * 3] * 4, pa.list_(pa.float32()))} | columns
    columns = {name: column for name, column in columns.items() if column is not None}
    text = said if isinstance(said, bytes) else json.dumps(FOREIGN if said is None else said).encode()
    pq.write_table(
        pa.table(columns).replace_schema_metadata({b"optiq_metadata": text}), path, row_group_size=3
    )
    return path


def hdf5(path: Path, change: Callable[[Any], object] = lambda file: None) -> Path:
    with h5py.File(path, "w") as file:
        file["frames"] = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (4, 3))
        file.attrs["fps"] = 30
        file.attrs["bone_names"] = json.dumps(BONES)
        change(file)
    return path


POSE: dict[str, Any] = {"position": [0, 0, 0.5], "quaternion": [0, 0, 0, 1]}
TEXT: dict[str, Any] = {"fps": 30, "bone_names": ["a", "b"], "bones": {"b": [POSE] * 2, "a": [POSE] * 2}}
