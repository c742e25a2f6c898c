"""Files that are there as a whole or not at all, and what tells one from another."""

from __future__ import annotations

import os
import zlib
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content as a whole: a reader, or a killed writer, never sees half of it.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder cannot be written to.
        OSError: the disk is full; the file is named in any case.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # A full disk's error names no file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def fingerprint(path: Path) -> str:
    """A file's size and CRC-32 in words, so that a resumed run can tell other data.

    Raises:
        OSError: it cannot be read.
    """
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return f"{size} bytes, crc {crc:08x}"
