"""Which member of the family trains the inverse-kinematics network, and how its rows are weighted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from mfk import losses
from mfk.core.config import refuse_unused
from mfk.core.types import Batch, Field, Rows
from mfk.losses import FieldTerms, MeanFlowTerms

Objective: TypeAlias = Literal[
    "meanflow",
    "improved_meanflow",
    "alpha_flow",
    "split_meanflow",
    "shortcut",
    "terminal_velocity",
    "finite_difference",
]


EPSILON = 5e-3


@dataclass(frozen=True)
class LossConfig:
    """What the rows with t > r are trained with, and how a row's squared error is weighted."""

    weighting: Literal["adaptive", "distance", "uniform"] = "adaptive"
    """adaptive: by the error, as in the paper; distance: by how far the solution is; uniform: alike."""
    weight_c: float | None = None
    """Added to the squared error or distance, in rad^2; None: 1e-3 for adaptive, 1e-4 for distance."""
    weight_p: float | None = None
    """Power of the weight, 0 weighs all alike; None: 1 for adaptive, 0.5 for distance."""
    objective: Objective = "meanflow"
    """A loss of mfk.losses for the rows with t > r; the others are flow matching in any case."""
    alpha_steps: tuple[int, int] | None = None
    """alpha_flow, which needs it: last step with alpha = 1, and first step of its smallest value."""
    epsilon: float = EPSILON
    """finite_difference: half of the time that the difference spans."""


_RATES = frozenset(("meanflow", "improved_meanflow", "finite_difference"))


def check_loss(config: LossConfig) -> None:
    """ValueError that names the first setting that is out of range or has no effect."""
    if config.objective not in get_args(Objective):
        raise ValueError(f"objective: expected one of {get_args(Objective)}, got {config.objective!r}")
    refuse_unused(config, config.objective == "alpha_flow", "alpha_steps")
    refuse_unused(config, config.objective == "finite_difference", "epsilon")
    if config.objective == "alpha_flow":
        _alpha(config, 0)
    if not (math.isfinite(config.epsilon) and config.epsilon > 0):
        raise ValueError(f"epsilon: expected a positive number, got {config.epsilon!r}")
    c, p = config.weight_c, config.weight_p
    if c is not None and not (math.isfinite(c) and c > 0):
        raise ValueError(f"weight_c: expected a positive number, got {c!r}")
    if p is not None and not (math.isfinite(p) and p >= 0):
        raise ValueError(f"weight_p: expected a number >= 0, got {p!r}")
    if config.weighting not in ("adaptive", "distance", "uniform"):
        raise ValueError(f"weighting: expected adaptive, distance or uniform, got {config.weighting!r}")
    refuse_unused(config, config.weighting != "uniform", "weight_c", "weight_p")


def draw_objective(config: LossConfig, r: Tensor, t: Tensor, seed: int, step: int, rows: Rows) -> Batch:
    """What the objective needs beside r and t: "alpha" [], or "s" of the shape of t."""
    if config.objective == "alpha_flow":
        return {"alpha": torch.tensor(_alpha(config, step), dtype=r.dtype, device="cpu")}
    if config.objective == "split_meanflow":
        return {"s": losses.split_times(r, t, seed, step, rows)}
    return {}


def _alpha(config: LossConfig, step: int) -> float:
    if config.alpha_steps is None:
        raise ValueError("alpha_steps: alpha_flow needs the steps that alpha falls between, e.g. 500 2500")
    try:
        return losses.alpha_schedule(*config.alpha_steps)(step)
    except (TypeError, ValueError) as error:
        raise ValueError(f"alpha_steps: {error}") from None


def metric_names(config: LossConfig) -> tuple[str, ...]:
    """What `objective_terms` allows to be reported: the rate only where the loss computes it anyway."""
    return ("velocity_norm", "meanflow_residual") if config.objective in _RATES else ("velocity_norm",)


def objective_terms(
    config: LossConfig, batch: Mapping[str, Tensor], u: Field, teacher: Field
) -> MeanFlowTerms | FieldTerms:
    """The objective on a drawn batch's first len(t) rows, with `u` and `shortcut`'s `teacher` for these."""
    t = batch["t"]
    n = len(t)
    z, v, r = batch["z"][:n], batch["v"][:n], batch["r"][:n]
    match config.objective:
        case "meanflow":
            return losses.meanflow_terms(u, z, v, r, t)
        case "improved_meanflow":
            return losses.improved_meanflow_terms(u, z, v, r, t)
        case "alpha_flow":
            return losses.alpha_flow_terms(u, z, v, r, t, batch["alpha"])
        case "split_meanflow":
            return losses.split_meanflow_terms(u, z, r, batch["s"], t)
        case "shortcut":
            return losses.shortcut_terms(u, z, r, t, teacher)
        case "terminal_velocity":
            return losses.terminal_velocity_terms(u, z, r, t)
        case "finite_difference":
            return losses.finite_difference_terms(u, z, v, r, t, config.epsilon)


def row_weight(
    config: LossConfig, squared_error: Tensor, squared_distance: Tensor, rows: int, alpha: Tensor | None
) -> Tensor:
    """The weight of each row; of the first `rows`, whose loss is divided by `alpha`, that loss's own."""
    given = {"c": config.weight_c, "p": config.weight_p}
    given = {name: value for name, value in given.items() if value is not None}
    if config.weighting == "uniform":
        return torch.ones_like(squared_error)
    if config.weighting == "distance":
        return losses.distance_weight(squared_distance, **given)
    if alpha is None:
        return losses.adaptive_weight(squared_error, **given)
    first = losses.alpha_weight(squared_error[:rows], alpha, **given)
    return torch.cat((first, losses.adaptive_weight(squared_error[rows:], **given)))
