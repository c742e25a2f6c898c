"""How a table of families becomes the rows that a tokenizer sees, and back, as training rows say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.data.cleaning import Cleaning, CleaningConfig, clean, fit_cleaning
from mfk.data.families import FamilyTable


class Family(NamedTuple):
    """One family, as the network sees it."""

    kept: tuple[str, ...]  # names of its features that cleaning left
    frames: int | None  # values of a feature in a row, of a family in time; None: one


class Preparation(NamedTuple):
    """How a table becomes rows of numbers; all that has to be known to use a trained tokenizer."""

    families: dict[str, Family]  # in the order of the columns
    features: dict[str, tuple[str, ...]]  # family -> names of all its features in the table
    cleaning: dict[str, Cleaning]  # of the static families together ("static"), of each in time by its name
    mean: np.ndarray  # [F] float64, of the columns that are left, on training rows
    std: np.ndarray  # [F] float64


def fit_preparation(table: FamilyTable, config: CleaningConfig) -> tuple[Preparation, list[str]]:
    """Clean and measure training rows.

    Static families are cleaned side by side, so that copies are found across them; a family in time by
    itself, with each frame a row.

    Raises:
        ValueError: what `fit_cleaning` refuses, or a family of which nothing is left.
    """
    cleaning: dict[str, Cleaning] = {}
    families: dict[str, Family] = {}
    report: list[str] = []
    blocks, names = _blocks(table)
    for block, values in blocks.items():
        cleaning[block], lines = fit_cleaning(values, config, names[block])
        report += lines
    means, stds = [], []
    for family, values in table.families.items():
        kept = _kept(cleaning, table, family)
        if not kept.any():
            raise ValueError(f"family {family}: cleaning leaves none of its {len(kept)} features")
        frames = values.shape[1] if values.ndim == 3 else None
        own = tuple(name for name, stays in zip(table.names[family], kept, strict=True) if stays)
        families[family] = Family(own, frames)
    for family, cleaned in _cleaned(table, cleaning).items():
        rows = cleaned.astype(np.float64)
        times = families[family].frames or 1
        means.append(np.repeat(rows.reshape(-1, rows.shape[-1]).mean(0), times))
        stds.append(np.repeat(rows.reshape(-1, rows.shape[-1]).std(0), times))
    return Preparation(
        families, dict(table.names), cleaning, np.concatenate(means), np.concatenate(stds)
    ), report


def prepare(table: FamilyTable, prepared: Preparation) -> Tensor:
    """Rows as the network sees them, float32 [N, F]: cleaned, standardised.

    A feature in time has its frames side by side. Features are found by their names, in any order.

    Raises:
        ValueError: other families, features or frames than those that were fitted, or values that are not
            finite where cleaning does not fill them.
    """
    for family, names in prepared.features.items():
        if family not in table.families:
            raise ValueError(f"family {family}: expected it in the table, got {', '.join(table.families)}")
        values, frames = table.families[family], prepared.families[family].frames
        there = table.names[family]
        if set(there) != set(names) or len(there) != len(names):
            absent, unknown = ([x for x in a if x not in b] for a, b in ((names, there), (there, names)))
            raise ValueError(
                f"family {family}: expected the training's {len(names)} features, got {len(there)}; "
                f"missing {_some(absent)}; unknown {_some(unknown)}"
            )
        if (values.shape[1] if values.ndim == 3 else None) != frames:
            raise ValueError(
                f"family {family}: expected {frames or 'no'} frames, got shape {list(values.shape)}"
            )
    places = {
        family: [table.names[family].index(name) for name in names]
        for family, names in prepared.features.items()
    }
    own = FamilyTable(
        {name: table.families[name][..., places[name]] for name in prepared.features}, prepared.features
    )
    columns = [_flat(cleaned) for cleaned in _cleaned(own, prepared.cleaning).values()]
    rows = (np.concatenate(columns, 1).astype(np.float64) - prepared.mean) / prepared.std
    return torch.from_numpy(rows.astype(np.float32))


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
    )


def restore(rows: Tensor, prepared: Preparation) -> FamilyTable:
    """What rows [N, F] of the network stand for, in the table's units: the features that cleaning left."""
    values = rows.detach().cpu().double().numpy() * prepared.std + prepared.mean
    families, at = {}, 0
    for name, family in prepared.families.items():
        width = len(family.kept) * (family.frames or 1)
        block = values[:, at : at + width].astype(np.float32)
        if family.frames is not None:
            block = block.reshape(len(block), len(family.kept), family.frames).transpose(0, 2, 1)
        families[name] = np.ascontiguousarray(block)
        at += width
    return FamilyTable(families, {name: family.kept for name, family in prepared.families.items()})


def columns_of(prepared: Preparation) -> dict[str, list[list[int]]]:
    """Family -> the columns of each of its features; one column, or one for each frame."""
    found, at = {}, 0
    for name, family in prepared.families.items():
        times = family.frames or 1
        found[name] = [list(range(at + i * times, at + (i + 1) * times)) for i in range(len(family.kept))]
        at += len(family.kept) * times
    return found


