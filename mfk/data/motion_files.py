"""Files of motion: Parquet, HDF5 or JSON, by the suffix of their names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from mfk.core.files import replaced_whole
from mfk.data.motion import MotionInfo, MotionRows, MotionSource, Space, Up
from mfk.data.motion_info import Given, describe_info
from mfk.data.motion_rows import checked_pieces, shape_of


class _Format(NamedTuple):
    open: Callable[[Path, Given], MotionSource]
    write: Callable[..., None]  # (path to write to, what the file says of itself, info, shape, pieces)


def open_motion(
    path: str | os.PathLike[str], *, space: Space | None = None, up: Up | None = None
) -> MotionSource:
    """Open a file of the schema of optiq, whose rows are then read by ranges.

    A row is a frame, px py pz qx qy qz qw for each bone in the file, x y z, qw qx qy qz inside mfk; its
    numbers are float32 and come back as they are, whatever the signs of quaternions. A file that names no
    clips is one clip with the name of the file. A read takes memory for what it returns and, of Parquet, for
    one row group; reads that follow `edges` are cheap. JSON is held in memory. A source can be sent to
    another process.

    Args:
        path: .parquet, .h5, .hdf5 or .json.
        space: of a file that does not say in which frame its poses are.
        up: of a file that does not say which axis points up.

    Raises:
        OSError: the file cannot be opened.
        ValueError: another suffix, a file that is damaged, or columns or metadata that are missing, unknown,
            of another type or contradictory; `read` raises it for nulls, lists of other lengths, numbers that
            are not finite and quaternions whose norm is off 1 by more than 1e-2. Names file, row and bone.
    """
    path = Path(path)
    known = _format(path)
    with path.open("rb"):  # what cannot be opened is told of in the words of the system
        pass
    return known.open(path, Given(space, up))


def write_motion(
    path: str | os.PathLike[str], info: MotionInfo, clips: Iterable[MotionRows], *, overwrite: bool = False
) -> None:
    """Write a file of the schema of optiq; it is there when it is complete, and not before.

    Memory does not grow with the file (of JSON, it does), but with the longest piece of `clips`.

    Args:
        path: .parquet, .h5, .hdf5 or .json, of which the last holds one clip and nothing but frames.
        info: what the file says of itself. Its metadata must be JSON's, without clips, parents, space and up.
        clips: their rows in the order of `info`, each clip as one piece or as several. Whether there are
            velocities is decided by the first.
        overwrite: replace a file that exists.

    Raises:
        FileExistsError: the file exists, and `overwrite` is not set.
        OSError: the folder does not exist or cannot be written to, or the disk is full.
        ValueError: another suffix, `info` that contradicts itself, or rows that do not fit to it, as
            `open_motion` says; names the row and the bone.
        TypeError: rows of another dtype.
    """
    path = Path(path)
    known = _format(path)
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(f"{path}: the file exists; expected a new name, or overwrite")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    pieces = iter(clips)
    first = next(pieces, None)
    if first is None:
        raise ValueError(f"{path}: clips: expected the rows of at least one, got none")
    said = describe_info(info, first.velocities is not None)
    shape = shape_of(info, first.velocities is not None)
    with replaced_whole(path) as part:
        rows = checked_pieces(str(path), info, shape, itertools.chain((first,), pieces))
        known.write(part, said, info, shape, rows)


def _format(path: Path) -> _Format:
    # What a format needs takes a while to import.
    match path.suffix.lower():
        case ".parquet":
            from mfk.data import motion_parquet

            return _Format(motion_parquet.open_parquet, motion_parquet.write_parquet)
        case ".h5" | ".hdf5":
            from mfk.data import motion_hdf5

            return _Format(motion_hdf5.open_hdf5, motion_hdf5.write_hdf5)
        case ".json":
            from mfk.data import motion_json

            return _Format(motion_json.open_json, motion_json.write_json)
    raise ValueError(f"{path}: expected a file's name that ends in .parquet, .h5, .hdf5 or .json")
