"""Next-step motion models as a Task: regression with scheduled sampling, MeanFlow or diffusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfk import losses
from mfk.core import rng
from mfk.core.config import refuse_unused
from mfk.core.types import Aux, Batch, Field, Metrics, Params, Rows, Task, Tree
from mfk.losses import TimeConfig, adaptive_weight, draw_times, flow_matching, meanflow_terms, sample
from mfk.tasks.motion_features import Frames, mirrored
from mfk.tasks.motion_measure import Predictor, next_steps, rollouts, standardised
from mfk.tasks.motion_net import Diffusion, MotionNet, flow_end, flow_field, flow_frame, flow_start, predict


@dataclass(frozen=True)
class MotionLossConfig:
    """What a motion model is trained with."""

    objective: Literal["regression", "meanflow", "diffusion"] = "regression"
    """regression: the mean of the next frame; meanflow: samples of it in one step; diffusion: in several."""
    loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    """regression: error of a predicted frame, mean over its standardised features."""
    vel_weight: float = 0.0
    """regression: weight of the squared error of the velocity, per frame, between predicted frames."""
    quat_norm_weight: float = 0.0
    """regression: weight of (|q| - 1)^2 of the predicted quaternions."""
    quat_distance_weight: float = 0.0
    """regression: weight of the sign-invariant distance of the predicted quaternions."""
    rollout_steps: int = 1
    """regression: frames that are predicted one after another, each seeing those before it."""
    teacher_decay_steps: int | None = None
    """regression: steps in which the share of true frames that a rollout sees falls to 0; None: at once."""
    truncate_steps: int = 1
    """regression: rollout steps that a gradient flows back through; 1: through none but its own."""
    step_decay: float = 0.05
    """regression: step k of a rollout weighs 1 / (1 + decay k)."""
    noise: float = 0.0
    """Deviation of the noise on the frames that are seen, in deviations of each feature's velocity."""
    noise_schedule: tuple[float, float] = (1e-4, 0.02)
    """diffusion: share of noise that the first step adds, and the last one; linear between them."""
    noise_steps: int = 1_000
    """diffusion: steps of the schedule."""
    sample_steps: int = 10
    """diffusion: evaluations of the network for a sample."""
    mirror: bool = False
    """Half of the training windows are seen in a mirror, bones of the two sides exchanged."""
    weight_c: float = 1e-3
    """meanflow: added to the squared error in a row's weight."""
    weight_p: float = 1.0
    """meanflow: power of a row's weight; 0 weighs all alike."""


class Horizon(NamedTuple):
    """Frames of a training window."""

    seen: int
    ahead: int


_REGRESSION = (
    "loss", "vel_weight", "quat_norm_weight", "quat_distance_weight", "rollout_steps", "teacher_decay_steps",
    "truncate_steps", "step_decay",
)  # fmt: skip
_KEYS_APART = 7_919  # so that the steps of a rollout drop different activations
_ERRORS = {
    "mse": losses.squared_error,
    "l1": losses.absolute_error,
    "smooth_l1": losses.smooth_l1_error,
}


@dataclass(frozen=True)
class MotionConfig:
    """One motion model's training problem, its data aside."""

    loss: MotionLossConfig = field(default_factory=MotionLossConfig)
    times: TimeConfig = field(default_factory=TimeConfig)


def check_loss(config: MotionLossConfig, times: TimeConfig) -> None:
    """ValueError that names the first setting that is out of range or has no effect."""
    if config.objective not in ("regression", "meanflow", "diffusion"):
        raise ValueError(f"objective: expected regression, meanflow or diffusion, got {config.objective!r}")
    refuse_unused(config, config.objective == "regression", *_REGRESSION)
    refuse_unused(config, config.objective == "meanflow", "weight_c", "weight_p")
    refuse_unused(config, config.objective == "diffusion", "noise_schedule", "noise_steps", "sample_steps")
    diffusion = diffusion_of(config)
    if diffusion is not None:
        shares = losses.signal_shares(*diffusion[:3])
        losses.sample_ddim(lambda z, t: z, torch.zeros(1, 1), shares, diffusion.samples)
    refuse_unused(times, config.objective == "meanflow", *(name for name in vars(TimeConfig())))
    refuse_unused(config, config.rollout_steps > 1, "teacher_decay_steps", "truncate_steps", "step_decay")
    if config.loss not in _ERRORS:
        raise ValueError(f"loss: expected one of {list(_ERRORS)}, got {config.loss!r}")
    for name in ("vel_weight", "quat_norm_weight", "quat_distance_weight", "step_decay", "noise", "weight_p"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value!r}")
    for name in ("rollout_steps", "truncate_steps", "teacher_decay_steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")
    if not (math.isfinite(config.weight_c) and config.weight_c > 0):
        raise ValueError(f"weight_c: expected a positive number, got {config.weight_c!r}")


