"""What a motion file says about itself: from its JSON to `MotionInfo`, and back.

The schema is optiq's. What mfk adds stands in its "metadata": clips, parents, space and up.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar, cast

from mfk.core.types import describe
from mfk.data.motion import Clip, MotionInfo, Skeleton, Space, Up

POSE = 7  # numbers of a bone in a frame

_OURS = ("clips", "parents", "space", "up")  # keys of "metadata" that are not passed through
_CHOICES = {"space": ("world", "local"), "up": ("x", "y", "z")}
_Choice = TypeVar("_Choice", bound=str)


class Given(NamedTuple):
    """What the caller says about a file that may not say it itself."""

    space: Space | None
    up: Up | None


class Columns(NamedTuple):
    """What there is beside the frames."""

    velocities: bool
    labels: int | None  # their width
    splits: tuple[str, ...]


def load_json(where: str, text: object) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not text, or not JSON; starts with `where`.
    """
    try:
        return json.loads(cast("str", text))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: expected JSON, got {reprlib.repr(text)}: {error}") from None


def parse_info(
    path: object, said: Mapping[str, Any], rows: int, stem: str, columns: Columns, given: Given
) -> MotionInfo:
    """Check what a file says: its fps, bone_names, metadata, label_names, seq_labels, splits, ...

    Of these, fps and bone_names are needed. Without metadata's clips, all rows are one clip named `stem`;
    its action is then the one string of seq_labels, and seq_labels of another length are passed through as
    metadata. Labels without label_names are called "0", "1", ...

    Raises:
        ValueError: a key that is missing, of another type, or contradicts the rows, the columns or what the
            caller says; starts with `path`.
    """
    for key in ("fps", "bone_names"):
        if said.get(key) is None:
            raise ValueError(
                f"{path}: expected the key {key!r} in what the file says of itself, got {_keys(said)}"
            )
    fps = said["fps"]
    try:
        rate = float(fps) if type(fps) in (int, float) else math.nan
    except OverflowError:
        rate = math.inf
    if not (math.isfinite(rate) and rate > 0):
        _refuse(path, "fps", "a positive number", fps)
    if rows < 1:
        raise ValueError(f"{path}: expected at least one row, got none")
    metadata = said.get("metadata")
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        _refuse(path, "metadata", "an object", metadata)
    bones = _names(path, "bone_names", said["bone_names"])
    skeleton = Skeleton(
        bone_names=bones,
        parents=_parents(path, metadata.get("parents"), bones),
        space=_choice(path, "space", metadata.get("space"), given.space),
        up=_choice(path, "up", metadata.get("up"), given.up),
    )
    for key, there in (("has_velocities", columns.velocities), ("has_labels", columns.labels is not None)):
        if said.get(key, there) is not there:
            what = "such a column" if there else "no such column"
            raise ValueError(
                f"{path}: {key}: expected {there}, as there is {what}, got {describe(said[key])}"
            )
    if {*_names(path, "splits", said.get("splits") or [])} != {*columns.splits} and "splits" in said:
        found = f"{', '.join(columns.splits) or 'none'}"
        raise ValueError(
            f"{path}: splits: expected the split columns' names ({found}), got {said['splits']!r}"
        )
    clips, others = _clips(path, metadata.get("clips"), said.get("seq_labels"), rows, stem)
    others |= {key: value for key, value in metadata.items() if key not in _OURS}
    labels = _label_names(path, said.get("label_names"), columns.labels)
    return MotionInfo(rate, skeleton, clips, labels, columns.splits, others)


