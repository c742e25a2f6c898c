"""Reading the text of a .bvh file: its hierarchy and its numbers."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

Lines: TypeAlias = Iterator[tuple[int, str]]
"""(number from 1, text) of each line that is not blank."""

_CHANNEL = re.compile("[XYZ](position|rotation)")
_WHOLE = 1e-4  # relative; a frame time so close to 1 / N is that number, written with a few digits


class BvhHeader(NamedTuple):
    """What a file says before its first frame."""

    bone_names: tuple[str, ...]  # in the order of the file, in which parents come first
    parents: tuple[int, ...]  # -1 of the first, the root
    offsets: Tensor  # [bones, 3], float64, in the file's unit: from the parent to the bone, at rest
    channels: tuple[tuple[str, ...], ...]  # of each bone, such as Xposition or Zrotation, in the file's order
    frames: int
    fps: float  # frames per second


@dataclass
class _Bone:
    """A bone of a hierarchy that is being read."""

    name: str
    parent: int
    offset: list[float] | None = None
    channels: tuple[str, ...] | None = None


def open_lines(path: Path) -> Lines:
    """The lines of a file, one by one.

    Raises:
        ValueError: not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            yield from ((number, line) for number, line in enumerate(file, 1) if not line.isspace())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8: {error.reason}") from None


def parse_header(path: Path, lines: Lines) -> BvhHeader:
    """Everything before the first frame; takes these lines.

    Raises:
        ValueError: see `mfk.data.bvh.read_bvh_header`.
    """
    pieces = ((n, piece.strip()) for n, line in lines for piece in re.split("([{}])", line))
    statements = ((n, piece) for n, piece in pieces if piece)
    number, text = next(statements, (0, ""))
    if text.upper() != "HIERARCHY":
        _refuse(path, number, "HIERARCHY", text)
    bones = _bones(path, statements)
    channels = tuple(bone.channels or () for bone in bones)
    if not any(channels):
        raise ValueError(f"{path}: expected at least one channel, got none")
    number, text = next(statements, (0, ""))
    count = re.fullmatch(r"frames\s*:\s*([0-9]{1,12})", text, re.IGNORECASE)
    if not count or not int(count[1]):
        _refuse(path, number, "Frames: and a positive number", text)
    number, text = next(statements, (0, ""))
    time = re.fullmatch(r"frame\s+time\s*:\s*(.+)", text, re.IGNORECASE)
    seconds = _finite(time[1].split()) if time else None
    if not seconds or len(seconds) != 1 or seconds[0] <= 0 or not math.isfinite(1 / seconds[0]):
        _refuse(path, number, "Frame Time: and a positive number of seconds", text)
    fps = 1 / seconds[0]
    return BvhHeader(
        bone_names=tuple(bone.name for bone in bones),
        parents=tuple(bone.parent for bone in bones),
        offsets=torch.tensor([bone.offset for bone in bones], dtype=torch.float64),
        channels=channels,
        frames=int(count[1]),
        fps=float(round(fps)) if abs(round(fps) / fps - 1) < _WHOLE else fps,
    )


def parse_numbers(path: Path, lines: Lines, header: BvhHeader) -> Tensor:
    """The frames, [T, channels], float64; takes all lines.

    Raises:
        ValueError: see `mfk.data.bvh.read_bvh`.
    """
    width = sum(map(len, header.channels))
    numbers = array("d")
    for number, line in lines:
        words = line.split()
        if len(words) != width:
            _refuse(path, number, f"{width} numbers, one for each channel", f"{len(words)} of them")
        if len(numbers) == header.frames * width:
            _refuse(path, number, f"no more than {header.frames} frames", line.strip())
        values = _finite(words)
        if values is None:
            bad = next(word for word in words if _finite([word]) is None)
            _refuse(path, number, "finite numbers", bad)
        numbers.extend(values)
    if len(numbers) < header.frames * width:
        found = len(numbers) // width
        raise ValueError(f"{path}: expected {header.frames} frames, as it says, got {found}; it has been cut")
    return torch.from_numpy(np.frombuffer(numbers, np.float64).reshape(header.frames, width))


def _bones(path: Path, statements: Lines) -> list[_Bone]:
    """The hierarchy, up to the word MOTION, which is taken too."""
    bones: list[_Bone] = []
    inside: list[int] = []  # bones whose braces are open; -1: an end site
    for number, text in statements:
        word, rest = (*text.split(maxsplit=1), "")[:2]
        word = word.upper()
        bone = bones[inside[-1]] if inside and inside[-1] >= 0 else None
        whole = bone is not None and bone.offset is not None and bone.channels is not None
        if word == "MOTION" and bones and not inside:
            return bones
        if word == "ROOT" and bones:
            _refuse(path, number, "one root (a file with more is several files)", text)
        if word == "ROOT" or (word in ("JOINT", "END") and whole):
            if word == "END":
                inside.append(-1)
            else:
                if not rest or any(rest == other.name for other in bones):
                    _refuse(path, number, "a bone's name that no other has", text)
                bones.append(_Bone(rest, inside[-1] if inside else -1))
                inside.append(len(bones) - 1)
            number, text = next(statements, (0, ""))
            if text != "{":
                _refuse(path, number, "{", text)
        elif word == "OFFSET" and inside and (bone is None or bone.offset is None):
            numbers = _finite(rest.split())
            if numbers is None or len(numbers) != 3:
                _refuse(path, number, "OFFSET and three finite numbers", text)
            if bone is not None:
                bone.offset = numbers
        elif word == "CHANNELS" and bone is not None and bone.channels is None:
            bone.channels = _channels(path, number, text)
        elif word == "}" and inside and (bone is None or whole):
            inside.pop()
        else:
            _refuse(path, number, _expected(bones, inside), text)
    _refuse(path, 0, _expected(bones, inside), "")


def _expected(bones: list[_Bone], inside: list[int]) -> str:
    """What may come next in a hierarchy."""
    if not inside:
        return "MOTION" if bones else "ROOT"
    if inside[-1] < 0:
        return "OFFSET or } of an end site"
    bone = bones[inside[-1]]
    needed = [word for word, value in (("OFFSET", bone.offset), ("CHANNELS", bone.channels)) if value is None]
    return f"{' and '.join(needed) or 'JOINT, End Site or }'} of bone {bone.name!r}"


def _channels(path: Path, number: int, text: str) -> tuple[str, ...]:
    count, *names = text.split()[1:] or [""]
    found = tuple(name.capitalize() for name in names)
    if count != str(len(found)) or len({*found}) < len(found) or not all(map(_CHANNEL.fullmatch, found)):
        _refuse(path, number, "CHANNELS, their number, and Xposition ... Zrotation, each at most once", text)
    return found


def _finite(words: list[str]) -> list[float] | None:
    """The words as numbers; None if one of them is no finite number."""
    try:
        values = list(map(float, words))
    except ValueError:
        return None
    # Python takes 1_000 for a number.
    return values if all(map(math.isfinite, values)) and not any("_" in word for word in words) else None


def _refuse(path: Path, number: int, expected: str, got: str) -> NoReturn:
    """Raise for what stands in line `number`, or for a file that ends."""
    if not got:
        raise ValueError(f"{path}: expected {expected}, got the end of the file")
    raise ValueError(
        f"{path}: line {number}: expected {expected}, got {got if len(got) < 80 else got[:77] + '...'}"
    )
