"""Tables of families: what is written is read, by others too, and what is no table is said to be none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mfk.data import FamilyTable, open_families, write_families
from mfk.data.family_rows import BLOCK

N = 2 * BLOCK + 7


@pytest.fixture(scope="module")
def table() -> FamilyTable:
    draw = np.random.default_rng(0)
    families = {
        "summary": draw.normal(size=(N, 5)).astype(np.float32),
        "temporal": draw.normal(size=(N, 4, 3)).astype(np.float32),
    }
    families["summary"][3, 2] = np.nan
    names = {"summary": tuple("abcde"), "temporal": ("x", "y y", "z/ä")}
    return FamilyTable(families, names)


def same(found: FamilyTable, wanted: FamilyTable) -> None:
    assert list(found.families) == list(wanted.families) and found.names == wanted.names
    for name, values in found.families.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, wanted.families[name])


def test_hdf5_holds_the_documented_layout_and_is_read_back(table: FamilyTable, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    path.write_text("what was there before is replaced")
    write_families(path, table)
    file: Any
    with h5py.File(path) as file:
        data = file["features/summary/aggregated/features"]
        assert data.dtype == np.float32 and data.compression == "gzip" and data.chunks[0] == 100
        np.testing.assert_array_equal(data[:], table.families["summary"])
        np.testing.assert_array_equal(file["features/temporal/features"][:], table.families["temporal"])
        attributes = file["features/summary"].attrs
        registry = json.loads(attributes["feature_registry"])
        assert registry == {"features": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}}
        assert attributes["num_features"] == 5 and json.loads(attributes["extraction_config"]) == {}
        times = file["features/summary/aggregated/metadata/extraction_time"]
        assert times.dtype == np.float64 and times.shape == (N,)
    same(open_families(path), table)
    once = path.read_bytes()
    write_families(path, table)
    assert path.read_bytes() == once and os.listdir(tmp_path) == ["x.h5"]


@pytest.mark.parametrize("limit", [1, BLOCK, BLOCK + 1, N + 5])
def test_some_families_and_the_first_rows(table: FamilyTable, tmp_path: Path, limit: int) -> None:
    write_families(tmp_path / "x.hdf5", table)
    np.savez(tmp_path / "x.npz", **table.families)  # pyright: ignore[reportArgumentType]
    for path in (tmp_path / "x.hdf5", tmp_path / "x.npz"):
        found = open_families(path, ["temporal", "summary"], max_samples=limit)
        assert list(found.families) == ["temporal", "summary"]
        for name, values in found.families.items():
            np.testing.assert_array_equal(values, table.families[name][:limit])


def test_a_file_of_somebody_elses(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    wide = np.arange(12, dtype=np.float64).reshape(4, 3)
    registry = {"two": {"same": 2, "a": 0}, "one": {"same": 1}}
    with h5py.File(path, "w") as file:
        file["features/summary/aggregated/features"] = wide
        file["features/summary"].attrs["feature_registry"] = json.dumps(registry)
        file["features/summary/per_trajectory/features"] = np.zeros((4, 2, 1))
        file["features/initial/aggregated/features"] = wide.astype(np.int32)
        # Of all features that its maker knows, not of these.
        file["features/initial"].attrs["feature_registry"] = json.dumps(
            {"all": {f"f{i}": i for i in range(9)}}
        )
        file["parameters/params"] = wide
    found = open_families(path)
    assert found.names == {
        "initial": ("initial_0", "initial_1", "initial_2"),
        "summary": ("a", "one.same", "two.same"),
    }
    for values in found.families.values():
        np.testing.assert_array_equal(values, wide.astype(np.float32))
    for text, message in (
        ("{", "feature_registry: expected JSON"),
        ("[1]", r"expected \{category: \{name: index\}\}, got \[1\]"),
        ('{"a": {"b": "0"}}', r"expected \{category: \{name: index\}\}"),
        ('{"a": {"b": 0, "c": 2}}', "expected the indices 0 to 1, each once"),
    ):
        with h5py.File(path, "a") as file:
            file["features/initial"].attrs["feature_registry"] = text
        with pytest.raises(ValueError, match=rf"x\.h5: /features/initial: .*{message}"):
            open_families(path)


def test_npz_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, fou=np.eye(3), mor=np.eye(3, dtype=np.int8), labels=np.arange(3))
    found = open_families(path)
    assert {name: x.dtype for name, x in found.families.items()} == dict.fromkeys(("fou", "mor"), np.float32)
    assert found.names["mor"] == ("mor_0", "mor_1", "mor_2")
    with pytest.raises(ValueError, match=r"x\.npz: there is no family 'labels'; it has fou, mor"):
        open_families(path, ["labels"])
    np.savez(path, fou=np.eye(3), labels=np.arange(3.0))
    with pytest.raises(ValueError, match=r"labels: expected features \[N, D\] or, in time"):
        open_families(path)


def test_parquet_by_columns_and_by_lists(table: FamilyTable, tmp_path: Path) -> None:
    path, values = tmp_path / "x.parquet", table.families["summary"]
    columns: dict[str, Any] = {f"summary::{c}": values[:, i] for i, c in enumerate("ab.de")}
    columns["kar"] = pa.array(list(values.astype(np.float64)))
    columns["labels"] = pa.array(np.arange(N))
    columns["mor::n"] = pa.array([1, None] + [3] * (N - 2))
    pq.write_table(pa.table(columns), path, row_group_size=500)
    found = open_families(path)
    assert found.names["summary"] == tuple("ab.de") and found.names["kar"] == tuple(
        f"kar_{i}" for i in range(5)
    )
    np.testing.assert_array_equal(found.families["summary"], values)
    np.testing.assert_array_equal(found.families["kar"], values)
    np.testing.assert_array_equal(found.families["mor"][:3, 0], [1, np.nan, 3])
    assert open_families(path, ["kar"], max_samples=BLOCK + 1).families["kar"].shape == (BLOCK + 1, 5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a::b": ["x"]}, "column 'a::b': expected a feature family::name of numbers.*got string"),
        ({"labels": [0.5]}, "column 'labels': expected a feature"),
        ({"a": [[[1.0]]]}, "column 'a': expected a feature.*got list"),
        ({"a": [[1.0]], "a::b": [1.0]}, "column 'a::b': expected each feature once"),
        ({"a": [[1.0], [1.0, 2.0]]}, r"column a: expected lists of one length, got lengths \[1, 2\]"),
        ({"a": [[1.0], None]}, "column a: expected a list in every row, got null"),
        ({"a": pa.array([[]], pa.list_(pa.float32()))}, r"a: expected .* got no features: \[1, 0\]"),
        ({"a::b": pa.array([], pa.float32())}, "expected at least one row, got none"),
        ({"labels": [1]}, "expected at least one family, got none"),
    ],
)
def test_parquet_that_is_no_table(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=rf"x\.parquet: .*{message}"):
        open_families(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected at least one family, got none"),
        ({"a": np.ones((3, 2)), "b": np.ones((2, 2))}, "b: expected 3 rows as in a, got 2"),
        ({"a": np.ones((0, 2))}, r"a: expected .* got no rows: \[0, 2\]"),
        ({"a": np.ones((3, 0, 2))}, "a: expected .* got no times"),
        ({"a": np.ones(3)}, r"a: expected features \[N, D\] or, in time, \[N, T, D\], got shape \[3\]"),
        ({"a": np.ones((3, 2), bool)}, "a: expected numbers, got an array of dtype bool"),
        ({"a": np.full((3, 2), 1e39)}, r"a: expected numbers that float32 can hold, got 1e\+39"),
        ({"a::b": np.ones((3, 2))}, "expected a family's name without '/' and '::', got 'a::b'"),
    ],
)
def test_arrays_that_are_no_table(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=rf"x\.npz: {message}"):
        open_families(tmp_path / "x.npz")


def test_files_that_are_no_files(table: FamilyTable, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(FileNotFoundError, match=r"x\.h5: there is no such file"):
        open_families(path)
    write_families(path, table)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.h5: the file is damaged"):
            open_families(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)  # within compressed rows
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"x\.h5: /features/.*: the file is damaged"):
        open_families(path)
    (tmp_path / "x.csv").touch()
    with pytest.raises(ValueError, match=r"x\.csv: expected a file named \.h5, \.hdf5, \.npz or \.parquet"):
        open_families(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"x\.parquet: the file is damaged"):
        open_families(tmp_path / "x.parquet")
    with h5py.File(path, "w") as file:
        file["features/a"] = h5py.SoftLink("/nowhere")
        file.create_dataset("features/b/features", (10**12, 3), "f4", chunks=(100, 3))
    with pytest.raises(
        ValueError, match=r"x\.h5: 'a': refused: .* in this place, got a SoftLink to /nowhere"
    ):
        open_families(path)
    with pytest.raises(ValueError, match=r"/features/b/features: refused: 12000000000000 bytes of numbers"):
        open_families(path, ["b"])
    assert open_families(path, ["b"], max_samples=7).families["b"].shape == (7, 3)
    for groups, message in (
        (["other"], "expected a group /features, got other"),
        (["features/a/b"], r"/features/a: expected a dataset aggregated/features .* got b"),
        (["features"], "expected at least one family, got none"),
    ):
        with h5py.File(path, "w") as file:
            for group in groups:
                file.create_group(group)
        with pytest.raises(ValueError, match=rf"x\.h5: {message}"):
            open_families(path)


def test_arguments_are_named(table: FamilyTable, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_families(path, table)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"max_samples": 0}, "^max_samples: expected an int >= 1 or None, got 0"),
        ({"max_samples": 2.0}, "^max_samples: expected an int"),
        ({"families": "summary"}, "^families: expected at least one name in a list, got 'summary'"),
        ({"families": []}, "^families: expected at least one name"),
        ({"families": [1]}, "^families: expected at least one name"),
        ({"families": ["summary", "summary"]}, "^families: expected each name once"),
        ({"families": ["nope"]}, r"x\.h5: there is no family 'nope'; it has summary, temporal"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            open_families(path, **options)
    values = np.ones((3, 2), np.float32)
    for bad, error, message in (
        (FamilyTable({"a": values}, {"a": ("x",)}), ValueError, "table: a: expected 2 names that differ"),
        (FamilyTable({"a": values}, {"a": ("x", "x")}), ValueError, "table: a: expected 2 names that differ"),
        (FamilyTable({"a": values}, {}), ValueError, r"table: names: expected those of \['a'\]"),
        (
            FamilyTable({"a": values.astype(float)}, {"a": ("x", "y")}),
            TypeError,
            "table: a: expected float32",
        ),
    ):
        with pytest.raises(error, match=message):
            write_families(tmp_path / "y.h5", bad)
    with pytest.raises(FileNotFoundError, match=r"y\.h5: there is no folder"):
        write_families(tmp_path / "new" / "y.h5", table)
    with pytest.raises(ValueError, match=r"y\.npz: expected a file named \.h5"):
        write_families(tmp_path / "y.npz", table)
    assert os.listdir(tmp_path) == ["x.h5"]
