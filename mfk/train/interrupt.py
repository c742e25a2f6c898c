"""Ctrl-C, SIGTERM and a closed terminal as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