def describe_info(info: MotionInfo, velocities: bool) -> dict[str, Any]:
    """What `parse_info` reads back, as a dict of JSON's types.

    Raises:
        ValueError: something in `info` that does not fit together, or that JSON cannot hold; metadata with
            a key that has a meaning here.
    """
    if taken := [key for key in _OURS if key in info.metadata]:
        raise ValueError(f"metadata: expected other keys than {', '.join(_OURS)}, got {taken[0]!r}")
    skeleton = info.skeleton
    ours = {
        "clips": [clip._asdict() for clip in info.clips],
        "parents": None if skeleton.parents is None else list(skeleton.parents),
        "space": skeleton.space,
        "up": skeleton.up,
    }
    said = {
        "fps": info.fps,
        "bone_names": list(skeleton.bone_names),
        "metadata": dict(info.metadata) | {key: value for key, value in ours.items() if value is not None},
        "has_velocities": velocities,
        "has_labels": info.label_names is not None,
        "label_names": None if info.label_names is None else list(info.label_names),
        "seq_labels": [clip.action for clip in info.clips],
        "splits": list(info.splits),
    }
    try:
        kept = json.loads(json.dumps(said, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected what JSON can hold: {error}") from None
    if kept != said:
        raise ValueError("metadata: expected what JSON keeps as it is: lists, and strings as keys")
    columns = Columns(velocities, None if info.label_names is None else len(info.label_names), info.splits)
    parse_info("info", said, sum(clip.frames for clip in info.clips), "", columns, Given(None, None))
    return said


def same_skeleton(a: Skeleton, b: Skeleton, name_a: str, name_b: str) -> None:
    """Refuse two files whose frames do not mean the same.

    Parents are compared where both are known; a space or an up that one of them does not say is a difference.

    Raises:
        ValueError: the first difference, with both names.
    """
    for i, (bone_a, bone_b) in enumerate(zip(a.bone_names, b.bone_names, strict=False)):
        if bone_a != bone_b:
            raise ValueError(f"{name_b}: bone {i}: expected {bone_a!r}, as {name_a} has, got {bone_b!r}")
    pairs: list[tuple[str, object, object]] = [("bones", len(a.bone_names), len(b.bone_names))]
    if a.parents is not None and b.parents is not None:
        of_each = zip(a.bone_names, a.parents, b.parents, strict=False)
        pairs += [(f"parent of bone {bone!r}", _name(a, i), _name(b, j)) for bone, i, j in of_each]
    pairs += [("space", a.space, b.space), ("up", a.up, b.up)]
    for what, in_a, in_b in pairs:
        if in_a != in_b:
            raise ValueError(f"{name_b}: {what}: expected {in_a!r}, as {name_a} has, got {in_b!r}")


def _name(skeleton: Skeleton, bone: int) -> str | None:
    return None if bone < 0 else skeleton.bone_names[bone]


def _clips(
    path: object, said: object, actions: object, rows: int, stem: str
) -> tuple[tuple[Clip, ...], dict[str, Any]]:
    """The clips, and what else is to be kept as metadata."""
    if actions is not None and not isinstance(actions, list):
        _refuse(path, "seq_labels", "a list", actions)
    if said is None:
        one = len(actions) == 1 and (actions[0] is None or isinstance(actions[0], str)) if actions else False
        action = actions[0] if actions and one else None
        return (Clip(stem, rows, action),), {"seq_labels": actions} if actions and not one else {}
    if not isinstance(said, list) or not said:
        _refuse(path, "clips", "a list of at least one clip", said)
    clips: list[Clip] = []
    for i, clip in enumerate(said):
        fields = tuple(clip.get(key) for key in Clip._fields) if isinstance(clip, dict) else ()
        if not fields or {*clip} - {*Clip._fields}:
            _refuse(path, f"clip {i}", "name, frames and action", clip)
        name, frames, action = fields
        if not isinstance(name, str) or type(frames) is not int or not isinstance(action, str | None):
            _refuse(path, f"clip {i}", "a name, a number of frames and an action or null", clip)
        if frames < 1:
            _refuse(path, f"clip {name!r}", "at least one frame", frames)
        clips.append(Clip(name, frames, action))
    _differ(path, "clips", [clip.name for clip in clips])
    if (total := sum(clip.frames for clip in clips)) != rows:
        raise ValueError(f"{path}: clips: expected {rows} frames, one for each row, got {total}")
    if actions is not None and actions != [clip.action for clip in clips]:
        _refuse(path, "seq_labels", "the clips' actions", actions)
    return tuple(clips), {}


def _label_names(path: object, said: object, width: int | None) -> tuple[str, ...] | None:
    if width is None:
        if said:
            _refuse(path, "label_names", "none, as there are no labels", said)
        return None
    if said is None:
        return tuple(map(str, range(width)))
    names = _names(path, "label_names", said)
    if len(names) != width:
        raise ValueError(f"{path}: label_names: expected {width}, the width of the labels, got {len(names)}")
    return names


def _parents(path: object, said: object, bones: tuple[str, ...]) -> tuple[int, ...] | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != len(bones):
        _refuse(path, "parents", f"a list of {len(bones)}, one for each bone", said)
    for bone, parent in enumerate(said):
        if type(parent) is not int or not (0 <= parent < bone or (bone == 0 and parent == -1)):
            wanted = "an earlier bone's index" if bone else "-1"
            _refuse(path, f"parents: bone {bones[bone]!r}", wanted, parent)
    return tuple(said)


def _choice(path: object, key: str, said: object, given: _Choice | None) -> _Choice | None:
    for value, where in ((said, path), (given, "the caller")):
        if value is not None and value not in _CHOICES[key]:
            _refuse(where, key, f"one of {', '.join(_CHOICES[key])}", value)
    if said is not None and given is not None and said != given:
        raise ValueError(f"{path}: {key}: expected {given!r}, as the caller says, got {said!r}")
    return cast("_Choice | None", given if said is None else said)


def _names(path: object, key: str, said: object) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        _refuse(path, key, "a list of strings", said)
    if key == "bone_names" and not said:
        _refuse(path, key, "at least one", said)
    _differ(path, key, said)
    return tuple(said)


def _differ(path: object, key: str, names: Sequence[str]) -> None:
    if len({*names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{path}: {key}: expected names to differ, got {twice!r} twice")


def _keys(said: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(map(reprlib.repr, said))}" if said else "none"


def _refuse(path: object, key: str, expected: str, got: object) -> NoReturn:
    raise ValueError(f"{path}: {key}: expected {expected}, got {describe(got)}")
