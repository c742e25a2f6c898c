"""What a training shows on the terminal: a progress bar or plain lines, and notes by level."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)


class Note(Protocol):
    """Report one line of text; only what is at or above the terminal's level is shown."""

    def __call__(self, text: str, level: LogLevel = "info") -> None: ...  # noqa: D102


class Terminal(NamedTuple):
    """Where a training is watched. None of its functions raises because nobody can read it any more."""

    show: Callable[[int, Mapping[str, float]], None]  # (steps made, metrics)
    advance: Callable[[int], None]  # (steps made): moves the progress bar
    note: Note
    stop: Callable[[], None]


class _View(NamedTuple):
    """One way to draw; its functions raise OSError where the terminal is gone."""

    show: Callable[[int, Mapping[str, float]], None]
    advance: Callable[[int], None]
    write: Callable[[str], None]  # one line
    stop: Callable[[], None]


def open_terminal(
    start: int, total: int, *, console: bool = True, level: LogLevel = "info", watched: str = "val_loss"
) -> Terminal:
    """The terminal of a run that has made `start` of `total` steps.

    A bar where standard output is a terminal, else lines of the main metrics every few seconds: both are
    "info". "debug" adds every record in full; "warning" and "error" show notes alone. Of
    the validation's metrics the bar and the lines show `watched`. A terminal that is
    closed, a pipe that nobody reads any more and a full disk behind it end the showing, never the training.

    Raises:
        ValueError: `level` is none of the four.
    """
    if level not in _LEVELS:
        raise ValueError(f"level: expected one of {_LEVELS}, got {level!r}")
    least = _LEVELS.index(level)
    # The last one is drawn; a bar that fails leaves its place to lines, of which each may fail by itself.
    draws = console and level in ("debug", "info")
    views = [_lines(start, total, watched) if draws else _NOTES if console else _SILENT]
    if draws and _on_terminal():
        views.append(_bar(start, total, watched))

    def attempt(draw: Callable[[_View], None]) -> None:
        try:
            draw(views[-1])
        except (OSError, ValueError) as error:
            # Python reports a write to a file that it has closed itself as a ValueError.
            if not isinstance(error, OSError) and "closed file" not in str(error):
                raise
            if len(views) > 1:
                broken = views.pop()
                attempt(lambda _: broken.stop())

    def note(text: str, level: LogLevel = "info") -> None:
        if _LEVELS.index(level) >= least:
            prefix = f"{level}: " if level in ("warning", "error") else ""
            attempt(lambda view: view.write(_printable(prefix + text)))

    def show(step: int, metrics: Mapping[str, float]) -> None:
        if least == 0:
            note(f"step {step}: " + " ".join(f"{k}={x:.6g}" for k, x in metrics.items()), "debug")
        attempt(lambda view: view.show(step, metrics))

    def advance(step: int) -> None:
        attempt(lambda view: view.advance(step))

    def stop() -> None:
        attempt(lambda view: view.stop())

    advance(start)
    return Terminal(show, advance, note, stop)


def _on_terminal() -> bool:
    from rich.console import Console

    return Console().is_terminal


def _printable(text: str) -> str:
    """`text` in what standard output can encode, so that an odd file name does not end a training."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _figures(metrics: Mapping[str, float], watched: str) -> str:
    """The few metrics that fit on a line."""
    parts = []
    for name, form in (
        ("train/loss", "loss {:.4g}"),
        ("epoch/loss", "epoch loss {:.4g}"),
        (f"val/{watched}", watched + " {:.4g}"),
        ("train/lr", "lr {:.2e}"),
        ("train/samples_per_second", "{:.0f} samples/s"),
    ):
        if name in metrics:
            parts.append(form.format(metrics[name]))
    return "  ".join(parts)


def _bar(start: int, total: int, watched: str) -> _View:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = Progress(
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        # Drawn by the loop itself: no thread that could outlive it.
        auto_refresh=False,
    )
    job = progress.add_task("", total=total, completed=start)
    shown: dict[str, float] = {}
    drawn = [-math.inf]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        shown.update(metrics)
        progress.update(job, completed=step, description=_figures(shown, watched), refresh=True)

    def advance(step: int) -> None:
        # Starting draws already, and may find no terminal: in here it is caught.
        progress.start()
        now = time.monotonic()
        if now - drawn[0] > 0.1:
            drawn[0] = now
            progress.update(job, completed=step, refresh=True)

    def write(text: str) -> None:
        progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    return _View(show, advance, write, progress.stop)


def _lines(start: int, total: int, watched: str) -> _View:
    begun = time.monotonic()
    printed = [-math.inf]

    def show(step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        is_validation = any(name.startswith("val/") for name in metrics)
        if now - printed[0] < 5.0 and step < total and not is_validation:
            return
        printed[0] = now
        left = (now - begun) / max(step - start, 1) * (total - step)
        _print(
            f"step {step}/{total}  {_figures(metrics, watched)}  ETA {int(left) // 60}:{int(left) % 60:02d}"
        )

    return _View(show, _nothing, _print, _nothing)


def _print(text: str) -> None:
    print(text, file=sys.stdout, flush=True)


def _nothing(*_: Any) -> None:
    pass


_NOTES = _View(_nothing, _nothing, _print, _nothing)
_SILENT = _View(_nothing, _nothing, _nothing, _nothing)
