"""One-step inverse kinematics with MeanFlow, as a Task.

The flow starts at a reference configuration (time 0), ends at a solution (time 1), and is conditioned
on the pose that the solution reaches: one step is q = q_reference + u(q_reference, 0, 1; pose).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mfk.core import rng, stateless
from mfk.core.config import refuse_unused
from mfk.core.types import Aux, Batch, Field, Metrics, Model, Params, Rows, Task, Tree
from mfk.data import AugmentConfig, IKDataConfig, augment, check_augment, draw_ik
from mfk.kinematics import Chain, clip_to_limits, forward, pose_error, unit_pose
from mfk.losses import MeanFlowTerms, TimeConfig, draw_times, end_times, flow_matching, jvp_rows, sample
from mfk.nn import KinematicNet, MeanFlowNet
from mfk.tasks.ik_loss import (
    EPSILON,
    LossConfig,
    check_loss,
    draw_objective,
    metric_names,
    objective_terms,
    row_weight,
)


@dataclass(frozen=True)
class NetConfig:
    """Which network."""

    network: Literal["kinematic", "documented"] = "kinematic"
    """kinematic: sees the pose error and a least-squares step; documented: mfik's, of fixed size."""
    width: int = 256
    """kinematic: width of the residual stream."""
    blocks: int = 2
    """kinematic: residual blocks."""
    damping: float = 0.07
    """kinematic: damping of the pseudo-inverse, in m and rad."""
    base_steps: int = 1
    """kinematic: least-squares steps inside the network before it corrects."""


