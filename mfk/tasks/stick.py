"""Next frames of stick figures, told by text, with actions and physics, as a training problem."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mfk import losses
from mfk.core import rng
from mfk.core.types import Aux, Batch, Metrics, Params, Rows, Task, Tree
from mfk.data.stick import ENVIRONMENTS, FPS, GRAVITIES, GRAVITY
from mfk.losses import TimeConfig
from mfk.tasks import stick_refine
from mfk.tasks.stick_features import anchor_of, foot_heights, joined, meant, measured
from mfk.tasks.stick_net import StickNets, outputs

# Of each environment, in units/s^2; the last, which is number -1, is the earth.
_GRAVITIES = [GRAVITY * GRAVITIES.get(name, 1.0) for name in ENVIRONMENTS] + [GRAVITY]


@dataclass(frozen=True)
class StickLossConfig:
    """What is added to the loss of the next pose, and how the network is kept from its own mistakes."""

    pose: Literal["smooth_l1", "mse"] = "smooth_l1"
    """Error of the next frame, measured as `mfk.tasks.stick_features.measured` does."""
    anchor: float = 0.5
    """Weight of the error of where the next frame is; generation leans on it, see `generate`."""
    temporal: float = 0.1
    """Weight of the error of the predicted frames' differences."""
    action: float = 0.15
    """Weight of the cross-entropy of the next frame's action."""
    physics: float = 0.2
    """Weight of the next frame's velocity and acceleration, and of their agreement with the pose."""
    environment: float = 0.05
    """Weight of the cross-entropy of the environment."""
    diffusion: float = 0.1
    """Weight of the refinement's loss."""
    jitter: float = 4.0
    """Weight of the third differences of the refinement's error, see `refine_loss`."""
    noisy_share: float = 0.5
    """Share of the windows that are seen with noise, as if they were predictions."""
    noise: tuple[float, float] = (1e-5, 3e-3)
    """Least and largest deviation of this noise, in units; drawn evenly by its logarithm."""
    drift: tuple[float, float] = (1e-3, 0.05)
    """The same of how far points stand off, more and more or less and less along the window."""
    recovery: float = 0.2
    """Share of this distance by which the next frame is to be nearer."""
    text_dropout: float = 0.1
    """Share of the windows whose text is left out."""
    action_dropout: float = 0.5
    """Share of the windows whose actions are left out, where the network is told them."""
    consistency: float = 0.1
    """physics: weight of velocity against the pose's own, and of acceleration against velocity."""
    gravity: float = 0.1
    """physics: weight of free fall while both feet are off the ground."""
    clearance: float = 0.25
    """physics: height of both feet above the window's lowest foot that counts as flight, in units."""


@dataclass(frozen=True)
class StickConfig:
    """The training problem."""

    loss: StickLossConfig = field(default_factory=StickLossConfig)
    times: TimeConfig = field(default_factory=TimeConfig)
    """Of the refinement by MeanFlow."""


def check_stick(config: StickConfig, nets: StickNets) -> None:
    """ValueError that names the first setting which is out of range or has no effect."""
    loss = config.loss
    if loss.pose not in ("smooth_l1", "mse"):
        raise ValueError(f"pose: expected smooth_l1 or mse, got {loss.pose!r}")
    for name in (
        "anchor",
        "temporal",
        "action",
        "physics",
        "environment",
        "diffusion",
        "jitter",
        "consistency",
        "gravity",
    ):
        value = getattr(loss, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    for name in ("noisy_share", "recovery", "text_dropout", "action_dropout"):
        if not 0 <= getattr(loss, name) <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(loss, name)!r}")
    for name in ("noise", "drift"):
        low, high = getattr(loss, name)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"{name}: expected 0 < least <= largest, got {(low, high)}")
    if not 0 <= loss.clearance < math.inf:
        raise ValueError(f"clearance: expected a finite number >= 0, got {loss.clearance!r}")
    if config.times != TimeConfig() and not (nets.refine.enabled and nets.refine.refinement == "meanflow"):
        raise ValueError("times: no effect without the refinement by MeanFlow; leave them at their defaults")


