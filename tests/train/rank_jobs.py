"""What the processes of tests/train/test_ranks.py do, started as torchrun starts them, and how that is.

python rank_jobs.py FOLDER JOB
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import TCPStore
from toy import make_task, validation

from mfk import train
from mfk.core import Aux, Task, cli, ranks, tree
from mfk.core.sums import in_pairs
from mfk.data import batches_of
from mfk.optim import adamw, warmup_constant
from mfk.train import TrainConfig
from mfk.train.shards import gather_state, shards_of

CONFIG = TrainConfig(
    steps=12, batch_size=10, lr=1e-2, warmup_steps=2, min_lr=1e-3, clip=0.5, ema_decay=0.9, validate_every=4,
    checkpoint_every=3, log_every=2, jit=False, device="cpu", keep_last=None,
)  # fmt: skip


def variables(store: TCPStore, rank: int, count: int) -> dict[str, str]:
    """What torchrun tells a process. The store is in a process that outlives the ranks, as torchrun does."""
    return {
        "WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def following(dtype: torch.dtype = torch.float32) -> Task:
    """The toy task with a carried state that follows the mean of the targets, and that the loss sees."""
    plain = make_task(dtype=dtype, bad_steps=range(5, 6))

    def init(seed: int) -> tuple[Any, Any]:
        return plain.init(seed)[0], {"mean": torch.zeros((), dtype=dtype)}

    def loss(params: Any, state: Any, batch: Any, teacher: Any) -> tuple[Tensor, Tensor, Aux]:
        total, count, aux = plain.loss(params, {"calls": torch.zeros((), dtype=dtype)}, batch, teacher)
        weight = count.to(dtype)
        # So that what is carried decides about the next gradient, and the average of the parameters too.
        near = sum((p - q).square().sum() for p, q in zip(params.values(), teacher.values(), strict=True))
        total = total * (1 + state["mean"].square()) + 0.1 * weight * near
        sums = {"total": (batch["y"][:, 0] * batch["mask"]).sum(), "count": weight}
        return total, weight, Aux(sums, aux.metrics)

    def update(state: Any, sums: Any, weight: Tensor) -> tuple[Any, Any]:
        mean = 0.9 * state["mean"] + 0.1 * sums["total"] / weight
        return {"mean": mean}, {"moved": (mean - state["mean"]).abs()}

    return plain._replace(init=init, loss=loss, update=update)


def data() -> Any:
    """Rows in epochs whose last batch has fewer rows than there are ranks."""
    x = torch.randn(31, 3, generator=torch.Generator().manual_seed(0))
    return batches_of({"x": x}, 10, seed=3)


def fitted(folder: Path, name: str, **more: Any) -> None:
    """A run of the toy task, resumed where there is one."""
    run = folder / name
    config = replace(CONFIG, **more)
    train.fit(
        following(), config, run=run, record={"toy": 1}, validation=validation(3), batches=data(),
        resume=(run / "config.yaml").exists(), console=False,
    )  # fmt: skip


def stepped(folder: Path) -> None:
    """Replicated and shared out: 200 steps in float64, 50 in fp32 with micro-batches for many ranks."""
    count, wide = ranks.current().count, torch.float64
    for name, accumulate, shared, dtype in (
        ("drawn", 1, False, wide), ("parts", 4, False, wide), ("shared", 1, True, wide),
        ("four", 4, False, torch.float32), ("four shared", 4, True, torch.float32),
        ("twelve", 12, False, torch.float32), ("twelve shared", 12, True, torch.float32),
    ):  # fmt: skip
        task = following(dtype)
        optimizer = adamw(weight_decay=0.1)
        shards = shards_of(task.init(0)[0]) if shared else None
        state = train.init_state(task, optimizer, 0, ema=True, split=None if shards is None else shards.split)
        step = train.make_train_step(
            task, optimizer, warmup_constant(1e-2, 5), seed=1, batch_size=13, accumulate=accumulate, clip=0.5,
            ema_decay=0.9, shards=shards,
        )  # fmt: skip
        metrics: Any = {}
        for _ in range(200 if dtype == wide else 50):
            state, metrics = step(state, {})
        state = state if shards is None else gather_state(shards, state)
        values = [torch.as_tensor(x) for x in tree.leaves(state)]
        keep(folder / f"{name}{count}.pt", {"state": values, "metrics": metrics})


def handed_on(folder: Path) -> None:
    """A state that goes from micro-batch to micro-batch."""
    optimizer = adamw()
    task = make_task()
    step = train.make_train_step(task, optimizer, lambda _: 0.1, seed=0, batch_size=8)
    step(train.init_state(task, optimizer, 0), {})


def later(folder: Path) -> None:
    """States that one process takes: one that is NaN and stays, and one that moves at the third step."""
    optimizer, task = adamw(), make_task()

    def resting(params: Any, state: Any, batch: Any, teacher: Any) -> tuple[Tensor, Tensor, Aux]:
        total, weight, aux = task.loss(params, {"calls": torch.zeros(())}, batch, teacher)
        return total, weight, Aux({"calls": state["calls"].clone()}, aux.metrics)

    nan = task._replace(
        loss=resting, init=lambda seed: (task.init(seed)[0], {"calls": torch.tensor(torch.nan)})
    )
    step = train.make_train_step(nan, optimizer, lambda _: 0.1, seed=0, batch_size=8)
    state = train.init_state(nan, optimizer, 0)
    for _ in range(3):
        state, _ = step(state, {})

    def moving(params: Any, state: Any, batch: Any, teacher: Any) -> tuple[Tensor, Tensor, Aux]:
        total, weight, aux = task.loss(params, {"calls": torch.zeros(())}, batch, teacher)
        return total, weight, Aux({"calls": state["calls"] + (len(seen) > 2)}, aux.metrics)

    seen: list[int] = []
    step = train.make_train_step(task._replace(loss=moving), optimizer, lambda _: 0.1, seed=0, batch_size=8)
    state = train.init_state(task, optimizer, 0)
    for k in range(4):
        seen.append(k)
        state, _ = step(state, {})


def same_bits(found: Iterable[Tensor], expected: Iterable[Tensor]) -> list[bool]:
    """Whether values, shapes and dtypes are equal, one by one."""
    return [
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(list(found), list(expected), strict=True)
    ]


def told(folder: Path) -> None:
    """What ranks tell each other."""
    here = ranks.current()

    def fail() -> None:
        raise FileNotFoundError(f"rank {here.rank} has no such file")

    errors = ""
    try:
        ranks.first(fail)
    except FileNotFoundError as error:
        errors = str(error)
    ranks._BUFFER, refused = 7, ""
    shapes = [(3,), (5, 2), (), (4,), (2, 2), (20,)]
    made = [
        [torch.randn(s, generator=torch.Generator().manual_seed(100 * i + k)) for k, s in enumerate(shapes)]
        for i in range(here.count)
    ]
    for each in made:
        each[3] = each[3].double()
    same = ranks.add_up(made[here.rank])
    expected = in_pairs(made, lambda x, y: [a + b for a, b in zip(x, y, strict=True)])
    stacked = [torch.stack(x) for x in zip(*made, strict=True)]
    rows = [torch.stack([x + k for k in range(here.count)]) for x in made[here.rank]]
    own = [in_pairs([made[i][k] + here.rank for i in range(here.count)], torch.add) for k in range(6)]
    try:
        ranks.add_up(torch.ones(3, dtype=torch.int16))
    except ValueError as error:
        refused = str(error)
    tensors = {"a": torch.tensor([1.0, 2.0]) * (here.rank + 1), "b": (torch.tensor(here.rank),)}
    found = {
        "sum": ranks.add_up(tensors),
        "first": ranks.from_first({**tensors, "n": here.rank + 3}),
        "all": ranks.everyone(here),
        "highest": ranks.highest(-here.rank),
        "same": same_bits(same, expected),
        "parts": same_bits(ranks.all_parts(made[here.rank]), stacked),
        "own": same_bits(ranks.own_parts(rows), own),
        "error": errors,
        "refused": refused,
        "printed": sys.stdout is sys.__stdout__,
    }
    torch.save(found, folder / f"told{here.rank}.pt")


def stopped(folder: Path) -> None:
    """A run whose last rank gets SIGTERM in the middle of it."""
    here, task = ranks.current(), following()
    drawn = task.draw

    def draw(seed: int, step: int, *more: Any) -> Any:
        if step == 7 and here.rank == here.count - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(seed, step, *more)

    result = train.fit(
        task._replace(draw=draw), CONFIG, run=folder / "stopped", record={}, validation=validation(1),
        batches=data(), console=False,
    )  # fmt: skip
    sys.exit(128 + result.interrupted)


def lost(folder: Path, rank: int) -> None:
    """A run that a rank is lost of."""
    here, task = ranks.current(), following()
    drawn = task.draw

    def draw(seed: int, step: int, *more: Any) -> Any:
        if step == 7 and here.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn(seed, step, *more)

    train.fit(
        task._replace(draw=draw), CONFIG, run=folder / "run", record={"toy": 1}, validation=validation(3),
        batches=data(), console=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def mistaken(late: bool = False) -> None:
    """A command line that none can read; `late`: which the others find out once the first has ended."""
    first = ranks.everyone(os.getpid())[0] if late else 0
    while late and ranks.current().rank and lives(first):
        time.sleep(0.01)
    cli.parse({"default": ("", Nothing())}, prog="job", description="A job.", argv=["--config", "no.yaml"])


def lives(process: int) -> bool:
    """Whether a process has not ended; one that nobody has asked for its exit code yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def keep(path: Path, value: Any) -> None:
    """Saved by the first rank."""
    if ranks.current().rank == 0:
        torch.save(value, path)


