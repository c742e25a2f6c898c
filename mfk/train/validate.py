"""Validation: sums and weights over all batches, divided once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mfk.core.types import Batch, Metrics, Task
from mfk.train.figures import described
from mfk.train.state import TrainState, inference_params


def validation_metrics(
    task: Task, state: TrainState, batches: Sequence[Batch], device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The metrics of ``task.evaluate`` over all batches, sum of totals / sum of weights.

    The parameters are the averaged ones where the state has them. A weight of zero gives NaN. Of an ensemble
    it is `over_members` of each metric: the members' mean, and their spread under ``<metric>_spread``.

    Raises:
        ValueError: totals and weights, or two batches, differ in their names.
    """
    return described(member_metrics(task, state, batches, device))


@torch.no_grad()
def member_metrics(
    task: Task, state: TrainState, batches: Sequence[Batch], device: torch.device | str = "cpu"
) -> dict[str, list[float]]:
    """`validation_metrics` with one value for each member, or a list of one of a single run."""
    params, sums, weights = inference_params(state), {}, {}
    for batch in batches:
        moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        totals, shares = task.evaluate(params, state.state, moved)
        if totals.keys() != shares.keys() or (sums and sums.keys() != totals.keys()):
            raise ValueError(
                f"task.evaluate: expected the same names in totals, weights and every batch, "
                f"got {sorted(totals)}, {sorted(shares)}" + (f", before {sorted(sums)}" if sums else "")
            )
        sums, weights = _add(sums, totals), _add(weights, shares)
    return {name: (total / weights[name]).reshape(-1).tolist() for name, total in sums.items()}


def _add(sums: Metrics, new: Metrics) -> Metrics:
    # In float64: a sum over a million rows in fp32 would lose digits.
    return {name: sums.get(name, 0) + torch.as_tensor(x).double() for name, x in new.items()}