def diffusion_of(config: MotionLossConfig) -> Diffusion | None:
    """The schedule that the network is to know of; None where there is none."""
    if config.objective != "diffusion":
        return None
    return Diffusion(config.noise_steps, *config.noise_schedule, config.sample_steps)


def window_of(net: MotionNet, config: MotionLossConfig) -> Horizon:
    """How many frames a training window has."""
    return Horizon(net.config.horizon, config.rollout_steps)


def motion_task(
    net: MotionNet, how: Frames, scale: Params, config: MotionConfig, pairs: Sequence[int] = ()
) -> Task:
    """Train a network to predict the frame after those it sees.

    Batches are those of `mfk.data.motion_batches`. The state holds the network's "buffers" and the "scale" of
    the data, as of `fit_scale`, which no step changes. The loss of a window is, of regression, the weighted
    sum over the steps of a rollout::

        L = sum_k w_k (L_base + vel_weight L_vel + quat_norm_weight L_norm + quat_distance_weight L_dist)
            / sum_k w_k

    over its valid frames; of meanflow, the MeanFlow error of the next frame's residual, weighted as in the
    paper, a share of the rows with t > r and flow matching on the others; of diffusion, the squared error of
    the noise in that residual. The sum over windows and their number are returned. ``evaluate`` takes windows
    with more frames ahead and reports the error of each next frame and of a rollout over all of them.

    Args:
        net: as of `motion_net`.
        how: how frames are read, see `read_as`.
        scale: of the data, as of `fit_scale`.
        config: what is trained.
        pairs: where each bone goes in a mirror, as of `mirror_pairs`; for ``config.loss.mirror`` only.

    Raises:
        ValueError: a setting is out of range or has no effect.
    """
    check_loss(config.loss, config.times)
    if config.loss.mirror and not (how.relative and how.space == "world" and len(pairs) == how.bones):
        raise ValueError("mirror: expected relative features, bones in world space, and their pairs")
    seen, ahead = window_of(net, config.loss)
    generative = config.loss.objective != "regression"
    if generative != net.generative or net.diffusion != diffusion_of(config.loss):
        raise ValueError(f"objective: {config.loss.objective}, but the network is for another one")

    def init(seed: int) -> tuple[Tree, Tree]:
        params, buffers = net.model.init(seed)
        return params, {"buffers": buffers, "scale": {name: x.clone() for name, x in scale.items()}}

    @torch.no_grad()
    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        _check_batch(net, how, batch, seen + ahead)
        known = {name: x.to(batch["frames"].device) for name, x in state["scale"].items()}
        frames = batch["frames"]
        if config.loss.mirror:
            turned = rng.uniform(rng.key(seed, step, "mirror"), rows) < 0.5
            frames = torch.where(
                turned.to(frames.device)[:, None, None, None], mirrored(how, frames, pairs), frames
            )
        x, _ = standardised(how, known, frames)
        drawn: Batch = {"x": x, "valid": batch["valid"]}
        if net.labels:
            drawn["label"] = batch["labels"][:, seen - 1 : -1]
        if config.loss.noise > 0:
            noise = rng.normal(rng.key(seed, step, "frame noise"), rows, (seen, net.features))
            drawn["noise"] = config.loss.noise * known["velocity_std"] * noise
        if net.config.dropout > 0:
            uniform = rng.uniform(rng.key(seed, step, "dropout"), rows, (), torch.float64)
            drawn["key"] = (uniform * 2**31).long()
        if generative:
            noise = rng.normal(rng.key(seed, step, "flow noise"), rows, (net.features,))
            drawn["z0"] = flow_start(known, noise.to(x.device))
            if net.diffusion is None:
                drawn["r"], drawn["t"] = draw_times(config.times, seed, step, rows)
            else:
                uniform = rng.uniform(rng.key(seed, step, "noise steps"), rows, (1,), torch.float64)
                drawn["s"] = (uniform * net.diffusion.steps).long()
        elif ahead > 1:
            decay = config.loss.teacher_decay_steps
            ratio = 0.0 if decay is None else losses.teacher_ratio(step, decay)
            drawn["teacher"] = rng.uniform(rng.key(seed, step, "teacher"), rows, (ahead - 1,)) < ratio
        return drawn

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        of_rows = _rollout_loss if not generative else _flow_loss if net.diffusion is None else _noise_loss
        total, metrics = of_rows(net, config.loss, params, state, batch)
        return total, total.new_full((), len(batch["x"])), Aux(state, metrics)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        known = state["scale"]
        predictor = predictor_of(net, params, state, batch.get("noise"))
        given = how, known, predictor, batch["frames"], batch["valid"], batch.get("labels"), seen
        step, made = next_steps(*given), rollouts(*given)
        totals, weights = {}, {}

        def count(name: str, values: Tensor, valid: Tensor) -> None:
            totals[name], weights[name] = losses.masked_sum(values, valid)

        count("val_loss", step.mse, step.valid)
        count("mae", step.mae, step.valid)
        count("joint_deg", step.joint_deg, step.valid)
        count("position_cm", step.position_cm, step.valid)
        count("rollout_mse", made.mse, made.valid)
        count("rollout_velocity_mse", made.velocity_mse, made.valid)
        count("rollout_cm", made.position_cm, made.valid)
        count("rollout_end_cm", made.position_cm[:, -1], made.valid[:, -1])
        return totals, weights

    return Task(init=init, draw=draw, loss=loss, evaluate=evaluate, teacher=False)


