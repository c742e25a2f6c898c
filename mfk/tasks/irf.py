"""Impulse responses from an economy's parameters, for one world or several, as a training problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp

from mfk import losses
from mfk.core import rng
from mfk.core.types import Aux, Batch, Metrics, Params, Rows, Task, Tree
from mfk.data.worlds import World
from mfk.losses.horizon import SCHEMES
from mfk.tasks.irf_coordinates import Coordinates
from mfk.tasks.irf_data import filled
from mfk.tasks.irf_net import IRFNets
from mfk.tasks.irf_respond import predict, respond, target, units

_KEPT = 0.99  # of the moving mean of a world's loss, a step


@dataclass(frozen=True)
class IRFLossConfig:
    """What an error is."""

    loss_fn: Literal["mse", "mae"] = "mse"
    """Of a response: squared or absolute error, in deviations of the training rows."""
    horizon_weights: Literal["uniform", "exponential", "impact", "impact_doubled"] = "uniform"
    """Weights of the periods; they sum to 1."""
    tau: float = 20.0
    """exponential: periods in which a weight falls by 1 / e."""
    lambda_smooth: float = 0.0
    """Weight of the squared second differences of a response; responses of var and lss truly swing."""
    sobolev: float = 0.0
    """Weight of the error of the responses' derivative along a random direction of the parameters."""
    balance: bool = False
    """Divide a row's loss by the recent mean of its world's: worlds improve by shares, hard ones or easy."""


@dataclass(frozen=True)
class IRFConfig:
    """The training problem."""

    loss: IRFLossConfig = field(default_factory=IRFLossConfig)


