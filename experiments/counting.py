"""How far a job is, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress


def counter(what: str = "") -> Callable[..., None]:
    """A function of (done, total), or of (done, total, what is being done), that tells them.

    On a terminal one line counts; in a file there is a line for each tenth. Where nobody reads any more, or
    nothing more can be written, the job goes on untold.

    Args:
        what: is counted.
    """
    told, stream = [-1], sys.stderr

    def tell(done: int, total: int, what: str = what) -> None:
        text, tenth = f"{done:,}/{total:,} {what}".rstrip(), 10 * done // max(total, 1)
        try:
            if stream.isatty():
                print(f"\r{text}\x1b[K", end="" if done < total else "\n", file=stream, flush=True)
            elif tenth != told[0]:
                told[0] = tenth
                print(text, file=stream, flush=True)
        except (OSError, ValueError):  # what is closed is a ValueError
            with suppress(OSError, ValueError):
                # Or Python tries to write it once more at exit, and exits with an error.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    # Python has none where it was closed from the beginning.
    return _untold if stream is None else tell


def _untold(*_: object) -> None:
    pass
