"""The tables of emulators of impulse responses; see tables.py."""

from __future__ import annotations

from typing import Any

from table_lines import Results, claims, machine, table

SPLITS = {
    "test_interpolation": "interpolation",
    "test_extrapolation_slice": "slice",
    "test_extrapolation_corner": "corner",
}


def irf_models(results: Results) -> list[str]:
    """A table of errors by world and split, and one of each shock and variable."""
    runs = [("documents' MLP", run) for run in results["documented"]]
    runs += [("the world's own", run) for run in results["own"]] + [("universal", results["universal"])]
    runs.append(("five of nk's own", results["ensemble"]))
    rows = []
    for name, run in runs:
        shocks = list(dict.fromkeys(row["shock"] for row in run["results"]))
        label = f"{name}, {shocks[0]}" if name.startswith("documents") else name
        for world in dict.fromkeys(row["world"] for row in run["splits"]):
            found = {row["split"]: row for row in run["splits"] if row["world"] == world}
            rows.append(
                [
                    world,
                    label,
                    *(f"{found[split]['nrmse']:.4f}" for split in SPLITS),
                    f"{found['test_interpolation']['worst']:.4f}",
                    *(f"{100 * found[split]['flagged']:.1f} %" for split in SPLITS),
                    f"{run['seconds']:.0f}",
                ]
            )
    heads = [
        "world", "network", *SPLITS.values(), "interpolation, worst",
        *(f"{x}, flagged" for x in SPLITS.values()), "s in all",
    ]  # fmt: skip
    words = dict.fromkeys(" ".join(run["words"]) for _, run in runs)
    return [
        machine(results["versions"]),
        "",
        *table(heads, rows, left=2),
        "",
        *(f"- `irf.py {one}`" for one in words),
        "",
        *ensemble_table(results["ensemble"]),
        "",
        *claims(results["claims"]),
    ]


def ensemble_table(run: dict[str, Any]) -> list[str]:
    """How much an ensemble's error bars cover."""
    rows = [
        [
            row["world"],
            SPLITS[row["split"]],
            f"{100 * row['covered']:.1f} %",
            f"{row['factor']:.2f}",
            f"{100 * row['covered_by_bars']:.1f} %",
        ]
        for row in run["splits"]
    ]
    heads = ["world", "split", "numbers in 2 deviations", "bars, deviations", "numbers in the bars"]
    return table(heads, rows, left=2)


def irf_speed(results: Results) -> list[str]:
    """A table of times an economy, and the emulators' errors."""
    rows = [
        [row["case"], f"{1e6 * row['seconds'] / row['rows']:.2f}", f"{row['rows'] / row['seconds']:,.0f}"]
        for row in results["table"]
    ]
    errors = ", ".join(f"{label} {error:.4f}" for label, error in results["errors"].items())
    return [
        machine(results["versions"], results["repeats"]),
        "",
        *table(["case", "us an economy", "economies a second"], rows, left=1),
        "",
        f"NRMSE of the emulators: {errors}.",
        "",
        *claims(results["claims"]),
    ]


def irf_estimate(results: Results) -> list[str]:
    """A table of optima and times, by the network."""
    found = results["estimates"]
    ways = [("solver", next(iter(found.values()))["solver"])]
    ways += [(f"emulator, {name}", one["emulator"]) for name, one in found.items()]
    rows = [
        [
            name,
            *(f"{x:.4g}" for x in way["theta"].values()),
            f"{way['exact_distance']:.3f}",
            f"{way['seconds_draws']:.2f}",
            f"{way['seconds_search']:.2f} ({way['evaluations']})",
        ]
        for name, way in ways
    ]
    first = ways[0][1]
    heads = [
        "through", *first["theta"], "exact distance", f"s, {first['draws']:,} draws",
        f"s, {len(first['starts'])} searches (evaluations)",
    ]  # fmt: skip
    one = next(iter(found.values()))
    return [
        machine(results["versions"]),
        "",
        f"{one['target']}: {one['numbers']} numbers.",
        "",
        *table(heads, rows, left=1),
        "",
        *claims(results["claims"]),
    ]


def worlds(results: Results) -> list[str]:
    """A table of solutions a second."""
    rows = [
        [row["case"], f"{row['per_second']:,.0f}", f"{row['microseconds']:.2f}"] for row in results["rows"]
    ]
    return [
        machine(results["facts"]),
        "",
        *table(["case", "solutions a second", "us each"], rows, left=1),
        "",
        *claims(results["checks"]),
    ]
