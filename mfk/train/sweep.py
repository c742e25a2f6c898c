"""Sweeps: one experiment run with each combination of settings, resumable, ending in one table and one plot.

``outputs/sweeps/<experiment>/001`` holds sweep.json (what is swept, written first), runs/<combination>/ (what
the experiment writes, its console.log, and outcome.json: how it ended) and the report, see
`mfk.train.sweep_report`.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mfk.core.files import write_atomically
from mfk.train import runs
from mfk.train import sweep_process as processes
from mfk.train.interrupt import interruptible
from mfk.train.sweep_check import check
from mfk.train.sweep_grid import OWN, Experiment, Run, differences, flags_of, make_runs, split_words
from mfk.train.sweep_process import cores, say
from mfk.train.sweep_report import write_report
from mfk.train.sweep_rows import read_row

RECORD, RUNS, BUSY = "sweep.json", "runs", ".running"


@dataclass(frozen=True)
class _Options:
    """The sweep's own flags."""

    jobs: int | None = None  # None: as many as it began with, or one
    out: str | None = None
    resume: str | None = None  # "" for the newest
    dry_run: bool = False


class _Sweep(NamedTuple):
    experiment: Experiment
    command: list[str]  # preset and flags
    runs: list[Run]
    jobs: int
    threads: int | None  # of each run; None: each says itself, or takes torch's choice


def sweep(experiment: Experiment, words: Sequence[str], root: Path | str = "outputs/sweeps") -> int:
    """Run `experiment` once for each combination of the flags' values in `words`.

    The sweep's own flags are ``--jobs N``, ``--out DIR``, ``--resume [DIR]`` and ``--dry-run``. Before a new
    sweep has a folder, every combination is parsed, and tried with the experiment's own --dry-run
    unless it differs from another in the seed alone. A signal is passed on to the runs, which save.

    Args:
        experiment: the script and its presets.
        words: the command line after the experiment's name.
        root: numbered sweeps live in ``<root>/<experiment>``.

    Returns:
        The exit code: 0, 1 if a run failed, 128 + the number of the signal that stopped the sweep.

    Raises:
        ValueError: a mistake on the command line, settings that the experiment refuses, or a folder that
            holds another grid.
        OSError: the folder is missing, cannot be written, or another sweep works in it.
    """
    names, flags = split_words(words, {*flags_of(experiment), *OWN})
    options = _options({name: flags.pop(name) for name in OWN if name in flags})
    command = [*names, *(word for flag, values in flags.items() for word in (f"--{flag}", *values))]
    folder = _existing(experiment, options, Path(root))
    record = {} if folder is None else _read_record(folder, experiment)
    if record and not command:
        command = record["command"]
        names, flags = split_words(command, flags_of(experiment))
    combinations = make_runs(experiment, names, flags)
    jobs = options.jobs or record.get("jobs", 1)
    threads = record["threads"] if record else _threads(experiment, combinations, flags, jobs)
    plan = _Sweep(experiment, command, combinations, jobs, threads)
    now = _record(plan)
    if record and (changed := differences(_settings(record), _settings(now))):
        raise ValueError(
            f"{folder}: holds another sweep: {'; '.join(changed)}. Give another --out, or the settings of "
            f"then: {_command(experiment, record['command'])}"
        )
    begun = {r.name for r in combinations if folder and (folder / RUNS / r.name / runs.CONFIG).exists()}
    check(experiment, [run for run in combinations if run.name not in begun])
    if options.dry_run:
        say(f"{experiment.name}: {len(combinations)} runs, {_at_once(plan)}")
        for run in combinations:
            say(f"  {run.name}: {shlex.join([experiment.script.name, *run.words])}")
        return 0
    if folder is None:
        folder = runs.claim_run(options.out, experiment.name, root)
    if record and jobs > record["jobs"]:
        say("note: more runs at a time than at the start; each keeps the number of threads of then")
    with runs.locked(folder):
        if not record:
            if (folder / RECORD).exists():
                raise FileExistsError(f"{folder}: another sweep has just begun there; give another --out")
            write_atomically(folder / RECORD, json.dumps(now, indent=2) + "\n")
        return _run(plan, folder)


def _options(flags: Mapping[str, list[str]]) -> _Options:
    limits = {"jobs": (1, 1), "out": (1, 1), "resume": (0, 1), "dry-run": (0, 0)}
    for name, words in flags.items():
        least, most = limits[name]
        if not least <= len(words) <= most:
            expected = "no value" if most == 0 else f"{'at most ' if least == 0 else ''}one value"
            came = " ".join(words) or "none"
            raise ValueError(f"--{name}: a flag of the sweep itself, expected {expected}, got {came}")
    jobs = flags["jobs"][0] if "jobs" in flags else None
    if jobs is not None and not (jobs.isdecimal() and int(jobs) >= 1):
        raise ValueError(f"--jobs: expected a whole number of at least 1, got {jobs}")
    out = flags["out"][0] if "out" in flags else None
    resume = (flags["resume"] or [""])[0] if "resume" in flags else None
    if out is not None and resume and Path(out).resolve() != Path(resume).resolve():
        raise ValueError(f"--out: a resumed sweep goes on in its own folder, {resume}; got {out}")
    return _Options(None if jobs is None else int(jobs), out, resume, "dry-run" in flags)


