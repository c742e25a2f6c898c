"""What can be done beside training an emulator: make a data set, evaluate, ask for responses, estimate."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from counting import counter
from irf_estimation import EstimateNK, estimate
from irf_runs import report, settings_of, trained
from places import check_file, check_folder
from torch import Tensor

from mfk import train
from mfk.core import ranks
from mfk.data import generate_irf
from mfk.data.worlds import OBSERVABLES, WORLDS, World
from mfk.tasks import irf_data
from mfk.tasks.irf_query import ask


@dataclass(frozen=True)
class Generate:
    """Draw, solve and simulate economies, and write them as a data set."""

    root: Path
    """Folder of the data set; it must not exist. Unfinished work lies beside it and is gone on with."""
    worlds: tuple[str, ...] = ("nk", "var", "lss")
    """Names of the worlds."""
    samples: int = 10_000
    """Of each world."""
    seed: int = 42
    """Of all draws and of what is held out."""
    workers: int = 1
    """Processes."""
    version: str = "1.0.0"
    """Of the data set, three numbers with points."""


@dataclass(frozen=True)
class Evaluate:
    """Repeat the report with a trained emulator; all ranks share the economies."""

    checkpoint: Path
    """Folder of a run, such as outputs/irf/latest, or of one of its checkpoints."""
    data: Path | None = None
    """Another data set than that of the run."""
    out: Path | None = None
    """Folder of the report; None: evaluation/ in the run's folder."""


@dataclass(frozen=True)
class Ask:
    """Print an economy's emulated responses, with a warning where it is out of the training's range."""

    checkpoint: Path
    """Folder of a run, or of one of its checkpoints."""
    world: str = "nk"
    """Name of the world."""
    theta: tuple[str, ...] = ()
    """Parameters that differ from the world's defaults: phi_pi=2.0 kappa=0.05."""
    periods: int = 9
    """Periods to print, at most those that the emulator knows."""
    out: Path | None = None
    """CSV file for all periods, beside the exact responses."""


COMMANDS = {
    "generate": ("make a data set", Generate),
    "evaluate": ("repeat the report with a trained emulator", Evaluate),
    "ask": ("responses of an economy", Ask),
    "estimate": ("fit nk to US data through the emulator and the solver", EstimateNK),
}


def command(given: Generate | Evaluate | Ask | EstimateNK) -> None:
    """Do it."""
    if isinstance(given, Generate):
        made = generate_irf(
            given.root, given.worlds, samples=given.samples, seed=given.seed, workers=given.workers,
            version=given.version, git_hash=_git_hash(), progress=counter("samples"),
        )  # fmt: skip
        found = f", {made.found:,} of them found" if made.found else ""
        print(f"wrote {made.root}: {made.samples:,} samples of {', '.join(given.worlds)}{found}")
    elif isinstance(given, Evaluate):
        settings = settings_of(given.checkpoint)
        run = train.run_of(given.checkpoint)
        out = given.out or run / "evaluation"
        check_folder("--out", out)
        if given.data is None:
            train.check_same_data(run, irf_data.data_record(settings.data))
            chosen = settings.data
        else:
            chosen = replace(settings.data, data=given.data, samples=irf_data.IRFDataConfig.samples)
        data = irf_data.open_irf(chosen, settings.data_seed)
        report(settings, data, given.checkpoint, out, {"checkpoint": str(given.checkpoint)}, ranks.current())
    elif isinstance(given, EstimateNK):
        estimate(given)
    else:
        _ask(given)


def _ask(given: Ask) -> None:
    settings = settings_of(given.checkpoint)
    nets, found = trained(settings, given.checkpoint)
    names = [world.name for world in nets.worlds]
    if given.world not in names:
        raise ValueError(f"world: expected one of {', '.join(names)}, got {given.world!r}")
    if not 1 <= given.periods <= nets.horizon + 1:
        raise ValueError(
            f"periods: expected 1 to {nets.horizon + 1}, as many as the emulator knows, got {given.periods}"
        )
    if given.out is not None:
        check_file("--out", given.out)
    world = WORLDS[given.world]
    theta = _economy(world, given.theta)
    answer = ask(nets, found.members, given.world, theta, warn=False)
    for reason in answer.reasons[0]:
        print(f"warning: out of the training's range: {reason}", file=sys.stderr)
    k = nets.config.shock
    shocks = world.shocks.names if k is None else (world.shocks.names[k],)
    bars = None
    if answer.spread is not None:
        factor = _factor(train.run_of(given.checkpoint), given.world)
        bars = answer.spread if factor is None else factor * answer.spread
        times = "" if factor is None else f" times {factor:.2f}, which holds 95 % of the validation's errors"
        print(f"± the deviation of the {len(found.members)} members{times}")
    for s, shock in enumerate(shocks):
        wide = 11 if bars is None else 21
        print(f"{shock}\nperiod " + " ".join(f"{name:>{wide}}" for name in OBSERVABLES))
        for h in range(given.periods):
            numbers = [f"{float(x):11.3e}" for x in answer.irf[0, s, h]]
            if bars is not None:
                numbers = [f"{x} ±{float(b):8.1e}" for x, b in zip(numbers, bars[0, s, h], strict=True)]
            print(f"{h:6d} " + " ".join(numbers))
    if given.out is not None:
        solved = bool(world.valid(theta).all())
        exact = world.irf(theta, nets.horizon)[0] if solved else torch.full(answer.irf.shape[1:], torch.nan)
        exact = exact if k is None or not solved else exact[k : k + 1]
        with given.out.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            titles = ["shock", "period", "variable", "emulated", "exact"]
            rows.writerow(titles if bars is None else [*titles, "bar"])
            for s, shock in enumerate(shocks):
                for h in range(nets.horizon + 1):
                    for v, variable in enumerate(OBSERVABLES):
                        numbers = [answer.irf[0, s, h, v], exact[s, h, v]]
                        numbers += [] if bars is None else [bars[0, s, h, v]]
                        rows.writerow([shock, h, variable, *map(float, numbers)])
        print(f"wrote {given.out}")


def _economy(world: World, words: Sequence[str]) -> Tensor:
    """The world's defaults but for what the words NAME=NUMBER say, [1, P]."""
    theta = torch.tensor([world.parameters.defaults], dtype=torch.float64)
    said: set[str] = set()
    for text in words:
        name, _, value = text.partition("=")
        try:
            theta[0, world.parameters.names.index(name)] = float(value)
        except ValueError:
            raise ValueError(
                f"theta: expected NAME=NUMBER, names {', '.join(world.parameters.names)}; got {text!r}"
            ) from None
        if name in said:
            raise ValueError(f"theta: expected each parameter once, got {name} twice")
        said.add(name)
    return theta


def _factor(run: Path, world: str) -> float | None:
    """What the run's report found that an ensemble's deviations are to be multiplied by; None without one."""
    try:
        report = json.loads((run / "report.json").read_bytes())
        return next(float(row["factor"]) for row in report["splits"] if row["world"] == world)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def _git_hash() -> str:
    """Of the working tree that this script lies in; "unknown" outside of one."""
    try:
        words = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
