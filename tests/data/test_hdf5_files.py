from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mfk.data import hdf5_files
from mfk.data.hdf5_files import opened

TEXTS = ["a text", "another one, of more bytes", "{}"]


def made(path: Path, **how: Any) -> bytearray:
    """A file whose attributes lie in a heap, and its bytes."""
    with h5py.File(path, "w", **how) as file:
        for k, text in enumerate(TEXTS):
            file.attrs[f"text {k}"] = text
    return bytearray(path.read_bytes())


def texts(path: Path) -> list[Any]:
    with opened(path) as file:
        return [file.attrs[f"text {k}"] for k in range(len(TEXTS))]


LAYOUTS = {
    "earliest": {"libver": "earliest"},
    "latest": {"libver": "latest"},
    "behind a user's block": {"userblock_size": 1024},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**64 - 20])
@pytest.mark.parametrize("number", [0, 1])
def test_a_heap_that_libhdf5_never_ends_to_walk_is_refused(
    tmp_path: Path, layout: str, size: int, number: int
) -> None:
    """With these bytes H5Aread loops for ever (HDF5 2.0.0; seen with gdb in H5HG__cache_heap_deserialize)."""
    path = tmp_path / "file.h5"
    content = made(path, **LAYOUTS[layout])
    assert texts(path) == TEXTS
    first = content.index(b"GCOL") + 16
    content[first : first + 2] = number.to_bytes(2, "little")
    content[first + 8 : first + 16] = size.to_bytes(8, "little")
    path.write_bytes(content)
    if (number == 0) != (size == 0):
        # These steps lead on, and out of the heap, as libhdf5 sees itself.
        with opened(path) as file, pytest.raises(OSError, match=r"ran off|heap"):
            file.attrs["text 0"]
        return
    with pytest.raises(
        ValueError, match=rf"^{path}: damaged: at byte {first}, .* an object of {size} bytes$"
    ):
        texts(path)


def test_heaps_are_found_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.h5"
    content = made(path)
    place = content.index(b"GCOL")
    for block in range(5, 24):
        monkeypatch.setattr(hdf5_files, "_BLOCK", block)
        with path.open("rb") as file:
            assert list(hdf5_files._heaps(file)) == [place]


def test_texts_that_were_replaced_and_removed_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    made(path)
    for k in range(40):
        with h5py.File(path, "a") as file:
            file.attrs["text 1"] = TEXTS[1]
            file.attrs[f"more {k % 5}"] = "x" * (700 * k)
            if k % 3 == 2:
                del file.attrs[f"more {k % 5}"]
        assert texts(path) == TEXTS


def test_numbers_and_texts_that_look_like_a_heap_are_none(tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    made(path)
    with h5py.File(path, "a") as file:
        file["numbers"] = np.array([0x014C4F4347, 64, *7 * [0]], dtype="<u8")
        file["large"] = np.array([0x014C4F4347, 2**40, *7 * [0]], dtype="<u8")
        file["texts"] = ["GCOL\x01 starts a heap", "x"]
        file["zeros"] = np.zeros(600)
    assert texts(path) == TEXTS


@pytest.mark.parametrize("kept", [0, 7, 100, 2060, 2080])
def test_a_cut_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "file.h5"
    content = made(path)
    path.write_bytes(content[:kept])
    with pytest.raises(
        ValueError, match=rf"^{path}: the file is damaged, or not what its name says: OSError"
    ):
        texts(path)
