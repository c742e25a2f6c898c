"""What a loss with a forward derivative costs beside flow matching: every loss, eager and compiled.

Claims, at width 512 and batch 1024, each side compiled by `mfk.jit`, medians of one run:

* the MeanFlow gradient takes at most 1.36 times as long as the flow-matching gradient where all rows
  have a JVP, and where 25 % have one at most 1.14 times with torch's own matrix products and 1.28 times
  with the fastest exact ones (where everything else weighs more);
* it does 1.333 and 1.083 times the work, counted in floating-point operations of matrix products: the floor;
* compiled flow matching takes at most 0.97 of the time of eager flow matching with the same matrix products.

Other widths and batches have a table and no claims. Rows without a JVP are flow-matching rows. Eager code
runs under the same setting of the matrix products as the compiled code that it is compared with; where the
exact route is an operator in the graph ("strict"), there is no such setting, and eager code keeps the
default.

    python benchmarks/jvp_overhead.py [--widths N ...] [--batches N ...] [--losses NAME ...] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import networks
import timing
from torch.func import grad

from mfk import jit
from mfk.core.compiler import Matmul, exact_matmul

MATMULS: tuple[Matmul, ...] = ("default", "exact")
SHARES = (1.0, 0.25)
LIMITS = {("default", 1.0): 1.36, ("default", 0.25): 1.14, ("exact", 1.0): 1.36, ("exact", 0.25): 1.28}
FLOOR = {1.0: 4 / 3, 0.25: 13 / 12}


class Case(NamedTuple):
    """One bar of the chart."""

    loss: str
    share: float  # of rows with an end time; 0 for flow matching
    mode: str  # eager or jit
    matmul: Matmul


def main() -> None:
    """Measure every cell of the grid, print its table and its checks, and write the JSON."""
    parser = timing.parser(__doc__, repeats=30)
    parser.add_argument("--widths", type=int, nargs="+", default=[networks.WIDTH])
    parser.add_argument("--batches", type=int, nargs="+", default=[networks.BATCH])
    parser.add_argument(
        "--losses", nargs="+", choices=list(networks.FAMILY), default=list(networks.FAMILY), metavar="NAME",
        help=f"of {', '.join(networks.FAMILY)}",
    )  # fmt: skip
    arguments = timing.parse(parser)
    before = timing.facts()
    cells = []
    for width in arguments.widths:
        for rows in arguments.batches:
            cells.append(cell(width, rows, arguments.losses, arguments.repeats))
    timing.write(
        arguments.out,
        {"cells": cells, "repeats": arguments.repeats, "exact_route": exact_matmul(), "versions": before},
    )


def cell(width: int, rows: int, chosen: list[str], repeats: int) -> dict[str, Any]:
    """All losses at one width and one batch."""
    calls: dict[Case, Callable[[], Any]] = {}
    flops: dict[tuple[str, float], int] = {}
    for case, call, work in cases(width, rows, chosen):
        calls[case] = call
        flops[case.loss, case.share] = work
    names = {"|".join(map(str, case)): case for case in calls}
    times = timing.interleaved({name: calls[case] for name, case in names.items()}, repeats)
    seconds = {case: times[name] for name, case in names.items()}

    table = []
    print(f"\nwidth {width}, batch {rows}, exact matrix products: {exact_matmul()}")
    print(f"{'loss':<28}{'rows':>6}{'matmul':>9}{'mode':>7}{'ms':>9}{'least':>9}{'x FM':>7}{'x FLOPs':>9}")
    for case, value in seconds.items():
        reference = seconds[Case("flow_matching", 0.0, case.mode, case.matmul)]
        row = {
            **case._asdict(),
            "seconds": value.median,
            "least_seconds": value.least,
            "ratio": value.median / reference.median,
            "ratio_of_least": value.least / reference.least,
            "flops_ratio": flops[case.loss, case.share] / flops["flow_matching", 0.0],
        }
        table.append(row)
        print(
            f"{case.loss:<28}{100 * case.share:>5.0f}%{case.matmul:>9}{case.mode:>7}"
            f"{1e3 * value.median:>9.2f}{1e3 * value.least:>9.2f}"
            f"{row['ratio']:>7.3f}{row['flops_ratio']:>9.3f}"
        )
    made = checks(table) if (width, rows) == (networks.WIDTH, networks.BATCH) else []
    timing.report(made)
    return {"width": width, "batch": rows, "table": table, "checks": [check.record() for check in made]}


def cases(width: int, rows: int, chosen: list[str]) -> Iterator[tuple[Case, Callable[[], Any], int]]:
    """Each case, its call, and the FLOPs that the compiled gradient has."""
    model = networks.model(width)
    params, _ = model.init(0)
    kinds = [("flow_matching", 0.0)] + [(name, share) for name in chosen for share in SHARES]
    for loss, share in kinds:
        gradient = grad(networks.objective(model, networks.FAMILY.get(loss)))
        batch = networks.batch(rows, share)
        for matmul in MATMULS:
            compiled = jit(gradient, matmul=matmul)
            work = compiled.report(params, batch).after.flops
            for mode, f in (("eager", networks.under(matmul, gradient)), ("jit", compiled)):
                yield Case(loss, share, mode, matmul), partial(f, params, batch), work


def checks(table: list[dict[str, Any]]) -> list[timing.Check]:
    """The claims, those whose loss was measured."""
    row = {(r["loss"], r["share"], r["mode"], r["matmul"]): r for r in table}
    made = []
    for (matmul, share), limit in LIMITS.items():
        if ("meanflow", share, "jit", matmul) in row:
            what = f"MeanFlow / flow matching, jit, {100 * share:.0f} % of rows, {matmul} matmul"
            made.append(timing.Check(what, row["meanflow", share, "jit", matmul]["ratio"], limit))
    for share, floor in FLOOR.items():
        if ("meanflow", share, "jit", "default") in row:
            what = f"MeanFlow / flow matching, FLOPs, {100 * share:.0f} % of rows"
            made.append(
                timing.Check(what, row["meanflow", share, "jit", "default"]["flops_ratio"], floor, "about")
            )
    for matmul in MATMULS:
        ours, theirs = (row["flow_matching", 0.0, mode, matmul]["seconds"] for mode in ("jit", "eager"))
        made.append(timing.Check(f"flow matching, jit / eager, {matmul} matmul", ours / theirs, 0.97))
    return made


if __name__ == "__main__":
    main()
