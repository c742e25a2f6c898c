"""What holds of a family of features in any file: numbers, as float32, and a name for each feature."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mfk.core.types import describe

SEPARATOR = "::"
"""Between a family and a feature in a full name."""

BLOCK = 1024
"""Rows read and written at a time."""


def check_shape(where: str, shape: Sequence[int], dtype: Any) -> None:
    """Refuse what is no family: [N, D] or [N, T, D] numbers, none of N, T and D zero.

    Raises:
        ValueError: starts with `where`.
    """
    # A dtype of pyarrow's or of somebody's library may be none of numpy's.
    if not (isinstance(dtype, np.dtype) and dtype.kind in "fiu" and dtype.itemsize <= 8):
        raise ValueError(f"{where}: expected numbers, got an array of dtype {str(dtype)[:40]}")
    if len(shape) not in (2, 3):
        raise ValueError(f"{where}: expected features [N, D] or, in time, [N, T, D], got shape {list(shape)}")
    if 0 in shape:
        what = "rows" if not shape[0] else "features" if not shape[-1] else "times"
        raise ValueError(f"{where}: expected at least one row and one feature, got no {what}: {list(shape)}")


def as_float32(where: str, values: np.ndarray) -> np.ndarray:
    """Numbers as float32; the rounding is that of float32, NaN and infinities stay what they are.

    Raises:
        ValueError: a finite number is too large for float32; starts with `where`.
    """
    if values.dtype == np.float32:
        return values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounded = values.astype(np.float32)
    if (np.isinf(rounded) & np.isfinite(values)).any():
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"{where}: expected numbers that float32 can hold, got {largest:.3g}")
    return rounded


def numbered(family: str, count: int) -> tuple[str, ...]:
    """Names of features that a file gives none for."""
    return tuple(f"{family}_{i}" for i in range(count))


def check_family(where: str, family: str) -> None:
    """Refuse a name that would be ambiguous in a file or in a full name."""
    if not family or "/" in family or SEPARATOR in family or family == ".":
        raise ValueError(f"{where}expected a family's name without '/' and '::', got {family!r:.80}")


def registry_text(names: Sequence[str], categories: Sequence[str]) -> str:
    """The JSON {category: {name: index}} of names in their order, each of a category."""
    found: dict[str, dict[str, int]] = {category: {} for category in categories}
    for i, (name, category) in enumerate(zip(names, categories, strict=True)):
        found[category][name] = i
    return json.dumps(found)


def registry_names(where: str, text: object, count: int) -> tuple[str, ...] | None:
    """The names of `count` features in a registry {category: {name: index}}.

    None if it is one of another number of features: spinlock's own files speak of all that it can extract. A
    name that two categories share is given as category.name.

    Raises:
        ValueError: no such JSON, or indices that are not 0, 1, ... each once; starts with `where`.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    try:
        registry: Any = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: feature_registry: expected JSON, got {error}") from None
    sound = isinstance(registry, dict) and all(isinstance(each, dict) for each in registry.values())
    groups: dict[str, dict[str, Any]] = registry if sound else {}
    entries = [(i, category, name) for category, each in groups.items() for name, i in each.items()]
    if not sound or any(type(i) is not int for i, _, _ in entries):
        wanted = "{category: {name: index}}"
        raise ValueError(f"{where}: feature_registry: expected {wanted}, got {describe(registry)}")
    entries.sort()
    if [i for i, _, _ in entries] != list(range(len(entries))):
        raise ValueError(
            f"{where}: feature_registry: expected the indices 0 to {len(entries) - 1}, each once"
        )
    if len(entries) != count:
        return None
    plain = [name for _, _, name in entries]
    names = tuple(name if plain.count(name) == 1 else f"{category}.{name}" for _, category, name in entries)
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: feature_registry: expected names that differ")
    return names
