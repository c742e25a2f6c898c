"""A data file that is made block by block in a folder beside it; a killed process's work is gone on with.

The processes that torchrun has started make one file together, its bytes the same as those of one process.
On several machines the folder must lie on a file system that they share, with locks (NFS has them).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from mfk.core import ranks
from mfk.core.files import read_json, write_atomically
from mfk.core.types import describe
from mfk.data.claims import Settings, any_at_work, changes, check_alike, make_by_all
from mfk.data.tensor_writer import Layout, seal, write_rows

LOCK = ".lock"
"""The file in a work folder that tells whether a process holds it."""

# The other files in the folder. Of the last each byte is 1 once the block of its number is on the disk. The
# record has the number of rows, from the first on, that are there for sure: all, once the last block is.
_PART, _RECORD, _DONE = "rows", "record.json", "done"


class _Job(NamedTuple):
    path: Path
    work: Path  # the folder of unfinished work
    layout: Layout
    settings: Settings
    block: int  # rows


def write_resumably(
    path: Path,
    layout: Layout,
    settings: Settings,
    block: int,
    draw: Callable[[int], dict[str, Tensor]],
    progress: Callable[[int, int], None],
) -> int:
    """Write the planned file, or what is missing of it; it appears complete or not at all.

    Unfinished work lies in the folder ``<path>.parts``. A block is marked there once it is on the disk;
    whatever else a killed process has left there is made again. Under torchrun every rank must make the same
    call: rank 0 holds the folder, each block is made by the rank that comes to it first, and any number of
    ranks goes on with the work of any other. If one of them fails, nothing appears under the name.

    Args:
        path: of the file; it must not exist, its folder must.
        layout: see `lay_out`.
        settings: recorded with the work; work that was left by others is refused.
        block: rows that are made at a time.
        draw: (number of a block) -> its `block` rows, the same ones at every call; of the last block
            the first rows are taken.
        progress: called on rank 0 with (rows there, rows in all) at the start and after each block of any.

    Returns:
        The number of rows that were there already.

    Raises:
        ValueError: the folder holds work of other settings, damaged work, or something else; or `draw`
            returns other rows than planned; or this rank would make other rows than rank 0.
        FileExistsError: the file exists, or another process is writing it.
        FileNotFoundError, NotADirectoryError: the folder of the file.
        OSError: too little space, or the folder cannot be written to; what is done is kept. What rank 0
            finds before the blocks and after them is raised on all ranks.
    """
    work = path.with_name(path.name + ".parts")
    job = _Job(path, work, layout, {"rows": layout.rows, **settings}, block)
    with ExitStack() as holding:
        begun = ranks.first(lambda: _begin(job, holding))
        check_alike(path, begun.settings, job.settings)
        if not begun.complete:
            _fill(job, begun.marks, draw, progress if ranks.current().rank == 0 else lambda done, rows: None)
        ranks.first(lambda: _end(job, begun.complete))
    return sum(_length(job, i) for i, mark in enumerate(begun.marks) if mark)


class _Begun(NamedTuple):
    """What rank 0 tells the others before the first block."""

    marks: bytes  # 1 for each block that is there, else 0
    complete: bool  # the file is there: only the folder is left to be removed
    settings: Settings


def _begin(job: _Job, holding: ExitStack) -> _Begun:
    """Check the places, hold the folder while `holding` is open, and make ready what will be filled."""
    path = job.path
    if not path.parent.exists():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is not a folder")
    if os.path.lexists(path) and not job.work.is_dir():
        raise _taken(path)
    _check_folder(job.work)
    _check_space(job)
    holding.enter_context(held(path, job.work))
    marks = _found(job)
    complete = os.path.lexists(path)
    if not complete:
        part, done = job.work / _PART, job.work / _DONE
        with explained(job.path, job.work):
            if not (job.work / _RECORD).exists():
                _keep_record(job, 0)
            part.touch()
            with part.open("r+b") as file:
                # Takes the space now, so that a disk is full at the start or not at all.
                os.posix_fallocate(file.fileno(), 0, job.layout.size)
            if not done.exists():
                write_atomically(done, marks)
        with done.open("r+b") as file:
            if any_at_work(file):
                raise busy(path)
    return _Begun(marks, complete, dict(job.settings))


@contextmanager
def held(path: Path, work: Path) -> Iterator[None]:
    """Hold the folder `work`, made if need be, for this process, which writes `path`.

    The lock goes with the process, however it ends.

    Raises:
        FileExistsError: another process holds it. OSError: the folder cannot be made.
    """
    import fcntl

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
            raise busy(path) from None
        # Between our open and our lock the other process may have finished and removed the folder.
        if not (lock.exists() and os.path.samestat(lock.stat(), os.fstat(file.fileno()))):
            raise busy(path)
        yield


def busy(path: Path) -> FileExistsError:
    """The error where another process writes `path`."""
    return FileExistsError(f"{path}: another process is writing it. Wait for it, or give another name.")


@contextmanager
def explained(path: Path, work: Path) -> Iterator[None]:
    """Around what writes `path` by way of the folder `work`: what the system refuses is told with both names.

    Raises:
        OSError: in place of another.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written: {error.strerror or error}. What is done lies in {work}, "
            "and the same settings go on with it."
        ) from error


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
    found: bytes,
    draw: Callable[[int], dict[str, Tensor]],
    progress: Callable[[int, int], None],
) -> None:
    """Make what is missing, together with the other ranks; it returns once all is there."""
    with ExitStack() as files:
        with explained(job.path, job.work):
            part, marks = (
                files.enter_context((job.work / name).open("r+b", buffering=0)) for name in (_PART, _DONE)
            )

        def done(block: int) -> bool:
            return os.pread(marks.fileno(), 1, block) == b"\1"

        def make(block: int) -> None:
            columns = draw(block)
            if any(len(column) != job.block for column in columns.values()):
                lengths = {name: len(column) for name, column in columns.items()}
                raise ValueError(f"draw: expected {job.block} rows of each, got {lengths}")
            rows = {name: x[: _length(job, block)] for name, x in columns.items()}
            with explained(job.path, job.work):
                write_rows(part, job.layout, block * job.block, rows)
                os.fsync(part.fileno())
                os.pwrite(marks.fileno(), b"\1", block)
                os.fsync(marks.fileno())

        def told(block: int) -> None:
            nonlocal there
            there += _length(job, block)
            progress(there, job.layout.rows)

        missing = [block for block, mark in enumerate(found) if not mark]
        there = job.layout.rows - sum(_length(job, block) for block in missing)
        progress(there, job.layout.rows)
        make_by_all(marks, missing, done, make, told)


