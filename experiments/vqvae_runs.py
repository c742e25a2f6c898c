"""The settings of a tokenizer's run, what it has come to, its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from counting import counter
from tyro.conf import Fixed, Suppress

from mfk import train
from mfk.core import ranks, tree
from mfk.core.ranks import Ranks
from mfk.core.types import Task, Tree
from mfk.data import LoaderConfig, generate_operators
from mfk.data.categories import Categories
from mfk.tasks import (
    vqvae,
    vqvae_categories,
    vqvae_data,
    vqvae_drawing,
    vqvae_measure,
    vqvae_net,
    vqvae_preparation,
    vqvae_report,
    vqvae_tokens,
)
from mfk.tasks.category_drawing import draw_categories
from mfk.train import RunConfig, TrainConfig
from mfk.train.config import check_config

TOKENIZER = "tokenizer.json"
"""In a run's folder: how a table becomes rows, and the categories."""

BASELINES = {"baseline_1k.h5": 1_000, "baseline_10k.h5": 10_000}
"""Data sets that are made where they are asked for and are not there: name -> operators."""

BASELINE_FAMILIES = ("architecture", "summary")
"""What is read of these where a run names no families."""


@dataclass(frozen=True)
class VQVAERun:
    """A training run."""

    data: vqvae_data.VQVAEDataConfig = field(default_factory=vqvae_data.VQVAEDataConfig)
    net: vqvae_net.VQVAENetConfig = field(default_factory=vqvae_net.VQVAENetConfig)
    categories: vqvae_categories.CategoryConfig = field(default_factory=vqvae_categories.CategoryConfig)
    vqvae: vqvae.VQVAEConfig = field(default_factory=vqvae.VQVAEConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    families: Annotated[dict[str, vqvae_net.FamilyConfig], Fixed, Suppress] = field(default_factory=dict)
    """Families to read, in this order, and their encoders; none: all of the table, of a baseline architecture
    and summary. In a file alone."""
    levels: Annotated[tuple[vqvae_net.LevelSetting, ...], Fixed, Suppress] = ()
    """Levels from coarse to fine, the same for each category; none: by its features. In a file alone."""
    category_mapping: Annotated[dict[str, tuple[str, ...]], Fixed, Suppress] = field(default_factory=dict)
    """Category -> patterns of full names, such as "summary::*.mean". In a file alone."""
    verbose: bool = False
    """Say what cleaning did, and the features of each category."""
    plots: bool = True
    """Draw categories.png and codebooks.png into the run's folder."""
    run: RunConfig = field(default_factory=RunConfig)


class Ready(NamedTuple):
    """Data, categories and network of a run."""

    data: vqvae_data.VQVAEData
    categories: Categories
    nets: vqvae_net.VQVAENets


class Trained(NamedTuple):
    """A run's tokenizer at its best validation."""

    settings: VQVAERun
    prepared: vqvae_preparation.Preparation
    nets: vqvae_net.VQVAENets
    params: Tree
    state: Tree
    step: int


def make_ready(settings: VQVAERun) -> Ready:
    """Open the data, made if need be, find the categories, build the network."""
    if settings.train.members > 1:
        raise ValueError(f"members: a tokenizer is one network, expected 1, got {settings.train.members}")
    check_config(settings.train)
    vqvae.check_vqvae(settings.vqvae)  # before data are made that take minutes
    file = settings.data.data
    # Asked once: it appears before the last rank has looked.
    if file.name in BASELINES and not ranks.first(file.exists):
        if settings.run.dry_run:
            raise FileNotFoundError(
                f"{file} is not there, and a dry run makes nothing; make it by: "
                f"vqvae.py generate --output {file} --samples {BASELINES[file.name]}"
            )
        if ranks.current().rank == 0:
            print(f"{file} is not there: simulating {BASELINES[file.name]:,} operators", file=sys.stderr)
        file.parent.mkdir(parents=True, exist_ok=True)
        generate_operators(file, BASELINES[file.name], progress=counter("operators"))
    data = open_data(settings)
    found = vqvae_categories.categories_of(settings.categories, settings.category_mapping, data)
    nets = vqvae_net.vqvae_nets(
        settings.net, settings.families, settings.levels, data.prepared, found, len(data.train)
    )
    names = vqvae_preparation.feature_names(data.prepared)
    dropped = sum(map(len, data.prepared.features.values())) - len(names)
    mark = "# " if settings.run.dry_run else ""  # what a dry run prints is YAML
    print(
        f"{mark}{data.name}: {len(data.train):,} + {len(data.val):,} rows, {len(names)} features ({dropped} "
        f"dropped), {len(found.names)} categories, {len(nets.levels)} codebooks"
    )
    if settings.verbose:
        for line in data.report:
            print(f"{mark}  {line}")
        for g, name in enumerate(found.names):
            own = [names[i] for i in np.flatnonzero(found.assignment == g)]
            print(f"{mark}  {name}: {', '.join(own)}")
    return Ready(data, found, nets)


def open_data(settings: VQVAERun) -> vqvae_data.VQVAEData:
    """The rows of a run, of the families that it names, or else of the usual ones."""
    usual = BASELINE_FAMILIES if settings.data.data.name in BASELINES else None
    return vqvae_data.open_vqvae(settings.data, tuple(settings.families) or usual, settings.train.seed)


def task_of(settings: VQVAERun, ready: Ready, per_epoch: int) -> Task:
    """The training problem."""
    return vqvae.vqvae_task(
        ready.nets,
        settings.vqvae,
        ready.data.train,
        batch_size=min(settings.train.batch_size, len(ready.data.train)),
        per_epoch=per_epoch,
    )


def tokenizer_text(ready: Ready) -> str:
    """What a run has to keep beside its parameters."""
    return json.dumps(
        {
            "prepared": json.loads(vqvae_preparation.to_json(ready.data.prepared)),
            "categories": list(ready.categories.names),
            "assignment": ready.categories.assignment.tolist(),
            "rows": len(ready.data.train),
        }
    )


def check_same_categories(run: Path, ready: Ready) -> None:
    """ValueError where the categories or features found now are others than those that a run began with.

    Other versions of SciPy could divide features otherwise, and a network of the same shapes would not say.
    """
    before, found, _ = _read(run / TOKENIZER)
    now = vqvae_preparation.feature_names(ready.data.prepared)
    if vqvae_preparation.feature_names(before) != now or (
        found.assignment.tolist() != ready.categories.assignment.tolist()
    ):
        raise ValueError(
            f"{run / TOKENIZER}: the features or categories found now are others; start a new run"
        )


def settings_of(checkpoint: Path) -> VQVAERun:
    """The settings that a run was started with."""
    return train.read_settings(VQVAERun, checkpoint)


def trained(checkpoint: Path) -> Trained:
    """The tokenizer of a run; no data are read."""
    settings = settings_of(checkpoint)
    kept = _read(train.run_of(checkpoint) / TOKENIZER)
    nets = vqvae_net.vqvae_nets(settings.net, settings.families, settings.levels, *kept)
    params, state = vqvae.blank(nets, settings.vqvae, settings.train.seed)
    step = train.find(checkpoint, "best").step
    params = train.load_params(checkpoint, params, "best")
    state = train.load_state(checkpoint, state, "best")
    return Trained(settings, kept[0], nets, params, state, step)


def _read(file: Path) -> tuple[vqvae_preparation.Preparation, Categories, int]:
    """What `tokenizer_text` wrote: the preparation, the categories, the number of training rows."""
    try:
        kept = json.loads(file.read_bytes())
        names, rows = [str(name) for name in kept["categories"]], int(kept["rows"])
        assignment = kept["assignment"]
        if not all(type(number) is int and 0 <= number < len(names) for number in assignment):
            raise ValueError(f"assignment: expected numbers of {len(names)} categories")
        found = vqvae_categories.given(np.array(assignment, np.int64), names)
        text = json.dumps(kept["prepared"])
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: a tokenizer's run has this file, and it is not there") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{file}: expected what a run writes there, got another text ({error!r})") from None
    prepared = vqvae_preparation.from_json(text, str(file))
    count = len(vqvae_preparation.feature_names(prepared))
    if found.assignment.shape != (count,) or rows < 1:
        raise ValueError(
            f"{file}: expected a category for each of {count} features, and rows, "
            f"got {found.assignment.shape} and {rows}"
        )
    return prepared, found, rows


def report(
    made: Trained,
    data: vqvae_data.VQVAEData,
    out: Path,
    more: Mapping[str, Any],
    here: Ranks | None = None,
) -> vqvae_measure.Score:
    """Measure a tokenizer on held-out rows; the report goes into the folder `out`.

    The ranks `here` is one of share the rows (`vqvae_measure.measure`), and rank 0 writes; None: alone.
    """
    settings, nets = made.settings, made.nets
    own = (nets, settings.vqvae, made.params, made.state)
    score, books = vqvae_measure.measure(*own, data.val, here=here)
    seen, _ = vqvae_measure.measure(*own, data.train, here=here)
    tokens = vqvae_tokens.encode(*own, data.train, here=here)
    if here is not None and here.rank:
        return score
    scores = {"held out": score, "trained on": seen}
    features = vqvae_preparation.feature_names(made.prepared)
    every = vqvae_tokens.token_statistics(nets, tokens)
    facts: dict[str, Any] = {
        "data": data.name,
        "features": f"{len(features)} of {', '.join(made.prepared.families)}",
        "codebooks": f"{len(nets.levels)}, of {len(nets.categories)} categories",
        "network": f"{tree.size(made.params):,} parameters",
        "training": f"step {made.step}, {settings.train.batch_size} rows each",
        **more,
        **train.versions(settings.train.seed),
    }
    written = vqvae_report.write_report(out, scores, books, every, facts)
    if settings.plots:
        written.append(vqvae_drawing.draw_codebooks(out / "codebooks.png", *own))
    vqvae_report.print_scores(scores, books, f"{data.name}: tokens")
    print("wrote " + ", ".join(str(file) for file in written))
    return score


def draw_found(ready: Ready, out: Path) -> None:
    """Draw how the categories were found, where there is something to draw."""
    if ready.categories.correlation.size and len(ready.categories.assignment) > 1:
        draw_categories(
            ready.categories, vqvae_preparation.feature_names(ready.data.prepared), out / "categories.png"
        )
        print(f"wrote {out / 'categories.png'}")
