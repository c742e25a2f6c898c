"""Tables of named families of features, in one row the same thing seen in several ways: read and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfk.core.files import replaced_whole
from mfk.core.types import describe
from mfk.data.archives import read_npz
from mfk.data.families_hdf5 import read_hdf5, write_hdf5
from mfk.data.families_parquet import read_parquet
from mfk.data.family_rows import as_float32, check_family, check_shape, numbered
from mfk.data.tensors import open_regular

LABELS = "labels"
"""The name in an .npz or Parquet file of whole numbers that are no family."""

_HDF5 = (".h5", ".hdf5")


class FamilyTable(NamedTuple):
    """Families of features of the same rows."""

    families: dict[str, np.ndarray]  # name -> [N, D], or in time [N, T, D]; float32, NaN: missing
    names: dict[str, tuple[str, ...]]  # family -> names of its D features


def open_families(
    path: Path | str, families: Sequence[str] | None = None, *, max_samples: int | None = None
) -> FamilyTable:
    """Read families of features.

        .h5, .hdf5  the documented layout: features/<family>/aggregated/features [N, D], or
                    features/<family>/features [N, T, D]; read by blocks of rows
        .npz        an array [N, D] or [N, T, D] a family, under its name
        .parquet    a column of numbers a feature, named family::name, or one of lists a family

    Features have the names of a family's feature_registry, where an HDF5 file has one that speaks of as many,
    or of their columns; else they are called <family>_<index>. What is called "labels" in an .npz or Parquet
    file, if it is a whole number a row, is left out. Numbers become float32; missing ones (NaN, null) are
    NaN.

    Args:
        path: of the file.
        families: which to read, in this order; all, in that of the file, if None.
        max_samples: rows to read at most, the first ones.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: another kind of file, a damaged one, or a family that is not there, is empty, has other
            rows than the first, or is none; the message starts with the path.
    """
    path = Path(path)
    if max_samples is not None and (type(max_samples) is not int or max_samples < 1):
        raise ValueError(f"max_samples: expected an int >= 1 or None, got {describe(max_samples)}")
    if families is not None and (
        isinstance(families, str) or not families or {*map(type, families)} != {str}
    ):
        raise ValueError(f"families: expected at least one name in a list, got {describe(families)}")
    if families is not None and len(set(families)) < len(families):
        raise ValueError(f"families: expected each name once, got {describe(list(families))}")
    size, _ = open_regular(path)
    kind = path.suffix.lower()
    if kind in _HDF5:
        table = FamilyTable(*read_hdf5(path, families, max_samples))
    elif kind == ".npz":
        table = _read_npz(path, size, families, max_samples)
    elif kind == ".parquet":
        table = FamilyTable(*read_parquet(path, families, max_samples, LABELS))
    else:
        raise ValueError(f"{path}: expected a file named .h5, .hdf5, .npz or .parquet, got {kind!r}")
    check_table(table, f"{path}: ")
    return table


def write_families(path: Path | str, table: FamilyTable) -> None:
    """Write a table to an .h5 file in the documented layout; one that is there is replaced as a whole.

    The same table makes the same bytes, given the version of h5py.

    Raises:
        ValueError: another suffix, or a table that `open_families` would not read.
        TypeError: arrays that are not float32.
        OSError: the folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    if path.suffix.lower() not in _HDF5:
        raise ValueError(f"{path}: expected a file named .h5 or .hdf5, got {path.suffix!r}")
    check_table(table, "table: ")
    for family, values in table.families.items():
        if values.dtype != np.float32:
            raise TypeError(f"table: {family}: expected float32, got {values.dtype}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    with replaced_whole(path) as part:
        write_hdf5(part, table.families, table.names)


def check_table(table: FamilyTable, where: str = "") -> None:
    """Refuse a table without families, with an empty one, with unequal rows, or with names that do not fit.

    Raises:
        ValueError: starts with `where`.
    """
    if not table.families:
        raise ValueError(f"{where}expected at least one family, got none")
    if table.families.keys() != table.names.keys():
        raise ValueError(f"{where}names: expected those of {list(table.families)}, got {list(table.names)}")
    first, rows = next((name, len(values)) for name, values in table.families.items())
    for family, values in table.families.items():
        check_family(where, family)
        check_shape(f"{where}{family}", values.shape, values.dtype)
        if len(values) != rows:
            raise ValueError(f"{where}{family}: expected {rows} rows as in {first}, got {len(values)}")
        names = table.names[family]
        if len(names) != values.shape[-1] or len(set(names)) < len(names):
            wanted = f"{values.shape[-1]} names that differ"
            raise ValueError(f"{where}{family}: expected {wanted}, got {describe(names)}")


def _read_npz(path: Path, size: int, wanted: Sequence[str] | None, limit: int | None) -> FamilyTable:
    arrays = read_npz(path, size)
    if LABELS in arrays and arrays[LABELS].ndim == 1 and arrays[LABELS].dtype.kind in "iu":
        del arrays[LABELS]
    for family in wanted or ():
        if family not in arrays:
            raise ValueError(f"{path}: there is no family {family!r}; it has {', '.join(arrays)}")
    found = {}
    for family in arrays if wanted is None else wanted:
        where, values = f"{path}: {family}", arrays[family]
        check_shape(where, values.shape, values.dtype)
        found[family] = as_float32(where, values[:limit].copy() if limit else values)
    return FamilyTable(found, {family: numbered(family, x.shape[-1]) for family, x in found.items()})