def _end(job: _Job, complete: bool) -> None:
    """Let the file appear, once all blocks are there, and remove the folder."""
    part = job.work / _PART
    if not complete:
        with explained(job.path, job.work), part.open("r+b") as file:
            _keep_record(job, job.layout.rows)
            seal(file, job.layout)
            os.fsync(file.fileno())
        if os.path.lexists(job.path):
            raise _taken(job.path)
        with explained(job.path, job.work):
            part.rename(job.path)
            sync_folder(job.path.parent)
    _remove(job.work)


def _found(job: _Job) -> bytes:
    """The marks that processes before us have left: all blocks' if they had only to remove the folder."""
    record, part, marks = job.work / _RECORD, job.work / _PART, job.work / _DONE
    for name in (_RECORD, _DONE):
        for file in job.work.glob(f".{name}.*"):
            file.unlink(missing_ok=True)  # of a process that was killed while it wrote this file
    exists = os.path.lexists(job.path)
    if not record.exists():
        if exists:
            _remove(job.work)
            raise _taken(job.path)
        return _marks(job, 0)
    try:
        rows, settings = _read_record(record)
    except ValueError as error:
        raise ValueError(f"{error}. {_again(job)}") from None
    changed = changes(settings, job.settings)
    if exists:
        if changed or rows < job.layout.rows or part.exists():
            raise _taken(job.path)
        return _marks(job, rows)
    if changed:
        raise ValueError(
            f"{job.work}: holds unfinished work of other settings ({changed}). Give the settings that it "
            f"was started with, or another name for the file. {_again(job)}"
        )
    # Without marks it is the work of a version that counted rows.
    found = marks.read_bytes() if marks.exists() else _marks(job, rows)
    if len(found) != len(_marks(job, 0)) or not set(found) <= {0, 1}:
        raise ValueError(
            f"{marks}: expected a byte, 0 or 1, for each of {len(_marks(job, 0))} blocks. {_again(job)}"
        )
    length = max(entry.stop for entry in job.layout.entries)
    if any(found) and not (part.exists() and part.stat().st_size >= length):
        raise ValueError(f"{part}: expected at least {length} bytes, the file is gone or cut. {_again(job)}")
    return found


def _marks(job: _Job, rows: int) -> bytes:
    """Those of the blocks that are whole within the first `rows` rows."""
    count = -(-job.layout.rows // job.block)
    return bytes(job.block * i + _length(job, i) <= rows for i in range(count))


def _length(job: _Job, block: int) -> int:
    """Rows of a block that the file has."""
    return min(job.block, job.layout.rows - block * job.block)


def _keep_record(job: _Job, rows: int) -> None:
    text = json.dumps({"rows": rows, "settings": dict(job.settings)}, indent=1)
    write_atomically(job.work / _RECORD, text + "\n")


def _read_record(record: Path) -> tuple[int, dict[str, object]]:
    data = read_json(record)
    if not (isinstance(data, dict) and isinstance(data.get("settings"), dict)):
        raise ValueError(f"{record}: expected rows and settings, got {describe(data)}")
    if type(data.get("rows")) is not int or not 0 <= data["rows"]:
        raise ValueError(f"{record}: rows: expected a number, got {describe(data.get('rows'))}")
    return data["rows"], data["settings"]


def _check_folder(work: Path) -> None:
    """Refuse a folder that is somebody else's, before a lock is put into it."""
    try:
        names = set(os.listdir(work)) - {_PART, _RECORD, _DONE, LOCK}
    except (FileNotFoundError, NotADirectoryError):
        return
    strange = sorted(name for name in names if not name.startswith((f".{_RECORD}.", f".{_DONE}.")))
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
    for name in (LOCK, _DONE, _RECORD):
        (work / name).unlink(missing_ok=True)
    # A second process may have come in; it will find the file complete, and remove the folder.
    with suppress(OSError):
        work.rmdir()


def _taken(path: Path) -> FileExistsError:
    return FileExistsError(f"{path}: exists already. Delete it, or give another name.")


def _again(job: _Job) -> str:
    return f"To begin again, delete the folder {job.work}."
