"""Stick figures: next frames of every action beside constant velocity, actions beside logistic regression.

Claims: on held-out clips the model's squared error of the next frame is below constant velocity's for every
generated action, and on real recordings; it recognises the action of a frame from the motion before it more
often than logistic regression on statistics of poses does.

What is run is experiments/stick.py, preset small, as a user runs it. Recordings are those of MFK_DATA
(mocap/), a folder that is not part of mfk: without it the generated clips alone are measured.

    [MFK_DATA=DIR] python benchmarks/stick_models.py [--threads N] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from timing import Check, facts, report, write
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from stick_runs import settings_of, trained  # noqa: E402

from mfk.core import tree  # noqa: E402
from mfk.core.types import Batch  # noqa: E402
from mfk.tasks import stick_data, stick_measure  # noqa: E402
from mfk.tasks.stick_net import StickNets  # noqa: E402

REAL_HELD_OUT = ("cmu_01_09", "cmu_02_01", "cmu_60_03", "cmu_94_08", "cmu_135_05", "cmu_11_01")
_TRAIL = 25  # frames whose statistics logistic regression sees
_EVERY = 5  # frames of a training window that it is fitted to


def main() -> None:
    """Train, measure, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[], help="further words of stick.py")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    words = ["--threads", str(options.threads), *options.words]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = [measure("generated", folder / "generated", words)]
        if os.environ.get("MFK_DATA"):
            file = bring_in(Path(os.environ["MFK_DATA"]) / "mocap", folder)
            given = ["--data", str(file), "--held-out", *REAL_HELD_OUT, "--sample-text", ""]
            runs.append(measure("recorded", folder / "recorded", [*given, *words]))
        else:
            print("# MFK_DATA is not set: no recordings")
    checks = claims(runs)
    report(checks)
    write(
        options.out,
        {"versions": facts("scikit-learn"), "runs": runs, "claims": [check.record() for check in checks]},
    )


def bring_in(recordings: Path, folder: Path) -> Path:
    """All recordings as stick figures, by stick.py's own command."""
    source = folder / "bvh"
    source.mkdir()
    for archive in sorted(recordings.glob("*.tar.gz")):
        with tarfile.open(archive) as members:
            members.extractall(source, filter="data")
    output = folder / "recorded.pt"
    run("import", "--bvh", str(source), "--index", str(recordings / "index.csv"), "--joint-map",
        str(recordings / "joint_map.json"), "--output", str(output))  # fmt: skip
    return output


def measure(name: str, out: Path, words: list[str]) -> dict[str, Any]:
    """Train the small preset and measure it on the report's clips."""
    begun = time.perf_counter()
    run("small", "--out", str(out), *words)
    seconds = time.perf_counter() - begun
    settings = settings_of(out)
    nets, found = trained(settings, out)
    data = stick_data.open_stick(settings.data, settings.train.seed, settings.net.embedding_dim, False)
    errors = stick_measure.next_frame_errors(nets, found.params, found.state, data.test, settings.data.frames)
    rows = stick_measure.by_action(errors)
    print(f"{name}: {seconds:.0f} s")
    return {
        "data": name,
        "seconds": seconds,
        "clips": len(data.test),
        "parameters": tree.size(found.params["net"]),
        "actions": [row._asdict() for row in rows],
        "regression": regression(nets, data, settings.data.frames),
    }


def regression(nets: StickNets, data: stick_data.StickData, frames: int) -> float:
    """Share of held-out frames whose action logistic regression on pose statistics recognises."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen, label = samples(data.training, _EVERY)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    model.fit(seen.numpy(), label.numpy())
    right = [
        torch.from_numpy(model.predict(x.numpy())) == y
        for x, y in (samples(batch, 1) for batch in stick_measure.held_out_batches(nets, data.test, frames))
        if len(y)
    ]
    return float(torch.cat(right).double().mean())


def samples(batch: Batch, every: int) -> tuple[Tensor, Tensor]:
    """Statistics of the frames before a frame, and its action, as the model has to tell it: [n, F], [n]."""
    stats = statistics(batch["motion"][:, :-1])[:, 1:]
    label, valid = batch["actions"][:, 2:], batch["valid"][:, 2:]
    chosen = valid & (label >= 0)
    chosen[:, torch.arange(chosen.shape[1]) % every != 0] = False
    return stats[chosen], label[chosen]


def statistics(motion: Tensor) -> Tensor:
    """Mean and deviation of pose and velocity over the last frames up to each, [B, T, 4 D]; T >= 2."""
    hip = motion[..., 2:4].repeat(1, 1, motion.shape[-1] // 2)
    velocity = torch.cat((torch.zeros_like(motion[:, :1]), motion.diff(dim=1)), 1)
    x = torch.cat((motion - hip, velocity), -1).double()
    count = torch.arange(1, x.shape[1] + 1).clamp(max=_TRAIL)[:, None]

    def trailing(x: Tensor) -> Tensor:
        total = torch.cat((x.new_zeros(len(x), _TRAIL, x.shape[-1]), x.cumsum(1)), 1)
        return (total[:, _TRAIL:] - total[:, :-_TRAIL]) / count

    mean = trailing(x)
    deviation = (trailing(x.square()) - mean.square()).clamp(min=0).sqrt()
    return torch.cat((mean, deviation), -1)


def run(*words: str) -> None:
    """experiments/stick.py with `words`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / "stick.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


def claims(runs: list[dict[str, Any]]) -> list[Check]:
    """Below constant velocity everywhere, above logistic regression."""
    checks = []
    for found in runs:
        every = found["actions"] if found["data"] == "generated" else found["actions"][-1:]
        for row in every:
            what = f"{found['data']}, {row['action']}: mse / constant velocity's"
            checks.append(Check(what, row["model"] / row["velocity"], 1.0))
        missed = (1 - found["actions"][-1]["accuracy"]) / (1 - found["regression"])
        checks.append(Check(f"{found['data']}: actions missed / logistic regression's", missed, 1.0))
    return checks


if __name__ == "__main__":
    main()
