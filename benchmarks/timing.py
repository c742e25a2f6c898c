"""What the benchmarks of gradients and updates share: interleaved timing, options, and the JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mfk.train import versions


class Seconds(NamedTuple):
    """Of one call, over the repeats."""

    median: float
    least: float


def interleaved(
    cases: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 3, pause: float = 0.0
) -> dict[str, Seconds]:
    """Seconds a call takes; the cases take turns, so that other load on the machine falls on all of them.

    The order moves on by one from repeat to repeat.

    Args:
        cases: name -> call, which returns when the result is there.
        repeats: timed calls of each case.
        warm: calls of each case before, which compile and fill caches.
        pause: seconds to wait before each timed call, for threads of another library that still spin.
    """
    for call in cases.values():
        for _ in range(warm):
            call()
    names = list(cases)
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in range(repeats):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            if pause:
                time.sleep(pause)
            begun = time.perf_counter()
            cases[name]()
            times[name].append(time.perf_counter() - begun)
    return {name: Seconds(statistics.median(values), min(values)) for name, values in times.items()}


def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch")
    made.add_argument("--repeats", type=int, default=repeats, help="interleaved repeats; medians are shown")
    made.add_argument("--out", type=Path, help="write the results as JSON to this file")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Read the command line and set the number of threads."""
    arguments = made.parse_args()
    if arguments.repeats < 1 or arguments.threads < 1:
        made.error("--repeats, --threads: expected at least 1")
    torch.set_num_threads(arguments.threads)
    return arguments


def facts(*packages: str) -> dict[str, Any]:
    """Versions and hardware, those of further packages too, and how busy the machine has been."""
    return versions(seed=0) | {
        **{name: metadata.version(name) for name in packages},
        "cpu_model": cpu_model(),
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load_of_the_last_minute": round(os.getloadavg()[0], 2),
    }


def cpu_model() -> str:
    """Family and model, as Linux has them: a virtual machine's "AMD EPYC" may be any of five generations."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", text, re.MULTILINE))
    return ", ".join(f"{name.removeprefix('cpu ')} {number}" for name, number in found.items())


def write(out: Path | None, results: Mapping[str, Any]) -> None:
    """Write the results where asked."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Check(NamedTuple):
    """A claim and what was measured."""

    what: str
    value: float
    limit: float
    kind: str = "at most"  # or "at least"; or "about": within a thousandth

    @property
    def holds(self) -> bool:
        """Whether the value keeps to its limit."""
        if self.kind == "about":
            return abs(self.value / self.limit - 1) <= 2e-3
        if self.kind == "at least":
            return self.value >= self.limit
        return self.value <= self.limit

    def record(self) -> dict[str, Any]:
        """For the JSON."""
        return {**self._asdict(), "holds": self.holds}


def report(checks: list[Check]) -> None:
    """Print one line per claim."""
    print()
    width = max((len(check.what) for check in checks), default=0)
    for check in checks:
        verdict = "holds" if check.holds else "DOES NOT HOLD"
        print(f"{check.what:<{width}}  {check.value:7.3f}  {check.kind} {check.limit:g}: {verdict}")
