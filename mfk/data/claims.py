"""Blocks of one data set, made by all processes of a run: each by whichever comes to it first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mfk.core import ranks

Settings = Mapping[str, Any]
"""What the rows of a data set depend on, by name."""

_PAUSE = 0.02  # seconds between looks at what the others are at
_PRESENT = 1 << 40  # of the bytes from here on each rank holds its own for as long as it takes part


def make_by_all(
    claims: BinaryIO,
    blocks: Sequence[int],
    done: Callable[[int], bool],
    make: Callable[[int], object],
    told: Callable[[int], object],
) -> None:
    """Make the blocks that are not done, together with the other ranks; it returns when all are done.

    A rank claims a block by a lock on one byte of a file, which goes with the process: what a killed one was
    at is made by another. Nothing is sent between the ranks until all of them have seen that all is done, and
    look at no block any more.

    Args:
        claims: a file on a disk that all of them see, open for writing. While it is open, this process must
            not close another handle of the same file: its locks would go.
        blocks: their numbers, the same on every rank.
        done: whether a block is there as a whole, also one that another process has made.
        make: makes a block, so that it is done.
        told: called with the number of each block once it is done, whichever process has made it.

    Raises:
        RankLost: another rank has ended.
    """
    here = _PRESENT + ranks.current().rank
    _claim(claims, here)
    try:
        left = list(blocks)
        while left:
            others: list[int] = []  # blocks that other ranks are at
            for block in left:
                for ready in [other for other in others if done(other)]:
                    others.remove(ready)
                    told(ready)
                if done(block) or _made(claims, block, done, make):
                    told(block)
                else:
                    others.append(block)
            left = others
            if left:
                time.sleep(_PAUSE)
    finally:
        _release(claims, here)
    ranks.everyone(None)


def any_at_work(claims: BinaryIO) -> bool:
    """Whether another process takes part: one of an earlier call that has not ended yet."""
    if not _claim(claims, 0, 0):
        return True
    _release(claims, 0, 0)
    return False


def check_alike(path: Path, first: Settings, own: Settings) -> None:
    """Refuse a rank that would make other rows than rank 0.

    Raises:
        ValueError: the settings differ.
    """
    if told := changes(first, own):
        raise ValueError(
            f"{path}: rank {ranks.current().rank} would make other rows than rank 0 ({told}). "
            "All ranks need the same settings, versions and kind of CPU."
        )


def changes(old: Settings, new: Settings) -> str:
    """Which settings differ, in words; empty where none does."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)


def _made(claims: BinaryIO, block: int, done: Callable[[int], bool], make: Callable[[int], object]) -> bool:
    """Make a block; False, and nothing made, while another process is at it."""
    if not _claim(claims, block):
        return False
    try:
        # The one that was at it may have finished between our look and our claim.
        if not done(block):
            make(block)
    finally:
        _release(claims, block)
    return True


def _claim(file: BinaryIO, start: int, length: int = 1) -> bool:
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except (BlockingIOError, PermissionError):  # the two that POSIX allows
        return False
    return True


def _release(file: BinaryIO, start: int, length: int = 1) -> None:
    import fcntl

    fcntl.lockf(file, fcntl.LOCK_UN, length, start)
