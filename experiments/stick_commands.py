"""What can be done beside training stick figures: generate, evaluate, import recordings, check a file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stick_runs import compose, report, settings_of, trained, write_motion

from mfk import train
from mfk.data.stick import FPS
from mfk.data.stick_check import check_stick, drop_found
from mfk.data.stick_files import read_stick, write_stick
from mfk.data.stick_generate import generate_stick
from mfk.data.stick_mocap import stick_from_bvh
from mfk.tasks import stick_data
from mfk.tasks.movies import check_place


@dataclass(frozen=True)
class Generate:
    """Motion from text."""

    text: str
    """What the figure does, in English: "a person walks then jumps"."""
    out: Path
    """File to write: NAME.gif, NAME.mp4 (needs ffmpeg), NAME.png (a contact sheet) or NAME.npz."""
    checkpoint: Path = Path("outputs/stick/latest")
    """Folder of a run, or of one of its checkpoints."""
    seconds: float = 6.0
    """Length of the motion."""
    seed: int = 0
    """Draws how the motion begins, and the noise of a refinement."""
    actions: tuple[str, ...] = ()
    """Actions one after another, evenly spread; (): those that the text says."""


@dataclass(frozen=True)
class Evaluate:
    """Repeat the report with a trained model."""

    checkpoint: Path
    """Folder of a run, such as outputs/stick/latest, or of one of its checkpoints."""
    out: Path | None = None
    """Folder of the report; None: evaluation/ in the run's folder."""


@dataclass(frozen=True)
class Import:
    """Turn a folder of BVH files into a file of stick figures with texts and actions."""

    bvh: Path
    """Folder of the extracted .bvh files, which lie in it as the index says."""
    index: Path
    """CSV file with the columns clip, file, skeleton, action and text."""
    joint_map: Path
    """JSON file that says which joint of each skeleton is which of the figure's."""
    output: Path
    """File to write: NAME.pt."""
    figure: Literal[20, 48] = 20
    """Numbers of a frame, 20 of five segments or 48 of twelve."""
    overwrite: bool = False
    """Replace a file that exists."""


@dataclass(frozen=True)
class Make:
    """Write generated clips of the synthetic actions to a file."""

    output: Path
    """File to write: NAME.pt."""
    clips: int = 600
    """How many, of 10 s each."""
    figure: Literal[20, 48] = 20
    """Numbers of a frame, 20 of five segments or 48 of twelve."""
    transitions: float = 0.4
    """Share of the clips that change their action."""
    augment: bool = True
    """Other speeds, places, sizes, and mirrored."""
    seed: int = 0
    """Of the draw."""
    overwrite: bool = False
    """Replace a file that exists."""


@dataclass(frozen=True)
class Validate:
    """Say what is odd in a file of clips."""

    data: Path
    """File of clips, NAME.pt."""
    output: Path | None = None
    """File for the clips of which nothing was found; None: nothing is dropped."""
    overwrite: bool = False
    """Replace a file that exists."""
    shown: int = 20
    """Findings to print; all are counted."""


COMMANDS = {
    "generate": ("motion from text", Generate),
    "evaluate": ("repeat the report with a trained model", Evaluate),
    "import": ("turn BVH files into a file of stick figures", Import),
    "make": ("write generated clips to a file", Make),
    "validate": ("say what is odd in a file of clips", Validate),
}


def command(given: Generate | Evaluate | Import | Make | Validate) -> None:
    """Do it."""
    if isinstance(given, Generate):
        check_place(given.out, (".gif", ".mp4", ".png", ".npz"))
        settings = settings_of(given.checkpoint)
        nets, found = trained(settings, given.checkpoint)
        made = compose(settings, nets, found, given.text, given.seconds, given.seed, given.actions)
        write_motion(made, given.out, given.text)
    elif isinstance(given, Evaluate):
        settings = settings_of(given.checkpoint)
        run = train.run_of(given.checkpoint)
        train.check_same_data(run, stick_data.data_record(settings.data))
        nets, found = trained(settings, given.checkpoint)
        camera = settings.net.condition_camera
        data = stick_data.open_stick(settings.data, settings.train.seed, settings.net.embedding_dim, camera)
        out = given.out or run / "evaluation"
        report(settings, data, nets, found, out, {"checkpoint": str(given.checkpoint)})
    elif isinstance(given, Import):
        _new(given.output, given.overwrite)
        clips = stick_from_bvh(
            given.bvh, given.index, given.joint_map, width=given.figure, progress=_progress
        )
        _write(given.output, clips)
    elif isinstance(given, Make):
        _new(given.output, given.overwrite)
        if given.clips < 1:
            raise ValueError(f"clips: expected at least 1, got {given.clips}")
        _write(given.output, generate_stick(
            given.clips, seed=given.seed, width=given.figure, transitions=given.transitions,
            augment=given.augment,
        ))  # fmt: skip
    else:
        _validate(given)


def _validate(given: Validate) -> None:
    if given.output is not None:
        _new(given.output, given.overwrite)
    clips = read_stick(given.data)
    found = check_stick(clips)
    for finding in found[: given.shown]:
        print(finding)
    if len(found) > given.shown:
        print(f"... and {len(found) - given.shown} more")
    odd = len({finding.clip for finding in found})
    print(f"{given.data}: {len(clips)} clips, {len(found)} findings in {odd} of them")
    if given.output is not None:
        _write(given.output, drop_found(clips, found))


def _new(file: Path, overwrite: bool) -> None:
    if file.suffix != ".pt":
        raise ValueError(f"output: expected NAME.pt, got {file}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"output: expected the folder {file.parent} to be there")
    if file.exists() and not overwrite:
        raise FileExistsError(f"output: {file} is there already; --overwrite replaces it")


def _write(file: Path, clips: list) -> None:
    if not clips:
        raise ValueError(f"output: {file}: no clip is left to write")
    write_stick(file, clips)
    frames = sum(len(clip.motion) for clip in clips)
    print(
        f"wrote {file}: {len(clips)} clips, {frames:,} frames ({frames / FPS:.0f} s), "
        f"{file.stat().st_size / 1e6:.1f} MB"
    )


def _progress(done: int, total: int, name: str) -> None:
    print(f"\r{done}/{total} {name}\x1b[K", end="" if done < total else "\n", file=sys.stderr, flush=True)
