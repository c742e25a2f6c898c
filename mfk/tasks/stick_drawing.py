"""Stick figures as a moving picture, as a sheet of poses, and as a file of numbers."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core.files import write_atomically
from mfk.core.types import describe
from mfk.data.stick import SEGMENTS
from mfk.tasks.movies import (
    boxes_for_unknown,
    check_fps,
    check_place,
    readable,
    shown_frames,
    write_movie,
)
from mfk.tasks.stick_panel import COLOURS, panel, view

_INCHES, _LINE, _DPI = 4.0, 0.22, 80  # a panel's side, a line of the heading; 320 pixels
_LETTERS = 46  # of the heading that a panel has room for
_CELL = 1.9  # inches, a picture of a sheet


def draw_stick(
    path: str | Path,
    motion: Tensor | Mapping[str, Tensor],
    *,
    fps: float = 25,
    title: str = "",
    texts: Sequence[str] | None = None,
) -> None:
    """Draw stick figures in motion, a panel for each, all to one scale, and replace the file as a whole.

    The camera follows the hip along the ground, never up or down. The ground is as high as the lowest point
    of all motions, and its marks stand still in the world, a number at each. Left limbs are blue, right ones
    red. The head of a 20-D figure, which has none, is a circle above the neck in the torso's direction; a
    48-D figure, whose shoulders no segment joins to the rest, gets thin lines from its neck to them. A
    .gif's length is right to a hundredth of a second. A letter that matplotlib's font lacks is a box.

    Args:
        path: NAME.gif or NAME.mp4.
        motion: [T, 20] or [T, 48], segments (x1, y1, x2, y2) with y up; or title of a panel -> such a
            motion, all of one length.
        fps: frames per second, finite, > 0.
        title: what stands above all panels.
        texts: for each frame what stands behind the time, such as the action; T of them.

    Raises:
        TypeError: a motion that is no tensor, or texts that are not strings.
        ValueError: another suffix, shape or length, a number that is not finite, or an .mp4 without ffmpeg.
        OSError: no such folder, one that cannot be written to, or ffmpeg fails.
    """
    path = Path(path)
    check_place(path, (".gif", ".mp4"))
    found = _checked(motion, fps, texts)
    frames = len(next(iter(found.values())))
    pictures = _pictures(found, shown_frames(path, frames, fps), fps, title, texts)
    write_movie(path, pictures, frames, fps, ("black", *COLOURS.values()))


def contact_sheet(
    path: str | Path,
    motion: Tensor | Mapping[str, Tensor],
    *,
    fps: float = 25,
    columns: int = 8,
    rows: int = 1,
    title: str = "",
    texts: Sequence[str] | None = None,
) -> None:
    """Draw poses of stick figures, evenly spaced from the first frame to the last, as one picture.

    Picture i of the n = rows * columns of a motion shows frame round(i (T - 1) / (n - 1)), drawn as
    `draw_stick` does, with its time and text above it.

    Args:
        path: NAME.png.
        motion: as of `draw_stick`; each takes as many rows, with its title before the first time.
        fps: frames per second, finite, > 0.
        columns: pictures of a row, >= 1.
        rows: rows of each motion, >= 1; a motion needs at least rows * columns frames.
        title: what stands above all.
        texts: for each frame what stands behind its time; T of them.

    Raises:
        TypeError, ValueError, OSError: as `draw_stick`, and too few frames.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_place(path, (".png",))
    found = _checked(motion, fps, texts)
    for name, value in (("columns", columns), ("rows", rows)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer >= 1, got {describe(value)}")
    frames, count = len(next(iter(found.values()))), rows * columns
    if frames < count:
        raise ValueError(f"columns: expected rows * columns <= {frames}, the frames, got {count}")
    shown = np.rint(np.linspace(0, frames - 1, count)).astype(int).tolist()
    heading = textwrap.wrap(readable(title), max(20, int(24 * columns)))
    top = 0.1 + _LINE * len(heading)
    width, height = _CELL * columns, top + (_CELL + _LINE) * rows * len(found)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.05 / height, "\n".join(heading), ha="center", va="top", parse_math=False)
    ground, side = view(found)
    for line, (name, x) in enumerate(found.items()):
        for i, k in enumerate(shown):
            row, column = line * rows + i // columns, i % columns
            bottom = height - top - (_CELL + _LINE) * (row + 1)
            place = (column * _CELL / width, bottom / height, 0.98 * _CELL / width, _CELL / height)
            axes = figure.add_axes(place)
            panel(axes, x, ground, side)(k)
            said = [name] if name and i == 0 else []
            said += [f"{k / fps:.2f} s", *([texts[k]] if texts is not None and texts[k] else [])]
            words = textwrap.shorten(", ".join(said), 28, placeholder=" ...")
            axes.set_title(readable(words), fontsize=8, pad=2, parse_math=False)
    file = io.BytesIO()
    with boxes_for_unknown():
        canvas.print_png(file)
    write_atomically(path, file.getvalue())


