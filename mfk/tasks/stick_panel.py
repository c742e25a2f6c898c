"""One stick figure in matplotlib's axes: its place, the ground, and what changes from frame to frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mfk.data.stick import SEGMENTS

COLOURS = {"middle": "0.25", "right": "tab:red", "left": "tab:blue"}  # what is drawn last is in front
_HEAD = 0.18  # the head's radius, of the torso's length


def view(found: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """The ground's height, and the side of the square in which every frame of every motion has room.

    Args:
        found: title -> segments [T, S, 2 ends, 2] of 20-D (S = 5) or 48-D figures (S = 12), float64.
    """
    ground = min(float(x[..., 1].min()) for x in found.values())
    side = 1e-3
    for x in found.values():
        hip, (head, radius) = _hip(x), _head(x)
        top = max(float(x[..., 1].max()), float(head[:, 1].max()) + radius)
        aside = max(
            float(np.abs(x[..., 0] - hip[:, None, None, 0]).max()),
            float(np.abs(head - hip)[:, 0].max()) + radius,
        )
        side = max(side, (top - ground) / 0.82, 2 * aside / 0.92)
    return ground, side


def panel(axes: Any, x: np.ndarray, ground: float, side: float) -> Callable[[int], None]:
    """What draws a frame of the motion [T, S, 2, 2] into axes that are `side` wide, its hip in the middle.

    Only positions change from one frame to the next, which is several times as fast as new artists.
    """
    from matplotlib.patches import Circle

    hip, (head, radius) = _hip(x), _head(x)
    thick = max(1.2, 0.045 * 72 * axes.get_position().width * axes.figure.get_figwidth() / side)
    thick = min(thick, 4.5)
    axes.set_xlim(-side / 2, side / 2)
    axes.set_ylim(ground - 0.12 * side, ground + 0.88 * side)
    axes.set_axis_off()
    axes.plot([-side, side], [ground, ground], color="0.55", linewidth=1.0, zorder=0)
    ticks = axes.plot([], [], color="0.55", linewidth=1.0, zorder=0)[0]
    numbers = [axes.text(0, 0, "", color="0.45", fontsize=7, ha="center", va="top") for _ in range(12)]
    style: dict[str, Any] = {"linewidth": thick, "solid_capstyle": "round", "solid_joinstyle": "round"}
    thin = axes.plot([], [], color=COLOURS["middle"], linewidth=0.5 * thick, zorder=1)[0]
    lines = [axes.plot([], [], color=c, zorder=2, **style)[0] for c in COLOURS.values()]
    face = Circle((0, 0), radius, facecolor="white", edgecolor=COLOURS["middle"], linewidth=thick, zorder=3)
    axes.add_patch(face)
    sides = [name.split("_")[0] for name, *_ in SEGMENTS[4 * x.shape[1]]]
    drawn = [[i for i, s in enumerate(sides) if (s if s in COLOURS else "middle") == c] for c in COLOURS]
    step = _step(side)

    def update(k: int) -> None:
        away = np.array([hip[k, 0], 0.0])
        for line, segments in zip(lines, drawn, strict=True):
            line.set_data(*_joined(x[k, segments] - away).T)
        if x.shape[1] == 12:
            thin.set_data(*(np.stack([x[k, 3, 0], x[k, 0, 0], x[k, 5, 0]]) - away).T)
        face.set_center(tuple(head[k] - away))
        first = math.ceil((away[0] - side / 2) / step)
        places = [i for i in range(first, first + len(numbers)) if i * step <= away[0] + side / 2]
        at = np.array([i * step for i in places]) - away[0]
        feet = np.stack([np.stack([at, at], 1), np.full((len(at), 2), ground)], -1)
        feet[:, 1, 1] -= 0.02 * side
        ticks.set_data(*_joined(feet).T)
        for i, number in enumerate(numbers):
            seen = i < len(places) and abs(at[i]) < 0.46 * side  # not cut by the edge
            number.set_text(f"{places[i] * step:g}" if seen else "")
            if seen:
                number.set_position((at[i], ground - 0.03 * side))

    return update


def _hip(x: np.ndarray) -> np.ndarray:
    """The hip [T, 2]: the torso's end, or the middle of the pelvis."""
    return x[:, 0, 1] if x.shape[1] == 5 else x[:, 11].mean(1)


def _head(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The head's centre [T, 2], and its radius."""
    neck = x[:, 0, 0]
    spine = neck - _hip(x)
    length = np.linalg.norm(spine, axis=-1)
    radius = _HEAD * float(length.mean())
    if x.shape[1] == 12:
        return x[:, 0, 1], radius
    return neck + 1.2 * radius * spine / np.maximum(length, 1e-9)[:, None], radius


def _joined(ends: np.ndarray) -> np.ndarray:
    """One line through segments [n, 2, 2], with a gap after each, [3 n, 2]."""
    return np.concatenate([ends, np.full((len(ends), 1, 2), np.nan)], 1).reshape(-1, 2)


def _step(side: float) -> float:
    """The distance between marks on the ground: 1, 2 or 5 times a power of ten, 3 to 8 to a side."""
    magnitude = 10.0 ** math.floor(math.log10(side / 3))
    return magnitude * max(factor for factor in (1, 2, 5) if factor * magnitude <= side / 3)
