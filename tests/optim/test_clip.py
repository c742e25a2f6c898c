from __future__ import annotations

import math

import pytest
import torch

from mfk.optim import clip_by_global_norm


def test_against_torch():
    g = torch.Generator().manual_seed(0)
    grads = {
        "a": torch.randn(3, 4, generator=g),
        "b": [torch.randn(5, generator=g), torch.randn((), generator=g)],
    }
    parameters = [torch.nn.Parameter(torch.zeros_like(x)) for x in (grads["a"], *grads["b"])]
    for p, x in zip(parameters, (grads["a"], *grads["b"]), strict=True):
        p.grad = x.clone()
    norm_theirs = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    clipped, norm = clip_by_global_norm(grads, 0.5)
    torch.testing.assert_close(norm, norm_theirs)
    for x, p in zip((clipped["a"], *clipped["b"]), parameters, strict=True):
        torch.testing.assert_close(x, p.grad, rtol=1e-5, atol=1e-7)


def test_it_is_pure_and_exact_below_the_limit():
    grads = {"a": torch.tensor([3.0, 4.0])}
    same, norm = clip_by_global_norm(grads, 5.0)
    assert torch.equal(same["a"], grads["a"]) and norm.item() == 5.0
    half, _ = clip_by_global_norm(grads, 2.5)
    assert torch.equal(half["a"], torch.tensor([1.5, 2.0])) and grads["a"][0] == 3.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_entry_is_not_hidden(bad):
    grads = {"a": torch.ones(3), "b": torch.tensor([1.0, bad])}
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert not torch.isfinite(norm)
    assert clipped["a"].isnan().all() and clipped["b"].isnan().all()


def test_dtypes_are_kept():
    grads = {
        "a": torch.ones(3),
        "b": torch.ones(2, dtype=torch.float64),
        "c": torch.ones(4, dtype=torch.bfloat16),
    }
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert {k: x.dtype for k, x in clipped.items()} == {k: x.dtype for k, x in grads.items()}
    torch.testing.assert_close(norm.double(), torch.tensor(3.0).double())
    torch.testing.assert_close(clipped["b"], torch.full((2,), 1 / 3).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf, True])
def test_bad_limits(limit):
    with pytest.raises(ValueError, match="max_norm"):
        clip_by_global_norm({"a": torch.ones(2)}, limit)


def test_an_empty_tree():
    with pytest.raises(ValueError, match="empty"):
        clip_by_global_norm({}, 1.0)
