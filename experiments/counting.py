"""How far a job is, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable


def counter(what: str = "") -> Callable[..., None]:
    """A function of (done, total), or of (done, total, what is being done), that tells them.

    On a terminal one line counts; in a file there is a line for each tenth.

    Args:
        what: is counted.
    """
    told = [-1]

    def tell(done: int, total: int, what: str = what) -> None:
        text = f"{done:,}/{total:,} {what}".rstrip()
        if sys.stderr.isatty():
            print(f"\r{text}\x1b[K", end="" if done < total else "\n", file=sys.stderr, flush=True)
        elif (tenth := 10 * done // max(total, 1)) != told[0]:
            told[0] = tenth
            print(text, file=sys.stderr, flush=True)

    return tell
