"""The report of a motion model: next steps and rollouts on held-out clips, beside what needs no learning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.core.files import write_atomically
from mfk.core.types import Params
from mfk.data import read_windows
from mfk.data.motion_windows import Windows
from mfk.tasks.motion_data import MotionData, rollout_windows
from mfk.tasks.motion_features import world_positions
from mfk.tasks.motion_measure import (
    NextStep,
    Predictor,
    Rollout,
    extrapolator,
    feet_of,
    masked_mean,
    next_steps,
    rollouts,
    sliding,
)
from mfk.tasks.report_tables import markdown, print_rows, strict

PERSISTENCE, VELOCITY, LINEAR = "persistence", "constant velocity", "linear prediction"
_ROWS = 64  # windows at a time


@dataclass(frozen=True)
class MotionResult:
    """Figures of one predictor over held-out windows."""

    name: str
    mse: float
    """Next step: squared error, mean over standardised features."""
    mae: float
    """Next step: absolute error."""
    joint_deg: float
    """Next step: angle between joint rotations, mean over bones."""
    position_cm: float
    """Next step: distance of bones after FK, mean over bones."""
    rollout_cm: float
    """The same of a rollout, mean over its steps."""
    rollout_deg: float
    """Angle between joint rotations in a rollout, mean over its steps."""
    velocity_mse: float
    """Squared error of the standardised features' velocity in a rollout, per frame."""
    sliding: float | None
    """Sliding of the feet in a rollout, in m/s; None without feet."""
    microseconds: float
    """Time of one frame in a rollout, at 64 windows at a time."""
    drift_cm: tuple[float, ...]
    """Distance of bones at each step of a rollout, mean over windows."""
    by_action: Mapping[str, tuple[float, float, int]]
    """Action -> next-step mse, rollout_cm, windows."""
    diversity_cm: float | None = None
    """Of a generative model: distance between two samples of a rollout's last frame, mean over bones."""
    best_cm: float | None = None
    """Of a generative model: rollout_cm of the sample nearest to the truth, of each window."""


def compare(
    data: MotionData,
    scale: Params,
    predictors: Mapping[str, Callable[[int], Predictor]],
    horizon: int,
    steps: int,
    windows: int | None = None,
    samples: int = 1,
) -> list[MotionResult]:
    """Figures of each predictor on windows of the report's clips that begin `steps` frames apart.

    Args:
        data: see `open_data`.
        scale: as of `fit_scale`.
        predictors: name -> (number of the sample) -> predictor; the baselines are added.
        horizon: frames that are seen.
        steps: frames of a rollout; the next step is measured at each of them, from true frames.
        windows: how many windows, spread evenly; None: all.
        samples: rollouts of each predictor; more than 1 of generative ones only.
    """
    found = rollout_windows(data.test, horizon, steps, windows)
    plain: dict[str, Callable[[int], Predictor]] = {
        PERSISTENCE: lambda _: extrapolator("last", scale),
        VELOCITY: lambda _: extrapolator("velocity", scale),
    }
    if horizon >= 3:
        plain[LINEAR] = lambda _: extrapolator("linear", scale)
    results = []
    for name, make in {**plain, **predictors}.items():
        count = samples if name in predictors else 1
        results.append(_measure(name, data, scale, [make(k) for k in range(count)], found, horizon, steps))
    return results


@torch.no_grad()
def _measure(
    name: str,
    data: MotionData,
    scale: Params,
    predictors: Sequence[Predictor],
    windows: Windows,
    horizon: int,
    steps: int,
) -> MotionResult:
    singles: list[NextStep] = []
    rolled: list[Rollout] = []
    others: list[Rollout] = []
    best, diversity, slid, seconds, frames_made = [], [], [], 0.0, 0
    feet = feet_of(data.source.info.skeleton.bone_names) if data.how.up is not None else []
    for first in range(0, len(windows.start), _ROWS):
        some = Windows(*(x[first : first + _ROWS] for x in windows))
        batch = read_windows(data.source, some, horizon + steps)
        given = batch["frames"], batch["valid"], batch.get("labels"), horizon
        singles.append(next_steps(data.how, scale, predictors[0], *given))
        begun = time.perf_counter()
        made = rollouts(data.how, scale, predictors[0], *given)
        seconds += time.perf_counter() - begun
        frames_made += made.valid.numel()
        rolled.append(made)
        truth = batch["frames"][:, horizon:]
        if feet:
            whole = made.valid.all(1)
            slid.append(sliding(data.how, made.frames[whole], truth[whole], feet, data.source.info.fps))
        if len(predictors) > 1:
            others = [made, *(rollouts(data.how, scale, p, *given) for p in predictors[1:])]
            each = torch.stack([_row_means(r.position_cm, r.valid) for r in others])
            best.append(each.amin(0))
            ends = torch.stack([world_positions(data.how, r.frames[:, -1]) for r in others])
            apart = 100 * (ends[:, None] - ends[None]).norm(dim=-1).mean(-1)  # [samples, samples, B]
            diversity.append(apart.sum((0, 1)) / (len(others) * (len(others) - 1)))
            # The drift of a sample is the mean over samples.
            rolled[-1] = made._replace(position_cm=torch.stack([r.position_cm for r in others]).mean(0))
    single = NextStep(*(torch.cat(x) for x in zip(*singles, strict=True)))
    roll = Rollout(*(torch.cat(x) for x in zip(*rolled, strict=True)))
    inside = roll.valid
    drift = torch.where(inside, roll.position_cm, 0.0).sum(0) / inside.sum(0)
    actions = np.array([data.source.info.clips[i].action or "" for i in windows.clip])
    by_action = {}
    for action in sorted(set(actions) - {""}):
        chosen = torch.from_numpy(actions == action)
        by_action[action] = (
            masked_mean(single.mse[chosen], single.valid[chosen]),
            masked_mean(roll.position_cm[chosen], inside[chosen]),
            int(chosen.sum()),
        )
    return MotionResult(
        name,
        masked_mean(single.mse, single.valid),
        masked_mean(single.mae, single.valid),
        masked_mean(single.joint_deg, single.valid),
        masked_mean(single.position_cm, single.valid),
        masked_mean(roll.position_cm, inside),
        masked_mean(roll.joint_deg, inside),
        masked_mean(roll.velocity_mse, inside),
        float(torch.cat(slid).mean()) if slid else None,
        1e6 * seconds / frames_made,
        tuple(drift.tolist()),
        by_action,
        float(torch.cat(diversity).mean()) if diversity else None,
        float(torch.cat(best).mean()) if best else None,
    )


