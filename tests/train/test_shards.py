"""What a model that is shared out refuses; that it changes no number: test_ranks.py."""

from __future__ import annotations

import pytest
import torch
from toy import make_task

from mfk import train
from mfk.core import tree
from mfk.optim import adamw
from mfk.train.shards import shards_of


def test_a_state_that_is_not_in_parts_is_refused() -> None:
    task, optimizer = make_task(), adamw()
    shards = shards_of(task.init(0)[0])
    step = train.make_train_step(task, optimizer, lambda _: 0.1, seed=0, batch_size=8, shards=shards)
    whole = train.init_state(task, optimizer, 0)
    name, x = next((name, x) for name, x in tree.named_leaves(whole.params) if x.ndim > 1)
    with pytest.raises(
        ValueError, match=rf"^state: leaf '{name}': expected this rank's part, {x.numel()} num"
    ):
        step(whole, {})
    state, _ = step(train.init_state(task, optimizer, 0, split=shards.split), {})
    assert all(x.ndim == 1 for x in tree.leaves(state.params))


def test_parts_of_another_tree_are_refused() -> None:
    shards = shards_of({"a": torch.ones(2, 3), "b": torch.ones(2)})
    parts = shards.split({"a": torch.ones(2, 3), "b": torch.ones(2)})
    assert torch.equal(shards.gather(parts)["a"], torch.ones(2, 3))
    with pytest.raises(
        ValueError, match=r"^state: expected this rank's parts of the leaves \['a', 'b'\], got"
    ):
        shards.gather({"a": parts["a"]})
    with pytest.raises(ValueError, match=r"^params: expected at least one tensor to share out"):
        shards_of({})
