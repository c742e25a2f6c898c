"""A data file that is made block by block in a folder beside it; a killed process's work is gone on with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mfk.core.files import read_json, write_atomically
from mfk.core.types import describe
from mfk.data.tensor_writer import Layout, seal, write_rows

Settings = Mapping[str, str | int | float]
"""What the rows of a file depend on, by name."""

LOCK = ".lock"
"""The file in a work folder that tells whether a process holds it."""

_PART, _RECORD = "rows", "record.json"  # the other files in the folder


class _Job(NamedTuple):
    path: Path
    work: Path  # the folder of unfinished work
    layout: Layout
    settings: dict[str, str | int | float]


def write_resumably(
    path: Path,
    layout: Layout,
    settings: Settings,
    block: int,
    draw: Callable[[int], dict[str, Tensor]],
    progress: Callable[[int, int], None],
) -> int:
    """Write the planned file, or what is missing of it; it appears complete or not at all.

    Unfinished work lies in the folder ``<path>.parts``. Rows are counted in its record once they are on
    the disk; whatever else a killed process has left there is made again.

    Args:
        path: of the file; it must not exist, its folder must.
        layout: see `lay_out`.
        settings: recorded with the work; work that was left by others is refused.
        block: rows that are made at a time.
        draw: (number of a block) -> its `block` rows, the same ones at every call; of the last block
            the first rows are taken.
        progress: called with (rows there, rows in all) at the start and after each block.

    Returns:
        The number of rows that were there already.

    Raises:
        ValueError: the folder holds work of other settings, damaged work, or something else; or `draw`
            returns other rows than planned.
        FileExistsError: the file exists, or another process is writing it.
        FileNotFoundError, NotADirectoryError: the folder of the file.
        OSError: too little space, or the folder cannot be written to; what is done is kept.
    """
    job = _Job(path, path.with_name(path.name + ".parts"), layout, {"rows": layout.rows, **settings})
    if not path.parent.exists():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is not a folder")
    if os.path.lexists(path) and not job.work.is_dir():
        raise _taken(path)
    _check_folder(job.work)
    _check_space(job)
    with held(job.path, job.work):
        found = _rows_found(job)
        if not os.path.lexists(path):
            _fill(job, found, block, draw, progress)
        _remove(job.work)
    return found


@contextmanager
def held(path: Path, work: Path) -> Iterator[None]:
    """Hold the folder `work`, made if need be, for this process, which writes `path`.

    The lock goes with the process, however it ends.

    Raises:
        FileExistsError: another process holds it. OSError: the folder cannot be made.
    """
    import fcntl

    busy = FileExistsError(f"{path}: another process is writing it. Wait for it, or give another name.")
    lock = work / LOCK
    try:
        work.mkdir(exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise OSError(f"{work}: cannot make this folder for the work: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        # Between our open and our lock the other process may have finished and removed the folder.
        if not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))):
            raise busy
        yield


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, as far as its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems cannot; they keep what they are told anyhow.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(
    job: _Job,
    done: int,
    block: int,
    draw: Callable[[int], dict[str, Tensor]],
    progress: Callable[[int, int], None],
) -> None:
    part, rows = job.work / _PART, job.layout.rows
    with _explained(job):
        _keep_record(job, done)
        part.touch()
    with part.open("r+b") as file:
        with _explained(job):
            # Takes the space now, so that a disk is full at the start or not at all.
            os.posix_fallocate(file.fileno(), 0, job.layout.size)
        progress(done, rows)
        while done < rows:
            columns = draw(done // block)
            if any(len(column) != block for column in columns.values()):
                lengths = {name: len(column) for name, column in columns.items()}
                raise ValueError(f"draw: expected {block} rows of each, got {lengths}")
            count = min(block, rows - done)
            with _explained(job):
                write_rows(file, job.layout, done, {name: x[:count] for name, x in columns.items()})
                os.fsync(file.fileno())
                done += count
                _keep_record(job, done)
            progress(done, rows)
        with _explained(job):
            seal(file, job.layout)
            os.fsync(file.fileno())
    if os.path.lexists(job.path):
        raise _taken(job.path)
    with _explained(job):
        part.rename(job.path)
        sync_folder(job.path.parent)


def _rows_found(job: _Job) -> int:
    """How many rows a process before us has left: all of them if it had only the folder left to remove."""
    record, part = job.work / _RECORD, job.work / _PART
    for file in job.work.glob(f".{_RECORD}.*"):
        file.unlink(missing_ok=True)  # of a process that was killed while it wrote its record
    exists = os.path.lexists(job.path)
    if not record.exists():
        if exists:
            _remove(job.work)
            raise _taken(job.path)
        return 0
    try:
        done, settings = _read_record(record)
    except ValueError as error:
        raise ValueError(f"{error}. {_again(job)}") from None
    names = {**settings, **job.settings}
    changed = [name for name in names if settings.get(name) != job.settings.get(name)]
    if exists:
        if changed or done < job.layout.rows or part.exists():
            raise _taken(job.path)
        return done
    if changed:
        changes = ", ".join(f"{name} {settings.get(name)} -> {job.settings.get(name)}" for name in changed)
        raise ValueError(
            f"{job.work}: holds unfinished work of other settings ({changes}). Give the settings that it "
            f"was started with, or another name for the file. {_again(job)}"
        )
    length = max(entry.stop for entry in job.layout.entries)
    if done and not (part.exists() and part.stat().st_size >= length):
        raise ValueError(f"{part}: expected at least {length} bytes, the file is gone or cut. {_again(job)}")
    return done


def _keep_record(job: _Job, rows: int) -> None:
    text = json.dumps({"rows": rows, "settings": job.settings}, indent=1)
    write_atomically(job.work / _RECORD, text + "\n")


def _read_record(record: Path) -> tuple[int, dict[str, object]]:
    data = read_json(record)
    if not (isinstance(data, dict) and isinstance(data.get("settings"), dict)):
        raise ValueError(f"{record}: expected rows and settings, got {describe(data)}")
    if type(data.get("rows")) is not int or not 0 <= data["rows"]:
        raise ValueError(f"{record}: rows: expected a number, got {describe(data.get('rows'))}")
    return data["rows"], data["settings"]


@contextmanager
def _explained(job: _Job) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{job.path}: cannot be written: {error.strerror or error}. What is done lies in {job.work}, "
            "and the same settings go on with it."
        ) from error


def _check_folder(work: Path) -> None:
    """Refuse a folder that is somebody else's, before a lock is put into it."""
    try:
        names = set(os.listdir(work)) - {_PART, _RECORD, LOCK}
    except (FileNotFoundError, NotADirectoryError):
        return
    strange = sorted(name for name in names if not name.startswith(f".{_RECORD}."))
    if strange:
        raise ValueError(
            f"{work}: expected a folder of unfinished work, got {', '.join(strange[:3])} in it. "
            "Move the folder away, or give another name for the file."
        )


def _check_space(job: _Job) -> None:
    taken = 0
    with suppress(OSError):
        taken = (job.work / _PART).stat().st_blocks * 512
    needed, free = job.layout.size - taken, shutil.disk_usage(job.path.parent).free
    if needed > free:
        raise OSError(f"{job.path}: needs {needed / 1e6:,.2f} MB, and its disk has {free / 1e6:,.2f} MB left")


def _remove(work: Path) -> None:
    # The record last: as long as it is there, the same settings find out that the file is complete.
    for name in (LOCK, _RECORD):
        (work / name).unlink(missing_ok=True)
    # A second process may have come in; it will find the file complete, and remove the folder.
    with suppress(OSError):
        work.rmdir()


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(f"{path}: exists already. Delete it, or give another name.")


def _again(job: _Job) -> str:
    return f"To begin again, delete the folder {job.work}."