def talking() -> list[str]:
    """The threads of this process that talk to other ranks."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            found.append((thread / "comm").read_text().strip())
    return [name for name in found if "gloo" in name]


class EndsSlowly:
    """Gives a thread that should be no more the time to ask for the interpreter, which aborts the process."""

    def __del__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        sleep(0.2)


if __name__ == "__main__":
    builtins.ends_slowly = EndsSlowly()  # pyright: ignore[reportAttributeAccessIssue]  # goes last of all
    torch.set_num_threads(1)
    folder, job, *words = Path(sys.argv[1]), *sys.argv[2:]
    jobs = {
        "stepped": lambda: stepped(folder),
        "fitted": lambda: fitted(folder, words[0], **{word: True for word in words[1:]}),
        "handed on": lambda: handed_on(folder),
        "later": lambda: later(folder),
        "told": lambda: told(folder),
        "stopped": lambda: stopped(folder),
        "lost": lambda: lost(folder, int(words[0])),
        "mistaken": mistaken,
        "mistaken late": lambda: mistaken(late=True),
    }
    try:
        cli.main(jobs[job])
    finally:
        # One that has been waited for may be on the list for a moment more.
        until = time.monotonic() + 10
        while (threads := talking()) and time.monotonic() < until:
            time.sleep(0.01)
        assert not threads, threads
