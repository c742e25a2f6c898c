"""Frozen dataclasses <-> YAML, strictly: what a file says is what the program gets, or an error.

YAML is read by the rules of YAML 1.2: ``1e-4`` is a float, ``no`` and ``2024-01-01`` are text. Anchors,
aliases, tags and repeated keys are refused.

A field may be a bool, int, float, str, Path, Literal, tuple[T, ...], tuple[A, B], dict[str, T], another
dataclass, or a union of these with or without None (an int wins over a float; otherwise the first
member that fits wins). A float must be finite: NaN or infinity in a setting is a mistake, and "no limit"
is spelled None.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

from mfk.core.files import write_atomically
from mfk.core.types import describe

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain data: dicts, lists, str, bool, int, float and None.

    ``from_dict(type(config), to_dict(config)) == config`` holds, or this raises.

    Raises:
        TypeError: `config` is no dataclass instance, or a field's annotation is not supported.
        ValueError: a field holds what its annotation does not allow; the field is named.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config: expected an instance of a dataclass, got {describe(config)}")
    data = _plain(config)
    again = from_dict(type(config), data, source=type(config).__name__)
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(again, field.name)
        if ours != theirs:
            raise ValueError(
                f"{type(config).__name__}: {field.name}: {describe(ours)} would be read back as "
                f"{describe(theirs)}"
            )
    return data


def from_dict(cls: type[C], data: Any, *, source: str = "config", base: C | None = None) -> C:
    """The `cls` that `data` describes.

    Args:
        cls: a dataclass.
        data: a mapping from field name to plain data, nested as the dataclasses are.
        source: where the data come from (a file's name, say); opens every error message.
        base: values for the keys that `data` leaves out. Without it they take the fields' defaults.

    Raises:
        TypeError: `cls` is no dataclass, has an annotation that is not supported, or is not `base`'s type.
        ValueError: an unknown or missing key, a wrong type or value: names source and dotted key, what
            was expected and what came. An int stands for a float that equals it; nothing else is cast.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"cls: expected a dataclass, got {describe(cls)}")
    if base is not None and type(base) is not cls:
        raise TypeError(f"base: expected an instance of {cls.__name__}, got {describe(base)}")
    return _record(cls, data, _Where(source), base)


def to_yaml(config: Any) -> str:
    """A config as YAML text, keys in the order of the fields; floats keep every digit.

    Raises:
        TypeError, ValueError: as `to_dict`.
    """
    from mfk.core import yaml12

    return yaml12.dumps(to_dict(config))


def load_yaml(cls: type[C], path: str | os.PathLike[str], *, base: C | None = None) -> C:
    """The `cls` that a YAML file describes; `base` as in `from_dict`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not readable as UTF-8 YAML, empty, or not what `cls` allows; names the file, and the
            line or the dotted key. ``{}`` is the file that changes nothing.
    """
    return from_dict(cls, _read(Path(path)), source=str(path), base=base)


