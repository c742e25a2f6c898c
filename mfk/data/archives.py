"""Zip archives of somebody else's, and the numpy arrays in them."""

from __future__ import annotations

import math
import reprlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
"""Codes of numpy's dtypes that PyTorch shares, byte order left out."""

_SURELY_FINE, _RATIO = 2**28, 100  # bytes that any archive may unpack to; beyond, times its own size


def read_npz(path: Path, size: int) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of numbers in an .npz file of `size` bytes, by name; nothing is unpickled.

    Raises:
        ValueError: anything else in it, or less than its headers speak of; starts with the path.
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    with open_archive(path, size) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise ValueError(f"{path}: expected arrays (.npy) in the archive, got {info.filename[:80]!r}")
            key = info.filename.removesuffix(".npy")
            where = f"{path}: {reprlib.repr(key)}"
            dtype, claimed = attempt(where, _npy_header, archive, info)
            if dtype.str[1:] not in NUMBERS:
                raise ValueError(
                    f"{where}: refused: expected numbers, got an array of dtype {dtype.str[:40]!r}"
                )
            if claimed != info.file_size:
                raise ValueError(
                    f"{where}: the file is damaged: the array's header speaks of {claimed} bytes, "
                    f"there are {info.file_size}"
                )
            array = attempt(where, _npy_array, archive, info)
            found[key] = array.astype(dtype.newbyteorder("="), copy=False)
    return found


def open_archive(path: Path, size: int) -> zipfile.ZipFile:
    """A zip archive of `size` bytes whose table of contents is sound.

    Raises:
        ValueError: no zip archive, two entries of one name, encryption, or more content than 100 times its
            size (if that is over 256 MiB).
    """
    archive = attempt(path, zipfile.ZipFile, path)
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if len({*names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{path}: expected names to differ, got {twice[:80]!r} twice")
    if any(info.flag_bits & 1 for info in infos):
        raise ValueError(f"{path}: expected an archive without encryption")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > max(_SURELY_FINE, _RATIO * size):
        raise ValueError(f"{path}: refused: its {size} bytes would unpack to {unpacked}")
    return archive


def attempt(where: object, read: Callable[..., Any], *arguments: Any) -> Any:
    """``read(*arguments)``, silently; whatever it raises becomes a ValueError that starts with `where`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(*arguments)
    except Exception as error:  # what a forged or cut file makes of the reader can be anything
        if type(error) is ValueError and str(error).startswith(f"{where}: "):
            raise  # it says what is wrong already
        raise damaged(where, error) from None


def damaged(where: object, error: Exception) -> ValueError:
    """What to raise in place of an error that a forged or cut file has caused."""
    reason = " ".join(str(error).split())[:200]
    return ValueError(
        f"{where}: the file is damaged, or not what its name says: {type(error).__name__}: {reason}"
    )


def _npy_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[np.dtype[Any], int]:
    """The dtype of an array, and the bytes that it takes up in the archive with its header."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        return dtype, file.tell() + math.prod(shape) * dtype.itemsize


def _npy_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
