"""What can be done beside training a tokenizer: make data, evaluate, encode, decode, draw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from counting import counter
from places import check_folder
from vqvae_runs import open_data, report, trained

from mfk import train
from mfk.core import ranks
from mfk.data import generate_operators, open_families, write_families
from mfk.tasks import vqvae_data, vqvae_drawing, vqvae_preparation, vqvae_report, vqvae_tokens
from mfk.tasks.report_tables import print_rows


@dataclass(frozen=True)
class Generate:
    """Simulate stochastic reaction-diffusion operators and write their features."""

    output: Path
    """File to write: NAME.h5; it must not exist. Unfinished work lies beside it and is gone on with."""
    samples: int = 1_000
    """Operators."""
    realisations: int = 8
    """Runs of each, over which mean, standard deviation and coefficient of variation are taken."""
    seed: int = 0
    """Of all draws."""


@dataclass(frozen=True)
class Evaluate:
    """Repeat the report with a trained tokenizer; all ranks share the rows."""

    checkpoint: Path
    """Folder of a run, such as outputs/vqvae/latest, or of one of its checkpoints."""
    out: Path | None = None
    """Folder of the report; None: evaluation/ in the run's folder."""


@dataclass(frozen=True)
class Encode:
    """Turn a table into tokens."""

    checkpoint: Path
    """Folder of a run, or of one of its checkpoints."""
    data: Path
    """Table of families with the features of the training: NAME.h5, NAME.npz or NAME.parquet."""
    output: Path
    """File to write: NAME.parquet, a column for each category and level."""
    max_samples: int | None = None
    """Rows of the table, at most, the first ones; None: all."""


@dataclass(frozen=True)
class Decode:
    """Turn tokens back into features."""

    checkpoint: Path
    """Folder of a run, or of one of its checkpoints."""
    tokens: Path
    """File of `encode`."""
    output: Path
    """File to write: NAME.h5; the features that cleaning left, in the table's units."""


@dataclass(frozen=True)
class Picture:
    """Draw the codebooks in two dimensions."""

    checkpoint: Path
    """Folder of a run, or of one of its checkpoints."""
    output: Path
    """File to write: NAME.png."""
    method: Literal["tsne", "umap"] = "tsne"
    """tsne, or umap (extra `umap`)."""


COMMANDS = {
    "generate": ("simulate operators and write their features", Generate),
    "evaluate": ("repeat the report with a trained tokenizer", Evaluate),
    "encode": ("turn a table into tokens", Encode),
    "decode": ("turn tokens back into features", Decode),
    "picture": ("draw the codebooks in two dimensions", Picture),
}


def command(given: Generate | Evaluate | Encode | Decode | Picture) -> None:
    """Do it."""
    if isinstance(given, Generate):
        generate_operators(
            given.output, given.samples, seed=given.seed, realisations=given.realisations,
            progress=counter("operators"),
        )  # fmt: skip
        print(
            f"wrote {given.output}: {given.samples:,} operators, {given.output.stat().st_size / 1e6:.1f} MB"
        )
        return
    if not isinstance(given, Evaluate):
        _check_place("output", given.output, _SUFFIXES[type(given)])
    made = trained(given.checkpoint)
    own = (made.nets, made.settings.vqvae, made.params, made.state)
    tokenizer = vqvae_tokens.tokenizer_id(made.params, made.state)
    if isinstance(given, Evaluate):
        run = train.run_of(given.checkpoint)
        out = given.out or run / "evaluation"
        check_folder("--out", out)
        train.check_same_data(run, vqvae_data.data_record(made.settings.data))
        report(made, open_data(made.settings), out, {"checkpoint": str(given.checkpoint)}, ranks.current())
    elif isinstance(given, Encode):
        table = open_families(given.data, tuple(made.prepared.features), max_samples=given.max_samples)
        try:
            rows = vqvae_preparation.prepare(table, made.prepared)
        except ValueError as error:
            raise ValueError(f"{given.data}: {error}") from None
        tokens = vqvae_tokens.encode(*own, rows)
        vqvae_tokens.write_tokens(given.output, made.nets, tokens, tokenizer)
        error = float((vqvae_tokens.decode(*own, tokens) - rows).square().mean())
        print_rows(*vqvae_report.token_table(vqvae_tokens.token_statistics(made.nets, tokens)), "tokens")
        print(
            f"wrote {given.output}: {len(tokens):,} rows of {tokens.shape[1]} tokens; decoded they are "
            f"off by {error:.4f} of the features' variance"
        )
    elif isinstance(given, Decode):
        tokens = vqvae_tokens.read_tokens(given.tokens, made.nets, tokenizer)
        table = vqvae_preparation.restore(vqvae_tokens.decode(*own, tokens), made.prepared)
        write_families(given.output, table)
        print(f"wrote {given.output}: {len(tokens):,} rows of {', '.join(table.families)}")
    else:
        vqvae_drawing.draw_codebooks(given.output, *own, method=given.method)
        print(f"wrote {given.output}")


_SUFFIXES: dict[type, tuple[str, ...]] = {Encode: (".parquet",), Decode: (".h5", ".hdf5"), Picture: (".png",)}


def _check_place(name: str, file: Path, suffixes: tuple[str, ...]) -> None:
    if file.suffix not in suffixes:
        raise ValueError(f"--{name}: expected a file named {' or '.join(suffixes)}, got {file}")
    if file.is_dir():
        raise ValueError(f"--{name}: expected a file, got the folder {file}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--{name}: there is no folder {file.parent}; make it first")
    if suffixes != (".png",) and file.exists():
        raise FileExistsError(f"--{name}: {file} exists already. Delete it, or give another name.")
