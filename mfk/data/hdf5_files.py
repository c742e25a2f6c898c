"""HDF5 files of somebody else's: only what lies in the file itself, and no more than it has room for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py

from mfk.data.archives import attempt

_SURELY_FINE, _RATIO = 2**28, 1000  # bytes that any file may hold; beyond, times its size: gzip does no more
_BLOCK = 2**20  # bytes that are searched at once
_HEAP = re.compile(rb"GCOL\x01")  # of version 1, the only one
_LEAST = 4096  # bytes of a heap
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read from, of which libhdf5 comes to an end.

    Raises:
        ValueError: the file is damaged; starts with `path`.
    """
    attempt(path, _check_heaps, path)
    with attempt(path, h5py.File, path, "r") as file:
        yield file


def _check_heaps(path: Path) -> None:
    """Refuse a file with a heap of texts that libhdf5 would never come to the end of.

    It walks a heap by the sizes of its objects, in 64 bits; where a step comes out as 0 it stays for ever
    (version 2.0.0), and no signal ends that. What is damaged otherwise it sees itself.

    Source: HDF5 File Format Specification 3.0, III.E, Disk Format: Level 1E - Global Heap.
    """
    with path.open("rb") as file:
        number, whole = _bytes_of_a_number(file), file.seek(0, os.SEEK_END)
        head = _in_eights(8 + number)  # of a heap, and of an object in it
        for place in _heaps(file):
            file.seek(place + 8)
            length = int.from_bytes(file.read(number), "little")
            if not _LEAST <= length <= whole - place:
                continue  # no heap, but numbers or a text that look like its beginning
            at, end = place + head, place + length
            while at + head <= end:
                file.seek(at)
                found = file.read(8 + number)
                if len(found) < 8 + number:
                    break
                size = int.from_bytes(found[8:], "little")
                is_free = found[:2] == b"\0\0"
                step = size if is_free else (head + _in_eights(size)) % 2**64
                if step == 0:
                    raise ValueError(
                        f"{path}: damaged: at byte {at}, in the heap at {place}, an object of {size} bytes"
                    )
                at += step


def _in_eights(size: int) -> int:
    return (size + 7) % 2**64 // 8 * 8


def _bytes_of_a_number(file: IO[bytes]) -> int:
    """How long sizes are in an HDF5 file; 8 where it does not say, which libhdf5 then refuses."""
    place = 0
    while head := (file.seek(place), file.read(16))[1]:
        if head.startswith(_SIGNATURE) and len(head) == 16:
            return head[14] if head[8] < 2 else head[10]
        place = 2 * place or 512  # it may begin with something else
    return 8


def _heaps(file: IO[bytes]) -> Iterator[int]:
    """Where collections of a global heap begin."""
    place, kept = 0, b""
    while True:
        file.seek(place + len(kept))
        block = kept + file.read(_BLOCK)
        for found in _HEAP.finditer(block):
            yield place + found.start()
        if len(block) < _BLOCK:
            return
        kept = block[-4:]
        place += len(block) - len(kept)


def names_in(path: Path, group: Any) -> tuple[str, ...]:
    """The names in a group.

    Raises:
        ValueError: the group is damaged; starts with `path`.
    """
    return attempt(path, tuple, group)


def member(path: Path, group: Any, place: str) -> Any:
    """What lies at `place`, names with "/" between them, below a group; None where nothing does.

    Raises:
        ValueError: a name is a link to another place, or to another file, that would be opened; or the file
            is damaged; starts with `path`.
    """
    for name in place.split("/"):
        if not isinstance(group, h5py.Group) or not attempt(path, group.__contains__, name):
            # A link that leads nowhere is not "in" a group.
            if not (isinstance(group, h5py.Group) and name in names_in(path, group)):
                return None
        link = attempt(path, lambda group=group, name=name: group.get(name, getlink=True))
        if link is None:
            raise ValueError(f"{path}: {name!r:.80}: damaged: it is said to be there, and is not")
        if not isinstance(link, h5py.HardLink):
            what = f"a {type(link).__name__} to {getattr(link, 'filename', '')!s:.80}{link.path!s:.80}"
            raise ValueError(
                f"{path}: {name!r:.80}: refused: expected what it holds in this place, got {what}"
            )
        group = attempt(path, group.__getitem__, name)
    return group


def check_within(path: Path, data: h5py.Dataset, rows: int | None = None) -> None:
    """Refuse an array whose numbers lie elsewhere, or cannot lie in a file so small.

    Args:
        path: of the file.
        data: an array in it.
        rows: how many of its rows are to be read; None: all.

    Raises:
        ValueError: starts with `path`.
    """
    where = f"{path}: {data.name}"
    if attempt(path, lambda: data.external) or attempt(path, lambda: data.is_virtual):
        raise ValueError(f"{where}: refused: expected its numbers in this file, got some that lie in others")
    shape = data.shape or (0,)
    kept = len(data) if rows is None else min(len(data), rows)
    # Rows that were never written take no room in a file, and a small file can speak of any number.
    needed = data.dtype.itemsize * math.prod(shape[1:]) * kept
    if needed > max(_SURELY_FINE, _RATIO * path.stat().st_size):
        raise ValueError(f"{where}: refused: {needed} bytes of numbers in a file that is too small for them")
