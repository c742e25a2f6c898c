"""Which categories a tokenizer's features are in: found on its training rows, or listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mfk.core.config import refuse_unused
from mfk.core.types import describe
from mfk.data.categories import Categories, discover_categories, manual_categories
from mfk.tasks.vqvae_data import VQVAEData
from mfk.tasks.vqvae_preparation import feature_names, feature_values


@dataclass(frozen=True)
class CategoryConfig:
    """How features are divided."""

    category_assignment: Literal["auto", "manual"] = "auto"
    """auto finds categories on the training rows; manual takes category_mapping, of a config file."""
    num_categories_auto: int | None = None
    """Clusters to cut into; None chooses by silhouette."""
    orthogonality_target: float | None = 0.15
    """Largest |r| of two categories' centroids, beside chance; cuts within are preferred. None: any."""
    min_features_per_category: int = 3
    """Features of smaller clusters go to the nearest category; of fewer features all are in one."""
    max_clusters: int = 25
    """The largest number of clusters tried."""


def categories_of(
    config: CategoryConfig, mapping: Mapping[str, Sequence[str]], data: VQVAEData
) -> Categories:
    """The categories of the features that cleaning left.

    Raises:
        ValueError: a setting out of range or without effect, or what `discover_categories` and
            `manual_categories` refuse. ImportError: SciPy or scikit-learn is not installed.
    """
    names = feature_names(data.prepared)
    values = feature_values(data.train, data.prepared)
    if config.category_assignment == "manual":
        refuse_unused(
            config, False, "num_categories_auto", "orthogonality_target", "min_features_per_category",
            "max_clusters",
        )  # fmt: skip
        if not mapping:
            raise ValueError("category_mapping: category_assignment manual needs it, got none")
        known = [f"{family}::{name}" for family, own in data.prepared.features.items() for name in own]
        return manual_categories(mapping, names, known=known, features=values)
    if config.category_assignment != "auto":
        raise ValueError(
            f"category_assignment: expected auto or manual, got {describe(config.category_assignment)}"
        )
    if mapping:
        raise ValueError("category_mapping: no effect unless category_assignment is manual")
    wanted = config.num_categories_auto
    if wanted is not None and not 1 <= wanted <= len(names):
        raise ValueError(
            f"num_categories_auto: expected a number from 1 to {len(names)}, the features, got {wanted}"
        )
    if len(names) < max(2, config.min_features_per_category):
        return single(names)
    return discover_categories(
        values,
        categories=config.num_categories_auto,
        max_clusters=config.max_clusters,
        min_features=config.min_features_per_category,
        orthogonality_target=config.orthogonality_target,
        names=names,
    )


def single(names: Sequence[str]) -> Categories:
    """All features in one category."""
    return given(np.zeros(len(names), np.int64), ["category_0"])


def given(assignment: np.ndarray, names: Sequence[str]) -> Categories:
    """Categories that are known already, without the figures of how they were found."""
    return Categories(assignment, tuple(names), 0.0, 0.0, (), {}, np.empty((0, 4)), np.empty((0, 0)))
