"""One global batch on 1, 2 and 4 processes: the same parameters? What is sent, what a step takes and holds.

Claims: with as many micro-batches, the parameters after 200 steps are those of one process, in float64 to
1e-12 (to 1e-10 where an argmin decides), in fp32 to a relative norm of 5e-6, replicated and shared out; with
a micro-batch for each process ("by rank": rows are added in another order) the first gradient to 1e-5 and
the validation's loss to 1 %; a sharded model takes less memory a rank.

What is trained is what the experiments train: their `run`, stopped where the training would begin.

    python benchmarks/ranks.py [--ranks 1 2 4] [--steps 200] [--systems ik motion irf vqvae] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import Check, facts, report, write
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import inverse_kinematics
import irf as irf_script
import motion as motion_script
import panda as panda_script
import stick as stick_script
import vqvae as vqvae_script

from mfk import train
from mfk.core import ranks, tree
from mfk.core.types import Batch, Optimizer, Rows, Task, Tree
from mfk.train.config import in_steps, make_optimizer, make_schedule
from mfk.train.shards import gather_state, shards_of
from mfk.train.state import TrainState
from mfk.train.validate import validation_metrics

SYSTEMS = ("ik", "motion", "irf", "vqvae")
MODES = ("float64", "float64 sharded", "float32", "float32 sharded", "float32 by rank")
_BATCH, _PARTS, _TOKENS = 64, 4, "operators.h5"
_MEMORY = ("replicated", "sharded")


class Problem(NamedTuple):
    """What an experiment would train."""

    task: Task
    settings: Any
    more: dict[str, Any]  # the other arguments of `mfk.train.launch`


class _Caught(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem


def main() -> None:
    """Measure, print and write what came out; or be one of the processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory of stick.py large")
    parser.add_argument("--out", type=Path, default=None, help="of a file that exists other rows are kept")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process's results
    parser.add_argument("--memory", choices=_MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ranks[0] != 1:
        parser.error(f"--ranks: expected 1 first, with which the others are compared, got {options.ranks}")
    if options.folder is not None:
        torch.set_num_threads(1)
        with ranks.joined():
            if options.memory:
                hold(options.folder, options.memory)
            else:
                work(options)
        return
    with tempfile.TemporaryDirectory() as name:
        compare(options, Path(name))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Start the processes for each number of them, and put their results side by side."""
    if "vqvae" in options.systems:
        script = Path(vqvae_script.__file__)
        words = [str(script), "generate", "--output", _TOKENS, "--samples", "400"]
        subprocess.run([sys.executable, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    words = [
        "--steps", str(options.steps), "--systems", *options.systems, "--modes", *options.modes,
    ]  # fmt: skip
    for count in options.ranks if options.systems else ():
        begun = time.perf_counter()
        launch(count, [*words, "--folder", str(folder)], folder)
        print(f"# {count} processes: {time.perf_counter() - begun:.0f} s")
    table = []
    for system in options.systems:
        for mode in options.modes:
            alike = mode.removesuffix(" sharded")
            if not (folder / f"{system} {alike} 1.pt").exists():
                continue
            alone = torch.load(folder / f"{system} {alike} 1.pt", weights_only=True)
            for count in options.ranks:
                file = folder / f"{system} {mode} {count}.pt"
                if not file.exists():
                    continue
                found = torch.load(file, weights_only=True)
                table.append({"system": system, "mode": mode, "ranks": count} | against(found, alone))
    memory: list[dict[str, Any]] = []
    if not options.no_memory:
        for kind in _MEMORY:
            for count in options.ranks:
                launch(count, ["--folder", str(folder), "--memory", kind], folder)
                memory.append(
                    {
                        "kind": kind,
                        "ranks": count,
                        **torch.load(folder / f"memory {kind} {count}.pt", weights_only=True),
                    }
                )
    if options.out is not None and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        order = [(system, mode) for system in SYSTEMS for mode in MODES]
        made = {(row["system"], row["mode"]) for row in table}
        table += [row for row in before["table"] if (row["system"], row["mode"]) not in made]
        table.sort(key=lambda row: (order.index((row["system"], row["mode"])), row["ranks"]))
        memory = memory or before["memory"]
    checks = [check for row in table for check in claims(row)] + lighter(memory)
    for row in table:
        print(
            f"{row['system']:8}{row['mode']:17}{row['ranks']} ranks  largest {row['largest']:.1e}  "
            f"norm {row['norm']:.1e}  gradient {row['gradient']:.1e}  val {row['validation']:.1e}  "
            f"{row['milliseconds']:.1f} ms  {row['kilobytes']:.0f} kB"
        )
    for row in memory:
        print(f"stick large, {row['kind']}, {row['ranks']} ranks: {row['megabytes']:.0f} MB a rank")
    report(checks)
    write(
        options.out,
        {"versions": facts(), "steps": options.steps, "batch": _BATCH, "table": table, "memory": memory,
         "checks": [check.record() for check in checks]},
    )  # fmt: skip


def against(found: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    """How far a result is from that of one process, and what it took."""
    pairs = list(zip(found["params"], alone["params"], strict=True))
    slopes = list(zip(found["gradient"], alone["gradient"], strict=True))
    return {
        "largest": max(float((x - y).abs().max()) for x, y in pairs if x.numel()),
        "norm": _relative(pairs),
        "gradient": _relative(slopes),
        "validation": abs(found["val_loss"] / alone["val_loss"] - 1),
        "milliseconds": found["milliseconds"],
        "kilobytes": found["kilobytes"],
    }


def lighter(memory: list[dict[str, Any]]) -> list[Check]:
    """What a model that is shared out must save, of several processes."""
    held = {(m["kind"], m["ranks"]): m["megabytes"] for m in memory}
    return [
        Check(f"stick large, {n} ranks: memory sharded / replicated", held["sharded", n] / whole, 1.0)
        for (kind, n), whole in held.items()
        if kind == "replicated" and n > 1
    ]


def claims(row: dict[str, Any]) -> list[Check]:
    """What a row must keep to; nothing for the one that the others are compared with."""
    if row["ranks"] == 1 and "sharded" not in row["mode"]:
        return []
    name = f"{row['system']}, {row['mode']}, {row['ranks']} ranks: "
    if row["mode"].startswith("float64"):
        # In vqvae an argmin decides.
        limit = 1e-10 if row["system"] == "vqvae" else 1e-12
        return [Check(f"{name}largest difference of a parameter", row["largest"], limit)]
    checks = [
        Check(f"{name}first gradient, relative", row["gradient"], 1e-5),
        Check(f"{name}validation's loss, relative", row["validation"], 1e-2),
    ]
    if row["mode"] != "float32 by rank":
        checks.append(Check(f"{name}parameters, relative norm", row["norm"], 5e-6))
    return checks


def launch(count: int, words: list[str], folder: Path) -> None:
    """Run this script in so many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *words],
            cwd=folder,
            env=os.environ | shared | {"RANK": str(i), "LOCAL_RANK": str(i), "OMP_NUM_THREADS": "1"},
        )
        for i in range(count)
    ]
    codes = [process.wait() for process in started]
    if any(codes):
        raise SystemExit(f"processes ended with {codes}")


