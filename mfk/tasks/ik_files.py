"""Inverse-kinematics data files as the batches of a run: training rows, held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core.config import refuse_unused
from mfk.core.files import fingerprint, watch
from mfk.core.types import Batch, Batches
from mfk.data import IKRows, LoaderConfig, batches_of, read_ik, split_rows
from mfk.data.loader import watched
from mfk.kinematics import Chain, RobotConfig, frames


@dataclass(frozen=True)
class IKFileConfig:
    """Which data file, and what of it is held out."""

    data: Path | None = None
    """Data file (.pt, .npz; see experiments/generate.py) to train on; None makes data on the fly."""
    validation_data: Path | None = None
    """Data file of the held-out rows; None splits them off `data`."""
    validation_share: float = 0.1
    """Share of `data` that is held out, drawn by the seed; without a validation file only."""
    end_times: Literal["auto", "file", "redraw"] = "auto"
    """auto: the file's where its states are at r (key q), redrawn where they are at t (key q_t)."""


class IKFiles(NamedTuple):
    """The rows of one or two data files."""

    training: Batch  # the keys of `mfk.data.IKRows`, all rows of the file; t only where it is given
    index: Tensor | None  # [n], int64: the rows to train on; None: all
    held_out: Batch  # rows that are not trained on
    notes: tuple[str, ...]  # what a user should know, one line each
    unchanged: Callable[[], None]  # ValueError once a file that rows are mapped from is another


def open_files(chain: Chain, robot: RobotConfig, config: IKFileConfig, seed: int) -> IKFiles | None:
    """Read and check the configured files; None where there are none.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be used, as `mfk.data.read_ik`; a setting without
            effect; a share that leaves one side empty.
    """
    refuse_unused(config, config.data is not None, "validation_data", "validation_share", "end_times")
    refuse_unused(config, config.validation_data is None, "validation_share")
    if config.data is None:
        return None
    notes: list[str] = []
    # The rows of .npz are in memory, where nothing changes them.
    unchanged = watch(path for path in _paths(config) if path.suffix == ".pt")

    def read(path: Path) -> Batch:
        file = read_ik(path, chain, frames=lambda: frames(robot), end_times=config.end_times)
        notes.extend(f"{path}: {note}" for note in file.notes)
        return as_batch(file.rows)

    training = read(config.data)
    if config.validation_data is not None:
        held_out = read(config.validation_data)
        _refuse_shared(config, training, held_out)
        return IKFiles(training, None, held_out, tuple(notes), unchanged)
    try:
        index, rest = split_rows(len(training["q"]), config.validation_share, seed)
    except ValueError as error:
        raise ValueError(f"validation_share: {config.data}: {error}") from error
    held_out = {name: x[rest] for name, x in training.items()}
    return IKFiles(training, index, held_out, tuple(notes), unchanged)


def file_batches(files: IKFiles, batch_size: int, seed: int, loader: LoaderConfig) -> Batches:
    """The training rows in batches, in an order that (seed, epoch) decides."""
    batches = batches_of(files.training, batch_size, seed=seed, index=files.index, config=loader)
    return watched(batches, files.unchanged)


def as_batch(rows: IKRows) -> Batch:
    """The rows by name, without the end times if they are to be drawn."""
    return {name: x for name, x in rows._asdict().items() if x is not None}


def _refuse_shared(config: IKFileConfig, training: Batch, held_out: Batch) -> None:
    """ValueError if held-out rows are trained on: a longer file of a seed begins with a shorter one's."""
    shared = np.isin(_row_keys(held_out), _row_keys(training))
    if shared.any():
        raise ValueError(
            f"validation_data: {config.validation_data}: {shared.sum()} of {len(shared)} rows are in "
            f"{config.data} too, the first is row {shared.argmax()}; generate it with another --seed"
        )


def _row_keys(batch: Batch) -> np.ndarray:
    """A 64-bit hash of each row's state, time and solution, [rows]: equal for equal rows."""
    columns = torch.cat((batch["q_target"], batch["q"], batch["r"]), 1).numpy().view(np.uint32)
    odd = np.random.Generator(np.random.Philox(key=0)).integers(2**62, size=columns.shape[1], dtype=np.uint64)
    keys = np.zeros(len(columns), np.uint64)
    for k, multiplier in enumerate(2 * odd + 1):
        keys = (keys ^ columns[:, k]) * multiplier
        keys ^= keys >> np.uint64(29)
    return keys


def fingerprints(config: IKFileConfig) -> str:
    """A line for each configured file, its size and CRC-32, so that a resumed run can tell other data."""
    return "".join(f"{path}: {fingerprint(path)}\n" for path in _paths(config))


def _paths(config: IKFileConfig) -> list[Path]:
    return [path for path in (config.data, config.validation_data) if path is not None]
