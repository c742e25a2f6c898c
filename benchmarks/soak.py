"""Trainings for an hour, or as long as asked: memory, file handles and throughput stay where they are.

More than half of the time is one inverse-kinematics training in one process, compiled, with small batches and
frequent validations, checkpoints and logs, sampled from outside; it ends with SIGTERM. In the rest every
system makes its data file, trains in fresh processes that SIGTERM stops and --resume continues, and then
trains again and again in one process. Each of these is done once at least, however short the time.

Claims: memory grows by less than 2 % an hour or 10 MB; descriptors and threads stay as many; a second of CPU
time makes as many rows, less 5 %; no zombie, process or temporary file is left; every record of an
interrupted run is there once. CPU time, since other work may share the machine; a fixed piece of work beside
it (control) tells whether the machine itself has changed. Trainings in one process are measured without
garbage and freed memory that the C library has kept: what is left grows by less than 10 MB, and what malloc
has given and not got back ("in use"), which no gaps between pieces blur, by less than 5 MB.

    python benchmarks/soak.py [--minutes 60] [--threads 1] [--systems ik motion irf stick vqvae]
        [--out FILE] [--plot FILE.png]

Ctrl-C ends it early; what was measured until then is written, and marked.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import soak_series
import torch
from soak_series import Sample
from timing import facts, report, write

from mfk.core.memory import hand_back
from mfk.train import read_history

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
LONG_SHARE = 0.55  # of the time, for the one long run; all of it where no system is asked for
LONG_BATCH = 256
GRACE = 120.0  # s that a process may take to finish its step, save and end
STOPPED = 128 + signal.SIGTERM


class System(NamedTuple):
    """How one system is trained; DATA in the words stands for the file that `data` makes."""

    script: str
    data: tuple[str, ...]  # script and words that make the data; none: made by the training
    words: tuple[str, ...]
    steps: int  # of the run that is interrupted
    loop: int  # of each training in one process


_EVERY = ("--validate-every-epochs", "None", "--checkpoint-every-epochs", "None", "--warmup-steps", "2")
_BY_STEPS = ("--epochs", "None", "--warmup-epochs", "None", *_EVERY)
SYSTEMS = {
    "ik": System(
        "panda.py",
        ("generate.py", "--num-samples", "20480", "--output", "DATA.pt"),
        ("quick", "--data", "DATA.pt", "--num-workers", "1", "--validation-poses", "200",
         "--report-poses", "200", "--batch-size", "128", "--jit", *_EVERY),
        1_000,
        20,
    ),
    "motion": System(
        "motion.py", (), ("quick", "--report-windows", "16", "--validation-windows", "8", *_EVERY), 200, 10
    ),
    "irf": System(
        "irf.py",
        ("irf.py", "generate", "--root", "DATA", "--samples", "500"),
        ("quick", "--data", "DATA", *_BY_STEPS),
        200,
        10,
    ),
    "stick": System(
        "stick.py",
        ("stick.py", "make", "--output", "DATA.pt", "--clips", "40"),
        ("quick", "--data", "DATA.pt", *_EVERY),
        100,
        10,
    ),
    "vqvae": System(
        "vqvae.py",
        ("vqvae.py", "generate", "--output", "DATA.h5", "--samples", "300"),
        ("quick", "--data", "DATA.h5", *_BY_STEPS),
        80,
        10,
    ),
}  # fmt: skip


def main() -> None:
    """Run for the asked time, print and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="in all; one of each at least")
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--out", type=Path, help="write the results as JSON to this file")
    parser.add_argument("--plot", type=Path, help="draw the series into this file, NAME.png")
    parser.add_argument("--child", nargs=3, metavar=("SYSTEM", "FOLDER", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.minutes > 0 or options.threads < 1:
        parser.error("--minutes, --threads: expected more than 0")
    if options.child:
        name, folder, seconds = options.child
        train_again_and_again(name, Path(folder), float(seconds), options.threads)
        return
    torch.set_num_threads(1)
    # A kill is to end the children too, and to keep what was measured.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: dict[str, Any] = {"minutes": options.minutes, "ended_early": False, "long": {}, "systems": {}}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        try:
            soak(Path(name), options.minutes * 60, options.threads, options.systems, results)
        except KeyboardInterrupt:
            results["ended_early"] = True
            print("ended early", flush=True)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            results |= {"ended_early": True, "error": str(error)}
            print(f"ended early: {error}", flush=True)
    results["minutes_taken"] = (time.monotonic() - begun) / 60
    checks = soak_series.claims(results)
    report(checks)
    written = {"versions": facts() | {"threads": options.threads}, **results}
    write(options.out, written | {"claims": [check.record() for check in checks]})
    if options.plot is not None:
        plot(results, options.plot)
    if "error" in results:
        raise SystemExit(1)


def soak(folder: Path, seconds: float, threads: int, systems: Sequence[str], results: dict[str, Any]) -> None:
    """Fill `results`: the long run, then a slice of the rest for each system."""
    begun = time.monotonic()
    long_run(folder / "long", (LONG_SHARE if systems else 1.0) * seconds, threads, results)
    for k, name in enumerate(systems):
        left = max(0.0, seconds - (time.monotonic() - begun)) / (len(systems) - k)
        own = results["systems"][name] = {"runs": 0, "interrupts": 0, "left": 0, "wrong": 0, "loops": {}}
        one_system(name, folder / name, left, threads, own)


def long_run(folder: Path, seconds: float, threads: int, results: dict[str, Any]) -> None:
    """One training, sampled every few seconds until SIGTERM; results["long"] is there even after Ctrl-C."""
    run, samples, control = folder / "run", [], []
    words = [
        "default", "--out", run, "--threads", threads, "--batch-size", LONG_BATCH, "--steps", 10**9,
        "--schedule", "constant", "--validation-poses", 500, "--validate-every", 100,
        "--checkpoint-every", 200, "--log-every", 20,
    ]  # fmt: skip
    every, begun, shown = min(5.0, max(0.5, seconds / 400)), time.monotonic(), 0.0
    try:
        with started(folder, "panda.py", words) as child:
            while (passed := time.monotonic() - begun) < seconds:
                time.sleep(every)
                if child.poll() is not None:
                    raise RuntimeError(f"the long run ended by itself: {tail(folder)}")
                if (found := soak_series.sample(child.pid, time.time())) is not None:
                    samples.append(found)
                control.append((time.time(), fixed_work()))
                if passed - shown > seconds / 20:
                    shown = passed
                    show("long run", passed, seconds, samples, steps_made(run))
            code = ended(child)
        left = remains(folder, child.pid)
    finally:
        records = read_history(run) if (run / "history.jsonl").is_file() else []
        results["long"] |= soak_series.long_run(samples, records, LONG_BATCH, control)
        results["long"] |= {"steps": max((r["step"] for r in records), default=0), "every": every}
    results["long"] |= {"left": left, "wrong": int(code != STOPPED) + disorder(records, 20)}


def one_system(name: str, folder: Path, seconds: float, threads: int, own: dict[str, Any]) -> None:
    """Data, interrupted runs for a third of the time, and trainings in one process for the rest."""
    system, begun, folder = SYSTEMS[name], time.monotonic(), folder.absolute()
    if system.data:
        with started(folder, system.data[0], in_folder(system.data[1:], folder)) as child:
            own["wrong"] += int(child.wait(600) != 0)
    while not own["runs"] or time.monotonic() - begun < seconds / 3:
        interrupted_run(system, folder, threads, own)
    print(f"{name}: {own['runs']} runs, {own['interrupts']} times stopped and resumed", flush=True)
    left = seconds - (time.monotonic() - begun)
    words = ["--child", name, folder, left, "--threads", threads]
    try:
        with started(folder, Path(__file__), words) as child:
            own["wrong"] += int(child.wait(max(left, 0) + 1200) != 0)
        own["left"] += remains(folder, child.pid)
    finally:
        file = folder / "loops.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        own["loops"] = soak_series.loops([json.loads(line) for line in lines])
    own["left"] += own["loops"].get("zombies", 0)
    found = {key: x for key, x in own["loops"].items() if key not in ("series", "loops")}
    print(f"{name}: {own['loops']['loops']} trainings in one process, first and last: {found}", flush=True)


def interrupted_run(system: System, folder: Path, threads: int, own: dict[str, Any]) -> None:
    """One run to its end, stopped every quarter of its steps and resumed."""
    run, log = folder / "run", max(1, system.steps // 40)
    words = [
        *in_folder(system.words, folder),
        "--out", run, "--threads", threads, "--steps", system.steps, "--log-every", log,
        "--validate-every", 5 * log, "--checkpoint-every", 3 * log,
    ]  # fmt: skip
    again, goal = False, system.steps // 4
    while True:
        with started(folder, system.script, [*words, *(["--resume"] if again else [])]) as child:
            while child.poll() is None and not goal <= steps_made(run) < system.steps:
                time.sleep(0.2)
            code = ended(child) if child.poll() is None and goal < system.steps else child.wait(600)
        own["left"] += remains(folder, child.pid)
        if code != STOPPED or goal >= system.steps:
            break
        own["interrupts"] += 1
        again, goal = True, min(max(goal, steps_made(run)) + system.steps // 4, system.steps)
    own["runs"] += 1
    own["wrong"] += int(code != 0) + disorder(read_history(run), log, system.steps)
    if code:
        print(f"{system.script}: ended with {code}: {tail(folder)}", flush=True)
    shutil.rmtree(run)


def train_again_and_again(name: str, folder: Path, seconds: float, threads: int) -> None:
    """In this process: the experiment's own command, over and over; a line of figures after each."""
    system, begun, made = SYSTEMS[name], time.monotonic(), 0
    script = str(EXPERIMENTS / system.script)
    sys.path[0] = str(EXPERIMENTS)
    words = [
        *in_folder(system.words, folder),
        "--threads", threads, "--steps", system.loop, "--log-every", 5, "--validate-every", 5,
        "--checkpoint-every", 5,
    ]  # fmt: skip
    with (folder / "loops.jsonl").open("a", encoding="utf-8") as file:
        while made < soak_series.FEWEST or time.monotonic() - begun < seconds:
            run = folder / "again"
            sys.argv = [script, *map(str, words), "--out", str(run)]
            runpy.run_path(script, run_name="__main__")
            # Garbage, and what the C library has kept of freed memory, is nothing that grows.
            gc.collect()
            hand_back()
            found, made = soak_series.sample(os.getpid(), time.time()), made + 1
            assert found is not None
            shutil.rmtree(run)
            figures = {
                "minutes": round((time.monotonic() - begun) / 60, 3),
                **found._asdict(),
                "in_use": soak_series.in_use(),
                "objects": len(gc.get_objects()),
            }
            print(json.dumps(figures), file=file, flush=True)


@contextmanager
def started(folder: Path, script: str | Path, words: Sequence[Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session and with temporary files of its own; none of the session outlives the block."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder / "tmp"),
        # What is compiled is kept on purpose.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, str(EXPERIMENTS / script), *map(str, words)]  # an absolute script stays
    with (folder / "console.log").open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield child
        except BaseException:
            kill(child.pid)
            child.wait()
            raise


def ended(child: subprocess.Popen[bytes]) -> int:
    """The exit code after SIGTERM; a process that does not end in time is killed."""
    child.send_signal(signal.SIGTERM)
    try:
        return child.wait(GRACE)
    except subprocess.TimeoutExpired:
        kill(child.pid)
        return child.wait()


def kill(session: int) -> None:
    """End every process of a session at once."""
    with suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def remains(folder: Path, session: int) -> int:
    """How many temporary files and processes an ended process has left; they are removed and killed."""
    # torch keeps its precompiled headers there on purpose, whatever folder its cache is told to be.
    left = [path for path in (folder / "tmp").iterdir() if not path.name.startswith("torchinductor_")]
    for path in left:
        print(f"left in TMPDIR: {path.name}", flush=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return len(left)
    time.sleep(1.0)  # workers notice that their parent is gone
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return len(left)
    print("left: a process", flush=True)
    return len(left) + 1


def in_folder(words: Sequence[str], folder: Path) -> list[Any]:
    """The words with DATA as a path in the folder."""
    return [str(folder / word.lower()) if word.startswith("DATA") else word for word in words]


def disorder(records: Sequence[dict[str, Any]], log: int, steps: int | None = None) -> int:
    """How many records of training are missing, twice there, or too many; until `steps`, or the last one."""
    made = [r["step"] for r in records if "train/samples_per_second" in r]
    expected = range(log, (steps or max(made, default=0)) + 1, log)
    twice = len(made) - len(set(made))
    return twice + len(set(made) ^ set(expected))


def steps_made(run: Path) -> int:
    """The step of the last record in a run's history; 0 without one."""
    try:
        with (run / "history.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            return int(json.loads(file.read().split(b"\n")[-2])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def tail(folder: Path) -> str:
    """The end of what the processes of a folder have printed."""
    return (folder / "console.log").read_text(encoding="utf-8", errors="replace")[-1500:]


def fixed_work() -> float:
    """CPU seconds of always the same matrix products."""
    x = torch.ones(256, 256)
    begun = time.thread_time()
    for _ in range(20):
        x = (x @ x).clamp(max=1.0)
    return time.thread_time() - begun


def show(what: str, passed: float, seconds: float, samples: Sequence[Sample], steps: int) -> None:
    """A line of progress."""
    now = samples[-1] if samples else None
    state = "no sample yet"
    if now is not None:
        state = f"{now.rss:.0f} MB, {now.descriptors} descriptors, {now.threads} threads"
    print(f"{what}: {passed / 60:.1f} of {seconds / 60:.1f} min, step {steps:,}, {state}", flush=True)


def plot(results: dict[str, Any], path: Path) -> None:
    """Four panels: the long run's memory, handles and throughput, and the memory of the loops."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    series, rates = results["long"].get("series", {}), results["long"].get("throughput", {})
    minutes = series.get("minutes", [])
    memory, handles = ("rss", "private", "anonymous"), ("descriptors", "threads")
    kept = {name: own["loops"].get("series") for name, own in results["systems"].items()}
    lines: list[tuple[str, str, dict[str, tuple[list[float], list[float]]]]] = [
        ("long run", "memory, MB", {k: (minutes, series[k]) for k in memory if k in series}),
        ("long run", "how many", {k: (minutes, series[k]) for k in handles if k in series}),
        (
            "long run",
            "rows a second",
            {f"of {k} time": (rates["minutes"], rates[k]) for k in ("wall", "cpu") if k in rates},
        ),
        (
            "trainings again and again in one process",
            "memory (anonymous), MB",
            {name: (own["minutes"], own["anonymous"]) for name, own in kept.items() if own},
        ),
    ]
    for axes, (title, label, drawn) in zip(panels, lines, strict=True):
        for name, (x, y) in drawn.items():
            axes.plot(x, y, label=name, linewidth=1.2)
        if drawn:
            axes.legend(fontsize=8)
        axes.set(title=title, xlabel="minutes", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
