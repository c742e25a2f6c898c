"""Small generated clips and networks for the tests of stick figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Batch, Rows, Task
from mfk.data.stick import StickClip
from mfk.data.stick_generate import generate_stick
from mfk.tasks import stick_data, stick_generate
from mfk.tasks.stick import StickConfig, stick_task
from mfk.tasks.stick_net import RefineConfig, StickNetConfig, StickNets, stick_nets

TEXT = 16  # numbers of an embedding
TINY = StickNetConfig(width=16, layers=2, heads=2, dropout=0.0, embedding_dim=TEXT)
REFINE = RefineConfig(enabled=True, channels=(8, 16))


def G(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clips(count: int = 6, frames: int = 90, *, width: int = 20, **more: Any) -> list[StickClip]:
    """Generated clips with their texts' embeddings."""
    made = generate_stick(count, seed=3, frames=frames, width=width, **more)
    return [stick_data.embedded(clip, TEXT, "hash", "clip") for clip in made]


def motions(
    count: int = 3, frames: int = 30, *, width: int = 20, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Frames [B, T, D] of figures that do different things."""
    names = ("walk", "wave", "idle", "kick", "sprint")
    made = [
        generate_stick(1, seed=i, frames=frames, width=width, actions=[names[i % 5]]) for i in range(count)
    ]
    return torch.stack([one[0].motion for one in made]).to(dtype)


class Made:
    """A tiny network with its task and windows; every parameter is a little off where it begins."""

    def __init__(
        self,
        config: StickConfig | None = None,
        *,
        width: int = 20,
        frames: int = 12,
        refine: RefineConfig | None = None,
        count: int = 6,
        long: int = 90,
        off: float = 0.05,
        net_width: int = TINY.width,
        **net: Any,
    ) -> None:
        self.config = config or StickConfig()
        self.nets: StickNets = stick_nets(
            replace(TINY, width=net_width, **net), refine or RefineConfig(), width
        )
        self.clips, self.frames = clips(count, long, width=width), frames
        self.windows: Batch = stick_data.windows_of(self.clips, frames, True, "test")
        self.scale = stick_data.measure_scale(self.windows) | stick_generate.openings(self.clips, 0)
        self.task: Task = stick_task(self.nets, self.scale, self.config)
        self.params, self.state = self.task.init(0)
        # The head of poses begins with zeros, which would hide what the network does.
        self.params = tree.map(lambda x: x + off * torch.randn(x.shape, generator=G(1)), self.params)

    def batch(self, rows: int = 8) -> Batch:
        """Rows from all over the windows."""
        step = max(1, len(self.windows["motion"]) // rows)
        return {name: x[::step][:rows].clone() for name, x in self.windows.items()}

    def drawn(self, batch: Batch | None = None, *, seed: int = 0, step: int = 0) -> Batch:
        batch = self.batch() if batch is None else batch
        return self.task.draw(seed, step, Rows.all(len(batch["motion"])), self.state, batch)

    def value(self, params: Any, batch: Batch) -> Tensor:
        return self.task.loss(params, self.state, batch, params)[0]
