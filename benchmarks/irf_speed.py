"""Emulators of impulse responses beside their solvers: responses a second, and the error, on one core.

Claim: for nk, 10,000 economies at once, a small emulator answers at least 50 times as fast as the usual way
to solve such a model, an ordered QZ decomposition for each economy and its recursion (benchmarks/worlds.py).

Beside it, without a claim: `mfk.data.worlds`' own solvers, which are closed forms, batched, in float64, and
are themselves that much faster than the usual way; the presets' emulators, eager and compiled (`mfk.jit`);
a single economy. The emulators are experiments/irf.py's presets nk, var and lss, and nk with a network of 64
units and one block; their error is that of 500 economies that were held out.

    python benchmarks/irf_speed.py [--threads N] [--repeats N] [--runs DIR] [--out FILE]

With --runs finished runs are kept there, as of benchmarks/irf_models.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
from irf_models import ROOT, held_out, train
from torch import Tensor
from worlds import BLOCK, by_qz

sys.path.insert(0, str(ROOT / "experiments"))

from irf_runs import settings_of, trained

from mfk.core import jit
from mfk.data.worlds import WORLDS, draw_theta
from mfk.tasks.irf_emulator import emulator

ROWS, FEW, LIMIT = 10_000, 200, 1 / 50
SMALL = ("nk", "--trunk-dim", "64", "--trunk-layers", "1", "--batch-size", "128")
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nk": ("nk", ("nk",)),
    "nk, small": ("nk", SMALL),
    "var": ("var", ("var",)),
    "lss": ("lss", ("lss",)),
}


def main() -> None:
    """Train what is missing, measure, print the table and the check, and write the JSON."""
    made = timing.parser(__doc__, repeats=7)
    made.set_defaults(threads=1)
    made.add_argument("--runs", type=Path, default=None, help="folder to keep the runs in")
    options = timing.parse(made)
    before = timing.facts("scipy")
    cases: dict[str, tuple[int, Callable[[], Any]]] = {}
    errors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = options.runs or Path(name)
        for label, (world, words) in RUNS.items():
            run = folder / label.replace(", ", "_")
            found = held_out(train(run, list(words), options.threads), world)
            errors[label] = sum(found.values()) / len(found)
            nets, best = trained(settings_of(run), run)
            add(cases, label, world, emulator(nets, *best.members[0], world))
    times = timing.interleaved({name: call for name, (_, call) in cases.items()}, options.repeats)
    table = [
        {"case": name, "rows": rows, "seconds": times[name].median, "least": times[name].least}
        for name, (rows, _) in cases.items()
    ]
    print(f"{'case':<44} {'us an economy':>14} {'economies a second':>20}")
    for row in table:
        each = row["seconds"] / row["rows"]
        print(f"{row['case']:<44} {1e6 * each:14.2f} {1 / each:20,.0f}")
    for label, error in errors.items():
        print(f"{label}: NRMSE {error:.4f}")
    each = {row["case"]: row["seconds"] / row["rows"] for row in table}
    ratio = each[f"nk, small: compiled, {ROWS:,}"] / each["nk: ordered QZ, each by itself"]
    checks = [timing.Check("nk, small: seconds an economy / ordered QZ's", ratio, LIMIT)]
    timing.report(checks)
    timing.write(
        options.out,
        {
            "versions": before,
            "repeats": options.repeats,
            "table": table,
            "errors": errors,
            "claims": [check.record() for check in checks],
        },
    )


def add(
    cases: dict[str, tuple[int, Callable[[], Any]]],
    label: str,
    world: str,
    respond: Callable[[Tensor], Tensor],
) -> None:
    """The cases of one emulator, and those of its world's solver if they are not there yet."""
    theta = draw_theta(WORLDS[world], 0, range(ROWS))
    solve = WORLDS[world].irf
    compiled = jit(respond)

    def many(call: Callable[[Tensor], Tensor], rows: Tensor = theta) -> Callable[[], Any]:
        # Parts of one size, that fit the cache; the last one is compiled for a size of its own.
        return lambda: [call(some) for some in rows.split(BLOCK)]

    if f"{world}: solver, {ROWS:,}" not in cases:
        cases[f"{world}: solver, {ROWS:,}"] = (ROWS, many(solve))
        cases[f"{world}: solver, 1"] = (1, lambda: solve(theta[:1]))
    if world == "nk" and "nk: ordered QZ, each by itself" not in cases:
        draws = theta[:FEW].numpy()
        cases["nk: ordered QZ, each by itself"] = (FEW, lambda: [by_qz(row) for row in draws])
    cases[f"{label}: eager, {ROWS:,}"] = (ROWS, many(respond))
    cases[f"{label}: compiled, {ROWS:,}"] = (ROWS, many(compiled))
    cases[f"{label}: eager, 1"] = (1, lambda: respond(theta[:1]))
    cases[f"{label}: compiled, 1"] = (1, lambda: compiled(theta[:1]))


if __name__ == "__main__":
    main()
