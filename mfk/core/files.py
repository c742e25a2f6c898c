"""Files that are there as a whole or not at all, and what tells one from another."""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content as a whole: a reader, or a killed writer, never sees half of it.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder cannot be written to.
        OSError: the disk is full; the file is named in any case.
    """
    with replaced_whole(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """For ``with``: a path in the same folder to write to; what was written there then replaces `path`.

    After an error, `path` is as it was and the other is gone. A killed writer leaves the other, whose name
    starts with a dot and ends in .part; the next one that writes to `path` removes it.

    Raises:
        OSError: as `write_atomically`.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove_left(path)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # A full disk's error names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Remove what writers of `path` left that no longer live."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = left.name.removeprefix(f".{path.name}.").removesuffix(".part")
        if number.isdecimal() and not _lives(int(number)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def read_text(path: Path) -> str:
    """A file's text, in UTF-8.

    Raises:
        FileNotFoundError, OSError: it cannot be read. ValueError: other bytes; names the file.
    """
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path}: expected text in UTF-8, got byte {byte:#04x} in it") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        FileNotFoundError, OSError: it cannot be read. ValueError: it is not JSON, is nested too deeply, or
            has a number of thousands of digits; names the file.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from None


def fingerprint(path: Path) -> str:
    """A file's size and CRC-32 in words, so that a resumed run can tell other data.

    Raises:
        FileNotFoundError: there is no such file. OSError: it cannot be read.
    """
    crc, size = 0, 0
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return f"{size} bytes, crc {crc:08x}"


def watch(paths: Iterable[Path]) -> Callable[[], None]:
    """A function that raises ValueError once a file is no longer the one that it is now.

    It costs a look at each file's size, time and place on the disk, a few microseconds. A file that was
    touched, or replaced by its own copy, counts as changed.
    """
    before = {path: _stamp(path) for path in paths}

    def unchanged() -> None:
        for path, stamp in before.items():
            now = _stamp(path)
            if now != stamp:
                was, came = (f"{x[0]:,} bytes" if x else "no file" for x in (stamp, now))
                came = f"{came} written since" if now and stamp and now[0] == stamp[0] else came
                raise ValueError(
                    f"{path}: changed while it was in use: expected the file of {was} that was opened, got "
                    f"{came}. Checkpoints are of the file as it was: put it back and --resume, or start anew."
                )

    return unchanged


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev
