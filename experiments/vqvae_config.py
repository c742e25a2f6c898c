"""What the documents' YAML of the tokenizer may say, and what that is in our own settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any, Literal

from vqvae_runs import VQVAERun
from vqvae_sections import VQVAEConfig

from mfk.core import yaml12
from mfk.core.config import load_yaml, refuse_unused, save_yaml
from mfk.core.types import describe
from mfk.tasks.vqvae import VQVAEConfig as TaskConfig
from mfk.tasks.vqvae_categories import CategoryConfig
from mfk.tasks.vqvae_data import VQVAEDataConfig
from mfk.tasks.vqvae_net import FamilyConfig, VQVAENetConfig
from mfk.train import RunConfig, TrainConfig


def load(path: str | os.PathLike[str], base: VQVAEConfig | None = None) -> VQVAEConfig:
    """The configuration of a YAML file, checked; `base` as of `load_yaml`.

    Raises:
        FileNotFoundError, ValueError: as `load_yaml` and `check`; names the file.
    """
    config = load_yaml(VQVAEConfig, path, base=base)
    try:
        check(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def check(config: VQVAEConfig) -> None:
    """ValueError that names the first key out of range, or without effect beside the others."""
    model, training = config.model, config.training
    if not config.families:
        raise ValueError("families: expected at least one, got none")
    _range("max_samples", config.max_samples, 1)
    for name, family in config.families.items():
        if not name or "::" in name or "/" in name:
            raise ValueError(f"families: expected a name without '::' and '/', got {name!r}")
        _check_family(f"families.{name}.encoder_params", family)
    for i, level in enumerate(model.levels):
        _range(f"model.levels.{i}.latent_dim", level.latent_dim, 1)
        _range(f"model.levels.{i}.num_tokens", level.num_tokens, 2)
    for least, most, names in _RANGES:
        for name in names:
            section, _, key = name.partition(".")
            _range(name, getattr(getattr(config, section), key), least, most)
    if not 0 < model.decay < 1:
        raise ValueError(f"model.decay: expected a number between 0 and 1, got {model.decay}")
    weight(config, "orthogonality_weight")
    weight(config, "informativeness_weight")
    is_auto, target = training.category_assignment == "auto", training.num_categories_auto is None
    if not is_auto and not training.category_mapping:
        raise ValueError("training.category_mapping: category_assignment 'manual' needs it, got none")
    if is_auto and training.category_mapping:
        raise ValueError(
            "training.category_mapping: category_assignment 'auto' does not use it; say 'manual'"
        )
    counts = ("num_categories_auto", "min_features_per_category")
    _unused("training", training, is_auto, *counts, "orthogonality_target", "max_clusters")
    _unused("training", training, target, "orthogonality_target", "max_clusters")
    _unused("training", training, training.topo_weight > 0, "topo_samples")
    is_stopped = training.early_stopping_patience is not None
    _unused("training", training, is_stopped, "early_stopping_min_delta")
    is_reset = training.dead_code_reset_interval is not None
    _unused("training", training, is_reset, "dead_code_threshold", "dead_code_max_reset_fraction")
    _unused("model", model, model.use_ema, "decay")
    _unused("model", model, training.vq_weight > 0, "commitment_cost")
    if training.val_every_n_epochs is config.logging.eval_interval is None:
        raise ValueError(
            "training.val_every_n_epochs: expected it or logging.eval_interval, both are null: "
            "no validation would pick the best checkpoint"
        )
    if training.warmup_epochs > training.num_epochs:
        raise ValueError(
            f"training.warmup_epochs: expected at most num_epochs, {training.num_epochs}, "
            f"got {training.warmup_epochs}"
        )


def weight(config: VQVAEConfig, key: Literal["orthogonality_weight", "informativeness_weight"]) -> float:
    """The weight that the documents name in two sections: the one given, 0.1 if neither is.

    Raises:
        ValueError: both are given, and differ.
    """
    ours, theirs = getattr(config.training, key), getattr(config.model, key)
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"training.{key}: {ours} contradicts model.{key}: {theirs}; give one of them")
    return next((value for value in (ours, theirs) if value is not None), 0.1)


def train_config(config: VQVAEConfig) -> TrainConfig:
    """The settings of the training loop; the documents name no gradient clipping and no averaging.

    Raises:
        ValueError: as `check`.
    """
    check(config)
    training, logging = config.training, config.logging
    patience = training.early_stopping_patience
    return TrainConfig(
        epochs=training.num_epochs,
        batch_size=training.batch_size,
        lr=training.learning_rate,
        min_lr=0.01 * training.learning_rate,
        schedule=training.scheduler or "constant",
        warmup_epochs=training.warmup_epochs,
        weight_decay=0.01 if training.optimizer == "adamw" else 0.0,
        clip=None,
        ema_decay=None,
        validate_every=logging.eval_interval,
        validate_every_epochs=training.val_every_n_epochs,
        patience=patience,
        patience_unit="validations" if patience is None else "epochs",
        min_delta=0.0 if patience is None else training.early_stopping_min_delta,
        log_every=logging.log_interval,
        log_level="info" if logging.verbose else "warning",
        trackers=("wandb",) if logging.wandb else (),
        checkpoint_every=None,
        checkpoint_every_epochs=training.save_every,
        keep_last=2 if training.save_every is None else None,
        jit=training.use_torch_compile,
        seed=config.random_seed,
    )


def run_config(config: VQVAEConfig) -> RunConfig:
    """Where the run goes: checkpoint_dir."""
    return RunConfig(out=config.training.checkpoint_dir)


def to_run(config: VQVAEConfig) -> VQVAERun:
    """The run that a documents' file asks for, in our own settings.

    Raises:
        ValueError: as `check`.
    """
    model, training = config.model, config.training
    reset, tops = training.dead_code_reset_interval, training.topo_weight > 0
    return VQVAERun(
        data=VQVAEDataConfig(Path(config.dataset_path), config.max_samples),
        net=VQVAENetConfig(model.group_embedding_dim, model.group_hidden_dim, dropout=model.dropout),
        categories=CategoryConfig(
            training.category_assignment,
            training.num_categories_auto,
            training.orthogonality_target,
            training.min_features_per_category,
            training.max_clusters,
        ),
        vqvae=TaskConfig(
            reconstruction_weight=training.reconstruction_weight,
            vq_weight=training.vq_weight,
            commitment_cost=model.commitment_cost,
            orthogonality_weight=weight(config, "orthogonality_weight"),
            informativeness_weight=weight(config, "informativeness_weight"),
            topo_weight=training.topo_weight,
            topo_samples=training.topo_samples if tops else TaskConfig.topo_samples,
            use_ema=model.use_ema,
            decay=model.decay,
            dead_code_reset_interval=reset,
            dead_code_threshold=training.dead_code_threshold,
            dead_code_max_reset_fraction=training.dead_code_max_reset_fraction,
        ),
        train=train_config(config),
        families=config.families,
        levels=model.levels,
        category_mapping=training.category_mapping,
        verbose=config.logging.verbose,
        run=run_config(config),
    )


def translated(words: Sequence[str], folder: Path) -> list[str]:
    """A command line in which a documents' file after --config is replaced by one in our own settings.

    A file of our own settings, and everything else, stays. The new file lies in `folder`. ``best_model.pt``
    after --resume or --checkpoint, as the documents have it, becomes its run's folder.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    out = list(words)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if not equals and i + 1 == len(words):
            continue
        at = i if equals else i + 1
        value = value if equals else words[i + 1]
        if flag == "--config" and is_documented(value):
            file = folder / "config.yaml"
            save_yaml(to_run(load(value)), file)
            out[at] = f"--config={file}" if equals else str(file)
        elif flag.replace("_", "-") in _RUNS and Path(value).name == "best_model.pt":
            out[at] = f"{flag}={Path(value).parent}" if equals else str(Path(value).parent)
    return out