def work(options: argparse.Namespace) -> None:
    """Train every system in every mode, and leave the results in the folder."""
    for system in options.systems:
        for mode in options.modes:
            problem = problem_of(system, options.folder)
            if problem.task.coupled and mode == "float32 by rank":
                continue  # a loss that couples the rows of a micro-batch would be another one
            found = trained(problem, mode, options.steps)
            if ranks.current().rank == 0:
                torch.save(found, options.folder / f"{system} {mode} {ranks.current().count}.pt")


def problem_of(system: str, folder: Path) -> Problem:
    """What the experiment would train, small, with a batch of 64 rows."""
    script, run = {
        "ik": (panda_script, lambda s: inverse_kinematics.run("panda", s)),
        "motion": (motion_script, motion_script.run),
        "irf": (irf_script, irf_script.run),
        "vqvae": (vqvae_script, vqvae_script.run),
        "stick": (stick_script, stick_script.run),
    }[system]
    settings: Any = script.PRESETS["large" if system == "stick" else "quick"][1]
    settings = replace(
        settings, train=replace(settings.train, batch_size=_BATCH, device="cpu", ema_decay=0.99)
    )
    if system == "irf":
        settings = replace(settings, data=replace(settings.data, samples=500))
    if system == "vqvae":
        settings = replace(settings, data=replace(settings.data, data=folder / _TOKENS))
    if system == "stick":
        settings = replace(settings, data=replace(settings.data, clips=40))
    return caught(lambda: run(settings))


def caught(run: Callable[[], object]) -> Problem:
    """What `run` would hand to `mfk.train.launch`."""
    real = train.launch

    def stop(task: Task, settings: Any, **more: Any) -> None:
        raise _Caught(Problem(task, settings, more))

    train.launch = stop
    try:
        run()
    except _Caught as end:
        return end.problem
    finally:
        train.launch = real
    raise RuntimeError("the experiment did not come to its training")


