"""Ctrl-C, SIGTERM and a closed terminal as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], int | None]]:
    """Yield a function that tells the number of the signal that has come in, or None.

    The first SIGINT, SIGTERM or SIGHUP only leaves a note. The previous handlers are back from then on,
    so that a second signal does what it always did: stop at once. Outside the main thread,
    where Python takes no handlers, nothing is installed.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if previous[signal.SIGHUP] is signal.SIG_IGN:  # nohup: the run is to outlive its terminal
        del previous[signal.SIGHUP]

    def restore() -> None:
        for number, handler in previous.items():
            # None stands for a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take(number: int, frame: object) -> None:
        received.append(number)
        restore()

    for number in previous:
        signal.signal(number, take)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()


@contextmanager
def postponed(*numbers: signal.Signals) -> Iterator[None]:
    """Have the handlers of these signals wait for the end of the block.

    They raise wherever the main thread is. In a library that waits for threads of its own these are left
    waiting, and the process with them when it is to end. A second SIGINT is let through: whatever the block
    waits for, a user can leave it. Outside the main thread nothing is held back, nor what Python does not
    handle.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    previous = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            previous[signal.SIGINT](number, frame)
        came.append(number)

    for number in previous:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in dict.fromkeys(came):
        previous[signal.Signals(number)](number, None)
