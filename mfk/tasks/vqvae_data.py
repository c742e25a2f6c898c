"""The rows that a tokenizer sees: a table of families, cleaned and standardised by what training rows say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mfk.core import rng
from mfk.core.files import fingerprint
from mfk.core.types import Rows, describe
from mfk.data.cleaning import CleaningConfig
from mfk.data.families import FamilyTable, open_families
from mfk.tasks.vqvae_preparation import Preparation, fit_preparation, prepare

LEAST = 8
"""Rows of a table, at least: some to train on, some held out, and deviations of both."""


@dataclass(frozen=True)
class VQVAEDataConfig:
    """Which rows."""

    data: Path = Path("datasets/baseline_1k.h5")
    """Table of families: NAME.h5, NAME.npz or NAME.parquet."""
    max_samples: int | None = None
    """Rows of the table, at most, the first ones; None: all."""
    validation_share: float = 0.1
    """Share of the rows that is held out."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)


class VQVAEData(NamedTuple):
    """Prepared rows."""

    name: str  # where they come from
    train: Tensor  # [N, F] float32, standardised
    val: Tensor  # [M, F]
    val_rows: np.ndarray  # [M] int64, which rows of the table are held out
    prepared: Preparation
    report: list[str]  # what cleaning dropped or filled


def open_vqvae(config: VQVAEDataConfig, families: Sequence[str] | None, seed: int) -> VQVAEData:
    """Read a table, hold rows out, clean and standardise by the others.

    Args:
        config: which rows.
        families: which families, in this order; None: all of the table.
        seed: of the split.

    Raises:
        FileNotFoundError, ValueError: the table cannot be used; the file or the setting is named.
    """
    share = config.validation_share
    if not (math.isfinite(share) and 0 < share < 1):
        raise ValueError(f"validation_share: expected a number between 0 and 1, got {describe(share)}")
    table = open_families(config.data, families, max_samples=config.max_samples)
    rows = len(next(iter(table.families.values())))
    if rows < LEAST:
        raise ValueError(f"{config.data}: expected at least {LEAST} rows, got {rows}")
    held = max(3, round(share * rows))  # three rows have distances to correlate
    if rows - held < 3:
        raise ValueError(f"validation_share: {share} leaves {rows - held} of {rows} rows to train on")
    order = np.argsort(rng.uniform(rng.key(seed, "split"), Rows.all(rows)).numpy(), kind="stable")
    val, train = np.sort(order[:held]), np.sort(order[held:])
    try:
        prepared, report = fit_preparation(part(table, train), config.cleaning)
    except ValueError as error:
        raise ValueError(f"{config.data}: {error}") from None
    return VQVAEData(
        str(config.data),
        prepare(part(table, train), prepared),
        prepare(part(table, val), prepared),
        val,
        prepared,
        report,
    )


def part(table: FamilyTable, rows: np.ndarray) -> FamilyTable:
    """Some rows of a table."""
    return FamilyTable({name: values[rows] for name, values in table.families.items()}, table.names)


def data_record(config: VQVAEDataConfig) -> str:
    """What tells the data of a run from others."""
    return f"{config.data}: {fingerprint(config.data)}\n"
