"""What can be done beside training stick figures: generate, evaluate, import recordings, check a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from counting import counter
from places import check_folder, check_new, check_readable, told
from stick_runs import OPENINGS, compose, report, settings_of, trained, write_motion

from mfk import train
from mfk.data.stick import FPS
from mfk.data.stick_check import check_stick, drop_found
from mfk.data.stick_files import read_stick, write_stick
from mfk.data.stick_generate import generate_stick
from mfk.data.stick_mocap import stick_from_bvh
from mfk.tasks import stick_data
from mfk.tasks.movies import check_place
from mfk.tasks.stick_generate import from_json


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


_RUN = "the folder of a run that can be read"


def command(given: Generate | Evaluate | Import | Make | Validate) -> None:
    """Do it."""
    if isinstance(given, Generate):
        with told("--out", given.out, "a file that can be written"):
            check_place(given.out, (".gif", ".mp4", ".png", ".npz"), "--out")
        with told("--checkpoint", given.checkpoint, _RUN):
            settings = settings_of(given.checkpoint)
            nets, found = trained(settings, given.checkpoint)
            known = from_json(train.run_of(given.checkpoint) / OPENINGS, nets.width)
        made = compose(settings, nets, found, known, given.text, given.seconds, given.seed, given.actions)
        with told("--out", given.out, "a file that can be written"):
            write_motion(made, given.out, given.text)
    elif isinstance(given, Evaluate):
        with told("--checkpoint", given.checkpoint, _RUN):
            settings = settings_of(given.checkpoint)
            run = train.run_of(given.checkpoint)
        out = given.out or run / "evaluation"
        check_folder("--out", out)
        train.check_same_data(run, stick_data.data_record(settings.data))
        with told("--checkpoint", given.checkpoint, _RUN):
            nets, found = trained(settings, given.checkpoint)
        camera = settings.net.condition_camera
        data = stick_data.open_stick(settings.data, settings.train.seed, settings.net.embedding_dim, camera)
        with told("--out", out, "a folder that can be written to"):
            report(settings, data, nets, found, out, {"checkpoint": str(given.checkpoint)})
    elif isinstance(given, Import):
        check_new("--output", given.output, given.overwrite)
        check_readable("--index", given.index)
        check_readable("--joint-map", given.joint_map)
        with told("--bvh", given.bvh, "the index's files, each readable"):
            if not given.bvh.is_dir():
                raise NotADirectoryError(f"--bvh: expected a folder of BVH files, got {given.bvh}")
            clips = stick_from_bvh(
                given.bvh, given.index, given.joint_map, width=given.figure, progress=counter()
            )
        _write(given.output, clips)
    elif isinstance(given, Make):
        check_new("--output", given.output, given.overwrite)
        if given.clips < 1:
            raise ValueError(f"clips: expected at least 1, got {given.clips}")
        _write(given.output, generate_stick(
            given.clips, seed=given.seed, width=given.figure, transitions=given.transitions,
            augment=given.augment, progress=counter("clips"),
        ))  # fmt: skip
    else:
        _validate(given)


def _validate(given: Validate) -> None:
    if given.shown < 0:
        raise ValueError(f"shown: expected at least 0, got {given.shown}")
    if given.output is not None:
        check_new("--output", given.output, given.overwrite)
    clips = read_stick(given.data, finite=False)
    found = check_stick(clips)
    for finding in found[: given.shown]:
        print(finding)
    if len(found) > given.shown:
        print(f"... and {len(found) - given.shown} more")
    odd = len({finding.clip for finding in found})
    print(f"{given.data}: {len(clips)} clips, {len(found)} findings in {odd} of them")
    if given.output is not None:
        _write(given.output, drop_found(clips, found))


def _write(file: Path, clips: list) -> None:
    if not clips:
        raise ValueError(f"--output: {file}: no clip is left to write")
    with told("--output", file, "a file that can be written"):
        write_stick(file, clips)
    frames = sum(len(clip.motion) for clip in clips)
    print(
        f"wrote {file}: {len(clips)} clips, {frames:,} frames ({frames / FPS:.0f} s), "
        f"{file.stat().st_size / 1e6:.1f} MB"
    )