def check_irf(config: IRFConfig) -> None:
    """ValueError that names the first setting which is out of range or has no effect."""
    loss = config.loss
    for name, choices in (("loss_fn", ("mse", "mae")), ("horizon_weights", SCHEMES)):
        if getattr(loss, name) not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(loss, name)!r}")
    for name in ("lambda_smooth", "sobolev"):
        value = getattr(loss, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    if not (math.isfinite(loss.tau) and loss.tau > 0):
        raise ValueError(f"tau: expected a finite number > 0, got {loss.tau!r}")
    if loss.tau != IRFLossConfig.tau and loss.horizon_weights != "exponential":
        raise ValueError("tau: no effect without exponential weights; leave it at 20")


def irf_task(nets: IRFNets, scale: Params, config: IRFConfig) -> Task:
    """Train a network to say what `nets.worlds` answer to their shocks.

    Batches are as of `mfk.tasks.irf_data.rows_of`. Of a row, with e the error of a response in the
    training rows' deviation of (shock, variable), per unit of the shock's size, and w the periods' weights::

        L = Σ_s Σ_h w_h Σ_v e² + λ Σ_s mean_hv (Δ² prediction)² + sobolev Σ_s Σ_h w_h Σ_v (∂_u e)²

    where s are the row's own shocks, u is a random direction of the parameters in their deviations, and the
    exact derivative is the world's own, by forward mode through its solver. With `balance` L is divided by
    the moving mean of its world's losses, which is carried, and is no part of what is differentiated. What is
    summed and returned is a loss per row and the number of rows. What fills up a row touches neither.

    Args:
        nets: as of `irf_nets`.
        scale: as of `measure_scale`.
        config: what is trained.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    check_irf(config)
    settings = config.loss
    weights = losses.horizon_weights(nets.horizon, settings.horizon_weights, tau=settings.tau)

    def init(seed: int) -> tuple[Tree, Tree]:
        params, buffers = nets.model.init(seed)
        carried = {name: x.clone() for name, x in scale.items()} | {"weights": weights.clone()}
        state = {"buffers": buffers, "scale": carried}
        return params, state | ({"recent": torch.ones(len(nets.worlds))} if settings.balance else {})

    @torch.no_grad()
    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        if settings.sobolev == 0:
            return dict(batch)
        # A key for each column: how many there are depends on what other worlds are in the batch.
        columns = [
            rng.normal(rng.key(seed, step, "direction", column), rows, (), torch.float64)
            for column in range(batch["theta"].shape[1])
        ]
        direction = torch.stack(columns, -1).to(batch["theta"].device)
        return {**batch, **tangents(nets, state["scale"], batch, direction)}

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        del teacher
        rows, metrics = _row_loss(nets, settings, params, state, batch)
        if settings.sobolev > 0:
            steep = _derivative_error(nets, settings, params, state, batch)
            rows = rows + settings.sobolev * steep
            metrics["derivative"] = steep.detach().sum()
        if settings.balance:
            recent = state["recent"]
            state = _by_world(rows.detach(), batch["world"], len(recent))
            rows = rows / recent[batch["world"]]
        return rows.sum(), rows.new_full((), len(rows)), Aux(state, metrics)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        return _evaluate(nets, settings, params, state, batch)

    update = _moved if settings.balance else None
    return Task(init=init, draw=draw, loss=loss, evaluate=evaluate, update=update, teacher=False)


def tangents(nets: IRFNets, scale: Params, batch: Batch, direction: Tensor) -> Batch:
    """Derivatives along a direction of each row's parameters, in deviations of the training rows.

    Args:
        nets: as of `irf_nets`.
        scale: as of `measure_scale`.
        batch: as of `rows_of`.
        direction: float64 [B, P].

    Returns:
        "dx", "dsize", "dirf" and, where there is one, "dbasis", of the shapes without the d, float32.
    """
    parts: dict[str, list[Tensor]] = {}
    order = []
    for number, (world, own) in enumerate(zip(nets.worlds, nets.coordinates, strict=True)):
        rows = (batch["world"] == number).nonzero().flatten()
        if not len(rows):
            continue
        order.append(rows)
        size = len(world.parameters.names)
        theta = batch["theta"][rows, :size].double()
        span = (scale["theta_high"] - scale["theta_low"])[number, :size].double()
        v = direction[rows, :size] * span / math.sqrt(12 * size)  # the deviation of a uniform draw

        def described(t: Tensor, own: Coordinates = own, world: World = world) -> dict[str, Tensor]:
            told = own.of(t)
            found = {"dx": told.x, "dsize": told.size, "dirf": world.irf(t, nets.horizon)}
            return found if told.basis is None else found | {"dbasis": told.basis}

        for name, values in jvp(described, (theta,), (v,))[1].items():
            parts.setdefault(name, []).append(values.float())
    back = torch.cat(order).argsort()
    wide = {"dx": "x", "dsize": "size", "dirf": "irf", "dbasis": "basis"}
    out = {}
    for name, values in parts.items():
        # To the batch's own width, which other rows of the data may have set.
        like = batch[wide[name]][:0]
        out[name] = torch.cat(filled(name, [like, *values]))[back]
    return out


def _error(settings: IRFLossConfig, pred: Tensor, truth: Tensor, weights: Tensor, own: Tensor) -> Tensor:
    """The error of each row [B], from responses in deviations."""
    error = losses.horizon_squared_error if settings.loss_fn == "mse" else losses.horizon_absolute_error
    return losses.sum_shocks(error(losses.own_shocks(pred, own), losses.own_shocks(truth, own), weights), own)


def _row_loss(
    nets: IRFNets, settings: IRFLossConfig, params: Params, state: Tree, batch: Batch
) -> tuple[Tensor, Metrics]:
    """The loss of each row [B] without derivatives, and its parts summed over rows."""
    truth, own = target(nets, batch)
    unit = units(nets, state, batch)
    pred = predict(nets, params, state, batch) / unit
    rows = _error(settings, pred, truth / unit, state["scale"]["weights"], own)
    metrics = {settings.loss_fn: rows.detach().sum()}
    if settings.lambda_smooth > 0:
        bends = losses.sum_shocks(losses.smoothness(losses.own_shocks(pred, own)), own)
        rows = rows + settings.lambda_smooth * bends
        metrics["smoothness"] = bends.detach().sum()
    return rows, metrics


def _by_world(rows: Tensor, world: Tensor, worlds: int) -> Tree:
    """Number and sum of the rows' losses [B] of each world, [W]."""
    own = (world.unsqueeze(-1) == torch.arange(worlds, device=world.device)).to(rows.dtype)  # [B, W]
    return {"count": own.sum(0), "total": (rows.unsqueeze(-1) * own).sum(0)}


def _moved(state: Tree, sums: Tree, weight: Tensor) -> tuple[Tree, Metrics]:
    """The state with the moving mean of each world's losses after a step's rows, as `_by_world` has them."""
    del weight
    recent, count = state["recent"], sums["count"]
    new = _KEPT * recent + (1 - _KEPT) * sums["total"] / count.clamp(min=1)
    return state | {"recent": torch.where(count > 0, new, recent)}, {}


def _derivative_error(
    nets: IRFNets, settings: IRFLossConfig, params: Params, state: Tree, batch: Batch
) -> Tensor:
    """Error of the derivative along the drawn direction, of each row [B]."""
    primals = [batch["x"], batch["size"]]
    directions = [batch["dx"], batch["dsize"]]
    if "basis" in batch:
        primals.append(batch["basis"])
        directions.append(batch["dbasis"])

    def responses(x: Tensor, size: Tensor, basis: Tensor | None = None) -> Tensor:
        return respond(nets, params, state, batch, x, size, basis)

    steep = jvp(responses, tuple(primals), tuple(directions))[1]
    unit = units(nets, state, batch)
    _, own = target(nets, batch)
    k = nets.config.shock
    truth = batch["dirf"] if k is None else batch["dirf"][:, k : k + 1]
    return _error(settings, steep / unit, truth / unit, state["scale"]["weights"], own)


def _evaluate(
    nets: IRFNets, settings: IRFLossConfig, params: Params, state: Tree, batch: Batch
) -> tuple[Metrics, Metrics]:
    """The loss without derivatives, and the NRMSE of each world in the training rows' deviations."""
    rows, _ = _row_loss(nets, settings, params, state, batch)
    totals: Metrics = {"val_loss": rows.sum()}
    weights: Metrics = {"val_loss": rows.new_full((), len(rows))}
    truth, own = target(nets, batch)
    unit = units(nets, state, batch)
    error = (predict(nets, params, state, batch) - truth) / unit
    each = error.square().mean(-2).sqrt().mean(-1)  # [B, S]
    for number, world in enumerate(nets.worlds):
        counts = own & (batch["world"] == number).unsqueeze(-1)
        name = f"nrmse_{world.name}"
        totals[name], weights[name] = torch.where(counts, each, 0.0).sum(), counts.sum().to(each.dtype)
    return totals, weights
