"""Memory of training on a motion file of more than a gigabyte, beside the same training on a small one.

Claims: ten million frames train in less than 1 GB over what the model takes, which is what the process that
trains on ten thousand frames takes; streaming costs little time a step.

Each case is a process of its own: it opens the file, measures its scale, and trains the same small network
for the same number of steps. The peak is that of the whole process, counted by the operating system. The
file holds smooth random motion in clips of 1,000 frames, written by `mfk.data.write_motion`.

    python benchmarks/stream.py [--frames N] [--steps N] [--folder DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timing import Check, facts, report, write

from mfk.data import Clip, MotionInfo, MotionRows, Skeleton, write_motion

BONES, CLIP, SMALL = 8, 1_000, 10_000

TRAIN = """
import json, resource, sys, tempfile, time
from pathlib import Path
from mfk import train
from mfk.data import LoaderConfig, WindowConfig
from mfk.tasks import motion, motion_data
from mfk.tasks.motion_features import FeatureConfig
from mfk.tasks.motion_net import MotionNetConfig, motion_net

path, steps = Path(sys.argv[1]), int(sys.argv[2])
begun = time.perf_counter()
data = motion_data.open_data(motion_data.MotionDataConfig(data=path), FeatureConfig(), 0)
net = motion_net(MotionNetConfig(arch="mlp", hidden=(256, 256)), 7 * data.how.bones, 0, False)
scale = motion_data.measure_scale(data, 8)
config = motion.MotionConfig()
task = motion.motion_task(net, data.how, scale, config)
batches = motion_data.training_batches(data, 8, 1, 256, 0, WindowConfig(), LoaderConfig())
validation = motion_data.validation_batches(data, 8, 30, 64, 0)
opened = time.perf_counter() - begun
fit = train.TrainConfig(steps=steps, batch_size=256, jit=False, validate_every=steps, checkpoint_every=None,
                        warmup_steps=10)
feed = batches.start(0)
next(feed)
begun = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    result = train.fit(task, fit, run=Path(folder) / "run", record={}, validation=validation, batches=batches,
                       console=False)
trained = time.perf_counter() - begun
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(json.dumps({"peak_mb": peak, "opened_s": opened, "trained_s": trained, "steps": steps,
                  "batches_an_epoch": batches.per_epoch, "val_mse": result.best}))
"""


def main() -> None:
    """Write the files, train on each, print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--folder", type=Path, default=None, help="for the files; None: a temporary one")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    results: dict[str, Any] = {"versions": facts(), "bones": BONES, "numbers": 7 * BONES, "cases": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for frames in (SMALL, options.frames):
            path = Path(folder) / f"{frames}.parquet"
            begun = time.perf_counter()
            make(path, frames)
            written = time.perf_counter() - begun
            done = subprocess.run(
                [sys.executable, "-c", TRAIN, str(path), str(options.steps)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stderr)
            case = {"frames": frames, "file_mb": path.stat().st_size / 1e6, "written_s": written}
            results["cases"].append(case | json.loads(done.stdout.splitlines()[-1]))
            print(results["cases"][-1])
    small, large = results["cases"]
    what = f"{large['frames']:,} frames: peak over that of {small['frames']:,}, MB"
    checks = [Check(what, large["peak_mb"] - small["peak_mb"], 1_000.0)]
    report(checks)
    write(options.out, results | {"claims": [check.record() for check in checks]})


def make(path: Path, frames: int) -> None:
    """Write `frames` frames of smooth motion, the last tenth of the clips held out."""
    clips = frames // CLIP
    info = MotionInfo(
        30.0,
        Skeleton(tuple(f"bone{i}" for i in range(BONES)), (-1, *range(BONES - 1)), "world", "z"),
        tuple(Clip(f"clip{i}", CLIP) for i in range(clips)),
        None,
        ("train", "val"),
        {},
    )
    write_motion(path, info, rows(clips))


def rows(clips: int) -> Iterator[MotionRows]:
    """The clips: bones on sums of three sinusoids, with rotations about one axis."""
    t = torch.arange(CLIP)[:, None] / 30
    for clip in range(clips):
        generator = torch.Generator().manual_seed(clip)
        rate, phase, width = torch.rand(3, 3, 4 * BONES, generator=generator)
        waves = sum(width[k] * torch.sin(6.28 * (rate[k] * t + phase[k])) for k in range(3))
        assert isinstance(waves, torch.Tensor)
        position, angle = waves[:, : 3 * BONES].unflatten(1, (BONES, 3)), waves[:, 3 * BONES :, None]
        zero = torch.zeros_like(angle)
        frames = torch.cat((position, torch.cos(angle / 2), zero, zero, torch.sin(angle / 2)), -1)
        held_out = torch.full((CLIP,), clip >= 0.9 * clips)
        yield MotionRows(frames, None, None, {"train": ~held_out, "val": held_out})


if __name__ == "__main__":
    main()