def _existing(experiment: Experiment, options: _Options, root: Path) -> Path | None:
    """The folder of the sweep to go on with; None for a new one."""
    if options.resume is None:
        out = None if options.out is None else Path(options.out)
        return out if out is not None and (out / RECORD).is_file() else None
    # The link may point elsewhere by the time that somebody reads this path.
    latest = root / experiment.name / "latest"
    latest = latest.parent / os.readlink(latest) if latest.is_symlink() else latest
    folder = Path(options.resume or options.out or latest)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"--resume: {folder} is not the folder of a sweep: it has no {RECORD}")
    return folder


def _read_record(folder: Path, experiment: Experiment) -> dict[str, Any]:
    record = processes.read_json(folder / RECORD)
    expected = ("experiment", "command", "jobs", "threads", "settings", "runs")
    if missing := [name for name in expected if name not in record]:
        raise ValueError(f"{folder / RECORD}: expected the record of a sweep, it lacks {', '.join(missing)}")
    if record["experiment"] != experiment.name:
        raise ValueError(f"{folder}: holds a sweep of {record['experiment']}, not of {experiment.name}")
    return record


def _threads(
    experiment: Experiment, combinations: Sequence[Run], flags: Mapping[str, list[str]], jobs: int
) -> int | None:
    """The threads of each run where several run at once and nothing else says how many."""
    flag = flags_of(experiment).get("threads")
    if flag is None or "threads" in flags or any(run.settings[flag.key] is not None for run in combinations):
        return None
    at_once = min(jobs, len(combinations))
    return None if at_once == 1 else max(1, cores() // at_once)


def _command(experiment: Experiment, words: Sequence[str]) -> str:
    return shlex.join(["sweep.py", experiment.name, *words])


def _at_once(plan: _Sweep) -> str:
    text = "one after the other" if plan.jobs == 1 else f"{plan.jobs} at a time"
    if plan.threads is not None:
        text += f", --threads {plan.threads} each"
    return text


def _record(plan: _Sweep) -> dict[str, Any]:
    """What sweep.json says; each setting once, with the runs those that are not the same in all."""
    first = plan.runs[0].settings
    shared = {k: x for k, x in first.items() if all(run.settings[k] == x for run in plan.runs)}
    return {
        "experiment": plan.experiment.name,
        "command": plan.command,
        "jobs": plan.jobs,
        "threads": plan.threads,
        "runs": {r.name: {k: x for k, x in r.settings.items() if k not in shared} for r in plan.runs},
        "settings": shared,
    }


def _settings(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: record["settings"] | own for name, own in record["runs"].items()}


def _run(plan: _Sweep, folder: Path) -> int:
    """Start what is not finished, wait for it, and report."""
    total = len(plan.runs)
    with processes.nobody_else(folder / BUSY) as busy, interruptible() as signalled:
        left = [r for r in plan.runs if processes.read_outcome(folder / RUNS / r.name).code != 0]
        kept = f", {total - len(left)} of them finished before" if len(left) < total else ""
        say(f"sweep: {folder}, {total} runs of {plan.experiment.name}{kept}; {_at_once(plan)}")
        _work(plan, folder, left, busy, signalled)
        received = signalled() or 0
    rows = [read_row(run, folder / RUNS / run.name) for run in plan.runs]
    command = _command(plan.experiment, plan.command)
    table, files = write_report(folder, plan.experiment.name, command, rows, plan.jobs)
    unfinished = sum(row.status != "finished" for row in rows)
    if not received:
        say(f"\n{table}\n")
    say("wrote " + ", ".join(str(file) for file in files))
    if unfinished:
        say(
            f"{total - unfinished} of {total} runs finished; runs/*/{processes.CONSOLE} has their output. "
            f"Go on with: python experiments/sweep.py {plan.experiment.name} --resume {folder}"
        )
    return 128 + received if received and unfinished else int(unfinished > 0)


def _work(
    plan: _Sweep, folder: Path, waiting: list[Run], busy: int, signalled: Callable[[], int | None]
) -> None:
    """Have the `waiting` runs at work, `plan.jobs` at a time, until all have ended, or a signal has come."""
    running: list[processes.Process] = []
    times: list[float] = []
    stopping = False

    def title(run: Run) -> str:
        return f"[{plan.runs.index(run) + 1}/{len(plan.runs)}] {run.name}"

    try:
        while waiting or running:
            if signalled() is not None and not stopping:
                stopping, waiting = True, []
                say(f"stopping {len(running)} running; they save first (once more: stop at once)")
                for process in running:
                    process.stop()
            while waiting and len(running) < plan.jobs:
                run, waiting = waiting[0], waiting[1:]
                running.append(
                    processes.start(plan.experiment, run, folder / RUNS / run.name, plan.threads, busy)
                )
                say(f"{title(run)}: started")
            time.sleep(0.05)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                ended = process.record()
                if ended.code == 0:
                    times.append(ended.seconds)
                row = read_row(process.run, process.folder)
                left = _left(times, [p.before + p.elapsed() for p in running], len(waiting), plan.jobs)
                say(f"{title(process.run)}: {row.status}, {row.result()}{left}")
                if ended.has_failed:
                    say(processes.tail(process.output(), 8, "    "))
    finally:
        for process in running:
            process.stop()
            process.popen.wait()


def _left(times: Sequence[float], running: Sequence[float], waiting: int, jobs: int) -> str:
    if not (running or waiting):
        return ""
    if not times:
        return f"  ({len(running) + waiting} left)"
    mean = sum(times) / len(times)
    seconds = int((waiting * mean + sum(max(mean - x, 0.0) for x in running)) / jobs)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"  ({len(running) + waiting} left, ETA {clock})"