def stick_task(nets: StickNets, scale: Params, config: StickConfig) -> Task:
    """Train the transformer to predict the frame after each of a window, and the refinement beside it.

    Batches hold "motion" [B, T, D], "valid" [B, T], "text" [B, E] (zeros: none), "actions" [B, T] (-1: none),
    "physics" [B, T, 6], "environment" [B] (-1: none) and, where the network is told it, "camera" [B, T, 3].
    Of a window, over its T - 1 predicted frames::

        L = mean_t [ L_pose + anchor L_anchor + temporal L_temporal + action CE + environment CE
                     + physics (L_physics + consistency (L_velocity + L_acceleration) + gravity L_gravity) ]
            + diffusion L_refine

    where poses are compared as `measured`, temporal compares their frame-to-frame differences in the same
    measure, and physics is in its deviations. Windows that are seen with noise stand off as well; the frame
    to predict is then nearer to the truth by a share of that. The refinement takes the
    transformer's output as it is: no gradient of its flows back. What is summed and returned is a loss per
    window and the number of windows.

    Args:
        nets: as of `stick_nets`.
        scale: as of `fit_stick`, with "physics" [6], the deviation of each number.
        config: what is trained.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    check_stick(config, nets)
    settings = config.loss

    def init(seed: int) -> tuple[Tree, Tree]:
        params, buffers = nets.model.init(seed)
        tree, carried = {"net": params}, {"net": buffers}
        if nets.denoiser is not None:
            tree["refine"], carried["refine"] = nets.denoiser.init(rng.key(seed, "refine") % 2**63)
        state = {"buffers": carried, "scale": {name: x.clone() for name, x in scale.items()}}
        return tree, state | ({"residual": torch.ones(())} if nets.denoiser is not None else {})

    @torch.no_grad()
    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        drawn = _without_padding(batch)
        device = drawn["motion"].device

        def uniform(name: str) -> Tensor:
            return rng.uniform(rng.key(seed, step, name), rows).to(device)

        told = uniform("text") >= settings.text_dropout
        drawn["text"] = torch.where(told[:, None], batch["text"], 0.0)
        drawn["told"] = drawn["actions"]
        if nets.config.condition_actions:
            told = uniform("actions") >= settings.action_dropout
            drawn["told"] = torch.where(told[:, None], drawn["actions"], -1)
        if settings.noisy_share > 0:
            noisy = uniform("noisy") < settings.noisy_share
            frames, width = drawn["motion"].shape[1:]
            for name, bounds, shape in (
                ("noise", settings.noise, (frames, width)),
                ("drift", settings.drift, (2, width)),
            ):
                low, high = (math.log(x) for x in bounds)
                size = torch.where(noisy, (low + (high - low) * uniform(f"{name} size")).exp(), 0.0)
                numbers = rng.normal(rng.key(seed, step, f"frame {name}"), rows, shape).to(device)
                drawn[name] = size[:, None, None] * joined(numbers)
            along = torch.linspace(0, 1, frames, device=device)[:, None]
            drawn["drift"] = (1 - along) * drawn["drift"][:, :1] + along * drawn["drift"][:, 1:]
        if nets.config.dropout > 0:
            key = rng.uniform(rng.key(seed, step, "dropout"), rows, (), torch.float64)
            drawn["key"] = (key * 2**31).long().to(device)
        if nets.denoiser is not None:
            drawn |= stick_refine.draw_noise(nets, config.times, seed, step, rows, drawn["motion"])
        return drawn

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        carried = state
        rows, metrics, motion = _window_loss(nets, settings, params, state, batch)
        if nets.denoiser is not None:
            given = motion.detach()
            refined, carried = stick_refine.refine_loss(
                nets, params["refine"], state, batch, given, settings.jitter
            )
            rows = rows + settings.diffusion * refined
            metrics["refine"] = refined.sum()
        return rows.sum(), rows.new_full((), len(rows)), Aux(carried, metrics)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        return _evaluate(nets, settings, params, state, batch)

    update = None if nets.denoiser is None else stick_refine.move_size
    return Task(init=init, draw=draw, loss=loss, evaluate=evaluate, update=update, teacher=False)


def _without_padding(batch: Batch) -> Batch:
    """The batch with zeros, and without labels, in frames that do not count, whatever stands there."""
    found, valid = dict(batch), batch["valid"]
    for name in ("motion", "physics", "camera"):
        if name in found:
            found[name] = losses.masked_rows(found[name], valid)
    found["actions"] = torch.where(valid, found["actions"], -1)
    return found


def _window_loss(
    nets: StickNets, config: StickLossConfig, params: Tree, state: Tree, batch: Batch
) -> tuple[Tensor, Metrics, Tensor]:
    """The loss of each window [B], its parts summed over windows, and the predicted frames [B, T - 1, D]."""
    truth, valid, scale = batch["motion"], batch["valid"][:, 1:], state["scale"]
    shown, target = truth, truth[:, 1:]
    if "noise" in batch:
        shown = truth + batch["noise"] + batch["drift"]
        target = target + (1 - config.recovery) * batch["drift"][:, :-1]
    told = batch["told"][:, :-1] if nets.config.condition_actions else None
    camera = batch["camera"][:, :-1] if nets.config.condition_camera else None
    seen, out = outputs(
        nets, params["net"], state["buffers"]["net"], scale, shown[:, :-1], batch["text"], told, camera,
        batch.get("key"),
    )  # fmt: skip
    error = losses.smooth_l1_error if config.pose == "smooth_l1" else losses.squared_error
    raw, anchor = out.pose.split(nets.width, -1)
    pose, true = meant(seen, raw), measured(seen, target)
    frames = {"pose_loss": error(raw, true)}
    parts = [frames["pose_loss"]]
    if config.anchor > 0:
        frames["anchor"] = losses.squared_error(anchor, anchor_of(scale, shown[:, :-1], truth[:, 1:]))
        parts.append(config.anchor * frames["anchor"])
    if config.temporal > 0:
        made, wanted = (losses.finite_difference_velocity(x, 1.0) for x in (raw, true))
        frames["temporal"] = torch.cat((torch.zeros_like(valid[:, :1]).to(made), error(made, wanted)), 1)
        parts.append(config.temporal * frames["temporal"])
    if config.action > 0:
        frames["action"] = losses.class_error(out.actions, batch["actions"][:, 1:])
        parts.append(config.action * frames["action"])
    if config.environment > 0:
        label = batch["environment"][:, None].expand(valid.shape)
        frames["environment"] = losses.class_error(out.environment, label)
        parts.append(config.environment * frames["environment"])
    if config.physics > 0:
        frames["physics"] = _physics(config, scale, out.physics, pose, batch, target)
        parts.append(config.physics * frames["physics"])
    counts = valid.sum(1).clamp(min=1)

    def per_window(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0.0).sum(1) / counts

    rows = per_window(torch.stack(parts).sum(0))
    return rows, {name: per_window(x.detach()).sum() for name, x in frames.items()}, pose


def _physics(
    config: StickLossConfig, scale: Params, physics: Tensor, pose: Tensor, batch: Batch, target: Tensor
) -> Tensor:
    """Error of velocity, acceleration and momentum, and how far they are from agreeing, [B, T - 1].

    The consistency terms take the physical numbers in units and seconds, divided by their deviations.
    """
    std = scale["physics"]
    numbers = physics * std
    total = losses.squared_error(physics, batch["physics"][:, 1:] / std)
    velocity, acceleration = numbers[..., :2], numbers[..., 2:4]
    fast, hard = std[:2].square().mean(), std[2:4].square().mean()
    last = torch.zeros_like(total[:, :1])
    if config.consistency > 0:
        moved = losses.velocity_consistency(pose[..., :2], velocity, FPS) / fast
        gained = losses.acceleration_consistency(velocity, acceleration, FPS) / fast
        agree = torch.where(batch["valid"][:, 2:], moved + gained, 0.0)  # both frames of a pair count
        total = total + config.consistency * torch.cat((agree, last), 1)
    if config.gravity > 0:
        feet = target[..., foot_heights(target.shape[-1])]
        level = torch.where(batch["valid"][:, 1:, None], feet, math.inf).amin((1, 2))
        flying = losses.in_flight(feet - level[:, None, None], 0.0, config.clearance)
        g = feet.new_tensor(_GRAVITIES)[batch["environment"]][:, None].expand(flying.shape)
        total = total + config.gravity * losses.gravity_in_flight(acceleration, flying, g) / hard
    return total


def _evaluate(
    nets: StickNets, config: StickLossConfig, params: Tree, state: Tree, batch: Batch
) -> tuple[Metrics, Metrics]:
    """Errors on windows as they are: no noise, text told, actions not."""
    quiet = _without_padding(batch)
    quiet["told"] = torch.full_like(batch["actions"], -1)
    rows, _, pose = _window_loss(nets, config, params, state, quiet)
    # The third frame is the first that constant velocity can predict.
    valid, truth = batch["valid"][:, 2:], quiet["motion"]
    totals: Metrics = {"val_loss": rows.sum()}
    weights: Metrics = {"val_loss": rows.new_full((), len(rows))}

    def count(name: str, values: Tensor) -> None:
        totals[name], weights[name] = losses.masked_sum(values, valid)

    straight = 2 * truth[:, 1:-1] - truth[:, :-2]
    count("mse", losses.squared_error(pose[:, 1:], truth[:, 2:]))
    count("constant_velocity_mse", losses.squared_error(straight, truth[:, 2:]))
    return totals, weights
