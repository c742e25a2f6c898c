"""What soak.py takes from /proc, and what its series say: levels, slopes, throughput, and the claims."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import Check

WARM_UP = 0.1  # share of a series that is left out at its beginning
BLOCKS = 20  # that slopes are drawn through: neighbouring samples are no independent ones
BINS = 120  # of a series in the results
FEWEST = 8  # samples that say something
MEGABYTES_AN_HOUR = 10.0
SHARE_AN_HOUR = 0.02
MEGABYTES_OF_A_LOOP = 10.0
MEGABYTES_IN_USE = 5.0
THREADS_OF_A_LOOP = 2.0  # a pool of tensorstore's may still fill; of ten trainings or more
Series = Sequence[float] | np.ndarray
_TICKS = os.sysconf("SC_CLK_TCK")
_LEVELS = ("rss", "private", "anonymous", "descriptors", "threads", "children")


class Sample(NamedTuple):
    """Of one process at one moment."""

    time: float  # s since 1970
    cpu: float  # s of its own, children left out
    rss: float  # MB
    private: float  # MB that no other process shares
    anonymous: float  # MB that are no file's
    descriptors: int
    threads: int
    children: int  # zombies included
    zombies: int


class Trend(NamedTuple):
    """Of a series whose warm-up is left out."""

    first: float  # median of the first quarter
    last: float  # and of the last one
    ratio: float
    highest: float
    slope: float  # an hour: Theil's and Sen's through medians of blocks
    low: float  # its 95 % interval, Kendall's
    high: float


def sample(pid: int, now: float) -> Sample | None:
    """What /proc says of a process; None if it has ended, or is ending."""
    folder = Path("/proc") / str(pid)
    try:
        memory = _kilobytes((folder / "smaps_rollup").read_text(encoding="ascii"))
        fields = _stat(folder)
        children = _children(folder)
        if not memory:
            return None
        return Sample(
            time=now,
            cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
            rss=memory["Rss"] / 1e3,
            private=(memory["Private_Clean"] + memory["Private_Dirty"]) / 1e3,
            anonymous=memory["Anonymous"] / 1e3,
            descriptors=len(os.listdir(folder / "fd")),
            threads=len(os.listdir(folder / "task")),
            children=len(children),
            zombies=sum(_state(child) == "Z" for child in children),
        )
    except (OSError, KeyError, IndexError):
        return None


class _Malloc(ctypes.Structure):
    """What mallinfo2(3) of glibc tells, in bytes and pieces."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def in_use() -> float:
    """MB that malloc has given to this process and not got back, whatever lies between them."""
    read = ctypes.CDLL(None).mallinfo2
    read.restype = _Malloc
    found = read()
    return (found.uordblks + found.hblkhd) / 1e6


def _kilobytes(text: str) -> dict[str, float]:
    found = [line.split() for line in text.splitlines()[1:]]
    return {words[0].rstrip(":"): int(words[1]) * 1.024 for words in found if words[-1] == "kB"}


