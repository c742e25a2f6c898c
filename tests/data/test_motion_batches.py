"""Windows in batches: against a brute-force list of them, in memory and streamed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mfk.core.types import Batch, Batches
from mfk.data import (
    Clip,
    LoaderConfig,
    MotionInfo,
    MotionRows,
    MotionSource,
    Segments,
    Skeleton,
    WindowConfig,
    Windows,
    autoregressive_windows,
    find_windows,
    held_out_clips,
    motion_batches,
    motion_source,
    read_windows,
    split_segments,
)

LENGTHS = (11, 3, 1, 17, 8)
TOTAL = sum(LENGTHS)


def source(bones: int = 1, labels: bool = False, lengths: Sequence[int] = LENGTHS) -> MotionSource:
    """Frames that hold their row's number as x; every third clip is held out."""
    total = sum(lengths)
    frames = torch.zeros(total, bones, 7)
    frames[:, :, 0] = torch.arange(total).float()[:, None]
    frames[:, :, 3] = 1.0
    inside = torch.cat([torch.full((n,), i % 3 != 2) for i, n in enumerate(lengths)])
    info = MotionInfo(
        30.0,
        Skeleton(tuple(f"b{i}" for i in range(bones)), None, "world", "z"),
        tuple(Clip(f"c{i}", n) for i, n in enumerate(lengths)),
        ("number",) if labels else None,
        ("train", "val"),
        {},
    )
    label = torch.arange(total).float()[:, None] if labels else None
    return motion_source("made", info, MotionRows(frames, None, label, {"train": inside, "val": ~inside}))


def in_pieces(whole: MotionSource, piece: int) -> tuple[MotionSource, list[tuple[int, int]]]:
    """The same motion with edges every `piece` rows, and what is read of it."""
    read: list[tuple[int, int]] = []

    def counted(first: int, end: int, lean: bool = False) -> MotionRows:
        read.append((first, end))
        return whole.read(first, end, lean)

    total = whole.edges[-1]
    edges = (*range(0, total, piece), total)
    return whole._replace(edges=edges, read=counted), read


def expected(horizon: int, ahead: int, stride: int, clips: Sequence[int]) -> dict[int, list[int]]:
    """Start -> the rows of its window that are valid, by brute force."""
    edges = [0, *itertools.accumulate(LENGTHS)]
    found = {}
    for clip in clips:
        first, end = edges[clip], edges[clip + 1]
        for start in range(first, end - horizon, stride):
            found[start] = list(range(start, min(start + horizon + ahead, end)))
    return found


def windows_in(batch: Batch) -> dict[int, list[int]]:
    rows = batch["frames"][:, :, 0, 0].long()
    return {int(row[0]): row[valid].tolist() for row, valid in zip(rows, batch["valid"], strict=True)}


def take(batches: Batches, first: int, count: int) -> list[Batch]:
    iterator = batches.start(first)
    taken = list(itertools.islice(iterator, count))
    getattr(iterator, "close", lambda: None)()
    return taken


@pytest.mark.parametrize(("horizon", "ahead", "stride"), [(1, 1, 1), (3, 1, 1), (4, 3, 2), (7, 5, 3)])
@pytest.mark.parametrize("piece", [1, 5, 100])
def test_an_epoch_holds_every_window_once(horizon: int, ahead: int, stride: int, piece: int) -> None:
    pieces, _ = in_pieces(source(), piece)
    segments = split_segments(pieces, "train")
    batches = motion_batches(
        pieces, segments, horizon=horizon, ahead=ahead, batch_size=4, seed=3, config=WindowConfig(stride)
    )
    assert batches.per_epoch is not None
    for epoch in range(2):
        found: dict[int, list[int]] = {}
        for batch in take(batches, epoch * batches.per_epoch, batches.per_epoch):
            new = windows_in(batch)
            assert not found.keys() & new.keys()
            found |= new
        assert found == expected(horizon, ahead, stride, (0, 1, 3, 4))


def test_windows_are_those_of_autoregressive_windows() -> None:
    """As documented: the same starts, but for a last one that has nothing to predict."""
    for length, horizon, stride in itertools.product(range(1, 12), range(1, 5), range(1, 4)):
        segments = Segments(np.array([0]), np.array([length]), np.array([0]))
        documented = autoregressive_windows(length, horizon, stride)
        kept = documented.inputs[documented.mask[:, -1]] if len(documented.inputs) else documented.inputs
        if len(kept) == 0:
            with pytest.raises(ValueError, match="longest clip has"):
                find_windows(segments, horizon, stride)
        else:
            assert find_windows(segments, horizon, stride).start.tolist() == kept[:, 0].tolist()


def big(labels: bool = False) -> MotionSource:
    """40 clips of 500 frames of 8 bones: 4.5 MB, which a buffer of 1 MB does not hold."""
    return source(8, labels, [500] * 40)