def _row_means(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).sum(1) / valid.sum(1)


def table(results: Sequence[MotionResult]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows."""
    titles = ["predictor", "mse", "mae", "joint deg", "bones cm", "rollout cm", "last cm", "rollout deg",
              "feet m/s", "us/frame"]  # fmt: skip
    rows = [
        [
            r.name, f"{r.mse:.5f}", f"{r.mae:.4f}", f"{r.joint_deg:.3f}", f"{r.position_cm:.3f}",
            f"{r.rollout_cm:.2f}", f"{r.drift_cm[-1]:.2f}", f"{r.rollout_deg:.2f}",
            "-" if r.sliding is None else f"{r.sliding:.3f}", f"{r.microseconds:.0f}",
        ]
        for r in results
    ]  # fmt: skip
    return titles, rows


def action_table(results: Sequence[MotionResult]) -> tuple[list[str], list[list[str]]]:
    """Column titles and formatted rows: next-step mse and rollout cm by action, of each predictor."""
    actions = list(results[0].by_action)
    titles = ["action", "windows", *(f"{r.name}: {x}" for r in results for x in ("mse", "cm"))]
    rows = []
    for action in actions:
        cells = [r.by_action[action] for r in results]
        rows.append(
            [action, str(cells[0][2]), *(x for mse, cm, _ in cells for x in (f"{mse:.5f}", f"{cm:.2f}"))]
        )
    return titles, rows


def print_table(results: Sequence[MotionResult], title: str) -> None:
    """Print the table on the terminal."""
    print_rows(*table(results), title)


def write_report(
    folder: Path, results: Sequence[MotionResult], facts: Mapping[str, Any], fps: float
) -> list[Path]:
    """Write report.json, report.md and drift.png into `folder`; the files written."""
    report = {"facts": dict(facts), "results": [asdict(r) for r in results]}
    lines = ["# Motion: held-out clips", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    lines += markdown(*table(results))
    lines += [
        "",
        "mse and mae are those of the next frame's standardised features, deg and cm means over the bones,",
        "after forward kinematics; a rollout sees its own frames. Windows that a clip ends early count as",
        "far as they go.",
        "",
    ]
    if results[0].by_action:
        lines += [*markdown(*action_table(results)), ""]
    lines += ["![drift](drift.png)", ""]
    written = [folder / "report.json", folder / "report.md", folder / "drift.png"]
    write_atomically(written[0], json.dumps(strict(report), indent=2, allow_nan=False) + "\n")
    write_atomically(written[1], "\n".join(lines))
    write_atomically(written[2], drift_figure(results, fps))
    return written


def drift_figure(results: Sequence[MotionResult], fps: float) -> bytes:
    """Distance from the truth over a rollout's time, of each predictor: a picture as PNG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    plain = (PERSISTENCE, VELOCITY, LINEAR)
    for r in results:
        seconds = [(k + 1) / fps for k in range(len(r.drift_cm))]
        axes.plot(seconds, r.drift_cm, "--" if r.name in plain else "-", label=r.name, linewidth=1.6)
    # Constant velocity leaves every scale within a second.
    top = max(max(r.drift_cm) for r in results if r.name != VELOCITY)
    axes.set(
        xlabel="seconds after the last true frame", ylabel="distance of the bones [cm]", ylim=(0, 1.6 * top)
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()
