"""Families of features in Parquet files: a column a feature, named family::name, or one of lists a family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mfk.data.archives import attempt
from mfk.data.family_rows import BLOCK, SEPARATOR, as_float32, numbered


def read_parquet(
    path: Path, wanted: Sequence[str] | None, limit: int | None, labels: str
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Arrays and names by family; see `mfk.data.families.open_families`."""
    with attempt(path, pq.ParquetFile, path) as file:
        schema = attempt(path, lambda: file.schema_arrow)
        columns = _families(path, schema, wanted, labels)
        rows = file.metadata.num_rows if limit is None else min(limit, file.metadata.num_rows)
        if not rows:
            raise ValueError(f"{path}: expected at least one row, got none")
        parts: dict[str, list[np.ndarray]] = {family: [] for family in columns}
        left, needed = rows, [column for each in columns.values() for column in each]
        # Columns are read by name, in which parquet takes a point for a step into a structure.
        batches = file.iter_batches(min(BLOCK, rows), columns=needed, use_threads=False)
        while left:
            batch = attempt(path, next, batches)[:left]
            for family, names in columns.items():
                read = [_numbers(f"{path}: column {name}", batch.column(name)) for name in names]
                parts[family].append(read[0] if _is_list(schema, family, names) else np.stack(read, 1))
            left -= batch.num_rows
    arrays = {family: _joined(f"{path}: column {family}", each) for family, each in parts.items()}
    cut = len(SEPARATOR)
    return arrays, {
        family: numbered(family, arrays[family].shape[1])
        if _is_list(schema, family, names)
        else tuple(name[len(family) + cut :] for name in names)
        for family, names in columns.items()
    }


def _families(
    path: Path, schema: pa.Schema, wanted: Sequence[str] | None, labels: str
) -> dict[str, list[str]]:
    """Columns by family."""
    found: dict[str, list[str]] = {}
    for i, name in enumerate(schema.names):
        family, separator, feature = name.partition(SEPARATOR)
        kind = schema.field(i).type
        if wanted is not None and family not in wanted:
            continue
        if name == labels and pa.types.is_integer(kind):
            continue
        inner = kind.value_type if _lists(kind) else kind
        right = bool(separator) != _lists(kind) and (feature or not separator) and family
        if not (right and (pa.types.is_floating(inner) or pa.types.is_integer(inner))):
            raise ValueError(
                f"{path}: column {name!r:.80}: expected a feature family::name of numbers, or a family of "
                f"lists of numbers, got {kind}; name the families to read if this is none"
            )
        if name in schema.names[:i] or (not separator and family in found) or family in found.get(family, ()):
            raise ValueError(f"{path}: column {name!r:.80}: expected each feature once")
        found.setdefault(family, []).append(name)
    for family in wanted or ():
        if family not in found:
            raise ValueError(
                f"{path}: there is no family {family!r}; it has columns {', '.join(schema.names)[:200]}"
            )
    return found if wanted is None else {family: found[family] for family in wanted}


def _lists(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_list(schema: pa.Schema, family: str, names: list[str]) -> bool:
    return names == [family] and _lists(schema.field(family).type)


def _numbers(where: str, column: pa.Array) -> np.ndarray:
    """A column [rows], or of lists [rows, D], as float32; null is NaN, but for a list that is null."""
    if not _lists(column.type):
        return as_float32(where, column.to_numpy(zero_copy_only=False))
    if column.null_count:
        raise ValueError(f"{where}: expected a list in every row, got null")
    lengths = set(column.value_lengths().to_pylist())
    if len(lengths) > 1:
        raise ValueError(f"{where}: expected lists of one length, got lengths {sorted(lengths)[:5]}")
    values = as_float32(where, column.flatten().to_numpy(zero_copy_only=False))
    return values.reshape(len(column), -1) if len(values) else np.empty((len(column), 0), np.float32)


def _joined(where: str, parts: list[np.ndarray]) -> np.ndarray:
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise ValueError(f"{where}: expected lists of one length, got lengths {sorted(widths)[:5]}")
    return np.concatenate(parts)
