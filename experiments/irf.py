"""Train, evaluate and ask emulators of economies' impulse responses.

python experiments/irf.py                                            # a network for each world
python experiments/irf.py generate --root datasets/v1 --worlds nk var lss --samples 10000
python experiments/irf.py universal --data datasets/v1               # one network for all worlds
python experiments/irf.py --config experiments/configs/baseline_mlp.yaml
python experiments/irf.py evaluate --checkpoint outputs/irf/latest
python experiments/irf.py ask --checkpoint outputs/irf/latest --world nk --theta phi_pi=2.0 kappa=0.05
python experiments/irf.py estimate --checkpoint outputs/irf/latest       # nk fitted to US data
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from irf_commands import COMMANDS, Evaluate, Generate, command
from irf_runs import IRFRun, make_ready, report, task_of

from mfk import train
from mfk.core import cli, ranks
from mfk.data import batches_of
from mfk.tasks import irf, irf_data
from mfk.tasks.irf_net import IRFNetConfig
from mfk.train import TrainConfig

_TRAIN = TrainConfig(
    epochs=60, warmup_epochs=5, batch_size=64, lr=1e-3, min_lr=1e-5, weight_decay=0.0, clip=1.0,
    ema_decay=0.999, validate_every=None, validate_every_epochs=5, checkpoint_every=None,
    checkpoint_every_epochs=10, log_every=50, jit=False, seed=42,
)  # fmt: skip
_DOCUMENTED = replace(
    _TRAIN, epochs=100, lr=1e-4, min_lr=1e-6, weight_decay=0.01, ema_decay=None, validate_every_epochs=1,
    patience=10, patience_unit="epochs", min_delta=1e-4,
)  # fmt: skip


def _world(name: str) -> IRFRun:
    return IRFRun(data=irf_data.IRFDataConfig(worlds=(name,)), train=_TRAIN)


_DEFAULT = IRFRun(train=replace(_TRAIN, batch_size=192))
PRESETS = {
    "default": ("a network for each of the three worlds", _DEFAULT),
    "quick": (
        "the same, a short look",
        replace(
            _DEFAULT,
            net=IRFNetConfig(trunk_dim=64, trunk_layers=1),
            train=replace(
                _DEFAULT.train, epochs=3, warmup_epochs=1, lr=3e-3, ema_decay=0.95, validate_every_epochs=1
            ),
        ),
    ),
    "nk": ("the New Keynesian economy alone", _world("nk")),
    "var": ("the vector autoregression alone", _world("var")),
    "lss": ("the state space alone", _world("lss")),
    "sobolev": (
        "the New Keynesian economy, its derivatives told as well",
        replace(_world("nk"), irf=irf.IRFConfig(irf.IRFLossConfig(sobolev=0.1))),
    ),
    "universal": (
        "one network for the three worlds",
        replace(
            _DEFAULT,
            net=IRFNetConfig("universal", trunk_dim=384, trunk_layers=4, theta_embed_dim=256,
                             shock_embed_dim=32, head_dim=256),
            irf=irf.IRFConfig(irf.IRFLossConfig(balance=True)),
            train=replace(_DEFAULT.train, clip=10.0),
        ),
    ),
    "baseline_mlp": (
        "the documents' baseline: an MLP for each world, parameters as they stand, the first shock",
        IRFRun(
            net=IRFNetConfig("mlp", "raw", 0, (256, 128, 64)),
            irf=irf.IRFConfig(irf.IRFLossConfig(lambda_smooth=0.01)),
            train=_DOCUMENTED,
        ),
    ),
    "universal_A": (
        "the documents' settings of the universal network",
        IRFRun(
            net=IRFNetConfig("universal", trunk_layers=4),
            irf=irf.IRFConfig(irf.IRFLossConfig(horizon_weights="exponential", lambda_smooth=0.01)),
            train=replace(_DOCUMENTED, batch_size=128),
        ),
    ),
}  # fmt: skip


def main() -> None:
    """Parse the command line and run it; a user's mistake ends with code 2."""

    def program() -> None:
        given = cli.parse(
            PRESETS,
            COMMANDS,
            prog="irf.py",
            description="Emulators of economies' impulse responses.",
            root=Path("outputs") / "irf",
        )
        if isinstance(given, IRFRun):
            run(given)
        elif isinstance(given, Generate | Evaluate) or ranks.alone():
            command(given)

    cli.main(program, train.TrainingDiverged)


def run(settings: IRFRun) -> None:
    """Train as configured, then report on held-out economies."""
    started = time.perf_counter()
    ready = make_ready(settings)
    record = irf_data.data_record(settings.data)
    if settings.run.resume is not None:
        train.check_same_data(Path(settings.run.resume), record)
    rows = irf_data.rows_of(ready.nets, ready.data.samples["train"])
    result = train.launch(
        task_of(settings, ready),
        settings,
        name="irf",
        validation=irf_data.validation_batches(ready.nets, ready.data),
        batches=batches_of(rows, settings.train.batch_size, seed=settings.train.seed, config=settings.loader),
        example={name: x[: settings.train.batch_size] for name, x in rows.items()},
        files={train.DATA: record},
        fixed=("net", "irf", "data", "data_seed", "loader.shuffle"),
    )
    if result is None:
        return
    seconds = f"{time.perf_counter() - started:.0f} s until the report"
    report(settings, ready.data, result.run, result.run, {"this session": seconds})


if __name__ == "__main__":
    main()