def _stat(folder: Path) -> list[str]:
    # The name stands in brackets, and may hold blanks and brackets itself.
    return (folder / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def _children(folder: Path) -> list[int]:
    found: list[int] = []
    for task in os.listdir(folder / "task"):
        text = (folder / "task" / task / "children").read_text(encoding="ascii")
        found += [int(word) for word in text.split()]
    return found


def _state(pid: int) -> str:
    try:
        return _stat(Path("/proc") / str(pid))[0]
    except (OSError, IndexError):
        return ""


def settled(times: Series, begins: float, warm_up: float = WARM_UP) -> slice:
    """The part of a series that counts: from `begins`, less its first tenth."""
    if not len(times):
        return slice(0, 0)
    start = begins + warm_up * (times[-1] - begins)
    return slice(int(np.searchsorted(times, start)), len(times))


def trend(times: Series, values: Series) -> Trend:
    """Quarters and slope of a series without its warm-up.

    Args:
        times: [n] in s, rising.
        values: [n], n >= 8.

    Raises:
        ValueError: there are too few samples, or not as many times as values.
    """
    x, y = np.asarray(times, float), np.asarray(values, float)
    if len(x) != len(y) or len(x) < FEWEST:
        raise ValueError(
            f"values: expected {FEWEST} samples or more and as many times, got {len(y)}, {len(x)}"
        )
    at = (x - x[0]) / (x[-1] - x[0])
    first, last = float(np.median(y[at <= 0.25])), float(np.median(y[at >= 0.75]))
    parts = np.array_split(np.arange(len(x)), min(BLOCKS, len(x)))
    hours = np.array([np.median(x[part]) for part in parts]) / 3600
    levels = np.array([np.median(y[part]) for part in parts])
    slope, low, high = theil_sen(hours, levels)
    return Trend(first, last, last / first if first else math.nan, float(y.max()), slope, low, high)


def theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Median of the slopes of all pairs, and its 95 % interval by Kendall's statistic."""
    n = len(x)
    i, j = np.triu_indices(n, 1)
    slopes = np.sort((y[j] - y[i]) / (x[j] - x[i]))
    reach = 1.96 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    below = max(0, math.floor((len(slopes) - reach) / 2))
    return float(np.median(slopes)), float(slopes[below]), float(slopes[len(slopes) - 1 - below])


def throughput(
    samples: Sequence[Sample], records: Sequence[Mapping[str, Any]], batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times [m], rows a second [m], and rows a second of CPU time [m], between samples.

    Validations, checkpoints and logs are in both. Steps between two records are taken as even, and spans are
    as long as some records at least, so that none is measured by a record's place in it.

    Args:
        samples: of the process, in order.
        records: of its history.jsonl, in order; those of training count.
        batch: rows of a step.
    """
    made = [(r["time"], r["step"]) for r in records if "train/samples_per_second" in r]
    if len(made) < 2:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    when, step = np.array(made, float).T
    inside = [s for s in samples if when[0] <= s.time <= when[-1]]
    every = max(1, math.ceil(5 * len(inside) / len(made)), len(inside) // BINS)
    kept = inside[::every]
    time = np.array([s.time for s in kept])
    rows = batch * np.interp(time, when, step)
    cpu = np.array([s.cpu for s in kept])
    return (time[1:] + time[:-1]) / 2, np.diff(rows) / np.diff(time), np.diff(rows) / np.diff(cpu)


def thin(samples: Sequence[Sample], bins: int = BINS) -> dict[str, list[float]]:
    """At most so many medians of neighbouring samples, by quantity; minutes since the first sample."""
    parts = np.array_split(np.arange(len(samples)), min(bins, len(samples))) if samples else []
    made: dict[str, list[float]] = {
        "minutes": [round((samples[int(p[0])].time - samples[0].time) / 60, 3) for p in parts]
    }
    for name in _LEVELS:
        made[name] = [round(float(np.median([getattr(samples[k], name) for k in p])), 2) for p in parts]
    return made


def long_run(
    samples: Sequence[Sample],
    records: Sequence[Mapping[str, Any]],
    batch: int,
    control: Sequence[tuple[float, float]],
) -> dict[str, Any]:
    """Trends and thinned series of the run in one process; no trends where there are too few samples.

    Args:
        samples: of the process, in order.
        records: of its history.jsonl.
        batch: rows of a step.
        control: (time, CPU seconds of a piece of work that is always the same), of the measuring process:
            whether the machine itself has become slower.
    """
    found: dict[str, Any] = {"samples": len(samples), "trends": {}, "series": thin(samples)}
    times, wall, cpu = throughput(samples, records, batch)
    first = next((r["time"] for r in records if "train/samples_per_second" in r), math.inf)
    quantities: dict[str, Series] = {name: [getattr(s, name) for s in samples] for name in _LEVELS}
    all_times: dict[str, Series] = {name: [s.time for s in samples] for name in _LEVELS}
    quantities |= {"rows a second": wall, "rows a second of CPU": cpu}
    all_times |= {"rows a second": times, "rows a second of CPU": times}
    quantities["control"] = [1 / seconds for _, seconds in control]
    all_times["control"] = [time for time, _ in control]
    for name, values in quantities.items():
        part = settled(all_times[name], first)
        if len(values[part]) >= FEWEST:
            found["trends"][name] = trend(all_times[name][part], values[part])._asdict()
    if samples:
        found["minutes"] = (samples[-1].time - samples[0].time) / 60
        found["cpu_share"] = (samples[-1].cpu - samples[0].cpu) / (samples[-1].time - samples[0].time)
        minutes = np.round((times - samples[0].time) / 60, 3)
        found["throughput"] = {
            "minutes": minutes.tolist(),
            "wall": np.round(wall, 1).tolist(),
            "cpu": np.round(cpu, 1).tolist(),
        }
    return found


def loops(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First and last levels of trainings one after another in one process, its first quarter left out."""
    found: dict[str, Any] = {"loops": len(rows), "series": {}}
    if not rows:
        return found
    names = ("minutes", "rss", "anonymous", "in_use", "descriptors", "threads", "objects")
    found["series"] = {name: [row[name] for row in rows] for name in names}
    # The last training may have been cut short; what is imported and compiled lasts from the first ones.
    kept = rows[min(len(rows) // 4 + 1, len(rows) - 1) :]
    part = max(1, len(kept) // 3)
    for name in names[1:]:
        found[name] = [float(np.median([r[name] for r in side])) for side in (kept[:part], kept[-part:])]
    found["zombies"] = max(row["zombies"] for row in rows)
    return found


def claims(results: Mapping[str, Any]) -> list[Check]:
    """What holds of the long run, of the loops and of the interrupted runs."""
    trends, made = results["long"].get("trends", {}), []
    if "rss" in trends:
        for name in ("rss", "anonymous"):
            limit = max(MEGABYTES_AN_HOUR, SHARE_AN_HOUR * trends[name]["first"])
            made.append(Check(f"long run: {name}, MB more an hour", trends[name]["slope"], limit))
        for name in ("descriptors", "threads"):
            change = abs(trends[name]["last"] - trends[name]["first"])
            made.append(Check(f"long run: {name}, last quarter - first quarter", change, 0.0))
    if "rows a second of CPU" in trends:
        ratio = trends["rows a second of CPU"]["ratio"]
        what = "long run: rows a second of CPU, last quarter / first quarter"
        made.append(Check(what, ratio, 0.95, "at least"))
    for name, found in results["systems"].items():
        if found["loops"].get("loops", 0) >= FEWEST:
            # Not rss: where memory is short, pages of libraries come and go.
            first, last = found["loops"]["anonymous"]
            made.append(Check(f"{name}, in one process: MB more", last - first, MEGABYTES_OF_A_LOOP))
            first, last = found["loops"]["in_use"]
            made.append(Check(f"{name}, in one process: MB in use more", last - first, MEGABYTES_IN_USE))
            for quantity, limit in (("descriptors", 0.0), ("threads", THREADS_OF_A_LOOP)):
                first, last = found["loops"][quantity]
                made.append(Check(f"{name}, in one process: {quantity} more", last - first, limit))
    for quantity, what in (
        ("left", "zombies, processes and temporary files left, all runs"),
        ("wrong", "endings and records other than expected, all runs"),
    ):
        total = results["long"].get(quantity, 0) + sum(s[quantity] for s in results["systems"].values())
        made.append(Check(what, float(total), 0.0))
    return made