def save_stick(
    path: str | Path, motion: Tensor, *, fps: float = 25, text: str = "", actions: Tensor | None = None
) -> None:
    """Write a stick figure's motion as numbers that numpy.load reads without pickle.

    The arrays: ``motion`` [T, 20] or [T, 48] as given, ``fps`` and ``text`` without axes, ``segments`` the
    5 or 12 names of `mfk.data.SEGMENTS`, and, where they are given, ``actions`` [T] int64.

    Args:
        path: NAME.npz, replaced as a whole.
        motion: [T, 20] or [T, 48], float32 or float64.
        fps: frames per second, finite, > 0.
        text: what the motion shows.
        actions: [T] int64, an action's number for each frame.

    Raises:
        TypeError: a motion or actions that are no tensor, or a text that is no string.
        ValueError: another suffix, shape or dtype, or a number that is not finite.
        OSError: no such folder, or one that cannot be written to.
    """
    path = Path(path)
    check_place(path, (".npz",))
    _checked(motion, fps, None)
    if motion.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"motion: expected float32 or float64, got {describe(motion)}")
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {describe(text)}")
    arrays: dict[str, Any] = {
        "motion": motion.detach().cpu().numpy(),
        "fps": np.float64(fps),
        "text": np.array(text),
        "segments": np.array([name for name, *_ in SEGMENTS[motion.shape[1]]]),
    }
    if actions is not None:
        if not isinstance(actions, Tensor):
            raise TypeError(f"actions: expected a tensor, got {describe(actions)}")
        if actions.dtype != torch.int64 or actions.shape != motion.shape[:1]:
            raise ValueError(f"actions: expected an int64 tensor [{len(motion)}], got {describe(actions)}")
        arrays["actions"] = actions.cpu().numpy()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomically(path, file.getvalue())


def _checked(
    motion: Tensor | Mapping[str, Tensor], fps: float, texts: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Title -> segments [T, S, 2 ends, 2] in float64; a motion alone has the title ''."""
    check_fps(fps)
    if not isinstance(motion, Tensor | Mapping):
        raise TypeError(f"motion: expected a tensor or a mapping of them, got {describe(motion)}")
    given = motion if isinstance(motion, Mapping) else {"": motion}
    if not given:
        raise ValueError("motion: expected at least one")
    first = next(iter(given.values()))
    found = {}
    for name, x in given.items():
        where = f"motion[{name!r}]" if isinstance(motion, Mapping) else "motion"
        if not isinstance(x, Tensor):
            raise TypeError(f"{where}: expected a tensor, got {describe(x)}")
        if x.ndim != 2 or x.shape[1] not in SEGMENTS or not len(x) or not x.is_floating_point():
            raise ValueError(f"{where}: expected a floating tensor [T, 20] or [T, 48], got {describe(x)}")
        if len(x) != len(first):
            raise ValueError(f"{where}: expected {len(first)} frames, as of the first one, got {len(x)}")
        if not bool(torch.isfinite(x).all()):
            frame = int((~torch.isfinite(x)).any(1).nonzero()[0])
            raise ValueError(f"{where}: expected finite numbers, got one that is not in frame {frame}")
        found[name] = x.detach().to("cpu", torch.float64).reshape(len(x), -1, 2, 2).numpy()
    if texts is not None:
        if isinstance(texts, str) or not all(isinstance(said, str) for said in texts):
            raise TypeError(f"texts: expected strings, one for each frame, got {describe(texts)}")
        if len(texts) != len(first):
            raise ValueError(f"texts: expected {len(first)}, one for each frame, got {len(texts)}")
    return found


def _pictures(
    found: Mapping[str, np.ndarray], shown: range, fps: float, title: str, texts: Sequence[str] | None
) -> Iterator[np.ndarray]:
    """Pictures of the frames, [height, width, 3], uint8, height and width even."""
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heading = textwrap.wrap(readable(title), _LETTERS * len(found))
    named = any(found)
    top = 0.1 + _LINE * (len(heading) + 1 + named)
    height = 0.05 * math.ceil((_INCHES + top) / 0.05)  # a whole even number of pixels
    figure = Figure(figsize=(_INCHES * len(found), height), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    said = figure.text(0.5, 1 - 0.08 / height, "", fontsize=10, ha="center", va="top", parse_math=False)
    ground, side = view(found)
    share = 1 / len(found)
    updates = []
    for i, (name, x) in enumerate(found.items()):
        axes = figure.add_axes((share * i, 0.0, share, _INCHES / height))
        updates.append(panel(axes, x, ground, side))
        place = (share * (i + 0.5), (_INCHES + 0.03) / height)
        style: dict[str, Any] = {"weight": "bold", "ha": "center", "va": "bottom", "parse_math": False}
        figure.text(*place, readable(name), fontsize=10, **style)
    for k in shown:
        time = f"{k / fps:.2f} s" + (f", {texts[k]}" if texts is not None and texts[k] else "")
        said.set_text("\n".join([*heading, readable(time)]))
        for update in updates:
            update(k)
        with boxes_for_unknown():
            canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
