"""What a resumed run does otherwise than the run that it goes on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mfk.core import config
from mfk.core.config import as_json, flatten
from mfk.train import checkpoint, runs

C = TypeVar("C")


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
            if _is_fixed(key, fixed):
                raise ValueError(f"{run}: a resumed run cannot change {changes}; start a new run")
            changed.append(changes)
    return changed


def fixed_settings(record: Mapping[str, Any], fixed: Collection[str]) -> dict[str, Any]:
    """The settings of a run that are among `fixed`, by dotted key: what its checkpoints keep."""
    return {key: value for key, value in flatten(record).items() if _is_fixed(key, fixed)}


def check_settings(folder: Path, record: Mapping[str, Any]) -> None:
    """CheckpointError where `record` is not what a run's latest checkpoint was trained with.

    A config.yaml that was edited would otherwise go unnoticed wherever the parameters keep their shapes: with
    another number of attention heads, say. Checkpoints of earlier versions keep no settings, and pass.

    Args:
        folder: a run, or one of its checkpoints.
        record: the run's settings as plain data.
    """
    chosen = checkpoint.find(folder)
    now = as_json(flatten(record))
    other = [
        f"{key}: {value}, and now it is {now.get(key)}"
        for key, value in chosen.settings.items()
        if now.get(key) != value
    ]
    if other:
        raise checkpoint.CheckpointError(
            f"{chosen.path}: was trained with {'; '.join(other[:4])}. "
            f"Put the run's {runs.CONFIG} back as it was, or start a new run."
        )


def read_settings(cls: type[C], folder: Path, flag: str = "--checkpoint") -> C:
    """The settings that a trained run, or one of its checkpoints, given by `flag`, was started with.

    Raises:
        FileNotFoundError: there is no such run. ValueError: its config.yaml cannot be read.
        CheckpointError: it has no checkpoint, or was edited since: see `check_settings`.
    """
    settings = config.load_yaml(cls, runs.run_of(folder, flag) / runs.CONFIG)
    check_settings(folder, config.to_dict(settings))
    return settings


def _is_fixed(key: str, fixed: Collection[str]) -> bool:
    return any(key == name or key.startswith(name + ".") for name in fixed)


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
