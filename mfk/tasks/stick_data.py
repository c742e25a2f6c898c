"""The data of a stick-figure model: files of clips or generated ones, what is held out, and windows."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.config import refuse_unused
from mfk.core.files import fingerprint, watch
from mfk.core.types import Batch, Params
from mfk.data.stick import ACTIONS, ENVIRONMENTS, FPS, StickClip, stick_physics
from mfk.data.stick_files import read_stick
from mfk.data.stick_generate import generate_stick
from mfk.data.tensors import open_regular
from mfk.data.text_hash import HASH, embed_text
from mfk.tasks.stick_features import fit_stick

VARIABLE = "TRAIN_DATA_PATH"
_ROWS = 32  # held-out windows of a batch
_LONGEST = 10_000  # frames of a window
_FAR = 1e5  # units: float32 knows a place there to a hundredth of one only


@dataclass(frozen=True)
class StickDataConfig:
    """Which clips, and which of them are held out."""

    data: Path | None = None
    """File of clips (.pt; see `stick.py import`), before all that follow."""
    stage: Literal["train", "pretrain", "sft"] = "train"
    """Which of the next three is meant."""
    train_data: Path | None = None
    """train: the file of clips; None: the variable TRAIN_DATA_PATH, or generated ones where it is not set."""
    curated_pretrain_data: Path | None = None
    """pretrain: the file of clips."""
    curated_sft_data: Path | None = None
    """sft: the file of clips, for fine-tuning with --init-from."""
    clips: int = 600
    """Without a file: clips to generate, of 10 s each."""
    figure: Literal[20, 48] = 20
    """Without a file: numbers of a frame, 20 of five segments or 48 of twelve."""
    transitions: float = 0.4
    """Without a file: share of the clips that change their action."""
    augment: bool = True
    """Without a file: other speeds, places, sizes, and mirrored."""
    frames: int = 100
    """Frames of a training window; longer clips are parted, shorter ones are masked."""
    held_out: tuple[str, ...] = ()
    """Of a file: clips of the report by name, meta["clip"]; () draws a share by the seed."""
    validation_share: float = 0.1
    """Share of the clips that picks the checkpoint, drawn by the seed."""
    test_share: float = 0.1
    """Share of the clips of the report, drawn by the seed."""
    encoder: str = "hash"
    """What turns text into numbers where clips bring no embedding: hash, or a sentence-transformers name."""


class StickData(NamedTuple):
    """Windows to train on and clips held out."""

    name: str  # where the clips come from
    width: int  # D
    training: Batch  # name -> [windows, ...], see `stick_task`
    validation: list[StickClip]
    test: list[StickClip]
    openings: list[StickClip]  # of the training clips, for generation to begin with
    unchanged: Callable[[], None]  # ValueError once the file that clips are mapped from is another


def open_stick(config: StickDataConfig, seed: int, embedding_dim: int, camera: bool) -> StickData:
    """Read or generate the clips, part them, cut the training clips into windows.

    Raises:
        FileNotFoundError, ValueError: a file that cannot be used, a share that leaves nothing, a setting
            without effect.
    """
    path = path_of(config)
    unchanged = watch([] if path is None else [path])
    if path is None:
        refuse_unused(config, False, "held_out")
        if config.clips < 1:
            raise ValueError(f"clips: expected at least 1, got {config.clips}")
        clips = generate_stick(
            config.clips, seed=seed, width=config.figure, transitions=config.transitions,
            augment=config.augment,
        )  # fmt: skip
        name = f"{len(clips)} generated clips"
    else:
        # A preset says how many clips to generate, which is no fault of who names a file.
        refuse_unused(config, False, "figure", "transitions", "augment")
        clips, name = read_stick(path), str(path)
    widths = sorted({clip.motion.shape[-1] for clip in clips})
    if len(widths) != 1:
        raise ValueError(
            f"{name}: expected clips of one width, got {' and '.join(map(str, widths)) or 'none'}"
        )
    clips = embedded(clips, embedding_dim, config.encoder, name)
    for i, clip in enumerate(clips):
        check_clip(clip, camera, f"{name}: clip {i}")
    # Parted before the actors are: those of one recording are not independent.
    training, validation, test = (single_actors(part) for part in _part(config, clips, seed, name))
    windows = windows_of(training, config.frames, camera, name)
    return StickData(name, widths[0], windows, validation, test, training, unchanged)


def path_of(config: StickDataConfig) -> Path | None:
    """The file that the settings and the variable TRAIN_DATA_PATH mean; None: none.

    Raises:
        OSError, ValueError: there is no such file, or it cannot be read; or settings without one.
    """
    named = {"train": "train_data", "pretrain": "curated_pretrain_data", "sft": "curated_sft_data"}
    if config.stage not in named:
        raise ValueError(f"stage: expected train, pretrain or sft, got {config.stage!r}")
    where = named[config.stage] if config.data is None else "data"
    path = getattr(config, where)
    if path is None and config.stage == "train" and os.environ.get(VARIABLE):
        where, path = f"the variable {VARIABLE}", Path(os.environ[VARIABLE])
    if path is not None:
        try:
            open_regular(path)
        except (OSError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from None
        return path
    if config.stage != "train":
        raise ValueError(f"stage: {config.stage} needs {where}, or --data")
    for stage, name in named.items():
        if (file := getattr(config, name)) is not None:
            raise ValueError(f"{name}: {file} needs --stage {stage}; train_data names no file")
    return None


def data_record(config: StickDataConfig) -> str:
    """What tells the data of a run from others."""
    path = path_of(config)
    return "generated\n" if path is None else f"{path}: {fingerprint(path)}\n"


def single_actors(clips: Sequence[StickClip]) -> list[StickClip]:
    """Each actor of each clip as a clip of its own; an actor that is all zeros is no actor."""
    found = []
    for clip in clips:
        if clip.motion.ndim == 2:
            found.append(clip)
            continue
        for k in range(clip.motion.shape[1]):
            if bool((clip.motion[:, k] != 0).any()):
                actions, physics = (
                    x[:, k] if x is not None and x.ndim == both else x
                    for x, both in ((clip.actions, 2), (clip.physics, 3))
                )
                found.append(clip._replace(motion=clip.motion[:, k], actions=actions, physics=physics))
    if not found:
        raise ValueError("data: expected at least one clip with an actor, got none")
    return found


def embed_one(name: str, text: str, encoder: str, width: int) -> Tensor:
    """`embed_text` of one text, [E].

    Raises:
        ValueError: of the text, which is called `name`, of encoder or of embedding_dim, which is `width`.
    """
    try:
        return embed_text([text], encoder, width)[0]
    except ValueError as error:
        raise ValueError(_renamed(str(error), name)) from None


def _renamed(said: str, name: str) -> str:
    """What `embed_text` said of its arguments, said of settings."""
    for own, users in (("texts[0]: ", name), ("width: ", "embedding_dim")):
        if said.startswith(own):
            return f"{users}: {said.removeprefix(own)}"
    return said


def embedded(clips: Sequence[StickClip], width: int, encoder: str, name: str) -> list[StickClip]:
    """The clips, each with an embedding of `width` numbers: its own, or that of its description.

    Raises:
        ValueError: one's own has another width, or a description cannot be encoded.
    """
    for i, clip in enumerate(clips):
        if clip.embedding is not None and clip.embedding.shape != (width,):
            raise ValueError(
                f"{name}: clip {i}: embedding: expected {width} numbers (embedding_dim), "
                f"got {tuple(clip.embedding.shape)}"
            )
    # All at once: a sentence encoder takes seconds to load.
    texts = list(dict.fromkeys(clip.description for clip in clips if clip.embedding is None))
    try:
        known = dict(zip(texts, embed_text(texts, encoder, width), strict=True)) if texts else {}
    except ValueError as error:
        for i, clip in enumerate(clips):
            if clip.embedding is None and encoder == HASH:
                embed_one(f"{name}: clip {i}: description", clip.description, encoder, width)
        raise ValueError(_renamed(str(error), "description")) from None
    return [
        clip if clip.embedding is not None else clip._replace(embedding=known[clip.description])
        for clip in clips
    ]


def check_clip(clip: StickClip, camera: bool, where: str) -> None:
    """ValueError if the clip cannot be trained on, or has no camera where one is asked for."""
    if len(clip.motion) < 3:
        raise ValueError(f"{where}: expected at least 3 frames, got {len(clip.motion)}")
    if clip.actions is not None and bool(((clip.actions < -1) | (clip.actions >= len(ACTIONS))).any()):
        wrong = clip.actions[(clip.actions < -1) | (clip.actions >= len(ACTIONS))]
        raise ValueError(
            f"{where}: actions: expected places in ACTIONS, 0 to {len(ACTIONS) - 1}, or -1, "
            f"got {int(wrong[0])}"
        )
    if not bool(clip.motion.abs().amax() < _FAR):
        raise ValueError(f"{where}: motion: expected places nearer than {_FAR:g} units, got farther ones")
    if camera and clip.camera is None:
        raise ValueError(f"{where}: condition_camera, but it has no camera")


def windows_of(clips: Sequence[StickClip], frames: int, camera: bool, name: str) -> Batch:
    """Windows of clips that have embeddings, [R, frames, ...], as `stick_task` takes them.

    A clip of n frames has ceil of (n - 1) / (frames - 1) windows, evenly spread, the first at its
    beginning and the last at its end; a clip of fewer frames is one window, whose rest is masked.

    Raises:
        ValueError: fewer than 3 frames in a window, or as `check_clip`.
    """
    if not 3 <= frames <= _LONGEST:
        raise ValueError(f"frames: expected 3 to {_LONGEST}, got {frames}")
    parts: dict[str, list[Tensor]] = {key: [] for key in ("motion", "valid", "actions", "physics")}
    parts |= {"text": [], "environment": []} | ({"camera": []} if camera else {})
    for number, clip in enumerate(clips):
        length = len(clip.motion)
        check_clip(clip, camera, f"{name}: clip {number}")
        actions = clip.actions if clip.actions is not None else torch.full((length,), -1)
        physics = clip.physics if clip.physics is not None else stick_physics(clip.motion, FPS)
        count = max(1, -(-(length - 1) // (frames - 1)))
        for start in np.linspace(0, max(0, length - frames), count).round().astype(int).tolist():
            end = min(start + frames, length)

            def cut(x: Tensor, fill: float, start: int = start, end: int = end) -> Tensor:
                out = x.new_full((frames, *x.shape[1:]), fill)
                out[: end - start] = x[start:end]
                return out

            parts["motion"].append(cut(clip.motion, 0.0))
            parts["actions"].append(cut(actions, -1))
            parts["physics"].append(cut(physics, 0.0))
            parts["valid"].append(torch.arange(frames) < end - start)
            parts["text"].append(clip.embedding if clip.embedding is not None else torch.zeros(0))
            parts["environment"].append(torch.tensor(environment_of(clip)))
            if camera and clip.camera is not None:
                parts["camera"].append(cut(clip.camera, 0.0))
    return {key: torch.stack(x) for key, x in parts.items()}


def held_out_batches(clips: Sequence[StickClip], frames: int, camera: bool, name: str) -> list[Batch]:
    """`windows_of` the clips, 32 at a time."""
    whole = windows_of(clips, frames, camera, name)
    return [
        {name: x[first : first + _ROWS] for name, x in whole.items()}
        for first in range(0, len(whole["motion"]), _ROWS)
    ]


def environment_of(clip: StickClip) -> int:
    """Number of the clip's environment; -1: it says none, or one that is no class."""
    name = clip.environment_type
    return ENVIRONMENTS.index(name) if name in ENVIRONMENTS else -1