def save_yaml(config: Any, path: str | os.PathLike[str]) -> None:
    """Write a config to a YAML file, atomically: a reader finds the old file or the new, never half.

    Raises:
        TypeError, ValueError: as `to_dict`; the file is left as it was.
        FileNotFoundError: the file's folder does not exist.
    """
    write_atomically(Path(path), to_yaml(config))


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key: {"train": {"lr": 1}} is {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def as_json(value: Any) -> Any:
    """Plain data as JSON gives them back: tuples as lists; NaN and infinities, which it lacks, as text."""
    if isinstance(value, Mapping):
        return {name: as_json(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def refuse_unused(config: Any, used: bool, *names: str) -> None:
    """ValueError if, `used` being False, a field that then has no effect is not at its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        if not used and getattr(config, name) != defaults[name]:
            raise ValueError(
                f"{name}: {getattr(config, name)!r} would have no effect with the other settings; "
                f"leave it at {defaults[name]!r}"
            )


def field_types(cls: type) -> dict[str, Any]:
    """Field name -> annotation, strings resolved, for each field that the dataclass's __init__ takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


class _Where(NamedTuple):
    source: str
    key: str = ""

    def at(self, name: str) -> _Where:
        return _Where(self.source, f"{self.key}.{name}" if self.key else name)

    def error(self, message: str) -> ValueError:
        return ValueError(": ".join(filter(None, (self.source, self.key, message))))

    def mismatch(self, hint: Any, value: Any) -> ValueError:
        came = "nothing (null)" if value is None else describe(value)
        return self.error(f"expected {_name(hint)}, got {came}")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def _record(cls: Any, data: Any, where: _Where, base: Any) -> Any:
    if not isinstance(data, Mapping):
        raise where.error(f"expected keys and values (the fields of {cls.__name__}), got {describe(data)}")
    hints = field_types(cls)
    for name in data:
        if name not in hints:
            raise where.error(f"unknown key {name!r}{_suggestion(cls, name)}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        below = _default(field) if base is None else getattr(base, field.name)
        if field.name in data:
            values[field.name] = _convert(hints[field.name], data[field.name], where.at(field.name), below)
        elif below is dataclasses.MISSING:
            raise where.error(f"missing key {field.name!r}, which has no default: {_name(hints[field.name])}")
        else:
            values[field.name] = below
    try:
        return cls(**values)
    except ValueError as error:
        raise where.error(str(error)) from error


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _convert(hint: Any, value: Any, where: _Where, below: Any = None) -> Any:
    """`value` as an instance of `hint`; `below` completes a nested dataclass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record(hint, value, where, below if type(below) is hint else None)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise where.mismatch(hint, value)
    if origin is Union or origin is types.UnionType:
        return _member(hint, value, where, below)
    if origin is tuple:
        return _tuple(hint, value, where)
    if origin is dict and arguments[0] is str:
        if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
            raise where.mismatch(hint, value)
        return {key: _convert(arguments[1], item, where.at(key)) for key, item in value.items()}
    return _scalar(hint, value, where)


def _member(hint: Any, value: Any, where: _Where, below: Any) -> Any:
    members = sorted(typing.get_args(hint), key=lambda member: member is float)
    if value is None and types.NoneType in members:
        return None
    nested = [m for m in members if dataclasses.is_dataclass(m) or typing.get_origin(m) in (tuple, dict)]
    if isinstance(value, Mapping | list | tuple) and len(nested) == 1:
        # The one member that can hold this says more exactly what is wrong with it.
        return _convert(nested[0], value, where, below)
    for member in members:
        try:
            return _convert(member, value, where, below)
        except ValueError:
            continue
    raise where.mismatch(hint, value)


def _tuple(hint: Any, value: Any, where: _Where) -> tuple[Any, ...]:
    items = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        raise where.mismatch(hint, value)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise where.error(f"expected {_name(hint)}, got {len(value)}: {list(value)!r}")
    return tuple(
        _convert(item, x, where.at(str(i))) for i, (item, x) in enumerate(zip(items, value, strict=True))
    )


def _scalar(hint: Any, value: Any, where: _Where) -> Any:
    if hint not in _NAMES:
        raise TypeError(f"{where.source}: {where.key}: a config cannot hold the annotation {hint!r}")
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) is int:
        try:
            exact = float(value) == value
        except OverflowError:
            exact = False
        if not exact:
            raise where.error(f"expected float, got an integer that no float equals: {value}")
        return float(value)
    if type(value) is not hint:
        raise where.mismatch(hint, value)
    if hint is float and not math.isfinite(value):
        raise where.error(f"expected a finite float, got {value}")
    return value


_NAMES = {
    bool: "bool (true or false)",
    int: "int",
    float: "float",
    str: "str",
    Path: "path",
    types.NoneType: "null",
}


def _name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is Union or origin is types.UnionType:
        return " or ".join(map(_name, arguments))
    if origin is tuple and arguments[-1:] == (Ellipsis,):
        return f"a list of {_name(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} ({', '.join(map(_name, arguments))})"
    if origin is dict:
        return f"keys with values {_name(arguments[1])}"
    return _NAMES.get(hint) or getattr(hint, "__name__", repr(hint))


def _suggestion(cls: type, name: Any) -> str:
    """What the user may have meant: a similar key here, or a key of that name further down."""
    keys = _dotted(cls)
    here = [key for key in keys if "." not in key]
    near = difflib.get_close_matches(str(name).replace("-", "_"), here, n=1)
    near = near or [key for key in keys if key.rpartition(".")[2] == str(name)]
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(here)}"


def _dotted(cls: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in field_types(cls).items():
        keys.append(prefix + name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            keys += _dotted(hint, f"{prefix}{name}.")
    return keys


def _read(path: Path) -> Any:
    from mfk.core import yaml12

    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such config file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: expected a YAML file, got a folder") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path}: expected text in UTF-8, got byte {byte:#04x} in it") from None
    data = yaml12.loads(text, str(path))
    if data is None:
        raise ValueError(f"{path}: the file is empty; write {{}} for a config that changes nothing")
    return data
