"""Motion in Parquet files: one row for each frame, read and written by row groups.

The columns are optiq's: frames, and optionally velocities and labels, all lists of float32, and split_<name>,
bool. What the file says of itself is JSON under the key optiq_metadata of the schema.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mfk.data.archives import attempt
from mfk.data.motion import MotionInfo, MotionRows, MotionSource
from mfk.data.motion_info import POSE, Columns, Given, load_json, parse_info
from mfk.data.motion_rows import Shape, check_rows, from_file, shape_of, to_file

KEY = b"optiq_metadata"

_SPLIT = "split_"


class _File(NamedTuple):
    """What reading takes; it can be sent to another process."""

    path: Path
    footer: pq.FileMetaData
    starts: list[int]  # first row of each row group, and the number of rows
    shape: Shape


def open_parquet(path: Path, given: Given) -> MotionSource:
    """See `mfk.data.motion_files.open_motion`."""
    footer = attempt(path, _footer, path)
    schema = attempt(path, footer.schema.to_arrow_schema)
    flags = tuple(name.removeprefix(_SPLIT) for name in schema.names if name.startswith(_SPLIT))
    _check_schema(path, schema, flags)
    text = (schema.metadata or {}).get(KEY)
    if text is None:
        raise ValueError(f"{path}: expected the key {KEY.decode()} in the schema's metadata, got none")
    said = load_json(f"{path}: {KEY.decode()}", text)
    if not isinstance(said, dict):
        raise ValueError(f"{path}: {KEY.decode()}: expected a JSON object, got {type(said).__name__}")
    groups = attempt(path, lambda: [footer.row_group(i).num_rows for i in range(footer.num_row_groups)])
    starts = [0, *itertools.accumulate(groups)]
    labels = None
    if "labels" in schema.names and any(groups):
        group = next(i for i, rows in enumerate(groups) if rows)
        table = attempt(path, _group, path, footer, group, ["labels"])
        labels = attempt(path, lambda: len(table.column("labels")[0].as_py() or ()))
    columns = Columns("velocities" in schema.names, labels, flags)
    info = parse_info(path, said, footer.num_rows, path.stem, columns, given)
    file = _File(path, footer, starts, shape_of(info, columns.velocities))
    read, split = functools.partial(_read, file), functools.partial(_split, file)
    return MotionSource(str(path), info, tuple(sorted({*starts})), read, split)


def write_parquet(
    part: Path, said: Mapping[str, Any], info: MotionInfo, shape: Shape, pieces: Iterable[MotionRows]
) -> None:
    """See `mfk.data.motion_files.write_motion`; a piece becomes a row group."""
    floats = pa.list_(pa.float32())
    fields = [pa.field("frames", floats)]
    fields += [pa.field("velocities", floats)] if shape.velocities else []
    fields += [pa.field("labels", floats)] if shape.labels is not None else []
    fields += [pa.field(_SPLIT + name, pa.bool_()) for name in shape.splits]
    schema = pa.schema(fields, metadata={KEY: json.dumps(said, allow_nan=False).encode()})
    with pq.ParquetWriter(part, schema, use_dictionary=False, write_statistics=False) as writer:
        for rows in pieces:
            arrays = [_array(to_file(rows.frames))]
            arrays += [_array(to_file(rows.velocities))] if rows.velocities is not None else []
            arrays += [_array(rows.labels)] if rows.labels is not None else []
            arrays += [pa.array(rows.splits[name].numpy(force=True)) for name in shape.splits]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=len(rows.frames))


def _footer(path: Path) -> pq.FileMetaData:
    with pq.ParquetFile(path) as file:
        return file.metadata


def _group(path: Path, footer: pq.FileMetaData, group: int, names: list[str]) -> pa.Table:
    # Opened for each read: what is shared between processes then has no position in a file.
    with pq.ParquetFile(path, metadata=footer) as file:
        table = file.read_row_group(group, columns=names, use_threads=False)
    if table.num_rows != (rows := footer.row_group(group).num_rows):
        raise ValueError(
            f"{path}: row group {group}: expected {rows} rows, as the footer says, got {table.num_rows}"
        )
    return table


def _check_schema(path: Path, schema: pa.Schema, flags: tuple[str, ...]) -> None:
    known = ("frames", "velocities", "labels", *(_SPLIT + name for name in flags))
    if "frames" not in schema.names:
        raise ValueError(f"{path}: expected a column frames, got {', '.join(schema.names) or 'no columns'}")
    for i, name in enumerate(schema.names):
        if name not in known or name in schema.names[:i]:
            raise ValueError(
                f"{path}: unknown or repeated column {name!r}; the known ones are {', '.join(known)}"
            )
        kind = schema.field(i).type
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        fits = kind == pa.bool_() if name.startswith(_SPLIT) else lists and kind.value_type == pa.float32()
        if not fits:
            wanted = "bool" if name.startswith(_SPLIT) else "a list of float32"
            raise ValueError(f"{path}: column {name}: expected {wanted}, got {kind}")


def _split(file: _File, name: str) -> Tensor:
    where, column = f"{file.path}: {_SPLIT}{name}", _SPLIT + name
    if name not in file.shape.splits:
        raise ValueError(f"{file.path}: there is no split {name!r}; it has {list(file.shape.splits)}")
    parts = []
    for group, start in enumerate(file.starts[:-1]):
        table = attempt(file.path, _group, file.path, file.footer, group, [column])
        parts.append(_flags(where, table.column(column).combine_chunks(), first=start))
    return torch.cat(parts)


def _read(file: _File, first: int, end: int, lean: bool = False) -> MotionRows:
    if not 0 <= first < end <= file.starts[-1]:
        raise ValueError(f"{file.path}: expected rows within [0, {file.starts[-1]}), got [{first}, {end})")
    shape = file.shape._replace(velocities=False, splits=()) if lean else file.shape
    width = POSE * len(shape.bone_names)
    names = ["frames"] + ["velocities"] * shape.velocities + ["labels"] * (shape.labels is not None)
    names += [_SPLIT + name for name in shape.splits]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    group = bisect.bisect_right(file.starts, first) - 1
    while file.starts[group] < end:
        start = file.starts[group]
        table = attempt(file.path, _group, file.path, file.footer, group, names)
        for name in names:
            lists = functools.partial(_lists, width=(shape.labels or 0) if name == "labels" else width)
            read: Callable[..., Tensor] = _flags if name.startswith(_SPLIT) else lists
            where, column = f"{file.path}: {name}", attempt(file.path, table.column, name)
            values = attempt(where, functools.partial(read, where, column.combine_chunks(), first=start))
            found[name].append(values[max(0, first - start) : end - start])
        group += 1
    joined = {name: torch.cat(values) for name, values in found.items()}
    rows = MotionRows(
        from_file(joined["frames"]),
        from_file(joined["velocities"]) if shape.velocities else None,
        joined.get("labels"),
        {name: joined[_SPLIT + name] for name in shape.splits},
    )
    check_rows(str(file.path), shape, rows, first)
    return rows


def _lists(where: str, column: Any, first: int, width: int) -> Tensor:
    """A column of lists of one length, [n, width]; `first` is the number of its first row, for messages."""
    _no_nulls(where, column, first)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if len(other := np.flatnonzero(lengths != width)):
        row = int(other[0])
        raise ValueError(f"{where}: row {first + row}: expected {width} numbers, got {lengths[row]}")
    numbers = column.flatten()
    if numbers.null_count:
        row = int(np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))[0]) // width
        raise ValueError(f"{where}: row {first + row}: expected numbers, got a null among them")
    return torch.from_numpy(numbers.to_numpy().reshape(len(column), width).copy())


def _flags(where: str, column: Any, first: int) -> Tensor:
    _no_nulls(where, column, first)
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).astype(bool))


def _no_nulls(where: str, column: Any, first: int) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where}: row {first + row}: expected a value, got null")


def _array(rows: Tensor) -> pa.Array:
    numbers = np.ascontiguousarray(rows.numpy(force=True))
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * np.int32(numbers.shape[1])
    return pa.ListArray.from_arrays(offsets, numbers.reshape(-1))
