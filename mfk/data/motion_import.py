"""From recordings (.bvh) to one file of motion that can be trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from mfk.core.types import describe
from mfk.data.bvh import Positions, bvh_frames, read_bvh, read_bvh_header
from mfk.data.bvh_text import BvhHeader
from mfk.data.motion import Clip, MotionInfo, MotionRows, Skeleton, Up
from mfk.data.motion_files import write_motion
from mfk.data.motion_info import same_skeleton
from mfk.data.motion_rows import frame_velocities
from mfk.data.motion_windows import held_out_clips

_SAME_RATE = 1e-4  # relative
_SAME_LENGTH = 1e-3  # of a bone's offset, beside what is nothing to the longest one:
_NOTHING = 1e-6


def import_bvh(
    files: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    metres_per_unit: float,
    up: Up = "y",
    positions: Positions | None = None,
    actions: Mapping[str, str] | None = None,
    validation_share: float = 0.15,
    held_out: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    other_proportions: bool = False,
    seed: int = 0,
    velocities: bool = True,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> MotionInfo:
    """Write recordings of one skeleton as one file: a clip for each, poses in the world's frame in m.

    The columns split_train and split_val say which rows are held out for validation: whole clips, since the
    frames of one clip are much alike. With `test` there is split_test, which no validation sees.
    The labels are the clips' actions, one-hot in alphabetical order.
    Headers are read first, then the clips one by one: memory grows with the longest of them alone.

    Args:
        files: .bvh files, in the order of the output; a clip is named as its file is, without the suffix.
        output: .parquet, .h5 or .hdf5.
        metres_per_unit: 0.01 for centimetres.
        up: the axis that points up in the files. Nothing is turned.
        positions: see `mfk.data.read_bvh`.
        actions: clip -> action, of at least the clips given; None: no labels.
        validation_share: of the clips, rounded to whole clips, at least one, which `seed` draws; 0: none.
        held_out: the clips to hold out instead.
        test: clips to hold out from training and validation; None: there is no such split.
        other_proportions: whether bones may be of different lengths in different files.
        seed: of the draw.
        velocities: whether to write them too.
        overwrite: whether to replace a file that exists.
        progress: called after each clip with (clips done, clips, name of the clip).

    Returns:
        What the file says of itself.

    Raises:
        OSError: as `mfk.data.read_bvh` and `mfk.data.write_motion`.
        ValueError: as these, or files of unequal names, bones, proportions or frame rates, clips without an
            action, an unknown clip to hold out, or a share that leaves no clip on one side; names the files.
    """
    if isinstance(files, str | os.PathLike):
        raise TypeError(f"files: expected several paths, got {describe(files)}")
    if Path(output).suffix.lower() == ".json":
        raise ValueError(f"output: expected .parquet or .h5, since JSON holds no splits, got {output}")
    paths = [Path(file) for file in files]
    if not paths:
        raise ValueError("files: expected at least one, got none")
    named: dict[str, Path] = {}
    for path in paths:
        if (other := named.setdefault(path.stem, path)) is not path:
            raise ValueError(f"{path}: expected files of different names, got {other} too")
    if actions is not None and (missing := [name for name in named if name not in actions]):
        raise ValueError(
            f"{named[missing[0]]}: expected an action for clip {missing[0]!r} in actions, got none"
        )
    tested = _chosen("test", [*named], test or ())
    if both := sorted(tested & {*(held_out or ())}):
        raise ValueError(f"held_out: clip {both[0]!r} is in test too")
    rest = [name for name in named if name not in tested]
    outside = _held_out(rest, validation_share, held_out, seed)
    headers = [read_bvh_header(path) for path in paths]
    skeletons = [Skeleton(header.bone_names, header.parents, "world", up) for header in headers]
    for path, header, skeleton in zip(paths[1:], headers[1:], skeletons[1:], strict=True):
        same_skeleton(skeletons[0], skeleton, str(paths[0]), str(path))
        _same_recording(headers[0], header, paths[0], path, other_proportions)
    clips = [
        Clip(path.stem, header.frames, None if actions is None else actions[path.stem])
        for path, header in zip(paths, headers, strict=True)
    ]
    info = MotionInfo(
        fps=headers[0].fps,
        skeleton=skeletons[0],
        clips=tuple(clips),
        label_names=None if actions is None else tuple(sorted({actions[name] for name in named})),
        splits=("train", "val") if test is None else ("train", "val", "test"),
        metadata={},
    )

    def rows() -> Iterator[MotionRows]:
        for i, (path, clip) in enumerate(zip(paths, clips, strict=True)):
            frames = bvh_frames(read_bvh(path, positions=positions), metres_per_unit)
            labels = None
            if info.label_names is not None:
                labels = torch.zeros(len(frames), len(info.label_names))
                labels[:, info.label_names.index(str(clip.action))] = 1.0
            place = "val" if clip.name in outside else "test" if clip.name in tested else "train"
            flags = {split: torch.full((len(frames),), split == place) for split in info.splits}
            speeds = frame_velocities(frames, info.fps) if velocities else None
            yield MotionRows(frames, speeds, labels, flags)
            if progress is not None:
                progress(i + 1, len(clips), clip.name)

    write_motion(output, info, rows(), overwrite=overwrite)
    return info


def _held_out(names: list[str], share: float, chosen: Sequence[str] | None, seed: int) -> set[str]:
    """The clips held out for validation."""
    if not names:
        raise ValueError("test: expected a clip that is left for training, got all of them")
    if chosen is not None:
        found = _chosen("held_out", names, chosen)
        if len(found) == len(names):
            raise ValueError("held_out: expected a clip that is left for training, got all of them")
        return found
    return {names[i] for i in held_out_clips(len(names), share, seed)} if share else set()


def _chosen(argument: str, names: list[str], chosen: Sequence[str]) -> set[str]:
    if isinstance(chosen, str) or (unknown := [name for name in chosen if name not in names]):
        got = chosen if isinstance(chosen, str) else unknown[0]
        raise ValueError(
            f"{argument}: expected names of clips ({', '.join(names[:4])}, ...), got {describe(got)}"
        )
    return {*chosen}


def _same_recording(a: BvhHeader, b: BvhHeader, path_a: Path, path_b: Path, other_proportions: bool) -> None:
    """Refuse two files of one skeleton that differ in their frame rate, or in the lengths of their bones."""
    if not math.isclose(a.fps, b.fps, rel_tol=_SAME_RATE):
        raise ValueError(
            f"{path_b}: expected {a.fps:.6g} frames per second, as {path_a} has, got {b.fps:.6g}"
        )
    # The root's offset is a place in the world.
    offsets, others = a.offsets[1:], b.offsets[1:]
    lengths = torch.maximum(offsets.norm(dim=-1), others.norm(dim=-1))
    bound = _SAME_LENGTH * lengths + _NOTHING * lengths.max() if len(lengths) else lengths
    far = ((offsets - others).norm(dim=-1) > bound).nonzero()
    if len(far) and not other_proportions:
        bone = int(far[0]) + 1
        expected, got = (", ".join(f"{x:.6g}" for x in h.offsets[bone].tolist()) for h in (a, b))
        raise ValueError(
            f"{path_b}: bone {a.bone_names[bone]!r}: expected OFFSET {expected}, as {path_a} has, got {got}; "
            "expected one actor's files, or other_proportions"
        )
