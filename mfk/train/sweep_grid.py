"""The runs of a sweep, as its command line asks for them: the product of the values of each flag."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import io
import itertools
import operator
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from mfk.core import cli
from mfk.core.config import field_types, to_dict

OWN = ("jobs", "out", "resume", "dry-run")
"""Flags that speak of the sweep, not of its runs."""
SEED = "seed"
"""The flag whose values are repetitions of one and the same experiment."""


class Experiment(NamedTuple):
    """A script that trains, such as experiments/panda.py."""

    name: str
    script: Path
    presets: Mapping[str, tuple[str, Any]]  # as for `mfk.core.cli.parse`


class Run(NamedTuple):
    """One combination of the values."""

    name: str  # of its folder, such as "lr=1e-4,seed=0"
    values: dict[str, str]  # swept flag -> its value, as it was typed
    words: list[str]  # the arguments of the experiment
    settings: dict[str, Any]  # dotted key of the config -> what these arguments come to, as plain data

    @property
    def group(self) -> tuple[str, ...]:
        """What the runs have in common that differ in the seed alone."""
        return tuple(value for flag, value in self.values.items() if flag != SEED)


class Flag(NamedTuple):
    """A flag of the experiment."""

    key: str  # dotted, of the config's field
    hint: Any  # the field's annotation


class _Value(NamedTuple):
    text: str
    words: list[str]  # with the flag


def flags_of(experiment: Experiment) -> dict[str, Flag]:
    """The experiment's flags by name, without dashes in front, ``--config`` among them.

    Raises:
        ValueError: it lacks one that a sweep needs.
    """
    flags = _fields(type(experiment.presets["default"][1]))
    for name in ("out", "resume"):
        if name not in flags:
            raise ValueError(f"{experiment.name}: expected an experiment with --out and --resume")
    return flags | {"config": Flag("", Path)}


def split_words(words: Sequence[str], known: Collection[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What stands before the first flag, and flag -> its words; other spellings of the `known` flags count.

    Raises:
        ValueError: a flag is given twice.
    """
    names: list[str] = []
    flags: dict[str, list[str]] = {}
    current = names
    for word in words:
        if not re.match(r"--[A-Za-z]", word):
            current.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        other = cli.ALIASES.get(flag, flag)[2:]
        flag = other if other in known else flag[2:]
        if flag in flags:
            raise ValueError(f"--{flag}: given twice; list its values after one --{flag}")
        current = flags[flag] = [value] if equals else []
    return names, flags


def make_runs(experiment: Experiment, preset: Sequence[str], flags: Mapping[str, list[str]]) -> list[Run]:
    """One run for each combination of the flags' values; the last flag's changes fastest.

    A flag with one value has it in all runs. Boolean flags take no value; ``--x --no-x`` are two. A flag
    that takes any number of words is the same in all runs.

    Args:
        experiment: whose runs they are.
        preset: the words before the first flag: none, or the name of a preset.
        flags: the words of each flag, as from `split_words`, without those of `OWN`.

    Raises:
        ValueError: no such preset or flag, a value that the experiment refuses, no flag with several
            values, or two combinations that come to the same settings.
    """
    if len(preset) > 1 or (preset and preset[0] not in experiment.presets):
        raise ValueError(
            f"{' '.join(preset)}: expected a preset of {experiment.name}, one of "
            f"{', '.join(experiment.presets)}, and then flags"
        )
    known = flags_of(experiment)
    choices: dict[str, list[_Value]] = {}
    for flag, words in flags.items():
        off = flag.removeprefix("no-")
        if off in known and known[off].hint is bool:
            if words:
                raise ValueError(f"--{flag}: expected no value, got {' '.join(words)}")
            choices.setdefault(off, []).append(_Value(str(flag == off), [f"--{flag}"]))
        elif flag in known:
            choices[flag] = _values(flag, words, known[flag].hint)
        else:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean --{near[0]}?" if near else f", see {experiment.script.name} --help"
            raise ValueError(f"--{flag}: {experiment.name} has no such flag{hint}")
    swept = [flag for flag, values in choices.items() if len(values) > 1]
    if not swept:
        raise ValueError("expected a flag with several values, such as --seed 0 1 2; no flag has")
    runs: list[Run] = []
    for combination in itertools.product(*choices.values()):
        values = {f: v.text for f, v in zip(choices, combination, strict=True) if f in swept}
        words = [*preset, *itertools.chain.from_iterable(value.words for value in combination)]
        name = _folder_name(values, [run.name for run in runs])
        runs.append(Run(name, values, words, _settings(experiment, words, values)))
    for first, second in itertools.combinations(runs, 2):
        if first.settings == second.settings:
            raise ValueError(f"{_title(first.values)} and {_title(second.values)} are the same settings")
    return runs