@dataclass(frozen=True)
class IKConfig:
    """One inverse-kinematics problem."""

    net: NetConfig = field(default_factory=NetConfig)
    data: IKDataConfig = field(default_factory=IKDataConfig)
    times: TimeConfig = field(default_factory=TimeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class PoseErrors(NamedTuple):
    """Distance of a configuration's pose from its target."""

    position: Tensor  # [...], float64, m
    rotation: Tensor  # [...], float64, rad


_ROWS = frozenset(("q", "v", "q_target", "pose", "r", "t"))
_VALIDATION_ROWS = 1024  # of one batch

ROOTS = ("meanflow_residual", "velocity_norm")
"""Metrics that the loss reports as squares, to be logged as their root mean squares."""


def ik_network(chain: Chain, config: NetConfig) -> Callable[[], nn.Module]:
    """What builds the configured network, called as ``net(q, pose, r, t)``."""
    if config.network == "documented":
        refuse_unused(config, False, "width", "blocks", "damping", "base_steps")
        return partial(MeanFlowNet, chain.dof)
    if config.network == "kinematic":
        return partial(KinematicNet, chain, config.width, config.blocks, config.damping, config.base_steps)
    raise ValueError(f"network: expected kinematic or documented, got {config.network!r}")


def ik_model(chain: Chain, config: NetConfig) -> Model:
    """The configured network, called as ``apply(params, buffers, q, pose, r, t)``."""
    return stateless(ik_network(chain, config))


def ik_field(model: Model, params: Params, buffers: Params, pose: Tensor) -> Field:
    """The network as a field u(q, r, t), the target poses [..., 7] closed over."""
    return lambda q, r, t: model.apply(params, buffers, q, pose, r, t)


def ik_task(chain: Chain, config: IKConfig) -> Task:
    """Train a one-step solver for `chain`.

    The loss of a row is w ‖Δ‖², summed over rows, and the weight is the number of rows. The first rows
    of a drawn batch, as many as "t" has, are MeanFlow rows from time r to t; the rest are flow
    matching at r. ``evaluate`` reports the raw MeanFlow loss, whatever the objective, and one network
    step from the reference.

    ``draw`` makes its rows from nothing, or takes those of a batch with the keys of `mfk.data.IKRows`:
    q, v, q_target, pose, r and, where the end times are given too, t.
    """
    model = ik_model(chain, config.net)
    check_augment(chain, config.augment)
    check_loss(config.loss)
    refuse_unused(config.loss, config.times.jvp_share > 0, "objective")
    # The training's own objective would flatter networks that agree with themselves, or with alpha = 1.
    scored = replace(config.loss, objective="meanflow", alpha_steps=None, epsilon=EPSILON)

    def draw(seed: int, step: int, rows: Rows, state: Tree, batch: Batch) -> Batch:
        if batch:
            unknown = sorted((batch.keys() ^ _ROWS) - {"t"})
            if unknown:
                raise ValueError(
                    f"batch: expected {{}} or the keys {sorted(_ROWS)}, t optional; see {unknown}"
                )
            q, v, q_target, pose, r = (batch[name] for name in ("q", "v", "q_target", "pose", "r"))
            t = end_times(config.times, r, batch.get("t"), seed, step, rows)
        else:
            drawn = draw_ik(chain, config.data, seed, step, rows)
            r, t = draw_times(config.times, seed, step, rows)
            q_target, pose = drawn.q_target, drawn.pose
            v = q_target - drawn.q_reference
            q = drawn.q_reference + r * v
        path = augment(chain, config.augment, q, v, q_target, pose, r, seed=seed, step=step, rows=rows)
        return {
            "z": path.q,
            "v": path.v,
            "r": r,
            "t": t,
            "pose": path.pose,
            "jvp_share": torch.tensor(jvp_rows(config.times, rows.total) / rows.total, device="cpu"),
            **draw_objective(config.loss, r, t, seed, step, rows),
        }

    def loss(params: Tree, state: Tree, batch: Batch, teacher: Tree) -> tuple[Tensor, Tensor, Aux]:
        return score(config.loss, params, state, batch, teacher)

    def score(
        how: LossConfig, params: Tree, state: Tree, batch: Batch, teacher: Tree
    ) -> tuple[Tensor, Tensor, Aux]:
        z, v, r, t, pose = (batch[name] for name in ("z", "v", "r", "t", "pose"))
        n, rows = len(t), len(z)
        # A micro-batch may hold no MeanFlow row; what it reports must not depend on that.
        names = metric_names(how) if config.times.jvp_share > 0 else ()
        parts, metrics = [], {name: z.new_zeros(()) for name in names}
        if n:
            u, other = (ik_field(model, p, state, pose[:n]) for p in (params, teacher))
            terms = objective_terms(how, batch, u, other)
            parts.append(terms.squared_error)
            # So that their mean over all rows is the mean over the MeanFlow rows of the global batch.
            metrics["velocity_norm"] = terms.value.square().sum() / batch["jvp_share"]
            if isinstance(terms, MeanFlowTerms):
                metrics["meanflow_residual"] = terms.rate.square().sum() / batch["jvp_share"]
        if n < rows:
            u = ik_field(model, params, state, pose[n:])
            parts.append(flow_matching(u, z[n:], v[n:], r[n:]))
        squared = torch.cat(parts)
        remaining = ((1 - r) * v).square().sum(-1)
        total = (
            row_weight(how, squared, remaining, n, batch["alpha"] if how.objective == "alpha_flow" else None)
            * squared
        ).sum()
        metrics["raw_error"] = squared.sum()
        return total, total.new_full((), rows), Aux(state, metrics)

    def evaluate(params: Tree, state: Tree, batch: Batch) -> tuple[Metrics, Metrics]:
        _, weight, aux = score(scored, params, state, batch, params)
        u = ik_field(model, params, state, batch["pose"])
        reference = clip_to_limits(chain, batch["z"] - batch["r"] * batch["v"])
        q = clip_to_limits(chain, sample(u, reference))
        errors = pose_errors(chain, q, batch["pose"])
        totals = {
            "val_loss": aux.metrics["raw_error"],
            "position_mm": errors.position.sum() * 1e3,
            "rotation_deg": torch.rad2deg(errors.rotation.sum()),
            "within_5mm_5deg": within(errors, 5.0, 5.0).sum().double(),
        }
        return totals, dict.fromkeys(totals, weight)

    return Task(init=model.init, draw=draw, loss=loss, evaluate=evaluate)


def validation_batches(
    chain: Chain, config: IKConfig, seed: int, rows: int, data: Mapping[str, Tensor] | None = None
) -> list[Batch]:
    """Complete batches for ``evaluate``, without augmentation; ValueError for fewer than one row.

    Args:
        chain: the robot.
        config: the task's.
        seed: of the run. Draws that no training step makes are derived from it.
        rows: how many; of `data` the first so many, or all that there are.
        data: rows with the keys of `mfk.data.IKRows`; None draws them.
    """
    if rows < 1:
        raise ValueError(f"rows: expected at least 1, got {rows}")
    plain = ik_task(chain, replace(config, augment=AugmentConfig()))
    held_out = rng.key(seed, "validation") % 2**63
    total = rows if data is None else min(rows, len(data["q"]))
    batches = []
    for start in range(0, total, _VALIDATION_ROWS):
        index = range(start, min(start + _VALIDATION_ROWS, total))
        # Copied: rows that are mapped from a file would change with it.
        given = {name: x[index.start : index.stop].clone() for name, x in (data or {}).items()}
        batches.append(plain.draw(held_out, 0, Rows(index, total), {}, given))
    return batches


def pose_errors(chain: Chain, q: Tensor, target: Tensor) -> PoseErrors:
    """Position and rotation error of q [..., dof] against poses [..., 7], verified in float64."""
    error = pose_error(forward(chain, q.double()), unit_pose(target.double()))
    return PoseErrors(error[..., :3].norm(dim=-1), error[..., 3:].norm(dim=-1))


def within(errors: PoseErrors, millimetres: float, degrees: float) -> Tensor:
    """Which rows are inside both tolerances, [...] of bool; a NaN is outside."""
    return (errors.position < millimetres * 1e-3) & (errors.rotation < math.radians(degrees))