def predictor_of(net: MotionNet, params: Tree, state: Tree, noise: Tensor | None = None) -> Predictor:
    """A trained network as a predictor; of a generative one `noise` [B, R, F] is what its flow begins at.

    Frames that are predicted at once take all of the noise; step k of a rollout takes noise[:, k].
    """
    buffers, scale = state["buffers"], state["scale"]

    def predictor(x: Tensor, label: Tensor | None, k: int | None) -> Tensor:
        label = label if net.labels else None
        if not net.generative:
            out = predict(net, params, buffers, scale, x, label)
            return out if out.ndim == 2 else out[:, -1]
        assert noise is not None
        z0 = noise.flatten(0, 1) if k is None else noise[:, k]
        field, z = flow_field(net, params, buffers, scale, x, label), flow_start(scale, z0)
        if net.diffusion is None:
            return flow_frame(net, scale, x, sample(field, z))
        shares = losses.signal_shares(*net.diffusion[:3])
        end = losses.sample_ddim(lambda z, t: field(z, t, t), z, shares, net.diffusion.samples)
        return flow_frame(net, scale, x, end)

    return predictor


def _rollout_loss(
    net: MotionNet, config: MotionLossConfig, params: Tree, state: Tree, batch: Batch
) -> tuple[Tensor, Metrics]:
    """Predict frame after frame; each sees those before it, which "teacher" puts right at times."""
    x, valid, scale, seen = batch["x"], batch["valid"], state["scale"], net.config.horizon
    steps = x.shape[1] - seen
    weights = losses.step_weights(steps, config.step_decay).to(x)
    window, before, true_before = x[:, :seen], x[:, seen - 1], x[:, seen - 1]
    if "noise" in batch:
        window = window + batch["noise"]
    rows, shares = x.new_zeros(len(x)), x.new_zeros(len(x))
    metrics: Metrics = {}
    for k in range(steps):
        label = batch["label"][:, k] if net.labels else None
        key = (batch["key"] + k * _KEYS_APART) % 2**31 if "key" in batch else None
        out = predict(net, params, state["buffers"], scale, window, label, key)
        inside = valid[:, seen + k]
        if out.ndim == 3:
            # The frames of the first window are followed by true ones; later only the last is new.
            made = out if k == 0 else out[:, -1:]
            truth = x[:, k + 1 : seen + 1] if k == 0 else x[:, seen + k : seen + k + 1]
            error = _ERRORS[config.loss](made, _filled(truth, inside[:, None, None], made)).mean(-1)
            out = out[:, -1]
            truth = _filled(x[:, seen + k], inside[:, None], out)
        else:
            truth = _filled(x[:, seen + k], inside[:, None], out)
            error = _ERRORS[config.loss](out, truth)
        if k == 0:
            metrics["mse"] = losses.squared_error(out, truth).sum()
        error = error + _penalties(config, scale, before, out, true_before, truth)
        true_before = truth
        weight = weights[k] * inside
        rows, shares = rows + weight * error, shares + weight
        if k + 1 < steps:
            before = torch.where(batch["teacher"][:, k, None], truth, out)
            window = torch.cat((window[:, 1:], before[:, None]), 1)
            if (k + 1) % config.truncate_steps == 0:
                window, before = window.detach(), before.detach()
    return (rows / shares).sum(), metrics


