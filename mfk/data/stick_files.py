"""Files of stick figures: a list of dicts, one for each clip, saved by ``torch.save``."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfk.core.files import write_atomically
from mfk.core.types import describe
from mfk.data.stick import SEGMENTS, StickClip
from mfk.data.tensors import open_regular, plain_tensor, read_torch

_EXPECTED = "expected a list of clips, each a dict of tensors, text and numbers"
_TENSORS = {
    "motion": torch.float32,
    "actions": torch.int64,
    "physics": torch.float32,
    "camera": torch.float32,
    "embedding": torch.float32,
}
_KINDS = {
    "description": str,
    "source": str,
    "meta": dict,
    "environment_type": str,
    "enhanced_meta": dict,
}
_NEEDED = ("description", "motion")


def read_stick(path: str | os.PathLike[str]) -> list[StickClip]:
    """The clips of a ``.pt`` file, checked; nothing in it is run.

    Tensors are mapped from the file where its format allows, as `mfk.data.read_tensors` does. What a clip
    lacks or has as None is None; whether its numbers make sense is for `mfk.data.check_stick` to say.

    Args:
        path: a file of a list of dicts with the keys of `StickClip`.

    Raises:
        FileNotFoundError: no such file. OSError: it cannot be read.
        ValueError: damaged, or not such a list: an unknown or missing key, another type or shape, a number
            that is not finite. The message names the file, and the clip's number and the key.
    """
    path = Path(path)
    size, head = open_regular(path)
    if not size:
        raise ValueError(f"{path}: {_EXPECTED}, got an empty file")
    found = read_torch(path, size, head == b"PK\x03\x04", _EXPECTED)
    if not isinstance(found, list):
        raise ValueError(f"{path}: {_EXPECTED}, got a {type(found).__name__}")
    if not found:
        raise ValueError(f"{path}: {_EXPECTED}, got an empty list")
    return [_clip(f"{path}: clip {number}", said) for number, said in enumerate(found)]


def write_stick(path: str | os.PathLike[str], clips: Sequence[StickClip]) -> None:
    """Write clips as `read_stick` reads them, as a whole or not at all; None is left out.

    Args:
        path: a name that ends in .pt.
        clips: at least one.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: as `read_stick`, of the clips; or another name.
        TypeError: something else than clips.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"path: expected a name that ends in .pt, got {path}")
    if not clips:
        raise ValueError("clips: expected at least one, got none")
    said: list[dict[str, Any]] = []
    for number, clip in enumerate(clips):
        if not isinstance(clip, StickClip):
            raise TypeError(f"clips[{number}]: expected a StickClip, got {describe(clip)}")
        fields = {key: value for key, value in clip._asdict().items() if value is not None}
        checked = _clip(f"clips[{number}]", fields)._asdict()
        # A view would take the whole storage that it looks at into the file.
        said.append({key: x.clone() if isinstance(x := checked[key], Tensor) else x for key in fields})
    buffer = io.BytesIO()
    torch.save(said, buffer)
    write_atomically(path, buffer.getvalue())


def _clip(where: str, said: Any) -> StickClip:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: expected a dict, got a {type(said).__name__}")
    for key in said:
        if key not in StickClip._fields:
            names = ", ".join(StickClip._fields)
            raise ValueError(f"{where}: {key!r:.80}: expected a key among {names}")
    for key in _NEEDED:
        if said.get(key) is None:
            raise ValueError(f"{where}: {key!r}: expected it, got none")
    fields: dict[str, Any] = {}
    for key, value in said.items():
        if value is None:
            continue
        if kind := _KINDS.get(key):
            if not isinstance(value, kind):
                raise ValueError(f"{where}: {key!r}: expected a {kind.__name__}, got {type(value).__name__}")
            fields[key] = value
            continue
        tensor = plain_tensor(f"{where}: {key!r}", value)
        if tensor.dtype != _TENSORS[key]:
            raise ValueError(f"{where}: {key!r}: expected {_TENSORS[key]}, got {tensor.dtype}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            place = tuple((~tensor.isfinite()).nonzero()[0].tolist())
            raise ValueError(f"{where}: {key!r}: expected finite numbers, got {tensor[place]} at {place}")
        fields[key] = tensor
    clip = StickClip(**fields)
    _check_shapes(where, clip)
    return clip


def _check_shapes(where: str, clip: StickClip) -> None:
    motion = clip.motion
    if motion.ndim not in (2, 3) or motion.shape[-1] not in SEGMENTS or not motion.numel():
        raise ValueError(
            f"{where}: 'motion': expected [T, D] or [T, A, D], D 20 or 48, got {tuple(motion.shape)}"
        )
    leading = tuple(motion.shape[:-1])
    expected = {"actions": leading, "physics": (*leading, 6), "camera": (leading[0], 3)}
    for key, shape in expected.items():
        value = getattr(clip, key)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{where}: {key!r}: expected a shape of {shape}, as motion has {tuple(motion.shape)}, "
                f"got {tuple(value.shape)}"
            )
    if clip.embedding is not None and (clip.embedding.ndim != 1 or not clip.embedding.numel()):
        raise ValueError(f"{where}: 'embedding': expected [E], got {tuple(clip.embedding.shape)}")
