"""Signals whose handlers raise, while a checkpoint is written or read."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mfk.train import Guard, TrainState, checkpoint
from mfk.train.interrupt import postponed


class Died(RuntimeError):
    """What the handler of SIGCHLD raises."""


def died(number: int, frame: object) -> None:
    raise Died(str(number))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a training with workers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, died)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def amid(call: Callable[..., Any], *numbers: signal.Signals) -> Callable[..., Any]:
    """The call, in whose middle signals come."""

    def signalled(*arguments: Any) -> Any:
        for number in numbers:
            os.kill(os.getpid(), number)
        return call(*arguments)

    return signalled


def state() -> TrainState:
    guard: Any = [torch.tensor(0)] * 5
    return TrainState(3, {"w": torch.arange(3.0)}, {}, {}, None, Guard(*guard))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGCHLD, Died)], ids=["int", "chld"]
)
def test_a_checkpoint_is_written_and_read_before_the_handler_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, error: type[BaseException]
) -> None:
    write, read = checkpoint.write_arrays, checkpoint.read_arrays
    monkeypatch.setattr(checkpoint, "write_arrays", amid(write, number))
    monkeypatch.setattr(checkpoint, "read_arrays", amid(read, number))
    with pytest.raises(error):
        checkpoint.save(tmp_path, state())
    assert checkpoint.find(tmp_path).step == 3
    with pytest.raises(error):
        checkpoint.load(tmp_path, state())
    monkeypatch.setattr(checkpoint, "read_arrays", read)
    assert torch.equal(checkpoint.load(tmp_path, state()).params["w"], torch.arange(3.0))


def test_two_workers_that_die_wait_and_a_second_interrupt_does_not() -> None:
    passed = []
    with pytest.raises(Died), postponed(signal.SIGINT, signal.SIGCHLD):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGCHLD)
            passed.append(1)
    assert len(passed) == 3
    with pytest.raises(KeyboardInterrupt), postponed(signal.SIGINT, signal.SIGCHLD):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            passed.append(2)
    assert passed.count(2) == 1
    assert signal.getsignal(signal.SIGCHLD) is died


def test_an_error_of_the_block_comes_first() -> None:
    with pytest.raises(OSError, match="full"), postponed(signal.SIGINT):
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("full")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_elsewhere_nothing_is_held_back() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with postponed(signal.SIGCHLD):
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    seen: list[object] = []

    def work() -> None:
        with postponed(signal.SIGINT):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
