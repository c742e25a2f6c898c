"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
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
