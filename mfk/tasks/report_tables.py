"""Tables of a report: on the terminal, in Markdown, and as figures that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def print_rows(titles: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int = 100) -> None:
    """Print a table on the terminal, at least `width` wide; on a narrow one lines wrap, no figure is cut."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(titles):
        two_lines = column.replace(", ", "\n") if "," in column else column.replace(" ", "\n")
        shown.add_column(two_lines, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    Console(width=max(Console().width, width)).print(shown)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def strict(value: Any) -> Any:
    """`value` with null for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: strict(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [strict(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
