"""The report of a sweep: table.md, table.json and plot.png, from what its runs have left."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfk.core.files import write_atomically
from mfk.train import runs
from mfk.train.sweep_grid import SEED
from mfk.train.sweep_rows import Row


def write_report(
    folder: Path, name: str, command: str, rows: Sequence[Row], jobs: int
) -> tuple[str, list[Path]]:
    """Write table.md, table.json and plot.png into the sweep's folder.

    Args:
        folder: of the sweep.
        name: of the experiment.
        command: that made the sweep.
        rows: one for each run.
        jobs: how many runs there were at a time.

    Returns:
        The tables as text, and the files written.
    """
    facts = {
        "command": command,
        "runs": f"{sum(row.status == 'finished' for row in rows)} of {len(rows)} finished",
        "at a time": jobs,
        **_versions([row.versions for row in rows]),
    }
    swept = list(rows[0].run.values)
    groups = _groups(rows) if SEED in swept else []
    text = _markdown(_table(rows))
    if groups:
        text += "\n\nMean ± standard deviation over the seeds, of the finished runs:\n\n"
        text += _markdown(_summary(rows, groups))
    head = "\n".join([f"# Sweep of {name}", "", *(f"- {key}: {value}" for key, value in facts.items())])
    files = [folder / "table.md", folder / "table.json", folder / "plot.png"]
    write_atomically(files[0], f"{head}\n\n{text}\n\n![course](plot.png)\n")
    found = {
        "facts": facts,
        "runs": [_plain(row) for row in rows],
        "summary": [
            {"values": dict(zip([f for f in swept if f != SEED], group, strict=True)), **found}
            for group, found in groups
        ],
    }
    write_atomically(files[1], json.dumps(_without_nan(found), indent=2, allow_nan=False) + "\n")
    _plot(files[2], name, rows)
    return text, files


def _table(rows: Sequence[Row]) -> list[list[str]]:
    """Titles, then one line for each run."""
    metrics = {row.metric for row in rows if row.metric is not None}
    one = metrics.pop() if len(metrics) == 1 else None
    loss = _loss(rows)
    best = f"best {one}" if one else "best"
    lines = [[*rows[0].run.values, best, "at step", f"last {loss}", "steps", "seconds", "status"]]
    for row in rows:
        value = _figure(row.best)
        lines.append(
            [
                *row.run.values.values(),
                value if one or row.best is None else f"{row.metric} {value}",
                "-" if row.best_step is None else str(row.best_step),
                _figure(row.training.get(loss)),
                str(row.steps),
                f"{row.seconds:.0f}",
                row.status,
            ]
        )
    return lines


def _loss(rows: Sequence[Row]) -> str:
    """The training metric to show: the unweighted error, which settings of the loss leave comparable."""
    return "raw_error" if any("raw_error" in row.training for row in rows) else "loss"


def _groups(rows: Sequence[Row]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """The statistics of the runs that differ in the seed alone, by what they have in common."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.run.group, []).append(row)
    found = [(group, _statistics(members, _loss(rows))) for group, members in groups.items()]
    return [(group, statistics) for group, statistics in found if statistics["runs"]]


def _statistics(members: Sequence[Row], loss: str) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None for one run) of what the finished runs came to."""
    done = [row for row in members if row.status == "finished"]
    columns: dict[str, list[float | None]] = {
        "best": [row.best for row in done],
        "train": [row.training.get(loss) for row in done],
        "seconds": [row.seconds for row in done],
    }
    for name in sorted(set().union(*(row.validation for row in done))):
        columns[f"val_{name}"] = [row.validation.get(name) for row in done]
    found: dict[str, Any] = {"runs": len(done), "of": len(members)}
    for name, values in columns.items():
        known = [x for x in values if x is not None]
        if known and len(known) == len(done):
            finite = all(map(math.isfinite, known))
            deviation = (statistics.stdev(known) if finite else math.nan) if len(known) > 1 else None
            found[name] = {"mean": sum(known) / len(known), "sd": deviation}
    return found


def _summary(
    rows: Sequence[Row], groups: Sequence[tuple[tuple[str, ...], dict[str, Any]]]
) -> list[list[str]]:
    titles = _table(rows)[0]
    swept = len(rows[0].run.values)
    best, loss = titles[swept], titles[swept + 2]
    lines = [[*(flag for flag in rows[0].run.values if flag != SEED), "runs", best, loss, "seconds"]]
    for group, found in groups:
        spreads = [found.get(name) for name in ("best", "train", "seconds")]
        count = str(found["runs"]) if found["runs"] == found["of"] else f"{found['runs']} of {found['of']}"
        lines.append([*group, count, *("-" if x is None else _spread(x) for x in spreads)])
    return lines


def _figure(x: float | None) -> str:
    return "-" if x is None else f"{x:.4g}"


def _spread(found: Mapping[str, float | None]) -> str:
    deviation = found["sd"]
    return f"{_figure(found['mean'])} ± {'-' if deviation is None else f'{deviation:.2g}'}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown whose columns also stand below one another."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    rows.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(rows)


def _versions(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Packages and machine of the runs; where they disagree, all there are."""
    known = [versions for versions in found if versions] or [runs.versions(0)]
    names = [name for name in known[0] if name != "seed"]
    merged: dict[str, Any] = {}
    for name in names:
        values = [versions.get(name) for versions in known]
        distinct = [x for i, x in enumerate(values) if x not in values[:i]]
        merged[name] = distinct[0] if len(distinct) == 1 else f"differs between runs: {distinct}"
    return merged


def _plain(row: Row) -> dict[str, Any]:
    return {
        "name": row.run.name,
        "values": row.run.values,
        "arguments": row.run.words,
        **{
            name: getattr(row, name)
            for name in (
                "status", "metric", "best", "best_step", "validation", "training", "steps", "seconds",
            )
        },
    }  # fmt: skip


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plot(file: Path, name: str, rows: Sequence[Row]) -> None:
    """The validation metric over the steps, a line for each run; a colour for all that differ in the seed."""
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row.run.group for row in rows))
    few = len(groups) <= 10
    colours = [
        colormaps["tab10"](i) if few else colormaps["viridis"](i / len(groups)) for i in range(len(groups))
    ]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    labelled: set[tuple[str, ...]] = set()
    for row in rows:
        points = [(step, x) for step, x in row.course if math.isfinite(x)]
        if not points:
            continue
        group, number = row.run.group, groups.index(row.run.group)
        values = [f"{flag}={value}" for flag, value in row.run.values.items() if flag != SEED]
        label = ", ".join(values) or "all seeds"
        axes.plot(
            *zip(*points, strict=True),
            marker=".",
            # A dashed line shows the one that it covers.
            linestyle=("-", "--", "-.", ":")[number % 4],
            color=colours[number],
            linewidth=1.2,
            label=None if group in labelled else label,
        )
        labelled.add(group)
    drawn = [x for row in rows for _, x in row.course if math.isfinite(x)]
    if drawn and min(drawn) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("validation: " + (", ".join(sorted({r.metric for r in rows if r.metric})) or "none"))
    axes.set_title(f"sweep of {name}")
    axes.grid(alpha=0.3, which="both")
    if labelled:
        figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=130)
