"""What a resumed run does otherwise than the run that it goes on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mfk.core.config import flatten
from mfk.train import runs


def changed_settings(run: Path, record: Mapping[str, Any], fixed: Collection[str]) -> list[str]:
    """The settings that differ from those that began the run, as "key (before -> now)".

    Raises:
        ValueError: one of them is among `fixed`, dotted keys or the first parts of some.
    """
    if not (run / runs.CONFIG).exists():
        return []
    before, now = (flatten(settings) for settings in (runs.read_record(run), record))
    changed = []
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            changes = f"{key} ({before.get(key)} -> {now.get(key)})"
            if any(key == name or key.startswith(name + ".") for name in fixed):
                raise ValueError(f"{run}: a resumed run cannot change {changes}; start a new run")
            changed.append(changes)
    return changed


def changed_versions(run: Path, seed: int) -> list[str]:
    """What differs from the machine and the packages that began the run."""
    try:
        before = runs.read_versions(run)
    except (OSError, ValueError):
        return []
    now = runs.versions(seed)
    return [
        f"{name} ({before[name]} -> {now[name]}): numbers may differ in the last bits"
        for name in now
        if name != "seed" and name in before and before[name] != now[name]
    ]
