"""Lines of a table, of its claims, and of the machine, as benchmarks/README.md has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Results = dict[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> list[str]:
    """Lines of a Markdown table; the first `left` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return [f"| {' | '.join(heads)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)]


def claims(checks: list[Results]) -> list[str]:
    """What was claimed and what was measured."""
    rows = [
        [
            c["what"],
            f"{c['value']:.3f}",
            f"{c['kind']} {c['limit']:.4g}",
            "holds" if c["holds"] else "does not hold",
        ]
        for c in checks
    ]
    return [*table(["claim", "measured", "limit", ""], rows, left=1), ""]


def machine(facts: Results, repeats: int | None = None) -> str:
    """What the figures were measured on, and of how many repeats they are medians."""
    parts = [f"{facts['cpu']} ({facts['cpu_model']})" if facts.get("cpu_model") else facts["cpu"]]
    if "threads" in facts:
        parts.append(f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}")
    parts.append(f"Python {facts['python']}")
    parts += [f"{name} {facts[name]}" for name in ("torch", "jax", "pinocchio") if name in facts]
    if repeats is not None:
        parts.append(f"medians of {repeats} interleaved repeats")
    return f"{', '.join(parts)}."
