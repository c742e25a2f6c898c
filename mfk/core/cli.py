"""Command lines of the experiments: presets, a YAML file and flags, in this order of precedence.

``program [PRESET] [--config FILE] [--flag value ...]``, or ``program COMMAND [--flag value ...]``. Without a
preset's name the preset called "default" is meant. Nested dataclasses have flat flags: ``net.width`` is
``--width``.

A config with a field ``resume`` (``str | None``) can go on with an earlier run: ``--resume RUN`` puts
``RUN/config.yaml`` in the place of the preset, and ``--resume`` alone takes the folder given by ``--out``,
or else ``latest`` in the experiment's own folder. The config that comes back holds the folder found in
``resume`` and, if it has that field, in ``out``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, overload

from mfk.core import ranks
from mfk.core.config import field_types, load_yaml, to_dict
from mfk.core.memory import is_out_of_memory, share_freed
from mfk.core.types import describe

C = TypeVar("C")
D = TypeVar("D")

Presets = Mapping[str, tuple[str, C]]
"""Name -> (what it is for, a config); all configs of one frozen dataclass, "default" among them."""

Commands = Mapping[str, tuple[str, type[D]]]
"""Name -> (what it does, a dataclass of its flags)."""

ALIASES = {
    "--learning-rate": "--lr",
    "--resume-from": "--resume",
    "--output-dir": "--out",
    "--data-path": "--data",
    "--tip": "--frame",
    "--num-epochs": "--epochs",
    "--max-epochs": "--epochs",
    "--grad-accum-steps": "--accumulate",
    "--accumulate-grad-batches": "--accumulate",
    "--gradient-clip": "--clip",
    "--grad-clip": "--clip",
    "--max-grad-norm": "--clip",
    "--log-every-n-steps": "--log-every",
    "--log-interval": "--log-every",
    "--val-every-n-steps": "--validate-every",
    "--val-every-n-epochs": "--validate-every-epochs",
    "--checkpoint-every-n-steps": "--checkpoint-every",
    "--save-every-n-epochs": "--checkpoint-every-epochs",
    "--save-interval": "--checkpoint-every-epochs",
    "--early-stopping-patience": "--patience",
    "--early-stopping-min-delta": "--min-delta",
    "--random-seed": "--seed",
    "--d-model": "--width",
    "--nhead": "--heads",
    "--num-layers": "--layers",
}
"""Other spellings of a flag; each holds wherever there is a field of the right-hand name."""

REPLACED = {"--steps": "--epochs", "--warmup-steps": "--warmup-epochs"}
"""A flag that the other one takes the place of: given by itself, it turns a preset's other one off."""

USER_ERRORS = (ValueError, OSError)
"""What a user's mistake, or a full disk, raises: `main` shows these as one message, without a traceback."""


