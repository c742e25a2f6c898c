"""The documents' YAML of the tokenizer of feature families, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mfk.tasks.vqvae_net import EncoderParams, FamilyConfig, LevelSetting


@dataclass(frozen=True)
class ModelSection:
    """The network and its codebooks."""

    group_embedding_dim: int = 64
    """Length of a category's embedding."""
    group_hidden_dim: int = 128
    """Hidden width of a category's projection."""
    levels: tuple[LevelSetting, ...] = ()
    """Levels from coarse to fine, the same for each category; none: sized by a category's features."""
    commitment_cost: float = 0.25
    """Weight of the pull of latents to their codes, within the quantisation loss."""
    use_ema: bool = True
    """Codes follow moving averages of their latents; false: they learn by gradient."""
    decay: float = 0.99
    """Decay of those averages per step."""
    dropout: float = 0.1
    """Share of hidden units that a training step drops, in projections and level heads."""
    orthogonality_weight: float | None = None
    """The same as training.orthogonality_weight; null: that one's."""
    informativeness_weight: float | None = None
    """The same as training.informativeness_weight; null: that one's."""


@dataclass(frozen=True)
class TrainingSection:
    """How it is trained, and how categories are found."""

    batch_size: int = 512
    """Rows of a step."""
    learning_rate: float = 1e-3
    """Its peak."""
    num_epochs: int = 500
    """Passes over the training rows."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam decays no weight; adamw by 0.01 of the learning rate."""
    scheduler: Literal["cosine", "linear"] | None = None
    """Course of the learning rate after the warm-up, down to a hundredth; null: constant."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""

    category_assignment: Literal["auto", "manual"] = "auto"
    """auto finds categories on the training rows; manual takes category_mapping."""
    category_mapping: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Category -> patterns of full names, such as "summary::*.mean"; each feature in exactly one."""
    num_categories_auto: int | None = None
    """Clusters to cut into; null chooses by silhouette."""
    orthogonality_target: float | None = 0.15
    """Largest |r| of two categories' centroids, beside chance; cuts within are preferred; null: any."""
    min_features_per_category: int = 3
    """Features of smaller clusters go to the nearest category."""
    max_clusters: int = 25
    """The largest number of clusters tried."""

    reconstruction_weight: float = 1.0
    """Of the mean squared error of the decoded features."""
    vq_weight: float = 1.0
    """Of the quantisation loss, a mean over all codebooks."""
    orthogonality_weight: float | None = None
    """Of the mean squared cosine of two categories' centroids; null: 0.1, or model's."""
    informativeness_weight: float | None = None
    """Of the error of what each code says alone; null: 0.1, or model's."""
    topo_weight: float = 0.3
    """Of 1 - r between distances before and after: 0.3 of input to latent, 0.7 of latent to code."""
    topo_samples: int = 512
    """Rows of a batch, at most, whose distances are compared."""

    checkpoint_dir: str = "checkpoints/vqvae"
    """Folder of the run."""
    save_every: int | None = None
    """Epochs between checkpoints, all of which are kept; null: only the best and the last."""

    early_stopping_patience: int | None = 100
    """Epochs without progress that end the run; null: never."""
    early_stopping_min_delta: float = 1e-3
    """Share of the validation loss by which it must fall to count as progress."""
    dead_code_reset_interval: int | None = 100
    """Epochs between resets of unused codes; null: never."""
    dead_code_threshold: float = 10.0
    """Per cent of the uniform share of rows below which a code counts as unused."""
    dead_code_max_reset_fraction: float = 0.25
    """Share of a codebook, at most, that one reset replaces."""

    val_every_n_epochs: int | None = 5
    """Epochs between validations; null: only by logging.eval_interval."""

    use_torch_compile: bool = False
    """Compile the step before the first one: minutes, of dozens of codebooks. The documents have it on."""


@dataclass(frozen=True)
class LoggingSection:
    """What a run tells."""

    wandb: bool = False
    """Metrics go to Weights & Biases as well, offline."""
    log_interval: int = 100
    """Steps between log records."""
    eval_interval: int | None = 500
    """Steps between validations, beside those by epochs; null: only by training.val_every_n_epochs."""
    verbose: bool = True
    """False: the terminal shows warnings alone."""


def _template_families() -> dict[str, FamilyConfig]:
    return {
        "summary": FamilyConfig(encoder_params=EncoderParams((256, 128))),
        "architecture": FamilyConfig(encoder_params=EncoderParams((128, 64))),
    }


@dataclass(frozen=True)
class VQVAEConfig:
    """A configuration as the documents write it; its defaults are those of default.yaml."""

    dataset_path: str = "datasets/baseline_10k.h5"
    """Table of families: .h5, .npz or .parquet."""
    max_samples: int | None = None
    """The first rows of the table, at most; null: all."""
    families: dict[str, FamilyConfig] = field(default_factory=_template_families)
    """The families to read, in this order; the table may hold more."""
    model: ModelSection = field(default_factory=ModelSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    random_seed: int = 42
    """Of the split, the initial parameters and every draw."""
