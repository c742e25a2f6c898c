"""What can be done beside training a motion model: import motion, evaluate, animate, export."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from counting import counter
from motion_runs import draw, export, make_ready, report, settings_of
from places import check_folder

from mfk import train
from mfk.data import import_bvh
from mfk.tasks import motion_data, motion_export


@dataclass(frozen=True)
class Import:
    """Turn a folder of BVH files into one motion file, clips held out whole."""

    bvh: Path
    """Folder of .bvh files of one skeleton; its own files only."""
    output: Path
    """File to write: NAME.parquet or NAME.h5."""
    pattern: str = "*.bvh"
    """Which of the folder's files."""
    metres_per_unit: float = 0.01
    """Length of the files' unit in m; 0.01: they are in cm."""
    up: Literal["x", "y", "z"] = "y"
    """The axis that points up."""
    actions: Path | None = None
    """CSV file with the columns clip and action; its actions become labels, one number for each."""
    validation_share: float | None = None
    """Share of the clips that is held out, drawn by the seed; None: 0.15, where none are named."""
    held_out: tuple[str, ...] = ()
    """Clips that are held out, by name, in place of a share."""
    test: tuple[str, ...] = ()
    """Clips for the report alone, which no training and no validation sees."""
    overwrite: bool = False
    """Replace a file that exists."""
    other_proportions: bool = False
    """Take skeletons of the same bones with other lengths too."""
    seed: int = 0
    """Draws the clips that are held out."""


@dataclass(frozen=True)
class Evaluate:
    """Repeat the report with a trained model."""

    checkpoint: Path
    """Folder of a run, such as outputs/motion/latest, or of one of its checkpoints."""
    windows: int | None = None
    """Held-out windows, spread evenly; None: as the run's report."""
    out: Path | None = None
    """Folder of the report; None: evaluation/ in the run's folder."""


@dataclass(frozen=True)
class Animate:
    """Draw a held-out clip and a rollout side by side."""

    checkpoint: Path
    """Folder of a run, such as outputs/motion/latest, or of one of its checkpoints."""
    out: Path
    """File to write: NAME.gif, or NAME.mp4 where ffmpeg is installed."""
    clip: str | None = None
    """Held-out clip; None: the longest."""
    frames: int = 90
    """Frames to draw."""


@dataclass(frozen=True)
class Export:
    """Write a trained model as TorchScript and torch.export."""

    checkpoint: Path
    """Folder of a run, such as outputs/motion/latest, or of one of its checkpoints."""
    export_ts: Path
    """File to write: NAME.ts; NAME.pt2 comes beside it."""


COMMANDS = {
    "import": ("turn a folder of BVH files into one motion file", Import),
    "evaluate": ("repeat the report with a trained model", Evaluate),
    "animate": ("draw a held-out clip and a rollout side by side", Animate),
    "export": ("write a trained model as TorchScript and torch.export", Export),
}


def command(given: Import | Evaluate | Animate | Export) -> None:
    """Do it."""
    if isinstance(given, Import):
        bring_in(given)
        return
    settings = settings_of(given.checkpoint)
    if isinstance(given, Export):
        motion_export.check_path(given.export_ts)
    run = train.run_of(given.checkpoint)
    if isinstance(given, Evaluate):
        check_folder("--out", given.out or run / "evaluation")
    train.check_same_data(run, motion_data.data_record(settings.data))
    if isinstance(given, Evaluate) and given.windows is not None:
        settings = replace(settings, report_windows=given.windows)
    ready = make_ready(settings)
    if isinstance(given, Evaluate):
        out = given.out or run / "evaluation"
        report(settings, ready, given.checkpoint, out, {"checkpoint": str(given.checkpoint)})
    elif isinstance(given, Animate):
        draw(settings, ready, given.checkpoint, given.out, given.clip, given.frames)
    else:
        export(settings, ready, given.checkpoint, given.export_ts)


def bring_in(given: Import) -> None:
    """Import BVH files, with progress."""
    if given.held_out and given.validation_share is not None:
        raise ValueError("validation_share: --held-out names the clips; leave one of the two out")
    if not given.bvh.is_dir():
        raise NotADirectoryError(f"--bvh: expected a folder of BVH files, got {given.bvh}")
    files = sorted(given.bvh.glob(given.pattern))
    if not files:
        raise FileNotFoundError(f"--bvh: no file {given.pattern} in {given.bvh}")

    info = import_bvh(
        files,
        given.output,
        metres_per_unit=given.metres_per_unit,
        up=given.up,
        actions=None if given.actions is None else _actions(given.actions),
        validation_share=0.15 if given.validation_share is None else given.validation_share,
        held_out=given.held_out or None,
        test=given.test or None,
        seed=given.seed,
        other_proportions=given.other_proportions,
        overwrite=given.overwrite,
        progress=counter(),
    )
    frames, bones = sum(clip.frames for clip in info.clips), len(info.skeleton.bone_names)
    print(
        f"wrote {given.output}: {len(info.clips)} clips, {frames:,} frames of {bones} "
        f"bones, {info.fps:g} frames/s, {given.output.stat().st_size / 1e6:.1f} MB"
    )


def _actions(file: Path) -> dict[str, str]:
    where = f"--actions: {file}"
    if not file.is_file():
        raise FileNotFoundError(f"{where}: there is no such file")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{where}: expected a CSV file in UTF-8: {error}") from None
    if not rows or not {"clip", "action"} <= rows[0].keys():
        raise ValueError(f"{where}: expected a CSV file with the columns clip and action")
    actions: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        clip, action = row["clip"], row["action"]
        if not clip or not action:
            raise ValueError(
                f"{where}: row {number}: expected a clip and its action, got {clip!r}, {action!r}"
            )
        if actions.setdefault(clip, action) != action:
            raise ValueError(f"{where}: row {number}: clip {clip!r} is {actions[clip]!r} and {action!r}")
    return actions