def _penalties(
    config: MotionLossConfig, scale: Params, before: Tensor, out: Tensor, true_before: Tensor, truth: Tensor
) -> Tensor:
    """What is added to the error of predicted frames `out` [B, F], which came after `before`, [B]."""
    total = torch.zeros_like(out[:, 0])
    if config.vel_weight > 0:
        made, true = (
            losses.finite_difference_velocity(torch.stack(pair, 1), 1.0)[:, 0]
            for pair in ((before, out), (true_before, truth))
        )
        total = total + config.vel_weight * losses.squared_error(made, true)
    if config.quat_norm_weight > 0:
        made = _quaternions(scale, out)
        total = total + config.quat_norm_weight * losses.quaternion_norm(made).mean(-1)
    if config.quat_distance_weight > 0:
        distance = losses.quaternion_distance(_quaternions(scale, out), _quaternions(scale, truth))
        total = total + config.quat_distance_weight * distance.mean(-1)
    return total


def _flow_loss(
    net: MotionNet, config: MotionLossConfig, params: Tree, state: Tree, batch: Batch
) -> tuple[Tensor, Metrics]:
    scale, seen = state["scale"], net.config.horizon
    x, z0, r, t = batch["x"][:, :seen], batch["z0"], batch["r"], batch["t"]
    end = flow_end(net, scale, x, batch["x"][:, seen])
    if "noise" in batch:
        x = x + batch["noise"]
    v = end - z0
    z = z0 + r * v
    n = len(t)

    def at(rows: slice) -> Field:
        label = batch["label"][rows, 0] if "label" in batch else None
        key = batch["key"][rows] if "key" in batch else None
        return flow_field(net, params, state["buffers"], scale, x[rows], label, key)

    parts = []
    if n:
        parts.append(meanflow_terms(at(slice(0, n)), z[:n], v[:n], r[:n], t).squared_error)
    if n < len(x):
        rest = slice(n, None)
        parts.append(flow_matching(at(rest), z[rest], v[rest], r[rest]))
    # Of a feature, so that weight_c does not depend on how many there are.
    squared = torch.cat(parts) / net.features
    weight = adaptive_weight(squared, config.weight_c, config.weight_p)
    return (weight * squared).sum(), {"raw_error": squared.sum()}


def _noise_loss(
    net: MotionNet, config: MotionLossConfig, params: Tree, state: Tree, batch: Batch
) -> tuple[Tensor, Metrics]:
    assert net.diffusion is not None
    scale, seen = state["scale"], net.config.horizon
    x, noise = batch["x"][:, :seen], batch["z0"]
    end = flow_end(net, scale, x, batch["x"][:, seen])
    if "noise" in batch:
        x = x + batch["noise"]
    shares = losses.signal_shares(*net.diffusion[:3]).to(x)
    z = losses.add_noise(end, noise, shares[batch["s"]])
    t = (batch["s"] + 1).to(x.dtype) / net.diffusion.steps
    label = batch["label"][:, 0] if "label" in batch else None
    field = flow_field(net, params, state["buffers"], scale, x, label, batch.get("key"))
    squared = losses.squared_error(field(z, t, t), noise)
    return squared.sum(), {"raw_error": squared.sum()}


def _filled(truth: Tensor, inside: Tensor, other: Tensor) -> Tensor:
    """`truth` where it counts, elsewhere what costs nothing: no error, no gradient, no NaN."""
    return torch.where(inside, truth, other.detach())


def _quaternions(scale: Params, x: Tensor) -> Tensor:
    """The quaternions [..., bones, 4] of standardised features [..., F]."""
    return (x * scale["std"] + scale["mean"]).unflatten(-1, (-1, 7))[..., 3:]


def _check_batch(net: MotionNet, how: Frames, batch: Batch, length: int) -> None:
    expected = {"frames", "valid"} | ({"labels"} if net.labels else set())
    if not expected <= batch.keys():
        raise ValueError(f"batch: expected the keys {sorted(expected)}, got {sorted(batch)}")
    shape = (length, how.bones, 7)
    if batch["frames"].shape[1:] != shape:
        raise ValueError(f"frames: expected the shape [rows, {shape}], got {tuple(batch['frames'].shape)}")
    if net.labels and batch["labels"].shape[-1] != net.labels:
        raise ValueError(f"labels: expected {net.labels} numbers a frame, got {batch['labels'].shape[-1]}")