def measure_scale(training: Batch) -> Params:
    """`fit_stick` of the training windows, and "physics" [6], how large each number is, x and y alike."""
    scale = fit_stick(training["motion"], training["valid"])
    square = training["physics"][training["valid"]].double().square().mean(0)
    size = square.unflatten(0, (3, 2)).mean(-1).sqrt().repeat_interleave(2)
    return scale | {"physics": size.clamp(min=1e-3).float()}


def _part(
    config: StickDataConfig, clips: list[StickClip], seed: int, name: str
) -> tuple[list[StickClip], list[StickClip], list[StickClip]]:
    """Clips for training, validation and report."""
    for key in ("validation_share", "test_share"):
        if not 0 < getattr(config, key) < 1:
            raise ValueError(f"{key}: expected a share between 0 and 1, got {getattr(config, key)}")
    names = [(clip.meta or {}).get("clip") for clip in clips]
    named = [i for i, clip in enumerate(names) if clip in config.held_out]
    if missing := set(config.held_out) - {names[i] for i in named}:
        raise ValueError(f"held_out: {name} has no clip named {sorted(missing)[0]!r}")
    generator = np.random.Generator(np.random.Philox(key=rng.key(seed, "stick split")))
    rest = [i for i in generator.permutation(len(clips)).tolist() if i not in named]
    test = named or rest[: max(1, round(config.test_share * len(clips)))]
    rest = [i for i in rest if i not in test]
    count = max(1, round(config.validation_share * len(clips)))
    if len(rest) <= count:
        raise ValueError(f"{name}: {len(clips)} clips leave none for training")
    validation = rest[:count]
    chosen = {*test, *validation}
    return (
        [clip for i, clip in enumerate(clips) if i not in chosen],
        [clips[i] for i in sorted(validation)],
        [clips[i] for i in sorted(test)],
    )
