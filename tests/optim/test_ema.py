from __future__ import annotations

import pytest
import torch

from mfk.core import tree
from mfk.optim import ema_update


def test_a_constant_is_approached_geometrically():
    ema = {"w": torch.zeros(2, dtype=torch.float64), "b": torch.zeros((), dtype=torch.float64)}
    params = tree.map(torch.ones_like, ema)
    held = ema["w"].data_ptr()
    for _ in range(10):
        ema = ema_update(ema, params, 0.9)
    assert ema["w"].data_ptr() == held
    for x in tree.leaves(ema):
        torch.testing.assert_close(x, torch.full_like(x, 1 - 0.9**10), rtol=1e-12, atol=0)


def test_the_flag_skips_bit_by_bit_and_otherwise_changes_nothing():
    g = torch.Generator().manual_seed(0)
    ema, params = (
        {"w": torch.randn(50, generator=g), "d": torch.randn(3, generator=g, dtype=torch.float64)}
        for _ in range(2)
    )
    before = tree.clone(ema)
    ema = ema_update(ema, params, 0.9, torch.ones(()))
    assert all(torch.equal(ema[k], before[k]) for k in ema)
    plain = ema_update(tree.clone(ema), params, 0.9)
    flagged = ema_update(ema, params, 0.9, torch.zeros(()))
    for k in plain:
        torch.testing.assert_close(flagged[k], plain[k], rtol=1e-6, atol=1e-7)


def test_layouts_may_differ():
    ema, params = torch.zeros(3, 2), torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(ema_update(ema, params, 0.5), 0.5 * params)


def test_ends():
    params = torch.ones(3)
    assert torch.equal(ema_update(torch.zeros(3), params, 1.0), torch.zeros(3))
    assert torch.equal(ema_update(torch.zeros(3), params, 0.0), params)
    assert ema_update({}, {}, 0.5) == {}


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan"), True])
def test_bad_decays(decay):
    with pytest.raises(ValueError, match="decay"):
        ema_update(torch.ones(1), torch.ones(1), decay)


def test_trees_that_differ():
    with pytest.raises(ValueError, match=r"params: leaf 'a'.*\(2,\).*\(3,\)"):
        ema_update({"a": torch.ones(2)}, {"a": torch.ones(3)}, 0.5)
    with pytest.raises(ValueError, match=r"missing \['a'\]"):
        ema_update({"a": torch.ones(2)}, {"b": torch.ones(2)}, 0.5)