def is_documented(path: str) -> bool:
    """Whether a YAML file speaks of the documents' sections; False where it cannot be read, too."""
    sections = {"dataset_path", "max_samples", "model", "training", "logging", "random_seed"}
    try:
        data = yaml12.loads(Path(path).read_text(encoding="utf-8"), path)
    except (OSError, ValueError):
        return False  # whoever reads it next says what is wrong with it
    return isinstance(data, dict) and not sections.isdisjoint(data)


_RUNS = ("--resume", "--resume-from", "--checkpoint", "--init-from")

_RANGES = (
    (1, inf, (
        "model.group_embedding_dim", "model.group_hidden_dim", "training.num_epochs",
        "training.num_categories_auto", "training.min_features_per_category", "training.save_every",
        "training.early_stopping_patience", "training.dead_code_reset_interval",
        "training.val_every_n_epochs", "logging.log_interval", "logging.eval_interval",
    )),
    (2, inf, ("training.max_clusters",)),
    (3, inf, ("training.batch_size", "training.topo_samples")),
    (0, inf, (
        "model.commitment_cost", "model.orthogonality_weight", "model.informativeness_weight",
        "training.learning_rate", "training.warmup_epochs", "training.reconstruction_weight",
        "training.vq_weight", "training.orthogonality_weight", "training.informativeness_weight",
        "training.topo_weight",
    )),
    (0, 0.999, ("model.dropout", "training.early_stopping_min_delta")),
    (0, 1, ("training.orthogonality_target", "training.dead_code_max_reset_fraction")),
    (0, 100, ("training.dead_code_threshold",)),
)  # fmt: skip


def _check_family(where: str, family: FamilyConfig) -> None:
    given = family.encoder_params
    for key, values in (("hidden_dims", given.hidden_dims), ("channels", given.channels)):
        for i, value in enumerate(values):
            _range(f"{where}.{key}.{i}", value, 1)
    _range(f"{where}.output_dim", given.output_dim, 1)
    _range(f"{where}.dropout", given.dropout, 0, 0.999)
    _range(f"{where}.kernel_size", given.kernel_size, 1)
    if given.kernel_size % 2 == 0:
        raise ValueError(f"{where}.kernel_size: expected an odd number, got {given.kernel_size}")
    is_mlp = family.encoder == "MLPEncoder"
    if not is_mlp and not given.channels:
        raise ValueError(f"{where}.channels: TemporalCNNEncoder needs at least one convolution, got none")
    _unused(where, given, is_mlp, "hidden_dims")
    _unused(where, given, not is_mlp, "channels", "kernel_size")
    if is_mlp and not given.hidden_dims:
        # Without a hidden layer there is nothing that these would act on.
        _unused(where, given, False, "dropout", "activation", "batch_norm")


def _range(name: str, value: Any, least: float, most: float = inf) -> None:
    if value is not None and not least <= value <= most:
        span = f">= {least}" if most == inf else f"from {least} to {most}"
        raise ValueError(f"{name}: expected a number {span}, got {describe(value)}")


def _unused(where: str, section: Any, used: bool, *names: str) -> None:
    assert {each.name for each in fields(section)}.issuperset(names)
    try:
        refuse_unused(section, used, *names)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
