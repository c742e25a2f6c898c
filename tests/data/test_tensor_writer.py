"""The files that are written piece by piece, read by torch, NumPy and zipfile."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfk.data.tensor_writer import SUFFIXES, lay_out, seal, write_rows

WIDTHS = {"q": 7, "r": 1, "a longer name": 3}


def tensors(widths: dict[str, int], rows: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows)
    return {name: torch.randn(rows, width, generator=random) for name, width in widths.items()}


def write(path: Path, columns: dict[str, Tensor], order: list[range]) -> bytes:
    layout = lay_out(path, {name: x.shape[1] for name, x in columns.items()}, len(columns["q"]))
    with path.open("w+b") as file:
        for rows in order:
            write_rows(file, layout, rows.start, {n: x[rows.start : rows.stop] for n, x in columns.items()})
        seal(file, layout)
    assert 0 < layout.size - path.stat().st_size < 1000
    return path.read_bytes()


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True, mmap=True)
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@settings(max_examples=30)
@given(st.data())
def test_what_is_written_is_read_and_bytes_do_not_depend_on_the_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("files")
    rows = data.draw(st.integers(1, 300))
    names = data.draw(st.lists(st.text("abc_xyz", min_size=1, max_size=80), unique=True, max_size=4))
    widths = {"q": data.draw(st.integers(1, 9))} | {name: data.draw(st.integers(1, 9)) for name in names}
    columns = tensors(widths, rows)
    size = data.draw(st.integers(1, rows))
    blocks = [range(i, min(i + size, rows)) for i in range(0, rows, size)]
    shuffled = data.draw(st.permutations(blocks))
    for suffix in SUFFIXES:
        whole = write(folder / f"whole{suffix}", columns, [range(rows)])
        assert write(folder / f"blocks{suffix}", columns, [*shuffled, blocks[0]]) == whole
        got = read(folder / f"blocks{suffix}")
        assert list(got) == list(columns)
        for name, column in columns.items():
            assert got[name].dtype == torch.float32 and torch.equal(got[name], column)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_archive_is_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    content = write(path, tensors(WIDTHS, 1000), [range(1000)])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # checks every checksum
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    layout = lay_out(path, WIDTHS, 1000)
    for entry in layout.entries:
        if entry.column:
            assert entry.start % 64 == 0
            numbers = np.frombuffer(content[entry.start : entry.stop], "<f4").reshape(1000, entry.width)
            assert np.array_equal(numbers, tensors(WIDTHS, 1000)[entry.column].numpy())
    with path.open("r+b") as file:
        seal(file, layout)
    assert path.read_bytes() == content


def test_a_pt_file_is_what_torch_saves(tmp_path: Path) -> None:
    columns = tensors(WIDTHS, 1000)
    write(tmp_path / "ours.pt", columns, [range(1000)])
    stream = io.BytesIO()
    torch.save(columns, stream)
    with zipfile.ZipFile(stream) as theirs, zipfile.ZipFile(tmp_path / "ours.pt") as ours:
        for name in ours.namelist():
            assert ours.read(name) == theirs.read(name), name
    mapped = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True)
    assert all(x.data_ptr() % 64 == 0 and x.is_contiguous() and type(x) is Tensor for x in mapped.values())


def test_an_npz_file_is_what_numpy_saves(tmp_path: Path) -> None:
    columns = tensors(WIDTHS, 1000)
    write(tmp_path / "ours.npz", columns, [range(1000)])
    np.savez(tmp_path / "theirs.npz", **{name: x.numpy() for name, x in columns.items()})  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(tmp_path / "theirs.npz") as theirs, zipfile.ZipFile(tmp_path / "ours.npz") as ours:
        assert ours.namelist() == theirs.namelist()
        assert all(ours.read(name) == theirs.read(name) for name in ours.namelist())


def test_bad_plans(tmp_path: Path) -> None:
    for name in ("x.h5", "x", ".pt", "x.pt.gz"):
        with pytest.raises(ValueError, match=r"expected a file's name that ends in \.pt or \.npz"):
            lay_out(tmp_path / name, WIDTHS, 1)
    for rows in (0, -1, True, 2.0, "3"):
        with pytest.raises(ValueError, match=r"^rows: expected at least 1"):
            lay_out("x.pt", WIDTHS, rows)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^widths: expected"):
        lay_out("x.pt", {}, 1)


def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    layout = lay_out("x.pt", WIDTHS, 100)
    good = tensors(WIDTHS, 10)
    wide = torch.zeros(10, 2)
    cases = [
        (0, {"q": good["q"]}, ValueError, "^columns: expected q, r, a longer name, got q"),
        (0, good | {"more": wide}, ValueError, "^columns"),
        (91, good, ValueError, "^first: rows 91 to 101 .* 100"),
        (-1, good, ValueError, "^first"),
        (0, good | {"r": wide}, ValueError, r"^r: expected shape \(10, 1\)"),
        (0, good | {"r": good["r"][:9]}, ValueError, r"^r: expected shape \(10, 1\)"),
        (0, good | {"r": good["r"].double()}, TypeError, "^r: expected float32, got torch.float64"),
    ]
    with (tmp_path / "x.pt").open("w+b") as file:
        for first, columns, error, message in cases:
            with pytest.raises(error, match=message):
                write_rows(file, layout, first, columns)
    assert (tmp_path / "x.pt").stat().st_size == 0


def test_a_cut_file_is_not_sealed(tmp_path: Path) -> None:
    layout = lay_out("x.pt", WIDTHS, 100)
    with (tmp_path / "x.pt").open("w+b") as file:
        write_rows(file, layout, 0, tensors(WIDTHS, 50))
        with pytest.raises(OSError, match=r"x\.pt: expected \d+ more bytes"):
            seal(file, layout)
