"""Validation: sums and weights over all batches, divided once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mfk.core import ranks
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
    """`validation_metrics` with one value for each member, or a list of one of a single run.

    Of several ranks each evaluates its share of the batches, and all get the same numbers.
    """
    params, here = inference_params(state), ranks.current()
    each: list[tuple[Metrics, Metrics]] = []
    for batch in batches[here.rank :: here.count]:
        moved = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        totals, shares = task.evaluate(params, state.state, moved)
        each.append(({n: _wide(x) for n, x in totals.items()}, {n: _wide(x) for n, x in shares.items()}))
    by_rank = ranks.everyone(each)
    sums, weights = {}, {}
    # In the batches' order, so that the bits do not depend on the number of ranks.
    for i in range(len(batches)):
        totals, shares = by_rank[i % here.count][i // here.count]
        if totals.keys() != shares.keys() or (sums and sums.keys() != totals.keys()):
            raise ValueError(
                f"task.evaluate: expected the same names in totals, weights and every batch, "
                f"got {sorted(totals)}, {sorted(shares)}" + (f", before {sorted(sums)}" if sums else "")
            )
        sums, weights = _add(sums, totals), _add(weights, shares)
    return {name: (total / weights[name]).reshape(-1).tolist() for name, total in sums.items()}


def _wide(x: Tensor | float) -> Tensor:
    # In float64: a sum over a million rows in fp32 would lose digits.
    return torch.as_tensor(x).detach().double().cpu()


def _add(sums: Metrics, new: Metrics) -> Metrics:
    return {name: sums.get(name, 0) + x for name, x in new.items()}
