"""Errors of predicted classes, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from mfk.core.types import describe
from mfk.losses.fields import check_rows


def class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each row with its label: log Σ_c exp(logit_c) - logit_label.

    A row whose label is -1 has none: its error and its gradient are 0, whatever finite numbers it holds. How
    many rows count is (labels != -1).sum(), for the caller to divide by.

    Args:
        logits: [..., C], C >= 1.
        labels: int64 [...], each -1 or in 0 ... C - 1.

    Returns:
        [...], in nats, in the logits' dtype.

    Raises:
        ValueError: shapes that do not agree. TypeError: `logits` not of floating point, `labels` not int64.
        RuntimeError: on the CPU, a label out of range.
    """
    check_rows({"logits": logits}, {})
    if not logits.shape[-1]:
        raise ValueError(f"logits: expected at least one class, got the shape {tuple(logits.shape)}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels: expected a tensor of int64, got {describe(labels)}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels: expected one for each row of logits, {tuple(logits.shape[:-1])}, "
            f"got {tuple(labels.shape)}"
        )
    there = labels != -1
    chosen = logits.log_softmax(-1).gather(-1, torch.where(there, labels, 0).unsqueeze(-1)).squeeze(-1)
    return torch.where(there, -chosen, 0.0)
