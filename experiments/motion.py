"""Train, evaluate, animate and export models of the next frame of a motion.

python experiments/motion.py                                         # the links of a robot arm
python experiments/motion.py import --bvh DIR --output labeled.parquet
python experiments/motion.py transformer --data labeled.parquet      # or mlp, unet1d
python experiments/motion.py mlp --data labeled.parquet --export-ts encoder.ts
python experiments/motion.py meanflow --data labeled.parquet         # samples of the next frame, in one step
python experiments/motion.py animate --checkpoint outputs/motion/latest --out rollout.gif
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from motion_commands import COMMANDS, command
from motion_runs import MotionRun, draw, export, make_ready, report, task_of

from mfk import train
from mfk.core import cli, ranks
from mfk.tasks import motion, motion_data, motion_export
from mfk.tasks.motion_net import MotionNetConfig
from mfk.train import TrainConfig

_TRAIN = TrainConfig(
    steps=2_000, batch_size=64, lr=3e-4, min_lr=1e-5, warmup_steps=500, weight_decay=1e-4, clip=1.0,
    ema_decay=0.998, validate_every=250, checkpoint_every=500, jit=False,
)  # fmt: skip
_SMALL = MotionRun(
    net=MotionNetConfig(dropout=0.0),
    # A robot's links are predicted so well that gradients are tiny: eps must be smaller still.
    train=replace(_TRAIN, steps=1_000, lr=1e-3, warmup_steps=100, eps=1e-14),
)


def _of(net: MotionNetConfig) -> MotionRun:
    return MotionRun(net=net, train=_TRAIN)


PRESETS = {
    "default": ("a small transformer", _SMALL),
    "quick": (
        "the same, a short look",
        replace(
            _SMALL, train=replace(_SMALL.train, steps=100, warmup_steps=20, validate_every=50, ema_decay=0.95)
        ),
    ),
    "transformer": (
        "the documents' transformer: two layers, 512 wide",
        _of(MotionNetConfig(width=512, feedforward=2_048)),
    ),
    "mlp": ("the documents' MLP: 512, 1024, 512", _of(MotionNetConfig("mlp"))),
    "unet1d": ("the documents' UNet1D: 32 and 64 channels", _of(MotionNetConfig("unet1d"))),
    "rollouts": (
        "a transformer half as wide, trained on its own frames, 14 at a time, picked by its rollouts",
        MotionRun(
            net=MotionNetConfig(width=256, feedforward=512, dropout=0.2),
            motion=motion.MotionConfig(
                motion.MotionLossConfig(rollout_steps=14, truncate_steps=14, noise=0.4)
            ),
            train=replace(
                _TRAIN,
                batch_size=32,
                lr=6e-4,
                warmup_steps=100,
                steps=400,
                ema_decay=0.99,
                validate_every=25,
                best_metric="rollout_cm",
            ),
        ),
    ),
    "meanflow": (
        "the MLP as a generative model of the next frame, in one step",
        replace(_of(MotionNetConfig("mlp")), motion=motion.MotionConfig(motion.MotionLossConfig("meanflow"))),
    ),
    "diffusion": (
        "the UNet1D as a generative model of the next frame, in ten steps",
        replace(
            _of(MotionNetConfig("unet1d")), motion=motion.MotionConfig(motion.MotionLossConfig("diffusion"))
        ),
    ),
}


def main() -> None:
    """Parse the command line and run it; a user's mistake ends with code 2."""

    def program() -> None:
        given = cli.parse(
            PRESETS,
            COMMANDS,
            prog="motion.py",
            description="Models of the next frame of a motion, measured in rollouts.",
            root=Path("outputs") / "motion",
        )
        if isinstance(given, MotionRun):
            run(given)
        elif ranks.alone():
            command(given)

    cli.main(program, train.TrainingDiverged)


def run(settings: MotionRun) -> None:
    """Train as configured, then report on held-out clips, animate, export."""
    started = time.perf_counter()
    if settings.export_ts is not None:
        motion_export.check_path(settings.export_ts)
    ready = make_ready(settings)
    record = motion_data.data_record(settings.data)
    if settings.run.resume is not None:
        train.check_same_data(Path(settings.run.resume), record)
    task = task_of(settings, ready)
    seen, ahead = motion.window_of(ready.net, settings.motion.loss)
    seed = settings.train.seed
    batches = motion_data.training_batches(
        ready.data, seen, ahead, settings.train.batch_size, seed, settings.windows, settings.loader
    )
    noise = ready.net.features if ready.net.generative else None
    result = train.launch(
        task,
        settings,
        name="motion",
        validation=motion_data.validation_batches(
            ready.data, seen, settings.rollout, settings.validation_windows, seed, noise
        ),
        batches=batches,
        example=next(batches.start(0)),
        files={train.DATA: record},
        fixed=("net", "motion", "data", "features", "windows.stride", "loader.shuffle", "rollout",
               "validation_windows"),
    )  # fmt: skip
    if result is None:
        return
    ready.data.unchanged()
    try:
        report(settings, ready, result.run, result.run,
               {"this session": f"{time.perf_counter() - started:.0f} s until the report"})  # fmt: skip
        train.add_image(
            result.run, "report/drift", result.state.step, (result.run / "drift.png").read_bytes()
        )
        if settings.animation and ready.data.source.info.skeleton.parents is None:
            print("# note: no animation: the file does not say the bones' parents")
        elif settings.animation:
            draw(settings, ready, result.run, result.run / "animation.gif", None, 3 * settings.rollout)
        if settings.export_ts is not None:
            export(settings, ready, result.run, settings.export_ts)
    except KeyboardInterrupt:
        print(
            f"the training is complete; evaluate --checkpoint {result.run} makes the report", file=sys.stderr
        )
        raise


if __name__ == "__main__":
    main()
