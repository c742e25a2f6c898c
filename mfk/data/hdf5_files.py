"""HDF5 files of somebody else's: only what lies in the file itself, and no more than it has room for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py

from mfk.data.archives import attempt

_SURELY_FINE, _RATIO = 2**28, 1000  # bytes that any file may hold; beyond, times its size: gzip does no more


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
