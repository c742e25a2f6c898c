"""Families of features in HDF5 files, in the layout that spinlock documents.

    features/<family>/aggregated/features                  [N, D]
    features/<family>/features                             [N, T, D], of a family in time
    features/<family>/aggregated/metadata/extraction_time  [N] float64, s; NaN: it was not measured

Features are float32 in compressed chunks of rows. The attributes of features/<family> are feature_registry
(JSON, {category: {name: index}}), num_features and extraction_config (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfk.data.archives import attempt
from mfk.data.family_rows import BLOCK, as_float32, check_shape, numbered, registry_names, registry_text
from mfk.data.hdf5_files import check_within, member, names_in, opened

COMPRESSED: dict[str, Any] = {"compression": "gzip", "compression_opts": 4}
"""How the layout compresses, for ``create_dataset``."""

CHUNK = 100
"""Rows in a chunk."""


def read_hdf5(
    path: Path, wanted: Sequence[str] | None, limit: int | None
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """Arrays and names by family; see `mfk.data.families.open_families`."""
    with opened(path) as file:
        groups = member(path, file, "features")
        if not isinstance(groups, h5py.Group):
            raise ValueError(f"{path}: expected a group /features, got {_listed(path, file) or 'nothing'}")
        arrays, names = {}, {}
        there = names_in(path, groups)
        for family in there if wanted is None else wanted:
            if family not in there:
                raise ValueError(f"{path}: there is no family {family!r}; it has {', '.join(there)}")
            group = member(path, groups, family)
            data = _dataset(path, group, family)
            where = f"{path}: {data.name}"
            check_shape(where, data.shape, data.dtype)
            check_within(path, data, limit)
            arrays[family] = _stream(where, data, limit)
            found = None
            if attempt(where, group.attrs.__contains__, "feature_registry"):
                text = attempt(where, group.attrs.__getitem__, "feature_registry")
                found = registry_names(f"{path}: /features/{family}", text, data.shape[-1])
            names[family] = found or numbered(family, data.shape[-1])
    return arrays, names


def write_hdf5(part: Path, arrays: Mapping[str, np.ndarray], names: Mapping[str, Sequence[str]]) -> None:
    """Write arrays and names by family; see `mfk.data.families.write_families`."""
    with h5py.File(part, "w") as file:
        for family, values in arrays.items():
            data = add_family(
                file, family, names[family], ["features"] * len(names[family]), values.shape, {}
            )
            for first in range(0, len(values), BLOCK):
                data[first : first + BLOCK] = values[first : first + BLOCK]


def add_family(
    file: h5py.File,
    family: str,
    names: Sequence[str],
    categories: Sequence[str],
    shape: tuple[int, ...],
    config: Mapping[str, Any],
) -> h5py.Dataset:
    """Lay out a family whose features have names and categories; returns the dataset to fill."""
    group = file.create_group(f"features/{family}")
    group.attrs["version"] = "1.0.0"
    group.attrs["feature_registry"] = registry_text(names, categories)
    group.attrs["num_features"] = shape[-1]
    group.attrs["extraction_config"] = json.dumps(config)
    place = "features" if len(shape) == 3 else "aggregated/features"
    if len(shape) == 2:
        # A clock would make of each run another file.
        time: Any = group.create_dataset(
            "aggregated/metadata/extraction_time", data=np.full(shape[0], np.nan)
        )
        time.attrs["units"] = "s; NaN: not measured"
    return add_array(group, place, shape)


def add_array(group: h5py.Group, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """A compressed float32 dataset to be filled by rows."""
    chunks = (min(CHUNK, shape[0]), *shape[1:])
    return group.create_dataset(name, shape, "<f4", chunks=chunks, **COMPRESSED)


def _dataset(path: Path, group: Any, family: str) -> h5py.Dataset:
    for place in ("aggregated/features", "features"):
        found = member(path, group, place)
        if isinstance(found, h5py.Dataset) and found.shape is not None:
            return found
    raise ValueError(
        f"{path}: /features/{family}: expected a dataset aggregated/features [N, D] or features [N, T, D], "
        f"got {_listed(path, group) if isinstance(group, h5py.Group) else type(group).__name__}"
    )


def _listed(path: Path, group: Any) -> str:
    return ", ".join(map(str, names_in(path, group)))  # of a damaged file a name may be bytes


def _stream(where: str, data: h5py.Dataset, limit: int | None) -> np.ndarray:
    rows = len(data) if limit is None else min(limit, len(data))
    values = np.empty((rows, *data.shape[1:]), np.float32)
    for first in range(0, rows, BLOCK):
        read = attempt(where, data.__getitem__, slice(first, min(first + BLOCK, rows)))
        values[first : first + BLOCK] = as_float32(where, read)
    return values
