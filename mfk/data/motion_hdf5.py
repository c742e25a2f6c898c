"""Motion in HDF5 files: the twin of the Parquet files, with one dataset for each column.

/frames, /velocities and /labels are float32, /splits/<name> bool; the attributes of the file are fps and, as
JSON, bone_names, metadata, label_names and seq_labels.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from mfk.data.archives import attempt
from mfk.data.hdf5_files import check_within, member, names_in, opened
from mfk.data.motion import MotionInfo, MotionRows, MotionSource
from mfk.data.motion_info import POSE, Columns, Given, load_json, parse_info
from mfk.data.motion_rows import Shape, check_rows, from_file, rows_per_piece, shape_of, to_file

_NUMBERS = ("frames", "velocities", "labels")
_JSON = ("bone_names", "metadata", "label_names", "seq_labels")
_SPLITS = "splits/"
_CHUNKS = 8  # in a piece: a chunk is what the smallest read takes


class _File(NamedTuple):
    """What reading takes; it can be sent to another process."""

    path: Path
    rows: int
    shape: Shape


def open_hdf5(path: Path, given: Given) -> MotionSource:
    """See `mfk.data.motion_files.open_motion`."""
    with opened(path) as file:
        arrays = _arrays(path, file)
        flags = tuple(name.removeprefix(_SPLITS) for name in arrays if name.startswith(_SPLITS))
        said: dict[str, Any] = {}
        for key in attempt(path, tuple, file.attrs):
            value = attempt(f"{path}: attribute {key}", file.attrs.__getitem__, key)
            said[key] = load_json(f"{path}: attribute {key}", value) if key in _JSON else value
        if isinstance(said.get("fps"), np.number):
            said["fps"] = said["fps"].item()
        rows, width = arrays["frames"].shape
        labels = arrays["labels"].shape[1] if "labels" in arrays else None
        columns = Columns("velocities" in arrays, labels, flags)
    info = parse_info(path, said, rows, path.stem, columns, given)
    shape = shape_of(info, columns.velocities)
    if width != POSE * len(shape.bone_names):
        wanted = f"{POSE} for each of {len(shape.bone_names)} bones"
        raise ValueError(
            f"{path}: frames: expected {POSE * len(shape.bone_names)} numbers, {wanted}, got {width}"
        )
    edges = (*range(0, rows, rows_per_piece(len(shape.bone_names))), rows)
    file = _File(path, rows, shape)
    return MotionSource(
        str(path), info, edges, functools.partial(_read, file), functools.partial(_split, file)
    )


def write_hdf5(
    part: Path, said: Mapping[str, Any], info: MotionInfo, shape: Shape, pieces: Iterable[MotionRows]
) -> None:
    """See `mfk.data.motion_files.write_motion`."""
    rows, bones = sum(clip.frames for clip in info.clips), len(shape.bone_names)
    chunk = min(rows, max(1, rows_per_piece(bones) // _CHUNKS))
    widths = {"frames": POSE * bones}
    widths |= {"velocities": POSE * bones} if shape.velocities else {}
    widths |= {"labels": shape.labels} if shape.labels is not None else {}
    file: Any  # what lies in it is of types that are known only once it is open
    with h5py.File(part, "w") as file:
        file.attrs["fps"] = info.fps
        for key in _JSON:
            file.attrs[key] = json.dumps(said[key], allow_nan=False)
        for name, width in widths.items():
            file.create_dataset(name, (rows, width), "<f4", chunks=(chunk, max(1, width)) if width else None)
        flags: Any = file.create_group("splits", track_order=True)
        for name in shape.splits:
            flags.create_dataset(name, (rows,), bool, chunks=(chunk,))
        first = 0
        for piece in pieces:
            end = first + len(piece.frames)
            for name in widths:
                values: Tensor = getattr(piece, name)
                file[name][first:end] = (values if name == "labels" else to_file(values)).numpy(force=True)
            for name in shape.splits:
                flags[name][first:end] = piece.splits[name].numpy(force=True)
            first = end


def _arrays(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """The arrays by name, those of splits as splits/NAME, once everything is of the right kind."""
    there = names_in(path, file)
    if "frames" not in there:
        raise ValueError(f"{path}: expected a dataset /frames, got {', '.join(there) or 'nothing'}")
    if other := [name for name in there if name not in (*_NUMBERS, "splits")]:
        known = "/frames, /velocities, /labels and /splits"
        raise ValueError(f"{path}: unknown dataset or group /{other[0]}; the known ones are {known}")
    flags = member(path, file, "splits")
    if flags is not None and not isinstance(flags, h5py.Group):
        raise ValueError(f"{path}: /splits: expected a group, got {type(flags).__name__}")
    names = () if flags is None else names_in(path, flags)
    found: dict[str, h5py.Dataset] = {}
    rows = None
    for name in (*(each for each in _NUMBERS if each in there), *(_SPLITS + each for each in names)):
        data, axes = member(path, file, name), 2 if name in _NUMBERS else 1
        wanted = f"float32 numbers [{rows or 'rows'}, width]" if axes == 2 else f"bool [{rows}]"
        if not isinstance(data, h5py.Dataset) or data.shape is None:
            raise ValueError(f"{path}: /{name}: expected {wanted}, got no array")
        dtype = attempt(path, lambda data=data: data.dtype)
        right = dtype.newbyteorder("=") == (np.float32 if axes == 2 else np.bool_)
        if not right or data.ndim != axes or (rows is not None and len(data) != rows):
            raise ValueError(f"{path}: /{name}: expected {wanted}, got {dtype} {list(data.shape)}")
        check_within(path, data)
        rows = len(data)
        found[name] = data
    return found


def _split(file: _File, name: str) -> Tensor:
    if name not in file.shape.splits:
        raise ValueError(f"{file.path}: there is no split {name!r}; it has {list(file.shape.splits)}")

    def flags() -> Tensor:
        data: Any
        with h5py.File(file.path, "r") as data:
            return torch.from_numpy(data["splits"][name][:])

    return attempt(file.path, flags)


def _read(file: _File, first: int, end: int, lean: bool = False) -> MotionRows:
    if not 0 <= first < end <= file.rows:
        raise ValueError(f"{file.path}: expected rows within [0, {file.rows}), got [{first}, {end})")
    if lean:
        file = file._replace(shape=file.shape._replace(velocities=False, splits=()))
    rows = attempt(file.path, _rows, file, first, end)
    check_rows(str(file.path), file.shape, rows, first)
    return rows


def _rows(file: _File, first: int, end: int) -> MotionRows:
    shape = file.shape

    data: Any
    # Opened for each read: a file that is open in one process must not be read in a fork of it.
    with h5py.File(file.path, "r") as data:

        def numbers(name: str) -> Tensor:
            return torch.from_numpy(data[name][first:end].astype(np.float32, copy=False))

        return MotionRows(
            from_file(numbers("frames")),
            from_file(numbers("velocities")) if shape.velocities else None,
            None if shape.labels is None else numbers("labels"),
            {name: torch.from_numpy(data["splits"][name][first:end]) for name in shape.splits},
        )
