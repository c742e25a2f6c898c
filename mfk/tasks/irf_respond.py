"""Responses of a batch of economies, from a network's output: in coordinates, of one world or of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from mfk.core.types import Batch, Params, Tree
from mfk.tasks.irf_coordinates import Coordinates
from mfk.tasks.irf_net import IRFNets

Combine: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def one_by_one(coefficients: Tensor, basis: Tensor) -> Tensor:
    """Σ_k coefficient_kh basis_ksv: [B, K, H + 1], [B, K, S, V] -> [B, S, H + 1, V].

    One after the other: further coefficients, of other worlds in the batch, are zeros and change no bit.
    """
    total = coefficients.new_zeros(())
    for k in range(basis.shape[1]):
        total = total + coefficients[:, k, None, :, None] * basis[:, k, :, None, :]
    return total


def at_once(own: Coordinates) -> Combine:
    """The same as `one_by_one`, faster, of rows that are all of one world."""

    def combine(coefficients: Tensor, basis: Tensor) -> Tensor:
        if own.each:
            return coefficients.unflatten(1, basis.shape[2:]).movedim(2, 3)
        return torch.einsum("bkh,bksv->bshv", coefficients, basis)

    return combine


def predict(
    nets: IRFNets, params: Params, state: Tree, batch: Batch, combine: Combine | None = None
) -> Tensor:
    """What the network says of a batch of `rows_of`, "irf" not being needed: [B, S, H + 1, V].

    In units of the observables; S is 1 where the network emulates a single shock. What a row has not is 0.
    `combine` puts responses together from coefficients and a basis; None: as is right for `nets.worlds`.
    """
    basis = batch.get("basis")
    return respond(nets, params, state, batch, batch["x"], batch["size"], basis, combine)


def target(nets: IRFNets, batch: Batch) -> tuple[Tensor, Tensor]:
    """The responses that the network is to say, [B, S, H + 1, V], and which are a row's own, [B, S]."""
    k = nets.config.shock
    chosen = slice(None) if k is None else slice(k, k + 1)
    return batch["irf"][:, chosen], batch["shock_mask"][:, chosen]


def respond(
    nets: IRFNets,
    params: Params,
    state: Tree,
    batch: Batch,
    x: Tensor,
    size: Tensor,
    basis: Tensor | None,
    combine: Combine | None = None,
) -> Tensor:
    """As `predict`, of features, sizes and a basis that are given beside the batch, to differentiate by."""
    scale, world, k = state["scale"], batch["world"], nets.config.shock
    count = x.shape[1]
    mean, std = scale["x_mean"][world, :count], scale["x_std"][world, :count]
    seen = (x - mean) / std
    told: tuple[int, ...] = ()
    if nets.config.arch == "universal":
        told = (size.shape[1] if basis is None else basis.shape[1],)
    out = nets.model.apply(params, state["buffers"], seen, world, batch["x_mask"], *told)
    if out.ndim == 3:
        out = out.unsqueeze(1)
    chosen = slice(None) if k is None else slice(k, k + 1)
    own = batch["shock_mask"][:, chosen]
    size = size[:, chosen]
    if basis is None:
        out = out[:, : size.shape[1]]
        first = scale["out_mean"][world][:, chosen][:, : size.shape[1]]
        unit = first + scale["out_std"][world][:, chosen][:, : size.shape[1]] * out
    else:
        width = basis.shape[1]
        coefficients = scale["out_mean"][world, :width] + scale["out_std"][world, :width] * out[:, :width]
        if combine is None:
            combine = at_once(nets.coordinates[0]) if len(nets.worlds) == 1 else one_by_one
        unit = combine(coefficients.squeeze(-1), basis)
    return torch.where(own[..., None, None], unit * size[..., None, None], 0.0)


def units(nets: IRFNets, state: Tree, batch: Batch) -> Tensor:
    """What an error is divided by, [B, S, 1, V]."""
    k = nets.config.shock
    chosen = slice(None) if k is None else slice(k, k + 1)
    size = batch["size"]
    std = state["scale"]["irf_std"][batch["world"], : size.shape[1]][:, chosen]
    return (size[:, chosen].unsqueeze(-1) * std).unsqueeze(-2)
