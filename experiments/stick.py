"""Train models of stick figures, and generate motion from text.

python experiments/stick.py small                                    # 6 to 12 minutes on 2 cores
python experiments/stick.py                                          # medium, the documents' default
python experiments/stick.py generate --text "a person walks then jumps" --seconds 6 --out walk.gif
python experiments/stick.py import --bvh DIR --index index.csv --joint-map joint_map.json --output real.pt
python experiments/stick.py small --data real.pt --init-from outputs/stick/latest
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from places import check_folder
from stick_commands import COMMANDS, command
from stick_runs import (
    OPENINGS,
    SAMPLE_SECONDS,
    StickRun,
    compose,
    make_ready,
    report,
    sample_of,
    task_of,
    trained,
    write_motion,
)

from mfk import train
from mfk.core import cli, ranks
from mfk.data import batches_of
from mfk.tasks import stick_data, stick_generate
from mfk.tasks.stick_net import StickNetConfig
from mfk.train import TrainConfig

_TRAIN = TrainConfig(
    epochs=50, warmup_epochs=10, batch_size=64, lr=3e-4, min_lr=0.0, weight_decay=0.01, clip=1.0,
    ema_decay=0.99, validate_every=None, validate_every_epochs=1, checkpoint_every=None,
    checkpoint_every_epochs=5, log_every=10, jit=False,
)  # fmt: skip
_SMALL = StickRun(
    # So short a training fits no clip by heart: nothing is dropped.
    net=StickNetConfig(width=256, layers=6, heads=8, dropout=0.0),
    train=replace(
        _TRAIN, epochs=None, warmup_epochs=None, steps=800, warmup_steps=50, batch_size=16, lr=1e-3,
        validate_every=200, validate_every_epochs=None, checkpoint_every=100, checkpoint_every_epochs=None,
    ),
)  # fmt: skip


def _of(width: int, layers: int, heads: int, accumulate: int) -> StickRun:
    return StickRun(
        net=StickNetConfig(width=width, layers=layers, heads=heads),
        train=replace(_TRAIN, accumulate=accumulate),
    )


_MEDIUM = _of(384, 8, 12, 32)
PRESETS = {
    "default": ("medium", _MEDIUM),
    "quick": (
        "a very small one, a short look",
        StickRun(
            net=StickNetConfig(width=64, layers=2, heads=4),
            data=stick_data.StickDataConfig(clips=60),
            train=replace(_SMALL.train, steps=60, warmup_steps=10, validate_every=30, ema_decay=0.9),
        ),
    ),
    "small": ("7.2 million parameters, 6 to 12 minutes on 2 cores", _SMALL),
    "medium": ("20.6 million parameters, 2 windows at a time", _MEDIUM),
    "large": ("44.6 million parameters, 16 windows at a time", _of(512, 10, 16, 4)),
}


def main() -> None:
    """Parse the command line and run it; a user's mistake ends with code 2."""

    def program() -> None:
        given = cli.parse(
            PRESETS,
            COMMANDS,
            prog="stick.py",
            description="Stick figures that move as a text says.",
            root=Path("outputs") / "stick",
        )
        if isinstance(given, StickRun):
            run(given)
        elif ranks.alone():
            command(given)

    cli.main(program, train.TrainingDiverged, ImportError)


def run(settings: StickRun) -> None:
    """Train as configured, then report on held-out clips and generate a sample."""
    started = time.perf_counter()
    # The variable TRAIN_DATA_PATH is written down, so that the run is understood without it.
    settings = replace(settings, data=replace(settings.data, data=stick_data.path_of(settings.data)))
    if settings.run.out is not None:
        check_folder("--out", Path(settings.run.out))
    ready = make_ready(settings)
    text = sample_of(settings, ready)
    record = stick_data.data_record(settings.data)
    if settings.run.resume is not None:
        train.check_same_data(Path(settings.run.resume), record)
    seed = settings.train.seed
    result = train.launch(
        task_of(settings, ready),
        settings,
        name="stick",
        validation=stick_data.held_out_batches(
            ready.data.validation, settings.data.frames, settings.net.condition_camera, ready.data.name
        ),
        batches=batches_of(ready.data.training, settings.train.batch_size, seed=seed, config=settings.loader),
        example={name: x[: settings.train.batch_size] for name, x in ready.data.training.items()},
        files={train.DATA: record, OPENINGS: stick_generate.to_json(ready.openings)},
        fixed=("net", "diffusion", "stick", "data", "loader.shuffle"),
    )
    if result is None:
        return
    ready.data.unchanged()  # of the windows there are copies, of the report's clips there are none
    nets, found = trained(settings, result.run)
    seconds = f"{time.perf_counter() - started:.0f} s until the report"
    report(settings, ready.data, nets, found, result.run, {"this session": seconds})
    if text:
        made = compose(settings, nets, found, ready.openings, text, SAMPLE_SECONDS, 0, ())
        for name in ("sample.gif", "sample.png"):
            write_motion(made, result.run / name, text)


if __name__ == "__main__":
    main()
