"""Motions side by side as a moving picture: .gif, or .mp4 where ffmpeg is installed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.kinematics.skeleton import check_parents
from mfk.tasks.movies import boxes_for_unknown, check_fps, check_place, readable, shown_frames, write_movie

_AZIMUTH, _ELEVATION = math.radians(-60), math.radians(20)  # of the camera, which looks in parallel lines
_INCHES, _TOP, _DPI = 4.0, 0.6, 80  # a panel's side, the room for titles; 320 x 368 pixels with one panel
_COLOURS = {"left": "tab:blue", "right": "tab:red", "": "0.25"}
_LEFT = re.compile(r"(?i:left|(^|[_.: ])l([_.: ]|$))|^L[A-Z]")
_RIGHT = re.compile(r"(?i:right|(^|[_.: ])r([_.: ]|$))|^R[A-Z]")


def animate(
    path: str | Path,
    sequences: Mapping[str, Tensor],
    parents: Sequence[int],
    *,
    fps: float,
    up: int,
    title: str = "",
    marks: Mapping[int, str] | None = None,
    bone_names: Sequence[str] | None = None,
) -> None:
    """Draw skeletons in motion, a panel for each sequence, all to one scale, and replace the file as a whole.

    The camera looks in parallel lines, 20 degrees down, and follows the root's place on the ground, whose
    grid stands still in the world; the ground is as high as the lowest point of all sequences. The title
    counts the frames. A .gif's frames last whole hundredths of a second, chosen so that its length is right
    to one of them. Of more than 50 frames per second a .gif holds every second one, or fewer: programs would
    slow it down.

    Args:
        path: NAME.gif or NAME.mp4.
        sequences: title of a panel -> positions of the bones in the world, [T, bones, 3] in m.
        parents: of the bones, -1 of the first, parents before children.
        fps: frames per second, finite, > 0.
        up: the axis that points up, 0, 1 or 2.
        title: what stands before the frame's number.
        marks: frame -> text that stands behind the number from this frame on.
        bone_names: of the bones; those on the left are drawn blue, those on the right red.

    Raises:
        ValueError: another suffix, sequences of different shapes, a position that is not finite, no tree,
            a number out of range, or an .mp4 without ffmpeg.
        FileNotFoundError: no such folder.
        OSError: ffmpeg fails.
    """
    path = Path(path)
    points = _checked(path, sequences, parents, fps, up, marks, bone_names)
    sides = ["" for _ in parents] if bone_names is None else [_side(name, bone_names) for name in bone_names]
    frames = next(iter(points.values())).shape[0]
    pictures = _draw(points, parents, sides, shown_frames(path, frames, fps), title, marks or {})
    write_movie(path, pictures, frames, fps, ("black", *_COLOURS.values()))


def _checked(
    path: Path,
    sequences: Mapping[str, Tensor],
    parents: Sequence[int],
    fps: float,
    up: int,
    marks: Mapping[int, str] | None,
    bone_names: Sequence[str] | None,
) -> dict[str, np.ndarray]:
    """The sequences as float64 arrays whose last axis points up."""
    check_place(path, (".gif", ".mp4"))
    check_parents(parents)
    check_fps(fps)
    if isinstance(up, bool) or not isinstance(up, int) or up not in (0, 1, 2):
        raise ValueError(f"up: expected the axis 0, 1 or 2, got {describe(up)}")
    if not sequences:
        raise ValueError("sequences: expected at least one")
    if bone_names is not None and len(bone_names) != len(parents):
        raise ValueError(f"bone_names: expected {len(parents)}, one for each bone, got {len(bone_names)}")
    first = next(iter(sequences.values()))
    found = {}
    for name, x in sequences.items():
        where = f"sequences[{name!r}]"
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1:] != (len(parents), 3) or not len(x):
            raise ValueError(f"{where}: expected a tensor [T, {len(parents)}, 3], got {describe(x)}")
        if x.shape != first.shape:
            raise ValueError(f"{where}: expected {len(first)} frames, as of the first one, got {len(x)}")
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{where}: expected finite positions, got one that is not")
        # A turn of the axes, not a swap: left stays left.
        found[name] = x.detach().to("cpu", torch.float64).roll(2 - up, -1).numpy()
    for frame in marks or {}:
        if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < len(first):
            raise ValueError(f"marks: expected frames in [0, {len(first)}), got {describe(frame)}")
    return found


def _draw(
    points: Mapping[str, np.ndarray],
    parents: Sequence[int],
    sides: Sequence[str],
    drawn: range,
    title: str,
    marks: Mapping[int, str],
) -> Iterator[np.ndarray]:
    """Pictures of the frames to be drawn, [height, width, 3], uint8.

    The projection is computed here, and lines alone are changed from frame to frame: matplotlib's own axes
    in three dimensions take several times as long.
    """
    # The object interface needs no display and leaves matplotlib's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ground = min(float(x[..., 2].min()) for x in points.values())
    anchors = {name: x[:, 0] * [1.0, 1.0, 0.0] + [0.0, 0.0, ground] for name, x in points.items()}
    flat = {name: _projected(x - anchors[name][:, None]) for name, x in points.items()}
    every = np.concatenate([x.reshape(-1, 2) for x in flat.values()] + [np.zeros((1, 2))])
    low, high = every.min(0), every.max(0)
    half = 0.55 * max(float((high - low).max()), 1e-3)
    centre = (low + high) / 2
    frames = next(iter(points.values())).shape[0]

    figure = Figure(figsize=(_INCHES * len(points), _INCHES + _TOP), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    heading = figure.suptitle("", y=0.98, fontsize=11, parse_math=False)
    panels: list[tuple[str, Any, dict[str, Any]]] = []
    for i, name in enumerate(points):
        share = 1 / len(points)
        axes = figure.add_axes((share * (i + 0.01), 0.0, 0.98 * share, 0.98 * _INCHES / (_INCHES + _TOP)))
        axes.set_axis_off()
        axes.set_xlim(centre[0] - half, centre[0] + half)
        axes.set_ylim(centre[1] - half, centre[1] + half)
        figure.text(
            share * (i + 0.5), _INCHES / (_INCHES + _TOP), readable(name), ha="center", parse_math=False
        )
        grid = axes.plot([], [], color="0.85", linewidth=0.8)[0]
        style: dict[str, Any] = {
            "linewidth": 2.0,
            "marker": "o",
            "markersize": 2.5,
            "solid_capstyle": "round",
        }
        bones = {side: axes.plot([], [], color=_COLOURS[side], **style)[0] for side in ("", "right", "left")}
        panels.append((name, grid, bones))

    for k in drawn:
        said = [text for frame, text in sorted(marks.items()) if frame <= k][-1:]
        count = f"frame {k + 1} of {frames}"
        heading.set_text(readable(", ".join([*([title] if title else []), count, *said])))
        for name, grid, bones in panels:
            grid.set_data(*_grid(anchors[name][k], 2 * half).T)
            for side, line in bones.items():
                line.set_data(*_bones(flat[name][k], parents, sides, side).T)
        with boxes_for_unknown():
            canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _projected(x: np.ndarray) -> np.ndarray:
    """Right and up on the picture, [..., 2], of points [..., 3] whose last axis points up."""
    sa, ca, se, ce = (f(a) for a in (_AZIMUTH, _ELEVATION) for f in (math.sin, math.cos))
    return x @ np.array([[-sa, ca, 0.0], [-se * ca, -se * sa, ce]]).T


def _bones(flat: np.ndarray, parents: Sequence[int], sides: Sequence[str], side: str) -> np.ndarray:
    """One line through the bones of a side, with a gap after each, [n, 2]; the root alone is a point."""
    gap = np.full(2, np.nan)
    found = [gap]
    for bone, parent in enumerate(parents):
        if sides[bone] == side:
            found += [flat[max(parent, 0)], flat[bone], gap]
    return np.stack(found)


def _grid(anchor: np.ndarray, reach: float) -> np.ndarray:
    """One line along the ground's grid around a place, with gaps, seen from there, [n, 2]."""
    magnitude = 10.0 ** math.floor(math.log10(reach / 2))
    step = magnitude * max(factor for factor in (1, 2, 5) if factor * magnitude <= reach / 2)
    found = []
    for axis in (0, 1):
        first = math.ceil((anchor[axis] - reach) / step) * step - anchor[axis]
        for at in np.arange(first, reach, step):
            for end in (-reach, reach, np.nan):
                found.append([at, end, 0.0] if axis == 0 else [end, at, 0.0])
    return _projected(np.array(found))


def _side(name: str, names: Sequence[str]) -> str:
    """Which side a name says; an initial l or r does where the other side is there too: lfoot, rfoot."""
    left, right = bool(_LEFT.search(name)), bool(_RIGHT.search(name))
    if left == right and name[:1] in ("l", "r"):
        left, right = name[0] == "l" and f"r{name[1:]}" in names, name[0] == "r" and f"l{name[1:]}" in names
    return "" if left == right else "left" if left else "right"