def differences(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How two grids, each the settings of its runs by name, differ; empty if they do not."""
    found = []
    for what, ours, theirs in (("no longer there", before, now), ("new", now, before)):
        if names := [name for name in ours if name not in theirs]:
            found.append(f"{what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        found += [
            f"{key} ({old.get(key)} -> {new.get(key)})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return list(dict.fromkeys(found))


def _fields(cls: type, prefix: str = "") -> dict[str, Flag]:
    flags: dict[str, Flag] = {}
    for name, hint in field_types(cls).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            flags |= _fields(hint, f"{prefix}{name}.")
        else:
            flags[name.replace("_", "-")] = Flag(prefix + name, hint)
    return flags


def _length(hint: Any) -> int | None:
    """How many words a value has; None: any number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        lengths = {_length(member) for member in arguments if member is not types.NoneType}
        return lengths.pop() if len(lengths) == 1 else None
    if origin is tuple:
        lengths = [None if item is Ellipsis else _length(item) for item in arguments]
        return None if None in lengths else sum(length or 0 for length in lengths)
    return None if origin is dict else 1


def _values(flag: str, words: list[str], hint: Any) -> list[_Value]:
    length = _length(hint)
    if length is None:
        return [_Value(" ".join(words), [f"--{flag}", *words])]
    values, rest = [], words
    while rest:
        # None is one word, whatever the length of the others.
        count = 1 if rest[0] == "None" and types.NoneType in typing.get_args(hint) else length
        value, rest = rest[:count], rest[count:]
        if len(value) < count:
            raise ValueError(f"--{flag}: expected {count} words for each value, got {' '.join(words)}")
        values.append(
            _Value(" ".join(value), [f"--{flag}={value[0]}"] if count == 1 else [f"--{flag}", *value])
        )
    if not values:
        raise ValueError(f"--{flag}: expected a value or several, got none")
    return values


def _settings(experiment: Experiment, words: list[str], values: Mapping[str, str]) -> dict[str, Any]:
    """What the experiment makes of its arguments.

    Raises:
        ValueError: it refuses them.
    """
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            name = experiment.script.name
            config = cli.parse(experiment.presets, prog=name, description="", argv=words)
    except SystemExit:
        raise ValueError(f"{_title(values)}: {_sentence(errors.getvalue())}") from None
    plain = to_dict(config)
    return {
        flag.key: functools.reduce(operator.getitem, flag.key.split("."), plain)
        for flag in _fields(type(config)).values()
    }


def _sentence(message: str) -> str:
    """The message alone, of the framed text with help below it that tyro prints."""
    lines = [line.strip("│ ") for line in message.splitlines() if not line.startswith(("╭", "╰"))]
    lines = list(itertools.takewhile(lambda line: not line.startswith("──"), lines))
    return " ".join(lines).strip().removeprefix("error: ") or "refused"


def _title(values: Mapping[str, str]) -> str:
    return ", ".join(f"--{flag} {value}" for flag, value in values.items())


def _folder_name(values: Mapping[str, str], taken: Collection[str]) -> str:
    text = ",".join(f"{flag}={re.sub('[^A-Za-z0-9.+-]+', '_', value)}" for flag, value in values.items())
    text = text[:150]
    others = (f"{text}~{i}" for i in itertools.count(2))
    return next(name for name in itertools.chain([text], others) if name not in taken)
