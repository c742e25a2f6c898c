"""Pictures of impulse responses: exact and emulated, and what was fitted to measured ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfk.data.worlds import OBSERVABLES, World
from mfk.tasks.irf_data import Economies, IRFData
from mfk.tasks.irf_measure import LEVEL, Member, deviation, emulated
from mfk.tasks.irf_net import IRFNets

_SHOWN = {"test_interpolation": ("C0", "in range"), "test_extrapolation_corner": ("C3", "held-out corner")}


def draw_responses(
    folder: Path,
    nets: IRFNets,
    members: Sequence[Member],
    data: IRFData,
    factors: Mapping[str, float | None],
    count: int = 3,
) -> list[Path]:
    """Draw exact and emulated responses of the first economies of two splits, responses_<world>.png each.

    Args:
        folder: of the pictures.
        nets: as of `irf_nets`.
        members: of the emulator; of several the mean is drawn, and a band about it.
        data: economies.
        factors: by world, how many of the members' deviations an ensemble's error bars are.
        count: economies of each split.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for world in nets.worlds:
        samples = {split: data.samples[split][world.name] for split in _SHOWN}
        figure = response_figure(nets, members, world, samples, factors.get(world.name), count)
        path = folder / f"responses_{world.name}.png"
        figure.savefig(path, dpi=110)
        written.append(path)
    return written


def response_figure(
    nets: IRFNets,
    members: Sequence[Member],
    world: World,
    samples: Mapping[str, Economies],
    factor: float | None,
    count: int,
) -> Any:
    """The picture of one world, a matplotlib Figure; arguments as of `draw_responses`, samples by split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    k = nets.config.shock
    names = world.shocks.names if k is None else (world.shocks.names[k],)
    figure = Figure(figsize=(3.2 * len(OBSERVABLES), 2.3 * len(names) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(names), len(OBSERVABLES), squeeze=False, sharex=True)
    banded = factor is not None and len(members) > 1
    for split, (color, _) in _SHOWN.items():
        theta = samples[split].theta[:count]
        truth = samples[split].irf[:count] if k is None else samples[split].irf[:count, k : k + 1]
        each = torch.stack([emulated(nets, *member, world, theta) for member in members])  # [M, N, S, H+1, V]
        made, bars = each.mean(0), factor * deviation(each) if factor is not None and banded else None
        periods = list(range(made.shape[-2]))
        for s in range(len(names)):
            for v in range(len(OBSERVABLES)):
                axis = axes[s][v]
                axis.plot(truth[:, s, :, v].T.numpy(), color=color, alpha=0.35, linewidth=2.5)
                axis.plot(made[:, s, :, v].T.numpy(), color=color, linewidth=0.9)
                for middle, bar in zip(made, bars, strict=True) if bars is not None else ():
                    low, high = ((middle + sign * bar)[s, :, v].numpy() for sign in (-1, 1))
                    axis.fill_between(periods, low, high, color=color, alpha=0.15, linewidth=0)
    for s, shock in enumerate(names):
        axes[s][0].set_ylabel(f"to {shock}, fraction")
    for v, variable in enumerate(OBSERVABLES):
        axes[0][v].set_title(variable, fontsize=9)
        axes[-1][v].set_xlabel("period")
    legend = [Line2D([], [], color="0.4", alpha=0.35, linewidth=2.5, label="exact")]
    mean = "emulated" if len(members) == 1 else f"emulated, mean of {len(members)}"
    legend += [Line2D([], [], color="0.4", linewidth=0.9, label=mean)]
    if banded:
        label = f"± {factor:.3g} deviations: {100 * LEVEL:.0f} % of the validation's errors"
        legend += [Patch(color="0.4", alpha=0.15, linewidth=0, label=label)]
    legend += [Patch(color=color, label=words) for color, words in _SHOWN.values()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), fontsize=7, frameon=False)
    figure.suptitle(f"{world.name}: responses to a shock of one deviation, 0.01 is 1 %", fontsize=9)
    return figure


def draw_estimates(
    path: Path, response: Tensor, deviation: Tensor, fitted: Mapping[str, Tensor], words: str
) -> Path:
    """Draw measured responses with bands of two deviations, and what was fitted to them.

    Args:
        path: PNG file.
        response: measured, [H + 1, V].
        deviation: of it, [H + 1, V]; inf where nothing was measured.
        fitted: responses [H + 1, V] by name.
        words: the title.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(OBSERVABLES), 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(OBSERVABLES), squeeze=False)[0]
    periods = list(range(len(response)))
    for v, variable in enumerate(OBSERVABLES):
        middle, band = 100 * response[:, v], 200 * deviation[:, v].nan_to_num(0.0, posinf=0.0)
        axes[v].fill_between(
            periods,
            (middle - band).numpy(),
            (middle + band).numpy(),
            alpha=0.2,
            color="0.4",
            linewidth=0,
            label="measured, ± two deviations",
        )
        axes[v].plot(periods, middle.numpy(), "k", linewidth=1.0, label="measured")
        for k, (name, made) in enumerate(fitted.items()):
            style = {"linewidth": 2.5 - 1.3 * k, "color": f"C{k}", "linestyle": "-" if k == 0 else "--"}
            axes[v].plot(periods, 100 * made[:, v].numpy(), label=f"exact, through the {name}", **style)
        axes[v].axhline(0, color="0.7", linewidth=0.6)
        axes[v].set_title(f"{variable}, %", fontsize=9)
        axes[v].set_xlabel("quarter")
    axes[0].legend(fontsize=7, frameon=False)
    figure.suptitle(words, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
