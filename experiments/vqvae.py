"""Train tokenizers of feature families: rows in codes, by categories that they find themselves.

python experiments/vqvae.py                                          # 10,000 simulated operators, made first
python experiments/vqvae.py quick                                    # 1,000 of them
python experiments/vqvae.py --data table.npz                         # any table of named families
python experiments/vqvae.py --config experiments/configs/vqvae/validation/1k_arch_summary.yaml
python experiments/vqvae.py encode --checkpoint outputs/vqvae/latest --data table.npz --output tokens.parquet
python experiments/vqvae.py decode --checkpoint outputs/vqvae/latest --tokens tokens.parquet --output rows.h5
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vqvae_commands import COMMANDS, Evaluate, Generate, command
from vqvae_config import translated
from vqvae_runs import (
    TOKENIZER,
    VQVAERun,
    check_same_categories,
    draw_found,
    make_ready,
    report,
    task_of,
    tokenizer_text,
    trained,
)

from mfk import train
from mfk.core import cli, ranks
from mfk.data import batches_of
from mfk.tasks import vqvae_data, vqvae_report
from mfk.tasks.vqvae import VQVAEConfig
from mfk.tasks.vqvae_data import VQVAEDataConfig
from mfk.tasks.vqvae_net import VQVAENetConfig
from mfk.train import TrainConfig

_TRAIN = TrainConfig(
    epochs=40, warmup_epochs=1, batch_size=256, lr=4e-3, min_lr=4e-5, weight_decay=0.0, clip=1.0,
    ema_decay=None, validate_every=None, validate_every_epochs=4, checkpoint_every=None,
    checkpoint_every_epochs=8, log_every=20, jit=False,
)  # fmt: skip
_DEFAULT = VQVAERun(
    data=VQVAEDataConfig(Path("datasets/baseline_10k.h5")),
    # No dropout: of rows that a few codes have to tell, it leaves too little.
    net=VQVAENetConfig(dropout=0.0),
    vqvae=VQVAEConfig(
        decay=0.9, commitment_cost=1.0, informativeness_weight=0.02, topo_weight=1.0, topo_samples=128,
        dead_code_reset_interval=10,
    ),
    train=_TRAIN,
)  # fmt: skip
PRESETS = {
    "default": ("10,000 operators: their parameters and summaries", _DEFAULT),
    "quick": (
        "1,000 operators, a short look",
        replace(
            _DEFAULT,
            data=VQVAEDataConfig(Path("datasets/baseline_1k.h5")),
            train=replace(_TRAIN, batch_size=128, epochs=20),
        ),
    ),
}


def main() -> None:
    """Parse the command line and run it; a user's mistake ends with code 2."""

    def program() -> None:
        with tempfile.TemporaryDirectory() as folder:
            given = cli.parse(
                PRESETS,
                COMMANDS,
                prog="vqvae.py",
                description="Tokenizers of feature families, by categories.",
                root=Path("outputs") / "vqvae",
                argv=translated(sys.argv[1:], Path(folder)),
            )
        if isinstance(given, VQVAERun):
            run(given)
        elif isinstance(given, Generate | Evaluate) or ranks.alone():
            command(given)

    cli.main(program, train.TrainingDiverged, ModuleNotFoundError)


def run(settings: VQVAERun) -> None:
    """Train as configured, then report on held-out rows."""
    started = time.perf_counter()
    resumed = None if settings.run.resume is None else Path(settings.run.resume)
    if resumed is not None:
        train.check_same_data(resumed, vqvae_data.data_record(settings.data))
    ready = make_ready(settings)
    record = vqvae_data.data_record(settings.data)
    if resumed is not None:
        check_same_categories(resumed, ready)
    rows = {"x": ready.data.train}
    batches = batches_of(rows, settings.train.batch_size, seed=settings.train.seed, config=settings.loader)
    assert batches.per_epoch is not None
    result = train.launch(
        task_of(settings, ready, batches.per_epoch),
        settings,
        name="vqvae",
        validation=[{"x": ready.data.val}],
        batches=batches,
        example={"x": ready.data.train[: settings.train.batch_size]},
        files={train.DATA: record, TOKENIZER: tokenizer_text(ready)},
        fixed=("net", "vqvae", "data", "families", "levels", "categories", "category_mapping",
               "loader.shuffle"),
    )  # fmt: skip
    if result is None:
        return
    made = trained(result.run)
    seconds = f"{time.perf_counter() - started:.0f} s until the report"
    score = report(made, ready.data, result.run, {"this session": seconds})
    if settings.plots:
        draw_found(ready, result.run)
    vqvae_report.write_documented(
        result.run, made.nets, made.prepared, made.params, made.state, result.state.opt, score, result.best
    )


if __name__ == "__main__":
    main()
