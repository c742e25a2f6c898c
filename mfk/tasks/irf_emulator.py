"""A trained emulator as what it stands in for: a function from a world's parameters to its responses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfk.core.types import Params, Tree, describe
from mfk.tasks.irf_net import IRFNets, irf_nets
from mfk.tasks.irf_respond import at_once, predict


def emulator(nets: IRFNets, params: Params, state: Tree, world_id: str) -> Callable[[Tensor], Tensor]:
    """The responses of one world as a pure function, batched and differentiable as `World.irf` is.

    Where the networks are one for each world, the others do not run.

    Args:
        nets: as of `irf_nets`.
        params: of the network.
        state: of the task.
        world_id: name of the world.

    Returns:
        theta [..., P] -> float32 [..., S, H + 1, V], S = 1 of a network that emulates a single shock. It is
        nothing but tensors: `mfk.jit` compiles it, torch.func differentiates it.

    Raises:
        ValueError: a world that the network does not know; when called, another shape than [..., P].
    """
    number, nets, params, state = _alone(nets, params, state, world_id)
    own, world = nets.coordinates[number], nets.worlds[number]
    size, shocks = len(world.parameters.names), len(world.shocks.names)

    combine = at_once(own)

    def respond(theta: Tensor) -> Tensor:
        if not isinstance(theta, Tensor) or theta.ndim < 1 or theta.shape[-1] != size:
            raise ValueError(f"theta: expected a tensor of shape [..., {size}], got {describe(theta)}")
        rows = theta.reshape(-1, size)
        told = own.of(rows)
        batch = {
            "world": torch.full((len(rows),), number, device=theta.device),
            "x": told.x.float(),
            "x_mask": torch.ones_like(told.x, dtype=torch.bool),
            "size": told.size.float(),
            "shock_mask": torch.ones_like(told.size, dtype=torch.bool),
            **({} if told.basis is None else {"basis": told.basis.float()}),
        }
        out = predict(nets, params, state, batch, combine)[:, :shocks]
        return out.reshape(*theta.shape[:-1], *out.shape[1:])

    return respond


def _alone(nets: IRFNets, params: Params, state: Tree, world_id: str) -> tuple[int, IRFNets, Params, Tree]:
    """The world's number, and its network by itself where it has one of its own."""
    names = [world.name for world in nets.worlds]
    if world_id not in names:
        raise ValueError(f"world_id: expected one of {', '.join(names)}, got {describe(world_id)}")
    number = names.index(world_id)
    if len(names) == 1 or nets.config.arch in ("pooled", "universal"):
        return number, nets, params, state
    prefix = f"nets.{number}."
    own = {"nets.0." + k.removeprefix(prefix): p for k, p in params.items() if k.startswith(prefix)}
    # "weights" are of the periods, everything else has the world as its first axis.
    scale = {k: x if k == "weights" else x[number : number + 1] for k, x in state["scale"].items()}
    single = irf_nets(nets.config, [nets.worlds[number]], nets.horizon)
    return 0, single, own, state | {"scale": scale}