@overload
def parse(
    presets: Presets[C],
    commands: None = None,
    *,
    prog: str,
    description: str,
    root: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> C: ...
@overload
def parse(
    presets: Presets[C],
    commands: Commands[D],
    *,
    prog: str,
    description: str,
    root: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> C | D: ...
def parse(
    presets: Mapping[str, tuple[str, Any]],
    commands: Mapping[str, tuple[str, type]] | None = None,
    *,
    prog: str,
    description: str,
    root: str | Path | None = None,
    argv: Sequence[str] | None = None,
) -> Any:
    """The config, or the command, that a command line asks for.

    Args:
        presets: name -> (description, config), "default" among the names.
        commands: name -> (description, dataclass): further words that may come first.
        prog: the program's name in the help.
        description: one or two sentences for the head of the help.
        root: the folder that holds the experiment's runs and their ``latest``, for a bare ``--resume``.
        argv: the words after the program's name; those of this process by default.

    Returns:
        An instance of the presets' dataclass, or of the command's.

    Raises:
        TypeError: presets or commands that make no command line (two fields with one flag, say).
        SystemExit: code 2 with a message on stderr where the user erred, code 0 after ``--help``.
    """
    commands = commands or {}
    cls = _check(presets, commands)
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else ""
    flags = _flags(commands[first][1] if first in commands else cls)
    words = _spell(words, flags)
    preset = first if first in presets else "default"
    own = presets[preset][1]

    def read(base: Any, *more: str) -> Any:
        current = {**presets, preset: (presets[preset][0], base)}
        return _tyro(cls, current, commands, [*words, *more], prog, _head(description, flags))

    try:
        words += [] if first in commands else _settle(words, flags)
        line = read(own)
        if first in commands:
            to_dict(line)
            return line
        under = own if line.config is None else load_yaml(cls, line.config, base=own)
        line = read(under)
        if _get(line.values, flags, "resume") is not None:
            run = _run_folder(line.values, own, flags, root)
            under = load_yaml(cls, run / "config.yaml")
            under = under if line.config is None else load_yaml(cls, line.config, base=under)
            line = read(under, *(f"--{name}={run}" for name in ("resume", "out") if name in flags))
        to_dict(line.values)
        return line.values
    except BrokenPipeError:
        raise SystemExit(1) from None
    except USER_ERRORS as error:
        with _said_once():
            _fail(error)


def main(fn: Callable[[], object], *more: type[Exception]) -> None:
    """Run a program; a user's mistake ends it with "error: ..." on stderr and exit code 2.

    Started by torchrun it joins the other processes first, see `mfk.core.ranks.joined`; of
    several that fail, the first says why. Its threads share what memory is freed.

    Args:
        fn: the program. Of what it raises, `USER_ERRORS` are shown without a traceback, and Ctrl-C
            ends it with exit code 130. Memory that ran out is shown like them.
        more: further exceptions to show like `USER_ERRORS`.
    """
    share_freed()
    try:
        with ranks.joined():
            try:
                fn()
            except Exception:
                if not ranks.first_to_fail():
                    raise SystemExit(2) from None
                raise
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (*USER_ERRORS, ranks.RankLost, *more) as error:
        _fail(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        told = "out of memory" in str(error)
        _fail(error if told else MemoryError(f"out of memory: {error!r:.200}"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _fail(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None


def _run_folder(values: Any, own: Any, flags: Mapping[str, tuple[str, ...]], root: str | Path | None) -> Path:
    """The folder of the run to go on with; it holds the config that the run was started with."""
    resume, out = _get(values, flags, "resume"), _get(values, flags, "out")
    if str(resume) != "auto":
        folder = Path(resume)
        if out not in (None, _get(own, flags, "out")) and Path(out).resolve() != folder.resolve():
            raise ValueError(f"--out: a resumed run goes on in its own folder, {folder}; got {out}")
    elif out is not None:
        folder = Path(out)
    elif root is not None:
        # The link may point elsewhere by the time that somebody reads this path.
        folder = Path(root, "latest").resolve() if Path(root, "latest").is_symlink() else Path(root, "latest")
    else:
        raise ValueError("--resume: expected the folder of a run, got none, and there is no --out either")
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"--resume: {folder} is not the folder of a run: it has no config.yaml")
    return folder


@functools.cache  # tyro keeps what it finds out about a class for as long as the process lives
def _line(cls: type) -> Any:
    """A dataclass of what is on a command line: `config` (the file) and `values`."""
    from tyro import conf

    file = conf.arg(
        metavar="FILE", help="YAML file of settings: they replace the preset's; flags replace both."
    )
    return dataclasses.make_dataclass(
        "Line",
        [("config", Annotated[Path | None, file]), ("values", Annotated[cls, conf.arg(name="")])],
        frozen=True,
    )


def _tyro(
    cls: type, presets: Presets[Any], commands: Commands[Any], words: list[str], prog: str, description: str
) -> Any:
    """One pass of tyro: an instance of a command, or a record of `config` (the file) and `values`."""
    import tyro
    from tyro import conf

    line = _line(cls)
    choices: list[Any] = [
        Annotated[line, conf.subcommand(name, default=line(None, config), description=text)]
        for name, (text, config) in presets.items()
    ]
    choices += [
        Annotated[command, conf.subcommand(name, description=text)]
        for name, (text, command) in commands.items()
    ]
    if len(choices) == 1:  # a union of one is no union: it takes no name
        words = words[1:] if words[:1] == ["default"] else words
    elif words[:1] and words[0].startswith("-") and not {"-h", "--help", *presets, *commands} & {*words}:
        words = ["default", *words]  # by itself tyro finds the default for a --flag, not for a --no-flag
    with _said_once():
        return tyro.cli(
            functools.reduce(operator.or_, choices),
            default=line(None, presets["default"][1]),
            prog=prog,
            description=description,
            args=words,
            config=(conf.OmitArgPrefixes, conf.OmitSubcommandPrefixes, conf.CascadeSubcommandArgs),
        )


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Around what ends all ranks with the same words on stderr: one of them says these."""
    if ranks.current().count == 1:
        yield
        return
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            yield
    except SystemExit:
        if words.getvalue() and ranks.first_to_fail():
            sys.stderr.write(words.getvalue())
        raise


def _spell(words: list[str], flags: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The words with each flag by its own name, and a bare --resume completed."""
    spelled = []
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        other = ALIASES.get(flag.replace("_", "-"), "")
        if other[2:] in flags:
            flag = other
        spelled.append(flag + equals + value)
        if spelled[-1] == "--resume" and "resume" in flags and (words[i + 1 :] or ["-"])[0].startswith("-"):
            spelled.append("auto")
    return spelled


def _settle(words: list[str], flags: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Flags that turn off what would take the place of a flag that is given; ValueError where both are."""
    given: dict[str, str] = {}
    for word, after in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            given[flag.replace("_", "-")] = value if equals else after
    more: list[str] = []
    for flag, other in REPLACED.items():
        if flag in given and other[2:].replace("-", "_") in flags:
            if given.get(other, "None") != "None":
                raise ValueError(f"{flag}: {other} is given too, and takes its place; leave one out")
            more += [other, "None"] if other not in given else []
    return more


def _head(description: str, flags: Mapping[str, tuple[str, ...]]) -> str:
    other = [f"{alias} = {flag}" for alias, flag in ALIASES.items() if flag[2:] in flags]
    return f"{description}\n\nOther spellings: {', '.join(other)}." if other else description


def _check(presets: Presets[Any], commands: Commands[Any]) -> type:
    """The presets' dataclass; everything is checked here that only the programmer can get wrong."""
    if "default" not in presets:
        raise TypeError(f"presets: expected one named 'default', got {list(presets)}")
    cls = type(presets["default"][1])
    for name, (_, config) in presets.items():
        if type(config) is not cls or not dataclasses.is_dataclass(cls):
            raise TypeError(f"presets: {name!r}: expected a config of {cls.__name__}, got {describe(config)}")
    if both := presets.keys() & commands.keys():
        raise TypeError(f"commands: {sorted(both)} name presets too")
    for command in (cls, *(command for _, command in commands.values())):
        _flags(command)
    if "config" in _flags(cls):
        raise TypeError(f"presets: {cls.__name__} has a field 'config', and --config is the file of settings")
    return cls


def _flags(cls: type) -> dict[str, tuple[str, ...]]:
    """Flat name of each flag, in Python's spelling -> the path of the field that it sets."""
    flags: dict[str, tuple[str, ...]] = {}
    for name, hint in field_types(cls).items():
        nested = _flags(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else {name: ()}
        for flag, path in nested.items():
            if flag in flags:
                first, second = ".".join(flags[flag]), ".".join((name, *path))
                raise TypeError(f"{cls.__name__}: {first} and {second} would both be --{flag}; rename one")
            flags[flag] = (name, *path)
    return flags


def _get(config: Any, flags: Mapping[str, tuple[str, ...]], name: str) -> Any:
    return functools.reduce(getattr, flags[name], config) if name in flags else None
