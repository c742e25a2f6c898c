"""Refinement: a network that denoises motion, given what the transformer predicted, by diffusion or MeanFlow.

What is denoised is the difference between the motion and the prediction, measured frame by frame in how
much the prediction accelerates around it, times its usual size. The network sees the whole prediction, later
frames too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mfk import losses
from mfk.core import rng
from mfk.core.types import Batch, Metrics, Params, Rows, Tree
from mfk.losses import TimeConfig
from mfk.tasks.stick_features import FLOOR, joined, see
from mfk.tasks.stick_net import StickNets

_KEEP = 0.95  # of the running size of the difference, at each step
_MOST = 5.0  # units: what is further off than this is learnt as that far
_LEAST_LEFT = 0.05  # of the time that the velocity to the end is divided by
_AROUND = 6  # frames on each side whose acceleration gives the unit


def draw_noise(nets: StickNets, times: TimeConfig, seed: int, step: int, rows: Rows, motion: Tensor) -> Batch:
    """The random numbers of `refine_loss` for windows [B, T, D]."""
    shape = (motion.shape[1] - 1, motion.shape[2])
    drawn = {"refine_noise": rng.normal(rng.key(seed, step, "refine noise"), rows, shape).to(motion.device)}
    if nets.refine.refinement == "meanflow":
        drawn["r"], drawn["t"] = (x.to(motion.device) for x in losses.draw_times(times, seed, step, rows))
    else:
        uniform = rng.uniform(rng.key(seed, step, "noise steps"), rows, (), torch.float64)
        drawn["s"] = (uniform * nets.refine.noise_steps).long().to(motion.device)
    return drawn


def refine_loss(
    nets: StickNets, params: Params, state: Tree, batch: Batch, given: Tensor, jitter: float = 4.0
) -> tuple[Tensor, Tree]:
    """The loss of each window [B], a mean over its numbers, and the sums that `move_size` takes.

    meanflow: the MeanFlow error of the rows with an end time and the flow-matching error of the others;
    ddpm: the error of v = √a noise - √(1 - a) end, a the signal's share. An error e counts as
    ‖e‖² + jitter ‖Δ³e‖² / 20: third differences of white noise are of 20 times its variance. (As a norm of
    the error it leaves the optimum where it is.) A window that is seen with noise counts for nothing.

    Args:
        nets: as of `stick_nets`, with a refinement.
        params: of its network.
        state: of the task.
        batch: as `draw` of the task leaves it.
        given: the prediction [B, T - 1, D], which is taken as it is.
        jitter: weight of the errors' third differences.
    """
    valid = batch["valid"][:, 1:]
    if "noise" in batch:
        # What is predicted of windows that stand off is no prediction as it will be met.
        valid = valid & (batch["noise"].flatten(1).abs().amax(1) == 0)[:, None]
    difference = (batch["motion"][:, 1:] - given) / _unit(given, valid)
    difference = torch.where(valid[..., None], difference, 0.0).clamp(-_MOST, _MOST)
    size = state["residual"]
    end = difference / size
    sums = {
        "squares": difference.square().sum().detach(),
        "numbers": (valid.sum() * given.shape[-1]).to(size.dtype),
    }
    field = _field(nets, params, state, given, batch["text"], valid)
    start = joined(batch["refine_noise"]) * valid[..., None]
    end, start = end.flatten(1), start.flatten(1)
    numbers = valid.sum(1).clamp(min=1) * given.shape[-1]
    if nets.refine.refinement == "ddpm":
        shares = losses.signal_shares(nets.refine.noise_steps).to(given)
        share = shares[batch["s"]][:, None]
        z = losses.add_noise(end, start, share)
        t = ((batch["s"] + 1).to(z.dtype) / nets.refine.noise_steps)[:, None]
        # The error of the network's own output, see `_field`.
        squared = _squared((field(z, t, t) - start) / share.sqrt(), valid, jitter) / numbers
        return squared, sums
    r, t = batch["r"], batch["t"]
    v = end - start
    z, n = start + r * v, len(t)
    parts = []
    if n:
        few = _field(nets, params, state, given[:n], batch["text"][:n], valid[:n])
        terms = losses.meanflow_terms(few, z[:n], v[:n], r[:n], t)
        error = terms.value - (v[:n] + (t - r[:n]) * terms.rate).detach()
        parts.append(_squared(error, valid[:n], jitter))
    if n < len(z):
        rest = _field(nets, params, state, given[n:], batch["text"][n:], valid[n:])
        parts.append(_squared(rest(z[n:], r[n:], r[n:]) - v[n:], valid[n:], jitter))
    squared = torch.cat(parts) / numbers
    return losses.adaptive_weight(squared, 1e-2, 0.5) * squared, sums


def move_size(state: Tree, sums: Tree, weight: Tensor) -> tuple[Tree, Metrics]:
    """The state after a step, with the running size of the difference that the refinement learns."""
    del weight
    size, numbers = state["residual"], sums["numbers"]
    now = sums["squares"] / numbers.clamp(min=1)
    new = (_KEEP * size.square() + (1 - _KEEP) * now).sqrt()
    return state | {"residual": torch.where(numbers > 0, new, size)}, {}


def refine(
    nets: StickNets, params: Params, state: Tree, given: Tensor, text: Tensor, noise: Tensor
) -> Tensor:
    """Motion [B, T, D] in place of the prediction `given`, from standard normal `noise` alike.

    The start is the noise times `temperature`; of 0 it is the same for every noise. meanflow: one evaluation
    of the network; ddpm: `sample_steps`, deterministic ones.

    Raises:
        ValueError: the networks have no refinement.
    """
    if nets.denoiser is None:
        raise ValueError("refinement: expected networks with one (diffusion.enabled), got none")
    valid = torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
    field = _field(nets, params, state, given, text, valid)
    start = nets.refine.temperature * joined(noise).flatten(1)
    if nets.refine.refinement == "meanflow":
        end = losses.sample(field, start)
    else:
        shares = losses.signal_shares(nets.refine.noise_steps)
        end = losses.sample_ddim(lambda z, t: field(z, t, t), start, shares, nets.refine.sample_steps)
    return given + _unit(given, valid) * state["residual"] * joined(end.unflatten(1, given.shape[1:]))


def _squared(error: Tensor, valid: Tensor, jitter: float) -> Tensor:
    """‖e‖² + jitter ‖Δ³e‖² / 20 of errors [B, (T D)], which are 0 in frames that do not count, [B]."""
    error = error.unflatten(1, (valid.shape[1], -1))
    there = valid[:, 3:] & valid[:, 2:-1] & valid[:, 1:-2] & valid[:, :-3]
    third = torch.where(there[..., None], error.diff(n=3, dim=1), 0.0)
    return error.square().sum((1, 2)) + jitter / 20 * third.square().sum((1, 2))


def _field(
    nets: StickNets, params: Params, state: Tree, given: Tensor, text: Tensor, valid: Tensor
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The network as a field over windows [B, (T D)] of differences; 0 in frames that do not count."""
    assert nets.denoiser is not None
    apply, seen = nets.denoiser.apply, _features(state["scale"], given, valid)
    shares = None
    if nets.refine.refinement == "ddpm":
        shares = losses.signal_shares(nets.refine.noise_steps).to(given)

    def field(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        out = joined(
            apply(params, state["buffers"]["refine"], z.unflatten(1, given.shape[1:]), seen, r, t, text)
        )
        out = (out * valid[..., None]).flatten(1)
        if shares is not None:
            # From v, which is of size one at every step, to the noise. (Noise itself, as documented, would
            # have to be known to a hundredth of a percent where little else is left.)
            share = shares[(t * len(shares)).round().long() - 1]
            return (1 - share).sqrt() * z + share.sqrt() * out
        # The network says where the flow ends: noise then cancels in one step and need not be learnt.
        return (out - z) / (1 - r).clamp(min=_LEAST_LEFT)

    return field


def _bend(given: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Accelerations of a prediction [B, T, D], each on its middle frame, and where there is one, [B, T]."""
    there = torch.nn.functional.pad(valid[:, :-2] & valid[:, 1:-1] & valid[:, 2:], (1, 1))
    bend = torch.nn.functional.pad(given.diff(n=2, dim=1), (0, 0, 1, 1))
    return torch.where(there[..., None], bend, 0.0), there


def _unit(given: Tensor, valid: Tensor) -> Tensor:
    """Root mean square acceleration of a prediction [B, T, D] around each frame, [B, T, 1].

    Unlike the unit of `see` it looks ahead: where a movement begins, the frames that follow tell its size.
    """
    bend, there = _bend(given, valid)

    def around(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (_AROUND, _AROUND)).unfold(1, 2 * _AROUND + 1, 1).sum(-1)

    square = around(bend.square().mean(-1)) / around(there.to(bend)).clamp(min=1)
    return (square + FLOOR**2).sqrt().unsqueeze(-1)


def _features(scale: Params, given: Tensor, valid: Tensor) -> Tensor:
    """What the network sees of a prediction: pose, velocity and height as of `see`, and its bends."""
    width, unit = given.shape[-1], _unit(given, valid)
    seen = see(scale, given).features
    bend = _bend(given, valid)[0] / unit
    size = (unit / scale["acceleration"]).log()
    found = torch.cat((seen[..., : 2 * width], bend.asinh(), seen[..., -2:-1], size), -1)
    return torch.where(valid[..., None], found, 0.0)
