"""The network, the batches and the losses that the benchmarks of gradients share.

A residual MLP of linear layers and norms, so that nearly all work is in its matrix products: one
flow-matching gradient has 29 of them, and one MeanFlow gradient 49 as torch differentiates it, 39 of
which are needed (the other 10 multiply a layer's input by a tangent of its weight, which is zero).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from mfk import losses, stateless
from mfk.core import Batch, Field, Model, Params
from mfk.core.compiler import Matmul, exact_matmul
from mfk.core.compiler.matmul import matmul_context

P = ParamSpec("P")
R = TypeVar("R")

DIM = 7  # of the state, as that of the Panda arm
WIDTH, BLOCKS, BATCH = 512, 4, 1024

RowLoss = Callable[[Field, Batch], Tensor]
"""A field and rows with z, v, r, s, t -> a squared error for each row."""


class ResidualMLP(nn.Module):
    """u(z, r, t): Linear, blocks h + Linear(SiLU(Linear(LN(h)))), Linear."""

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS, dim: int = DIM) -> None:
        """`dim` is that of the state."""
        super().__init__()
        self.enter = nn.Linear(dim + 2, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.leave = nn.Linear(width, dim)

    def forward(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """[..., dim], [..., 1], [..., 1] -> [..., dim]."""
        h = self.enter(torch.cat((z, r, t), -1))
        for block in self.blocks:
            h = block(h)
        return self.leave(h)


class Block(nn.Module):
    """h + Linear(SiLU(Linear(LN(h))))."""

    def __init__(self, width: int) -> None:
        """All layers have the same width."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return h + self.second(nn.functional.silu(self.first(self.norm(h))))


def model(width: int = WIDTH, blocks: int = BLOCKS) -> Model:
    """The network as a pair of functions."""
    return stateless(partial(ResidualMLP, width, blocks))


def batch(rows: int = BATCH, share: float = 1.0, seed: int = 0) -> Batch:
    """Points z on straight paths with velocity v at times r; the first share of the rows have an end t.

    s lies between r and t.
    """
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, rows, DIM, generator=generator)
    r, t = torch.rand(2, rows, 1, generator=generator).sort(0).values
    n = round(share * rows)
    s = r + torch.rand(rows, 1, generator=generator) * (t - r)
    z = (1 - r) * start + r * end
    # Copies: an argument that is a view of a larger tensor has other strides.
    return {"z": z, "v": end - start, "r": r.clone(), "s": s[:n].clone(), "t": t[:n].clone()}


FAMILY: dict[str, RowLoss] = {
    "meanflow": lambda u, b: losses.meanflow(u, b["z"], b["v"], b["r"], b["t"]),
    "improved_meanflow": lambda u, b: losses.improved_meanflow(u, b["z"], b["v"], b["r"], b["t"]),
    "alpha_flow": lambda u, b: losses.alpha_flow(u, b["z"], b["v"], b["r"], b["t"], 0.1),
    "split_meanflow": lambda u, b: losses.split_meanflow(u, b["z"], b["r"], b["s"], b["t"]),
    "shortcut": lambda u, b: losses.shortcut(u, b["z"], b["r"], b["t"]),
    "terminal_velocity": lambda u, b: losses.terminal_velocity(u, b["z"], b["r"], b["t"]),
    "meanflow_finite_difference": lambda u, b: losses.meanflow_finite_difference(
        u, b["z"], b["v"], b["r"], b["t"]
    ),
}
"""The losses of rows from r to t."""


def objective(model: Model, rows: RowLoss | None) -> Callable[[Params, Batch], Tensor]:
    """Mean over the batch of `rows` where a row has an end time, and of flow matching where it has none.

    None is flow matching for all rows.
    """

    def loss(params: Params, batch: Batch) -> Tensor:
        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return model.apply(params, {}, z, r, t)

        n, total, parts = 0, len(batch["z"]), []
        if rows is not None:
            n = len(batch["t"])
            parts.append(rows(u, {name: x[:n] for name, x in batch.items()}))
        if n < total:
            parts.append(losses.flow_matching(u, batch["z"][n:], batch["v"][n:], batch["r"][n:]))
        return torch.cat(parts).sum() / total

    return loss


def under(matmul: Matmul, fn: Callable[P, R]) -> Callable[P, R]:
    """The function under the setting of the matrix products that `mfk.jit` would run it under.

    Where the exact route is an operator in the graph ("strict") there is none: it keeps torch's own.
    """
    context = matmul_context(exact_matmul() if matmul == "exact" else "default")

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with context():
            return fn(*args, **kwargs)

    return call


def difference(x: Params, y: Params) -> float:
    """Norm of x - y over the norm of y, all tensors taken as one vector."""

    def norm(parts: list[Tensor]) -> float:
        return float(torch.stack([p.double().square().sum() for p in parts]).sum().sqrt())

    return norm([x[name] - y[name] for name in y]) / norm(list(y.values()))