def test_streaming_resumes_anywhere_and_holds_every_window_once() -> None:
    pieces, read = in_pieces(big(labels=True), 130)
    segments = split_segments(pieces, None)
    batches = motion_batches(
        pieces, segments, horizon=5, ahead=2, batch_size=64, seed=0, config=WindowConfig(buffer_mb=1)
    )
    per_epoch = batches.per_epoch
    assert per_epoch == -(-40 * 495 // 64)
    read.clear()
    whole = take(batches, 0, per_epoch + 40)
    starts = torch.cat([b["frames"][:, 0, 0, 0] for b in whole[:per_epoch]]).long()
    assert len(starts.unique()) == len(starts) == 40 * 495
    assert all(torch.equal(b["labels"][..., 0], b["frames"][:, :, 0, 0]) for b in whole)
    # Shuffled over the whole file, not only within a buffer.
    first = starts[:6400].float()
    assert first.std() > 3000 and not bool((starts.diff() == 1).all())
    for at in (1, 77, per_epoch - 1, per_epoch, per_epoch + 7):
        again = take(batches, at, 3)
        for a, b in zip(again, whole[at : at + 3], strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    read.clear()
    take(batches, per_epoch - 1, 1)
    # Nothing of the batches before is read but what is in memory together with this one.
    assert sum(end - first for first, end in read) < TOTAL + 20_000 / 3


def test_what_fits_is_read_once() -> None:
    pieces, read = in_pieces(source(), 100)
    batches = motion_batches(pieces, split_segments(pieces, None), horizon=2, ahead=1, batch_size=3, seed=0)
    read.clear()
    take(batches, 0, 60)
    assert read == [(0, TOTAL)]


def test_a_thread_changes_nothing_and_ends() -> None:
    whole = big()
    given: dict[str, Any] = dict(horizon=5, ahead=2, batch_size=32, seed=1, config=WindowConfig(buffer_mb=1))
    segments = split_segments(whole, None)
    plain = motion_batches(whole, segments, **given)
    threaded = motion_batches(whole, segments, loader=LoaderConfig(num_workers=1), **given)
    before = threading.active_count()
    for a, b in zip(take(plain, 3, 20), take(threaded, 3, 20), strict=True):
        assert torch.equal(a["frames"], b["frames"])
    assert threading.active_count() == before


def test_a_thread_passes_errors_on() -> None:
    def fails(first: int, end: int, lean: bool = False) -> MotionRows:
        raise ValueError("made: row 3: broken")

    broken = source()._replace(read=fails)
    whole = Segments(np.array([0]), np.array([11]), np.array([0]))
    batches = motion_batches(
        broken, whole, horizon=2, ahead=1, batch_size=3, seed=0, loader=LoaderConfig(num_workers=1)
    )
    with pytest.raises(ValueError, match="row 3: broken"):
        next(batches.start(0))


def test_the_order_depends_on_the_seed_and_on_shuffle() -> None:
    whole = source()
    segments = split_segments(whole, None)

    def starts(seed: int, shuffle: bool = True) -> list[float]:
        loader = LoaderConfig(shuffle=shuffle)
        batches = motion_batches(whole, segments, horizon=2, ahead=1, batch_size=99, seed=seed, loader=loader)
        return take(batches, 0, 1)[0]["frames"][:, 0, 0, 0].tolist()

    assert starts(0) == starts(0) != starts(1)
    assert starts(0, shuffle=False) == sorted(starts(0))


def test_read_windows_reads_what_it_is_asked_for() -> None:
    pieces, _ = in_pieces(source(), 7)
    windows = find_windows(split_segments(pieces, None), 3, 2)
    batch = read_windows(pieces, windows, 5)
    assert windows_in(batch) == expected(3, 2, 2, range(5))
    # In the order that they are asked for, whichever rows are read first.
    turned = Windows(*(x[::-1].copy() for x in windows))
    assert torch.equal(read_windows(pieces, turned, 5)["frames"], batch["frames"].flip(0))
    with pytest.raises(ValueError, match="windows: expected at least one"):
        read_windows(pieces, Windows(*(x[:0] for x in windows)), 5)


def test_held_out_clips_are_whole_and_drawn_by_the_seed() -> None:
    chosen = held_out_clips(40, 0.15, 0)
    assert len(chosen) == 6 and chosen == sorted(set(chosen)) == held_out_clips(40, 0.15, 0)
    assert chosen != held_out_clips(40, 0.15, 1)
    assert len(held_out_clips(2, 0.15, 0)) == 1


def test_refusals() -> None:
    whole = source()
    with pytest.raises(ValueError, match="no split 'test'; it has"):
        split_segments(whole, "test")
    nothing = whole._replace(split=lambda name: torch.zeros(TOTAL, dtype=torch.bool))
    with pytest.raises(ValueError, match="the split 'train' is empty"):
        split_segments(nothing, "train")
    segments = split_segments(whole, None)
    with pytest.raises(ValueError, match="need 18 frames, the longest clip has 17"):
        find_windows(segments, 17, 1)
    for name, value in (("ahead", 0), ("batch_size", True), ("horizon", 0)):
        given: dict[str, Any] = {"horizon": 2, "ahead": 1, "batch_size": 4} | {name: value}
        with pytest.raises(ValueError, match=name):
            motion_batches(whole, segments, seed=0, **given)
    with pytest.raises(ValueError, match="num_workers: expected 0, or 1"):
        motion_batches(
            whole, segments, horizon=2, ahead=1, batch_size=4, seed=0, loader=LoaderConfig(num_workers=2)
        )
    with pytest.raises(ValueError, match=r"0\.5 of 1 clip leaves none for training"):
        held_out_clips(1, 0.5, 0)
    for share in (0.0, 1.0, 2):
        with pytest.raises(ValueError, match="validation_share"):
            held_out_clips(5, share, 0)


def test_a_change_of_split_within_a_clip_ends_windows() -> None:
    inside = torch.ones(20, dtype=torch.bool)
    inside[8:12] = False
    whole = source(1, False, [20])._replace(split=lambda name: inside)
    segments = split_segments(whole, "train")
    assert segments.first.tolist() == [0, 12] and segments.end.tolist() == [8, 20]
