"""A program for tests: data sets made by processes that are forked side by side, and killed.

python generate_by_ranks.py KIND FOLDER NUMBER_OF_KILLS
"""

from __future__ import annotations

import faulthandler
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import zarr  # noqa: F401  once, before processes are forked that need it
from torch.distributed import TCPStore

from mfk import kinematics
from mfk.core import cli
from mfk.data import generate_ik, generate_irf, generate_operators, ik_generate, irf_generate, operators

EVENTS = ("mkdir", "posix_fallocate", "pwrite", "ftruncate", "fsync", "replace", "rename", "unlink", "rmdir")
LIMIT = 60  # seconds in which processes must end by themselves

KINDS: dict[str, tuple[str, Callable[[Path], object], int]] = {
    # name of the data set, how it is made, changes of the disk that a process may make
    "ik": ("x.pt", lambda path: generate_ik(path, kinematics.panda(), rows=700), 90),
    "irf": ("x", lambda path: generate_irf(path, ["nk", "lss"], samples=180), 110),
    "operators": ("x.h5", lambda path: generate_operators(path, 7, realisations=2, grid=16, steps=50), 60),
}

stores: list[TCPStore] = []  # through which ranks find each other, kept by this process, as torchrun does


def content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


def die_at(event: int) -> None:
    """Let this process die of SIGKILL at its event-th change of the disk."""
    on_event(event, lambda: os.kill(os.getpid(), signal.SIGKILL), EVENTS)


def full_at(event: int) -> None:
    """Let the disk be full for this process from its event-th write on."""

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    on_event(event, refuse, ("pwrite", "fsync"))


def on_event(event: int, act: Callable[[], None], names: tuple[str, ...]) -> None:
    left = event

    def acting(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left <= 0:
                act()
            return call(*arguments, **options)

        return wrapped

    for name in names:
        setattr(os, name, acting(getattr(os, name)))


def start(
    count: int, make: Callable[[], object], before: dict[int, Callable[[], None]], log: Path
) -> list[int]:
    """The process ids of `count` ranks; `before` is called in the rank of its number."""
    stores[:] = [TCPStore("127.0.0.1", 0, is_master=True)]
    found = []
    for rank in range(count):
        pid = os.fork()
        if pid:
            found.append(pid)
            continue
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        faulthandler.enable(file=2)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[0].port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip

        def program(rank: int = rank) -> None:
            before.get(rank, lambda: None)()
            make()

        try:
            cli.main(program)
        except SystemExit as error:
            os._exit(error.code if isinstance(error.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return found


def ended(pids: list[int], log: Path, kill_rest: bool = False) -> list[int]:
    """The exit codes of processes, all of which end; with `kill_rest`, as torchrun does, once one fails."""
    codes: dict[int, int] = {}
    limit = time.monotonic() + LIMIT
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(status[1])
                if codes[pid] and kill_rest:
                    for other in set(pids) - codes.keys():
                        os.kill(other, signal.SIGKILL)
        if time.monotonic() > limit:
            for other in set(pids) - codes.keys():
                os.kill(other, signal.SIGABRT)  # it leaves a traceback in the log
                os.waitpid(other, 0)
            raise AssertionError(f"processes {pids} have not ended: {codes}\n{log.read_text()}")
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def same(path: Path, make: Callable[[], object], whole: dict[str, bytes], log: Path) -> None:
    for count in (2, 3):
        assert ended(start(count, make, {}, log), log) == [0] * count, log.read_text()
        assert content(path) == whole, count
        assert sorted(os.listdir(path.parent)) == ["log", path.name], os.listdir(path.parent)
        remove(path)


def kills(
    path: Path, make: Callable[[], object], whole: dict[str, bytes], log: Path, number: int, most: int
) -> None:
    draw = random.Random(number)
    died = resumed = 0
    while died < number:
        resumed += path.with_name(path.name + ".parts").is_dir()
        count = draw.choice((1, 2, 2, 3))
        victim, event, kill_rest = draw.randrange(count), draw.randint(1, most), draw.random() < 0.7
        case = (died, count, victim, event, kill_rest)
        codes = ended(start(count, make, {victim: lambda event=event: die_at(event)}, log), log, kill_rest)
        died += codes[victim] == -signal.SIGKILL
        assert {*codes} <= {0, 2, -signal.SIGKILL}, (case, codes, log.read_text())
        if os.path.lexists(path):
            assert content(path) == whole, case
            # What may be left is the folder, which the same call would remove.
            if (work := path.with_name(path.name + ".parts")).is_dir():
                ended(start(1, make, {}, log), log)
            assert not work.exists() and content(path) == whole, case
            remove(path)
    assert ended(start(2, make, {}, log), log) == [0, 0], log.read_text()
    assert content(path) == whole and sorted(os.listdir(path.parent)) == ["log", path.name]
    print(died, resumed)


def slow() -> None:
    """Let this process leave blocks to the others."""
    on_event(1, lambda: time.sleep(0.03), ("fsync",))


def full(path: Path, make: Callable[[], object], whole: dict[str, bytes], log: Path) -> None:
    for full_rank, event in ((0, 12), (1, 3)):
        before = {full_rank: partial(full_at, event), 1 - full_rank: slow}
        codes = ended(start(2, make, before, log), log)
        assert codes == [2, 2] and not path.exists(), (codes, log.read_text())
        told = [line for line in log.read_text().splitlines() if line.startswith("error:")]
        assert len(told) == 1 and "cannot be written: No space left on device. What" in told[0], told
        log.unlink()
        assert ended(start(2, make, {}, log), log) == [0, 0], log.read_text()
        assert content(path) == whole
        remove(path)


def locked(path: Path, make: Callable[[], object], whole: dict[str, bytes], log: Path) -> None:
    """While any rank of a call lives, another call is refused."""
    here = path.parent / "here"

    def wait() -> None:
        here.touch()
        time.sleep(LIMIT)

    pids = start(2, make, {0: slow, 1: lambda: on_event(3, wait, ("pwrite", "fsync"))}, log)
    limit = time.monotonic() + LIMIT
    while not here.exists():
        assert time.monotonic() < limit, log.read_text()
        time.sleep(0.002)
    for _ in range(2):
        log.unlink(missing_ok=True)
        assert ended(start(1, make, {}, log), log) == [2], log.read_text()
        assert re.fullmatch(r"error: \S+: another process is writing it\. .*\n", log.read_text())
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(0.1)
    os.kill(pids[1], signal.SIGKILL)
    assert ended(pids, log) == [-signal.SIGKILL] * 2
    here.unlink()
    assert ended(start(1, make, {}, log), log) == [0]
    assert content(path) == whole
    remove(path)


def remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def main() -> None:
    # Here, not at the import: the tests that import this see the modules as they are.
    ik_generate.BLOCK, irf_generate.BLOCK, operators.BLOCK = 64, 50, 2
    os.fsync = lambda descriptor: None  # SIGKILL loses nothing that the system was given
    kind, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    name, generate, most = KINDS[kind]
    path, log = folder / name, folder / "log"

    def make() -> None:
        generate(path)

    assert ended(start(1, make, {}, log), log) == [0], log.read_text()
    whole = content(path)
    remove(path)
    same(path, make, whole, log)
    full(path, make, whole, log)
    locked(path, make, whole, log)
    kills(path, make, whole, log, number, most)


if __name__ == "__main__":
    main()