def trained(problem: Problem, mode: str, steps: int) -> dict[str, Any]:
    """Parameters and validation after so many steps, the first gradient, time and bytes of a step."""
    dtype = getattr(torch, mode.split()[0])
    task, config = in_dtype(problem.task, dtype), problem.settings.train
    source = problem.more.get("batches")
    plan = replace(
        in_steps(config, None if source is None else source.per_epoch),
        steps=steps,
        warmup_steps=min(10, steps),
    )
    shards = shards_of(task.init(0)[0]) if "sharded" in mode else None
    optimizer, kept = keeping_first(make_optimizer(plan))
    state = train.init_state(task, optimizer, 0, ema=True, split=None if shards is None else shards.split)
    step = train.make_train_step(
        task, optimizer, make_schedule(plan), seed=0, batch_size=_BATCH,
        accumulate=1 if mode == "float32 by rank" else _PARTS, clip=plan.clip,
        ema_decay=0.99, shards=shards,
    )  # fmt: skip
    feed = None if source is None else source.start(0)
    sent = counted()
    times = []
    for _ in range(steps):
        batch = {} if feed is None else next(feed)
        begun = time.perf_counter()
        state, _metrics = step(state, batch)
        times.append(time.perf_counter() - begun)
    kilobytes = sum(sent) / steps / 1e3
    whole = state if shards is None else gather_state(shards, state)
    gradient = kept[0] if shards is None else shards.gather(kept[0])
    found = validation_metrics(task, whole, problem.more["validation"])
    return {
        "params": [x.double() for x in tree.leaves(whole.params)],
        "gradient": [x.double() for x in tree.leaves(gradient)],
        "val_loss": found["val_loss"],
        "milliseconds": statistics.median(times) * 1e3,
        "kilobytes": kilobytes,
    }


def in_dtype(task: Task, dtype: torch.dtype) -> Task:
    """The task with all its floating-point numbers in `dtype`."""

    def init(seed: int) -> tuple[Tree, Tree]:
        params, state = task.init(seed)
        return tree.cast(params, dtype), tree.cast(state, dtype)

    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        return tree.cast(task.draw(seed, step, rows, tree.cast(state, torch.float32), batch), dtype)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Tree, Tree]:
        return task.evaluate(params, state, tree.cast(batch, dtype))

    return task if dtype == torch.float32 else task._replace(init=init, draw=draw, evaluate=evaluate)


def keeping_first(optimizer: Optimizer) -> tuple[Optimizer, list[Tree]]:
    """The optimizer, and a list that takes the first gradient it is given."""
    kept: list[Tree] = []

    def update(grads: Tree, opt: Tree, params: Tree, lr: float, **more: Any) -> tuple[Tree, Tree]:
        if not kept:
            kept.append(tree.clone(grads))
        return optimizer.update(grads, opt, params, lr, **more)

    return optimizer._replace(update=update), kept


def counted() -> list[int]:
    """A list that takes the bytes of every tensor which this process puts into a collective from now on."""
    sent: list[int] = []
    for name in ("all_reduce", "all_gather", "all_to_all_single"):
        real = getattr(ranks.dist, name)
        real = getattr(real, "uncounted", real)

        def call(first: Any, *more: Any, real: Any = real) -> Any:
            given = more[0] if more and isinstance(more[0], Tensor | list) else first
            sent.append(sum(x.nbytes for x in ([given] if isinstance(given, Tensor) else given)))
            return real(first, *more)

        call.uncounted = real  # type: ignore[attr-defined]
        setattr(ranks.dist, name, call)
    return sent


def hold(folder: Path, kind: str) -> None:
    """Two steps of stick.py large, and the memory at their peak beyond that before the model was made."""
    problem = problem_of("stick", folder)
    before = _resident()
    task, config = problem.task, replace(problem.settings.train, steps=2, epochs=None, warmup_epochs=None)
    shards = shards_of(task.init(0)[0]) if kind == "sharded" else None
    optimizer = make_optimizer(config)
    state: TrainState = train.init_state(
        task, optimizer, 0, ema=True, split=None if shards is None else shards.split
    )
    count = ranks.current().count
    step = train.make_train_step(
        task, optimizer, lambda _: 1e-4, seed=0, accumulate=8, clip=1.0, ema_decay=0.99, shards=shards
    )
    feed = problem.more["batches"].start(0)
    begun = time.perf_counter()
    for _ in range(2):
        batch = {name: x[:8] for name, x in next(feed).items()}
        state, _metrics = step(state, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        "megabytes": max(ranks.everyone(peak)) - before,
        "parameters": tree.size(task.init(0)[0]),
        "seconds": (time.perf_counter() - begun) / 2,
    }
    if ranks.current().rank == 0:
        torch.save(found, folder / f"memory {kind} {count}.pt")


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _relative(pairs: list[tuple[Tensor, Tensor]]) -> float:
    distance = sum(float((x - y).square().sum()) for x, y in pairs)
    return (distance / sum(float(y.square().sum()) for _, y in pairs)) ** 0.5


if __name__ == "__main__":
    main()
