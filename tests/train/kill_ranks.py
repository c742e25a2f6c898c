"""Runs on one to three ranks that are killed at seeded moments, and gone on with: what the tests start.

python kill_ranks.py FOLDER NUMBER: one process imports everything and forks the ranks, so that a death costs
a second, and prints one JSON line a death.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Imported before the forks, which would each import them anew.
import orbax.checkpoint.experimental.v1  # noqa: F401
import rank_jobs
import tensorboardX  # noqa: F401
import torch
import yaml  # noqa: F401
from torch.distributed import TCPStore

from mfk.core import cli
from mfk.train import checkpoint

COUNTS = (1, 2, 3)


def start(run: Path, count: int, deaths: dict[int, dict[str, Any]]) -> list[int]:
    """Run or go on with `run` on so many ranks, some of which die; their exit codes, or minus the signal."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    children = []
    for rank in range(count):
        number = os.fork()
        if not number:
            os.environ |= rank_jobs.variables(store, rank, count)
            os._exit(live(run, deaths.get(rank, {})))
        children.append(number)
    codes = {}
    while len(codes) < count:
        number, status = os.wait()
        codes[number] = os.waitstatus_to_exitcode(status)
    return [codes[number] for number in children]


def live(run: Path, death: dict[str, Any]) -> int:
    """One rank: killed `after` seconds, or at its `write`-th change of files while a checkpoint is saved."""
    if "after" in death:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, death["after"])
    events, saving, save = [0], [False], checkpoint.save

    def watched(*args: Any, **settings: Any) -> Any:
        saving[0] = True
        try:
            return save(*args, **settings)
        finally:
            saving[0] = False

    def hook(event: str, args: Any) -> None:
        written = event == "open" and isinstance(args[1], str) and args[1][0] in "wax"
        if saving[0] and (written or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")):
            events[0] += 1
            if events[0] == death.get("write"):
                os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save = watched
    sys.addaudithook(hook)
    try:
        cli.main(lambda: rank_jobs.fitted(run.parent, run.name))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException as error:
        print(f"{run}: {error!r}", file=sys.stderr, flush=True)
        return 1
    if os.environ["RANK"] == "0":
        # Read here: tensorstore, which orbax reads with, lets no process fork that has used it.
        saved = checkpoint.find(run)
        read = checkpoint._read(saved, list(saved.leaves))
        end = {name: torch.from_numpy(x.copy()) for name, x in read.items()}
        torch.save({"leaves": end, "events": events[0]}, run.with_suffix(".pt"))
    return 0


def leaves(run: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint of a run that has ended."""
    return torch.load(run.with_suffix(".pt"))["leaves"]


def digest(run: Path) -> str:
    """Of that checkpoint."""
    return hashlib.sha256(b"".join(x.numpy().tobytes() for _, x in sorted(leaves(run).items()))).hexdigest()


def steps(run: Path) -> list[int]:
    """Of the run's complete checkpoints."""
    return [c.step for c in checkpoint.saved(run / "checkpoints")]


def main(root: Path, number: int) -> None:
    """Kill, go on, compare."""
    torch.set_num_threads(1)
    whole, seconds, events = {}, {}, 0
    for count in COUNTS:
        for name in ("first", "whole"):
            begun = time.monotonic()
            assert start(root / f"{name}{count}", count, {}) == [0] * count
            took = time.monotonic() - begun
            seconds[count] = min(seconds.get(count, took), took)
        assert digest(root / f"first{count}") == digest(root / f"whole{count}")
        whole[count] = digest(root / f"whole{count}")
        events = torch.load(root / f"whole{count}.pt")["events"]
    one, every = leaves(root / "whole1"), steps(root / "whole1")
    draw = random.Random(0)
    for n in range(number):
        run, count = root / str(n), COUNTS[n % 3]
        victim = draw.randrange(count)
        death: dict[str, Any] = {"after": draw.uniform(0.02, 1.0) * seconds[count]}
        if draw.random() < 0.5:
            victim, death = 0, {"write": draw.randrange(1, events * 3 // 4)}
        victims = {rank: death for rank in range(count)} if draw.random() < 0.2 else {victim: death}
        while not any(codes := start(run, count, victims)) and "after" in death:
            # The end came before, on a machine that is less busy than it was: once more, and sooner.
            death["after"] /= 2
            shutil.rmtree(run)
        killed = [rank for rank, code in enumerate(codes) if code == -signal.SIGKILL]
        # Who is left says that another has gone, and ends.
        assert killed and set(codes) <= {0, 2, -signal.SIGKILL}, codes
        before = steps(run)
        on = count if draw.random() < 0.6 else draw.choice([c for c in COUNTS if c != count])
        assert start(run, on, {}) == [0] * on
        assert steps(run) == every and set(before) <= set(every)
        if on == count:
            assert digest(run) == whole[count], (n, victims)
        else:
            found = leaves(run)
            assert found.keys() == one.keys()
            for name, x in one.items():
                assert torch.allclose(found[name].double(), x.double(), rtol=1e-5, atol=1e-6), (n, name)
        print(
            json.dumps({"ranks": count, "then": on, "death": death, "killed": killed, "complete": before}),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
