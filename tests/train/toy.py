"""A small task for the tests of mfk.train: masked regression by a two-layer network, data drawn or given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfk.core import Aux, Batch, Rows, Task, rng, stateless

model = stateless(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))


def make_task(bad_steps: range = range(0), dtype: torch.dtype = torch.float32) -> Task:
    """The task; in `bad_steps` its targets are NaN. The carried state counts loss calls."""

    def init(seed):
        params, _ = model.init(seed)
        return {k: p.to(dtype) for k, p in params.items()}, {"calls": torch.zeros((), dtype=dtype)}

    def draw(seed: int, step: int, rows: Rows, state, batch: Batch) -> Batch:
        noise = rng.normal(rng.key(seed, step, "noise"), rows, (1,), dtype)
        x = batch["x"] if batch else rng.normal(rng.key(seed, step, "x"), rows, (3,), dtype)
        y = x.sum(-1, keepdim=True) + 0.1 * noise + (torch.nan if step in bad_steps else 0.0)
        mask = rng.uniform(rng.key(seed, step, "mask"), rows, (), dtype) < 0.5
        return {"x": x, "y": y, "mask": mask}

    def error(params, batch: Batch) -> Tensor:
        return (model.apply(params, {}, batch["x"]) - batch["y"]).square()[..., 0] * batch["mask"]

    def loss(params, state, batch, teacher):
        e = error(params, batch)
        return e.sum(), batch["mask"].sum(), Aux({"calls": state["calls"] + 1}, {"raw_error": e.sqrt().sum()})

    def evaluate(params, state, batch):
        return {"val_loss": error(params, batch).sum()}, {"val_loss": batch["mask"].sum()}

    return Task(init, draw, loss, evaluate)


def validation(batches: int = 2) -> list[Batch]:
    """Complete batches that no training step draws."""
    return [make_task().draw(7, k, Rows.all(32), {}, {}) for k in range(batches)]
