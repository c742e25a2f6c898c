"""What the benchmarks say of their network is so, and both ways to write a loss are one."""

from __future__ import annotations

from functools import partial

import networks
import pytest
import timing
import torch
import versus_eager_peers
from torch.func import grad

from mfk import jit, losses
from mfk.core.compiler.report import count


@pytest.mark.parametrize(("loss", "products"), [(None, 29), ("meanflow", 39)])
def test_the_number_of_matrix_products(loss: str | None, products: int) -> None:
    model = networks.model(width=16)
    params, _ = model.init(0)
    gradient = grad(networks.objective(model, networks.FAMILY.get(loss or "")))
    assert count(jit(gradient, matmul="default").graph(params, networks.batch(8))).matmuls == products


@pytest.mark.parametrize("name", networks.FAMILY)
def test_rows_with_an_end_time_come_first_and_the_others_are_flow_matching(name: str) -> None:
    model = networks.model(width=8, blocks=1)
    params, _ = model.init(0)
    batch = networks.batch(8, share=0.25)
    assert [len(batch[k]) for k in "zvrst"] == [8, 8, 8, 2, 2]
    assert bool((batch["r"][:2] <= batch["s"]).all() & (batch["s"] <= batch["t"]).all())
    u = partial(model.apply, params, {})
    first = networks.FAMILY[name](u, {k: x[:2] for k, x in batch.items()})
    rest = losses.flow_matching(u, batch["z"][2:], batch["v"][2:], batch["r"][2:])
    mean = (first.sum() + rest.sum()) / 8
    torch.testing.assert_close(networks.objective(model, networks.FAMILY[name])(params, batch), mean)


def test_the_peers_compute_the_same_gradient() -> None:
    width = 8
    params, _ = networks.model(width).init(0)
    first, *others = versus_eager_peers.peers(width).values()
    batch = networks.batch(16)
    for other in others:
        assert networks.difference(other(params, batch), first(params, batch)) < 1e-5
    assert networks.difference({k: 2 * x for k, x in params.items()}, params) == pytest.approx(1.0)


def test_cases_take_turns() -> None:
    calls: list[str] = []
    times = timing.interleaved({k: partial(calls.append, k) for k in "ab"}, repeats=2, warm=1)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert all(0 < value.least <= value.median for value in times.values())


def test_a_check_holds_up_to_its_limit() -> None:
    assert timing.Check("", 1.0, 1.0).holds and not timing.Check("", 1.001, 1.0).holds
    assert timing.Check("", 1.334, 4 / 3, "about").holds and not timing.Check("", 1.36, 4 / 3, "about").holds
