"""A small table of three families, one of them in time, and small tokenizers of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfk.core import tree
from mfk.core.types import Tree
from mfk.data.cleaning import CleaningConfig
from mfk.tasks import vqvae, vqvae_data, vqvae_preparation
from mfk.tasks.vqvae_categories import given
from mfk.tasks.vqvae_net import EncoderParams, FamilyConfig, LevelSetting, VQVAENetConfig, vqvae_nets

SMALL = EncoderParams(hidden_dims=(6,), output_dim=4, dropout=0.2)
NET = VQVAENetConfig(8, 10, 12, 6, dropout=0.1)
LEVELS = (LevelSetting(3, 6), LevelSetting(2, 4))


def arrays(rows: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """Families alpha [N, 5], beta [N, 4] and waves [N, 6, 3] of four hidden numbers a row."""
    g = np.random.default_rng(seed)
    f = g.standard_normal((rows, 4))

    def noise(*shape: int) -> np.ndarray:
        return 0.2 * g.standard_normal((rows, *shape))

    alpha = np.tanh(f[:, [0, 0, 1, 1, 0]] * [1.0, -0.5, 1.0, 0.3, 0.2]) + noise(5)
    beta = f[:, [2, 2, 3, 3]] * [1.0, -20.0, 3.0, 0.05] * (1 + noise(4)) + 7
    waves = f[:, None, [0, 2, 3]] * np.cos(np.arange(6) / 3)[:, None] + noise(6, 3)
    return {name: x.astype(np.float32) for name, x in (("alpha", alpha), ("beta", beta), ("waves", waves))}


def write_table(path: Path, rows: int = 60, seed: int = 0, **more: np.ndarray) -> Path:
    np.savez(path, **(arrays(rows, seed) | more))  # pyright: ignore[reportArgumentType]
    return path


class Tokenizer:
    """A small task in float64 or float32, with everything that it was made of."""

    def __init__(
        self,
        folder: Path,
        *,
        rows: int = 60,
        encoder: EncoderParams = SMALL,
        net: VQVAENetConfig = NET,
        levels: tuple[LevelSetting, ...] = LEVELS,
        per_epoch: int = 3,
        dtype: torch.dtype = torch.float64,
        **config: Any,
    ) -> None:
        file = write_table(folder / "table.npz", rows)
        wanted = vqvae_data.VQVAEDataConfig(file, cleaning=CleaningConfig(percentiles=None))
        self.data = vqvae_data.open_vqvae(wanted, None, 0)
        names = vqvae_preparation.feature_names(self.data.prepared)
        # Three categories, of which none is a family.
        self.categories = given(np.array([i % 3 for i in range(len(names))]), ["a", "b", "c"])
        families = {name: FamilyConfig(encoder_params=encoder) for name in ("alpha", "beta", "waves")}
        self.nets = vqvae_nets(
            net, families, levels, self.data.prepared, self.categories, len(self.data.train)
        )
        self.config = vqvae.VQVAEConfig(**config)
        self.x = self.data.train.to(dtype)
        self.task = vqvae.vqvae_task(
            self.nets, self.config, self.data.train, batch_size=18, per_epoch=per_epoch
        )
        self.params, self.state = (cast(one, dtype) for one in self.task.init(0))


def cast(one: Tree, dtype: torch.dtype) -> Tree:
    return tree.map(lambda x: x.to(dtype) if x.is_floating_point() else x, one)
