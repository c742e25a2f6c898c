"""The documents' YAML of the tokenizer: each key changes our settings, is left to the task, or is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import vqvae_config
from vqvae_sections import EncoderParams, FamilyConfig, LevelSetting, VQVAEConfig

from mfk.core import config, yaml12
from mfk.train import TrainConfig
from mfk.train.config import check_config, in_steps, make_optimizer, make_schedule


def loaded(tmp_path: Path, text: str) -> VQVAEConfig:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return vqvae_config.load(path)


def test_the_defaults_are_the_documents() -> None:
    """But for use_torch_compile, which takes minutes."""
    settings = VQVAEConfig()
    vqvae_config.check(settings)
    assert list(settings.families) == ["summary", "architecture"]
    assert settings.families["summary"].encoder_params == EncoderParams((256, 128))
    assert vqvae_config.weight(settings, "orthogonality_weight") == 0.1
    assert vqvae_config.train_config(settings) == TrainConfig(
        epochs=500, batch_size=512, lr=1e-3, min_lr=1e-5, schedule="constant", warmup_epochs=0,
        weight_decay=0.0, clip=None, ema_decay=None, validate_every=500, validate_every_epochs=5,
        patience=100, patience_unit="epochs", min_delta=1e-3, log_every=100, checkpoint_every=None,
        jit=False, seed=42,
    )  # fmt: skip
    assert vqvae_config.run_config(settings).out == "checkpoints/vqvae"
    assert config.from_dict(VQVAEConfig, yaml12.loads(config.to_yaml(settings), "a")) == settings


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("training: {num_epochs: 7}", {"epochs": 7}),
        ("training: {batch_size: 9}", {"batch_size": 9}),
        ("training: {learning_rate: 0.5}", {"lr": 0.5, "min_lr": 0.005}),
        ("training: {optimizer: adamw}", {"weight_decay": 0.01}),
        ("training: {scheduler: cosine}", {"schedule": "cosine"}),
        ("training: {scheduler: linear}", {"schedule": "linear"}),
        ("training: {warmup_epochs: 3}", {"warmup_epochs": 3}),
        ("training: {save_every: 4}", {"checkpoint_every_epochs": 4, "keep_last": None}),
        ("training: {early_stopping_patience: 6}", {"patience": 6}),
        ("training: {early_stopping_min_delta: 0.2}", {"min_delta": 0.2}),
        (
            "training: {early_stopping_patience: null}",
            {"patience": None, "patience_unit": "validations", "min_delta": 0.0},
        ),
        ("training: {val_every_n_epochs: 2}", {"validate_every_epochs": 2}),
        ("training: {use_torch_compile: true}", {"jit": True}),
        ("logging: {wandb: true}", {"trackers": ("wandb",)}),
        ("logging: {log_interval: 3}", {"log_every": 3}),
        ("logging: {eval_interval: 50}", {"validate_every": 50}),
        ("logging: {verbose: false}", {"log_level": "warning"}),
        ("random_seed: 3", {"seed": 3}),
    ],
)
def test_keys_of_the_loop(tmp_path: Path, text: str, changed: dict[str, Any]) -> None:
    """Each changes what it says, and nothing else."""
    ours = vqvae_config.train_config(loaded(tmp_path, text))
    default = vqvae_config.train_config(VQVAEConfig())
    differing = {f.name for f in fields(ours) if getattr(ours, f.name) != getattr(default, f.name)}
    assert {name: getattr(ours, name) for name in differing} == changed
    check_config(ours)


def test_epochs_rates_and_decay_as_the_loop_sees_them() -> None:
    training = {"scheduler": "cosine", "warmup_epochs": 2, "num_epochs": 10, "optimizer": "adam"}
    settings = config.from_dict(VQVAEConfig, {"training": training})
    plan = in_steps(vqvae_config.train_config(settings), per_epoch=18)
    rate = make_schedule(plan)
    assert plan.steps == 180 and plan.steps_per_epoch == 18
    assert rate(0) < rate(35) <= 1e-3 and max(map(rate, range(180))) == pytest.approx(1e-3)
    assert rate(180) == pytest.approx(1e-5)
    # Adam is AdamW that decays nothing: with no gradient a weight stays as it is.
    import torch

    for name, share in (("adam", 1.0), ("adamw", 1 - 0.01 * 0.5)):
        own = config.from_dict(VQVAEConfig, {"training": {"optimizer": name}})
        optimizer = make_optimizer(vqvae_config.train_config(own))
        params = {"layer.weight": torch.ones(2, 2)}
        moved, _ = optimizer.update({"layer.weight": torch.zeros(2, 2)}, optimizer.init(params), params, 0.5)
        assert moved["layer.weight"][0, 0].item() == pytest.approx(share)


def test_a_weight_in_two_sections(tmp_path: Path) -> None:
    for key in ("orthogonality_weight", "informativeness_weight"):
        for text, expected in (
            (f"model: {{{key}: 0.2}}", 0.2),
            (f"training: {{{key}: 0.0}}", 0.0),
            (f"model: {{{key}: 0.3}}\ntraining: {{{key}: 0.3}}", 0.3),
        ):
            assert vqvae_config.weight(loaded(tmp_path, text), key) == expected
        with pytest.raises(
            ValueError, match=rf"a\.yaml: training\.{key}: 0\.1 contradicts model\.{key}: 0\.2"
        ):
            loaded(tmp_path, f"model: {{{key}: 0.2}}\ntraining: {{{key}: 0.1}}")


def test_families_and_levels(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        "families:\n"
        "  temporal: {encoder: TemporalCNNEncoder, encoder_params: {channels: [8], kernel_size: 3}}\n"
        "  summary: {encoder_params: {hidden_dims: [5], activation: gelu, batch_norm: false, dropout: 0}}\n"
        "model: {levels: [{latent_dim: 3, num_tokens: 4}]}\n",
    )
    assert found.families == {
        "temporal": FamilyConfig("TemporalCNNEncoder", EncoderParams(channels=(8,), kernel_size=3)),
        "summary": FamilyConfig(
            "MLPEncoder", EncoderParams((5,), dropout=0.0, activation="gelu", batch_norm=False)
        ),
    }  # fmt: skip
    assert found.model.levels == (LevelSetting(3, 4),)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("families: {}", "families: expected at least one"),
        ("families: {'a::b': {}}", "families: expected a name without"),
        ("families: {a: {encoder: CNN}}", r"families\.a\.encoder: expected one of 'MLPEncoder'"),
        ("families: {a: {encoder_params: {channels: [3]}}}", r"a\.encoder_params\.channels: .*no effect"),
        ("families: {a: {encoder_params: {kernel_size: 3}}}", r"params\.kernel_size: .*no effect"),
        (
            "families: {a: {encoder: TemporalCNNEncoder, encoder_params: {hidden_dims: [3]}}}",
            r"params\.hidden_dims: .*no effect",
        ),
        (
            "families: {a: {encoder_params: {hidden_dims: [], dropout: 0.2}}}",
            r"params\.dropout: .*no effect",
        ),
        (
            "families: {a: {encoder: TemporalCNNEncoder, encoder_params: {kernel_size: 4}}}",
            "kernel_size: expected an odd number, got 4",
        ),
        ("families: {a: {encoder: TemporalCNNEncoder, encoder_params: {channels: []}}}", r"params\.channels"),
        ("families: {a: {encoder_params: {hidden_dims: [8, 0]}}}", r"hidden_dims\.1: expected a number >= 1"),
        ("families: {a: {encoder_params: {output_dim: 0}}}", "output_dim"),
        ("families: {a: {encoder_params: {dropout: 1.0}}}", r"params\.dropout"),
        ("families: {a: {encoder_params: {activation: swish}}}", "activation: expected one of"),
        ("max_samples: 0", "max_samples"),
        ("model: {levels: [{latent_dim: 0, num_tokens: 4}]}", r"model\.levels\.0\.latent_dim"),
        ("model: {levels: [{latent_dim: 4, num_tokens: 1}]}", r"model\.levels\.0\.num_tokens"),
        ("model: {levels: [{latent_dim: 4}]}", "missing key 'num_tokens'"),
        ("model: {decay: 1.0}", r"model\.decay"),
        ("model: {use_ema: false, decay: 0.9}", r"model\.decay: 0\.9 would have no effect"),
        (
            "model: {commitment_cost: 0.5}\ntraining: {vq_weight: 0}",
            r"model\.commitment_cost: 0\.5 would have no effect",
        ),
        ("training: {optimizer: sgd}", "optimizer: expected one of 'adam', 'adamw'"),
        ("training: {scheduler: step}", "scheduler: expected one of 'cosine', 'linear' or null"),
        ("training: {category_assignment: manual}", "category_mapping: .*'manual' needs it"),
        ("training: {category_mapping: {a: ['*']}}", "category_mapping: .*'auto' does not use it"),
        *(
            (
                f"training: {{category_assignment: manual, category_mapping: {{a: ['*']}}, {key}: {value}}}",
                rf"training\.{key}: .*no effect",
            )
            for key, value in (
                ("num_categories_auto", 4), ("orthogonality_target", 0.1), ("max_clusters", 9),
                ("min_features_per_category", 4),
            )
        ),
        ("training: {num_categories_auto: 4, max_clusters: 9}", r"training\.max_clusters: .*no effect"),
        ("training: {num_categories_auto: 4, orthogonality_target: 0.1}", "_target: .*no effect"),
        ("training: {topo_weight: 0, topo_samples: 64}", r"training\.topo_samples: .*no effect"),
        ("training: {early_stopping_patience: null, early_stopping_min_delta: 0.1}", "delta: .*no effect"),
        ("training: {dead_code_reset_interval: null, dead_code_threshold: 8.0}", "threshold: .*no effect"),
        ("training: {dead_code_reset_interval: null, dead_code_max_reset_fraction: 1}", "fraction: .*effect"),
        ("training: {val_every_n_epochs: null}\nlogging: {eval_interval: null}", "both are null"),
        ("training: {num_epochs: 3, warmup_epochs: 4}", "warmup_epochs: expected at most num_epochs, 3"),
        ("training: {dead_code_max_reset_fraction: 1.5}", "dead_code_max_reset_fraction"),
        ("training: {dead_code_threshold: -1}", "dead_code_threshold"),
        ("training: {topo_weight: -0.1}", "topo_weight"),
        ("training: {topo_samples: 2}", "topo_samples"),
        ("training: {batch_size: 2}", "batch_size: expected a number >= 3"),
        ("training: {learning_rate: -1.0}", "learning_rate"),
        ("training: {batchsize: 3}", "unknown key 'batchsize'; did you mean 'batch_size'"),
        ("logging: {log_interval: 0}", "log_interval"),
        ("logging: {wandb: yes}", "logging.wandb: expected bool"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ValueError, match=rf"a\.yaml: .*{error}"):
        loaded(tmp_path, text)


def test_no_number_is_taken_unseen() -> None:
    """Every number of the sections has a range, so that a sign or a zero too many is refused."""
    ranged = {name for _, _, names in vqvae_config._RANGES for name in names} | {"model.decay"}
    for section in ("model", "training", "logging"):
        own = getattr(VQVAEConfig(), section)
        hints = config.field_types(type(own))
        numbers = {
            f"{section}.{name}" for name, hint in hints.items() if {int, float} & {hint, *_members(hint)}
        }
        assert numbers <= ranged, numbers - ranged


def _members(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", ())
