"""Refinement of predicted stick figures: diffusion, MeanFlow, a low-pass filter; jitter, error and time.

Claims: window by window, the jitter of what either network makes of held-out predictions is nearer to the
truth's than that of a zero-phase low-pass filter tuned for it, and its error is no larger than that of the
predictions. Of diffusion and MeanFlow, both as the presets have them (no noise), also the time of a motion.

Both are trained beside the same transformer, by experiments/stick.py. The filter's cut-off is chosen on the
validation clips: of those that do not add to the error, the one whose jitter is nearest to the truth's.

    [MFK_DATA=DIR] python benchmarks/stick_refine.py [--threads N] [--steps N] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stick_models import REAL_HELD_OUT, bring_in, run
from timing import Check, facts, report, write
from torch import Tensor

from mfk import losses
from mfk.core import rng
from mfk.core.types import Rows
from mfk.data.stick import FPS, StickClip
from mfk.tasks import stick_data, stick_measure, stick_refine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from stick_runs import settings_of, trained

CUT_OFFS = [0.1 * 1.15**k for k in range(34)]  # Hz, up to nearly half of 25
CLIPS = 1_800  # to generate: of 600 the network knows each so well that others are predicted unlike them
_FROM = 2  # the first predictions have no velocity to go by

Maker = Callable[[Tensor, Tensor, int], Tensor]  # (predictions [B, T, D], text [B, E], first row) -> motions


def main() -> None:
    """Train both, compare, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=1_000, help="of each training")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    words = [
        "--threads", str(options.threads), "--steps", str(options.steps), "--width", "128", "--layers", "4",
        "--heads", "4", "--sample-text", "", "--enabled", "--diffusion", "1",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {"generated": ["--clips", str(CLIPS)]}
        if os.environ.get("MFK_DATA"):
            file = bring_in(Path(os.environ["MFK_DATA"]) / "mocap", folder)
            sources["recorded"] = ["--data", str(file), "--held-out", *REAL_HELD_OUT]
        runs = [compare(source, folder, [*words, *given]) for source, given in sources.items()]
    checks = claims(runs)
    report(checks)
    write(
        options.out,
        {"versions": facts("scipy"), "steps": options.steps, "runs": runs,
         "claims": [check.record() for check in checks]},
    )  # fmt: skip


def compare(source: str, folder: Path, words: list[str]) -> dict[str, Any]:
    """Figures of every way to refine, on the report's clips."""
    rows = []
    for kind in ("ddpm", "meanflow"):
        out = folder / f"{source} {kind}"
        begun = time.perf_counter()
        run("small", "--out", str(out), "--refinement", kind, *words)
        seconds = time.perf_counter() - begun
        settings = settings_of(out)
        nets, found = trained(settings, out)
        data = stick_data.open_stick(settings.data, settings.train.seed, settings.net.embedding_dim, False)

        def predicted(clips: list[StickClip], nets=nets, found=found, settings=settings) -> list[Any]:
            return [
                (b["motion"][:, 1:], stick_measure.predictions(nets, found.params, found.state, b), b["text"])
                for b in stick_data.held_out_batches(clips, settings.data.frames, False, "held out")
            ]

        def refined(given: Tensor, text: Tensor, first: int, nets=nets, found=found) -> Tensor:
            rows = Rows(range(first, first + len(given)), first + len(given))
            noise = rng.normal(rng.key(0, "benchmark"), rows, tuple(given.shape[1:]))
            return stick_refine.refine(nets, found.params["refine"], found.state, given, text, noise)

        test = predicted(whole(data.test, settings.data.frames))
        if kind == "ddpm":
            rows.append(measure("prediction", lambda given, text, first: given, test))
            tuning = predicted(whole(data.validation, settings.data.frames))
            cut_off = tune(tuning)
            rows.append(
                measure(
                    f"low-pass, {cut_off:.1f} Hz", lambda g, text, first, hz=cut_off: low_pass(g, hz), test
                )
            )
        name = kind if kind == "meanflow" else f"ddpm, {settings.diffusion.sample_steps} steps"
        rows.append(measure(name, refined, test) | {"training_seconds": seconds})
    truth = torch.cat([losses.jerk(x[:, _FROM:], FPS) for x, _, _ in test])
    return {"data": source, "windows": len(truth), "truth_jerk": float(truth.mean()), "rows": rows}


def whole(clips: list[StickClip], frames: int) -> list[StickClip]:
    """Clips that fill a window: a filter does not know of masked frames."""
    return [clip for clip in clips if len(clip.motion) >= frames]


def tune(batches: list[Any]) -> float:
    """The cut-off in Hz; see the first lines."""
    plain = measure("", lambda given, text, first: given, batches)
    found = []
    for hz in CUT_OFFS:
        row = measure("", lambda given, text, first, hz=hz: low_pass(given, hz), batches)
        found.append((row["mse"] > plain["mse"], row["jerk_off"], hz))
    return min(found)[2]


def low_pass(x: Tensor, hz: float) -> Tensor:
    """A Butterworth filter of second order, forwards and backwards along time."""
    from scipy.signal import butter, filtfilt

    found: Any = butter(2, hz, fs=FPS)
    return torch.from_numpy(
        np.ascontiguousarray(filtfilt(found[0], found[1], x.double().numpy(), axis=1))
    ).to(x.dtype)


@torch.no_grad()
def measure(name: str, make: Maker, batches: list[Any]) -> dict[str, Any]:
    """Jitter, error, and motions a second."""
    jerks, off, errors, seconds, first = [], [], [], 0.0, 0
    for truth, given, text in batches:
        begun = time.perf_counter()
        made = make(given, text, first)
        seconds += time.perf_counter() - begun
        first += len(given)
        jerks.append(losses.jerk(made[:, _FROM:], FPS))
        off.append((jerks[-1] - losses.jerk(truth[:, _FROM:], FPS)).abs())
        errors.append(losses.squared_error(made, truth)[:, _FROM:])
    return {
        "name": name,
        "jerk": float(torch.cat(jerks).mean()),
        "jerk_off": float(torch.cat(off).mean()),
        "mse": float(torch.cat(errors).mean()),
        "motions_per_second": first / seconds,
    }


def claims(runs: list[dict[str, Any]]) -> list[Check]:
    """Nearer in jitter than the filter, no worse in error than the prediction."""
    checks = []
    for found in runs:
        plain, filtered, *networks = found["rows"]
        for row in networks:
            what = f"{found['data']}, {row['name']}"
            ratio = row["jerk_off"] / filtered["jerk_off"]
            checks.append(
                Check(f"{what}: jitter's distance from the truth's / low-pass filter's", ratio, 1.0)
            )
            checks.append(Check(f"{what}: mse / prediction's", row["mse"] / plain["mse"], 1.0))
    return checks


if __name__ == "__main__":
    main()
