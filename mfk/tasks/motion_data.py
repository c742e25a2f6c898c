"""The data of a motion model: a file or a robot, what of it is held out, and what is measured on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mfk.core import rng
from mfk.core.config import refuse_unused
from mfk.core.files import fingerprint, watch
from mfk.core.types import Batch, Batches, Params, Rows
from mfk.data import (
    LoaderConfig,
    WindowConfig,
    find_windows,
    held_out_clips,
    motion_batches,
    open_motion,
    read_windows,
    robot_motion,
    split_segments,
)
from mfk.data.loader import watched
from mfk.data.motion import MotionSource
from mfk.data.motion_windows import Segments, Windows
from mfk.kinematics import panda, ur10
from mfk.tasks.motion_features import FeatureConfig, Frames, read_as
from mfk.tasks.motion_scale import Base, fit_scale

_SCALE_WINDOWS = 8_192
_VALIDATION_ROWS = 32  # windows of one batch: each holds many frames to predict


@dataclass(frozen=True)
class MotionDataConfig:
    """Which motion, and what of it is held out."""

    data: Path | None = None
    """Motion file (.parquet, .h5, .json; see `motion.py import`); None: a robot arm on smooth paths."""
    robot: Literal["panda", "ur10"] = "panda"
    """Without a file: the arm whose links move."""
    train_split: str = "train"
    """The file's split that is trained on, where it has splits."""
    val_split: str = "val"
    """The file's split that is held out, where it has splits."""
    test_split: str = "test"
    """The file's split that the report is on, where it has it; else the report is on `val_split`."""
    validation_share: float = 0.15
    """Share of the clips that is held out whole, drawn by the seed; for files without splits only."""


class MotionData(NamedTuple):
    """Motion to train on, and motion that is held out: for validation, and for the report."""

    source: MotionSource
    how: Frames
    training: Segments
    held_out: Segments
    test: Segments  # of the report: the split of its own, or the one held out
    labels: int  # numbers of a label; 0: none
    unchanged: Callable[[], None] = watch(())  # ValueError once the file that is read from is another


def open_data(data: MotionDataConfig, features: FeatureConfig, seed: int) -> MotionData:
    """Open the configured motion and part it; whole clips are held out.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be used; a split that is empty, or shares rows with
            the other; a setting without effect.
    """
    refuse_unused(data, data.data is None, "robot")
    # JSON is in memory, where nothing changes it.
    unchanged = watch([] if data.data is None or data.data.suffix == ".json" else [data.data])
    if data.data is None:
        source = robot_motion(panda() if data.robot == "panda" else ur10())
        refuse_unused(features, False, "space", "up")
    else:
        if not data.data.is_file():
            raise FileNotFoundError(f"data: {data.data}: there is no such file")
        source = open_motion(data.data, space=features.space, up=features.up)
    info = source.info
    how = read_as(info.skeleton, features, source.name)
    test = None
    if info.splits:
        refuse_unused(data, False, "validation_share")
        training = split_segments(source, data.train_split)
        held_out = split_segments(source, data.val_split)
        splits = {data.train_split: training, data.val_split: held_out}
        if data.test_split in info.splits:
            test = split_segments(source, data.test_split)
            splits[data.test_split] = test
        for (name, a), (other, b) in itertools.combinations(splits.items(), 2):
            if _overlap(a, b):
                raise ValueError(f"{source.name}: the splits {name!r} and {other!r} share rows")
    else:
        refuse_unused(data, False, "train_split", "val_split", "test_split")
        whole = split_segments(source, None)
        chosen = np.isin(whole.clip, held_out_clips(len(info.clips), data.validation_share, seed))
        training, held_out = (Segments(*(x[rows] for x in whole)) for rows in (~chosen, chosen))
    labels = len(info.label_names or ())
    return MotionData(source, how, training, held_out, test or held_out, labels, unchanged)


def training_batches(
    data: MotionData,
    horizon: int,
    ahead: int,
    batch_size: int,
    seed: int,
    windows: WindowConfig,
    loader: LoaderConfig,
) -> Batches:
    """The training windows in batches, in an order that (seed, epoch) decides."""
    batches = motion_batches(
        data.source,
        data.training,
        horizon=horizon,
        ahead=ahead,
        batch_size=batch_size,
        seed=seed,
        config=windows,
        loader=loader,
    )
    return watched(batches, data.unchanged)