def feature_names(prepared: Preparation) -> list[str]:
    """Full names family::name, in the order of the columns."""
    return [f"{name}::{kept}" for name, family in prepared.families.items() for kept in family.kept]


def feature_values(rows: Tensor, prepared: Preparation) -> np.ndarray:
    """One number a feature [N, D], to find categories by.

    Of a feature in time its mean over the frames, or its root mean square where all rows have one mean.
    """
    values = rows.double().numpy()
    columns = []
    for features in columns_of(prepared).values():
        for own in features:
            mean = values[:, own].mean(1)
            columns.append(mean if mean.std() > 1e-6 else np.sqrt(np.square(values[:, own]).mean(1)))
    return np.stack(columns, 1)


def to_json(prepared: Preparation) -> str:
    """All of it as text; `from_json` gives it back, to the last bit."""
    data: dict[str, Any] = {
        "families": {name: list(family) for name, family in prepared.families.items()},
        "features": prepared.features,
        "cleaning": {
            block: {name: [_finite(x) for x in values.tolist()] for name, values in one._asdict().items()}
            for block, one in prepared.cleaning.items()
        },
        "mean": prepared.mean.tolist(),
        "std": prepared.std.tolist(),
    }
    return json.dumps(data, allow_nan=False)


def from_json(text: str, source: str) -> Preparation:
    """What `to_json` wrote.

    Raises:
        ValueError: starts with `source`; it is something else.
    """
    try:
        data = json.loads(text)
        families = {name: Family(tuple(kept), frames) for name, (kept, frames) in data["families"].items()}
        features = {name: tuple(names) for name, names in data["features"].items()}
        cleaning = {
            block: Cleaning(
                np.array(one["kept"], bool), *(_numbers(one[name], empty) for name, empty in _EMPTY.items())
            )
            for block, one in data["cleaning"].items()
        }
        prepared = Preparation(families, features, cleaning, *(_numbers(data[x], 0) for x in ("mean", "std")))
        width = sum(len(family.kept) * _frames(family.frames) for family in families.values())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{source}: expected what a run writes there, got another text ({error!r})"
        ) from None
    if not prepared.mean.shape == prepared.std.shape == (width,):
        raise ValueError(
            f"{source}: expected {width} means and deviations, "
            f"got {prepared.mean.shape} and {prepared.std.shape}"
        )
    return prepared


def _frames(frames: object) -> int:
    """How many columns a feature has."""
    if frames is not None and (type(frames) is not int or frames < 1):
        raise ValueError(f"expected a number of frames, got {frames!r:.80}")
    return frames or 1


_STATIC = "static"
_EMPTY = {"low": -math.inf, "high": math.inf, "fill": math.nan}  # what null stands for


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _numbers(values: Sequence[float | None], empty: float) -> np.ndarray:
    return np.array([empty if x is None else x for x in values], np.float64)


def _blocks(table: FamilyTable) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """What is cleaned together: the static families side by side, each in time with its frames as rows."""
    full = {family: [f"{family}::{name}" for name in table.names[family]] for family in table.families}
    static = [family for family, values in table.families.items() if values.ndim == 2]
    blocks: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    if static:
        blocks[_STATIC] = np.concatenate([table.families[family] for family in static], 1)
        names[_STATIC] = [name for family in static for name in full[family]]
    for family, values in table.families.items():
        if values.ndim == 3:
            blocks[_block(family)] = values.reshape(-1, values.shape[-1])
            names[_block(family)] = full[family]
    return blocks, names


def _block(family: str) -> str:
    return f"in time: {family}"


def _kept(cleaning: Mapping[str, Cleaning], table: FamilyTable, family: str) -> np.ndarray:
    """Which features of a family cleaning left."""
    if table.families[family].ndim == 3:
        return cleaning[_block(family)].kept
    at = 0
    for name, values in table.families.items():
        if values.ndim == 2:
            if name == family:
                break
            at += values.shape[1]
    return cleaning[_STATIC].kept[at : at + table.families[family].shape[1]]


def _cleaned(table: FamilyTable, cleaning: Mapping[str, Cleaning]) -> dict[str, np.ndarray]:
    """Family -> its rows after cleaning, [N, kept] or [N, T, kept]."""
    blocks, names = _blocks(table)
    done = {block: clean(values, cleaning[block], names[block]) for block, values in blocks.items()}
    found, at = {}, 0
    for family, values in table.families.items():
        kept = int(_kept(cleaning, table, family).sum())
        if values.ndim == 3:
            found[family] = done[_block(family)].reshape(*values.shape[:2], kept)
        else:
            found[family] = done[_STATIC][:, at : at + kept]
            at += kept
    return found


def _flat(values: np.ndarray) -> np.ndarray:
    """[N, K] as it is; [N, T, K] with the T values of a feature side by side, [N, K T]."""
    return values if values.ndim == 2 else values.transpose(0, 2, 1).reshape(len(values), -1)
