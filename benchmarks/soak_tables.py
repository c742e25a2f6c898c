"""The tables of the soak; see tables.py."""

from __future__ import annotations

from table_lines import Results, claims, machine, table


def soak(results: Results) -> list[str]:
    """The long run's trends, what each system did, and the claims."""
    long = results["long"]
    early = " Ended early." if results["ended_early"] else ""
    lines = [
        machine(results["versions"]),
        f"{results['minutes_taken']:.0f} minutes.{early} The long run: {long['minutes']:.0f} minutes, "
        f"{long['steps']:,} steps in one process, which had {100 * long['cpu_share']:.0f} % of a core; "
        f"{long['samples']:,} samples.",
        "",
    ]
    units = {
        "rss": "memory (rss), MB",
        "private": "memory (private), MB",
        "anonymous": "memory (anonymous), MB",
    }
    rows = [
        [
            "control: pieces of fixed work a second of CPU" if name == "control" else units.get(name, name),
            f"{t['first']:,.1f}", f"{t['last']:,.1f}", f"{t['ratio']:.3f}" if t["first"] else "",
            f"{t['highest']:,.1f}", f"{t['slope']:,.2f} ({t['low']:,.2f} to {t['high']:,.2f})",
        ]
        for name, t in long["trends"].items()
    ]  # fmt: skip
    heads = ["long run", "first quarter", "last quarter", "ratio", "highest", "slope an hour (95 %)"]
    lines += [*table(heads, rows, left=1), ""]
    levels = ("anonymous", "in_use", "descriptors", "threads", "objects")
    rows = [
        [
            name, str(own["runs"]), str(own["interrupts"]), str(own["loops"].get("loops", 0)),
            *(_pair(own["loops"].get(key)) for key in levels),
            str(own["left"]), str(own["wrong"]),
        ]
        for name, own in results["systems"].items()
    ]  # fmt: skip
    heads = [
        "system", "runs", "stops and resumes", "trainings in one process", "MB (anonymous), first, last",
        "MB in use", "descriptors", "threads", "Python objects", "left", "wrong",
    ]  # fmt: skip
    return [*lines, *table(heads, rows, left=1), "", *claims(results["claims"])]


def _pair(levels: list[float] | None) -> str:
    return "" if levels is None else ", ".join(f"{x:,.0f}" for x in levels)