def measure_scale(data: MotionData, horizon: int, base: Base = "linear") -> Params:
    """`fit_scale` of at most 8,192 training windows, spread evenly."""
    windows = spread(find_windows(data.training, horizon, 1), _SCALE_WINDOWS)
    return fit_scale(data.how, read_windows(data.source, windows, horizon + 1)["frames"], horizon, base)


def validation_batches(
    data: MotionData, horizon: int, steps: int, windows: int | None, seed: int, noise: int | None = None
) -> list[Batch]:
    """Held-out windows of `horizon` + `steps` frames that begin `steps` apart, for ``evaluate``.

    Args:
        data: see `open_data`.
        horizon: frames that a model sees.
        steps: frames that it predicts.
        windows: how many windows, spread evenly; None: all.
        seed: of the noise.
        noise: numbers of a frame, for "noise" [windows, steps, noise] of generative models; None: none.
    """
    if steps < 1 or (windows is not None and windows < 1):
        raise ValueError(f"rollout: expected at least 1 step and 1 window, got {steps} and {windows}")
    found = rollout_windows(data.held_out, horizon, steps, windows)
    batches = []
    total = len(found.start)
    for first in range(0, total, _VALIDATION_ROWS):
        some = Windows(*(x[first : first + _VALIDATION_ROWS] for x in found))
        batch = read_windows(data.source, some, horizon + steps)
        if noise is not None:
            rows = Rows(range(first, first + len(some.start)), total)
            batch["noise"] = rng.normal(rng.key(seed, "validation noise"), rows, (steps, noise))
        batches.append(batch)
    return batches


def rollout_windows(segments: Segments, horizon: int, steps: int, windows: int | None) -> Windows:
    """Windows for rollouts, which begin `steps` frames apart; at most `windows` of them, spread evenly.

    Those that a segment ends early count as far as they go.

    Raises:
        ValueError: none goes to the rollout's end.
    """
    found = find_windows(segments, horizon, steps)
    longest = int((segments.end - segments.first).max())
    if longest < horizon + steps:
        raise ValueError(
            f"rollout: {horizon} frames that are seen and {steps} that are predicted are more than the "
            f"longest held-out clip has, {longest}; expected a rollout of at most {longest - horizon} frames"
        )
    if windows is None or len(found.start) <= windows:
        return found
    # The spread may leave out the few that are long enough.
    whole = found.end - found.start >= horizon + steps
    first = Windows(*(x[whole][:1] for x in found))
    rest = spread(Windows(*(x[found.start != first.start[0]] for x in found)), windows - 1)
    order = np.argsort(np.concatenate((first.start, rest.start)))
    return Windows(*(np.concatenate((a, b))[order] for a, b in zip(first, rest, strict=True)))


def spread(windows: Windows, count: int) -> Windows:
    """At most `count` windows, evenly spread over all."""
    if len(windows.start) <= count:
        return windows
    chosen = np.linspace(0, len(windows.start) - 1, count).round().astype(np.int64)
    return Windows(*(x[chosen] for x in windows))


def data_record(data: MotionDataConfig) -> str:
    """What tells the data of a run from others."""
    return f"{data.robot}\n" if data.data is None else f"{data.data}: {fingerprint(data.data)}\n"


def _overlap(a: Segments, b: Segments) -> bool:
    first = np.concatenate((a.first, b.first))
    end = np.concatenate((a.end, b.end))
    order = np.argsort(first)
    return bool((first[order][1:] < end[order][:-1]).any())


def some_windows(data: MotionData, horizon: int, count: int) -> Windows:
    """At most `count` held-out windows of `horizon` frames and one more, spread evenly."""
    return spread(find_windows(data.held_out, horizon, 1), count)


def held_out_window(data: MotionData, horizon: int, clip: str | None) -> Windows:
    """The window at the beginning of one of the report's clips, by name, or of the longest.

    Raises:
        ValueError: no held-out clip has this name.
    """
    segments = data.test
    chosen = int(np.argmax(segments.end - segments.first))
    if clip is not None:
        names = [data.source.info.clips[i].name for i in segments.clip]
        if clip not in names:
            raise ValueError(f"clip: expected one that is held out, {', '.join(names)}, got {clip!r}")
        chosen = names.index(clip)
    one = Segments(*(x[chosen : chosen + 1] for x in segments))
    windows = find_windows(one, horizon, 1)
    return Windows(*(x[:1] for x in windows))
