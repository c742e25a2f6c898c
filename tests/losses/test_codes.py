"""Losses of codes against scipy, sums by hand, and finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

import mfk
from mfk.losses import codebook_error, commitment, informativeness, orthogonality, topographic


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The loss, its inputs, and which of them have a gradient.
LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[bool, ...]]] = {
    "commitment": (commitment, (numbers(4, 3), numbers(4, 3, seed=1)), (True, False)),
    "codebook_error": (codebook_error, (numbers(4, 3), numbers(4, 3, seed=1)), (False, True)),
    "orthogonality": (orthogonality, (numbers(2, 4, 3),), (True,)),
    "informativeness": (informativeness, (numbers(3, 4, 5), numbers(4, 5, seed=1)), (True, True)),
    "topographic": (topographic, (numbers(6, 3), numbers(6, 4, seed=1)), (True, True)),
}
each = pytest.mark.parametrize("name", LOSSES)


@each
def test_gradients_are_finite_differences_where_there_should_be_one(name: str) -> None:
    loss, inputs, has = LOSSES[name]

    def total(*inputs: Tensor) -> Tensor:
        return loss(*inputs).sum()

    found = grad(total, argnums=tuple(range(len(inputs))))(*inputs)
    for i, x in enumerate(inputs):
        if not has[i]:
            assert not found[i].any()
            continue
        for place in range(x.numel()):
            step = torch.zeros_like(x).flatten()
            step[place] = 1e-6
            up, down = ([*inputs[:i], x + s * step.reshape(x.shape), *inputs[i + 1 :]] for s in (1, -1))
            expected = (total(*up) - total(*down)) / 2e-6
            assert found[i].flatten()[place].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-8)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `mfk.jit` traced stands for the compiled code."""
    monkeypatch.setattr(
        "mfk.core.compiler.jitted.compile_graph", lambda graph, fakes: lambda inputs: graph(*inputs)
    )


@each
def test_traced_and_stacked_calls_agree(name: str, graph: None) -> None:
    loss, inputs, _ = LOSSES[name]
    torch.testing.assert_close(mfk.jit(loss)(*inputs), loss(*inputs))
    gradient = mfk.jit(grad(lambda *x: loss(*x).sum()))(*inputs)
    torch.testing.assert_close(gradient, grad(lambda *x: loss(*x).sum())(*inputs))
    stacked = [torch.stack((x, 2 * x.flip(0))) for x in inputs]
    expected = torch.stack([loss(*(x[i] for x in stacked)) for i in (0, 1)])
    torch.testing.assert_close(vmap(loss)(*stacked), expected)


def test_values_by_hand() -> None:
    z, e = torch.tensor([[1.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.5]])
    assert commitment(z, e).tolist() == codebook_error(z, e).tolist() == [5.0, 0.125]
    partial = torch.stack((z, e))
    assert informativeness(partial, z).tolist() == [2.5, 0.0625]
    corner = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert orthogonality(corner).item() == pytest.approx((0 + 0.5 + 0.5) / 3)


def test_orthogonality_is_the_mean_over_pairs() -> None:
    v = numbers(5, 4, 7)
    pairs = [torch.cosine_similarity(v[:, g], v[:, h], -1) ** 2 for g, h in combinations(range(4), 2)]
    torch.testing.assert_close(orthogonality(v), torch.stack(pairs).mean(0))
    torch.testing.assert_close(orthogonality(v * 1e-200), orthogonality(v))
    assert orthogonality(v[:, :1]).tolist() == [0.0] * 5


def test_a_vector_of_zeros_is_no_nan() -> None:
    v = torch.cat((torch.zeros(1, 3, dtype=torch.float64), numbers(2, 3)))
    expected = torch.cosine_similarity(v[1], v[2], 0) ** 2 / 3
    torch.testing.assert_close(orthogonality(v), expected)
    assert grad(orthogonality)(v).isfinite().all() and not grad(orthogonality)(v)[0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_topographic_is_the_correlation_of_scipys_distance_matrices(
    dtype: torch.dtype, offset: float
) -> None:
    from scipy.spatial.distance import cdist

    x = numbers(40, 5)
    y = torch.cat((x[:, :3] + 0.3 * numbers(40, 3, seed=1), numbers(40, 2, seed=2)), 1)[:, :4].round()
    x, y = (x + offset).to(dtype), y.to(dtype)
    r = np.corrcoef(cdist(x, x).ravel(), cdist(y, y).ravel())[0, 1]
    assert topographic(x, y).item() == pytest.approx(1 - r, rel=1e-4 if dtype == torch.float32 else 1e-10)
    assert topographic(x, 7 * x).item() == pytest.approx(0, abs=1e-6)
    for scale in (1e-30, 1e30):
        assert topographic(scale * (x - offset), y).item() == pytest.approx(1 - r, rel=1e-4)


def test_distances_of_several_are_averaged_before_they_are_compared() -> None:
    from scipy.spatial.distance import cdist

    x = numbers(30, 6)
    parts = [x[:, :2], 3 * x[:, 2:5], numbers(30, 1, seed=5)]
    mean = sum(cdist(p, p) for p in parts) / 3
    r = np.corrcoef(cdist(x, x).ravel(), np.ravel(mean))[0, 1]
    assert topographic(x, parts).item() == pytest.approx(1 - r, rel=1e-10)
    assert topographic(parts, x).item() == pytest.approx(1 - r, rel=1e-10)
    assert topographic(parts, [2 * p for p in parts]).item() == pytest.approx(0, abs=1e-10)
    found = grad(lambda parts: topographic(x, parts))(parts)
    for i, p in enumerate(parts):
        step = torch.zeros_like(p)
        step[4, 0] = 1e-6
        up, down = ([*parts[:i], p + s * step, *parts[i + 1 :]] for s in (1, -1))
        slope = (topographic(x, up) - topographic(x, down)).item() / 2e-6
        assert found[i][4, 0].item() == pytest.approx(slope, rel=1e-4)


def test_rows_that_coincide_have_a_finite_gradient_of_zero_among_themselves() -> None:
    # As after quantisation: 30 rows on 4 codes.
    y = numbers(4, 6, seed=3).float()[torch.arange(30) % 4]
    x = numbers(30, 5).float()
    g = grad(topographic, argnums=1)(x, y)
    assert g.isfinite().all() and g.abs().max() < 1
    exact = grad(topographic, argnums=1)(x.double(), y.double())
    torch.testing.assert_close(g.double(), exact, rtol=1e-3, atol=1e-6)


def test_rows_all_alike_give_one_without_gradient_traced_or_not(graph: None) -> None:
    x, y = numbers(5, 3).float(), torch.full((5, 2), 0.1)
    for loss in (topographic, mfk.jit(topographic)):
        assert loss(x, y) == 1 and loss(y, x) == 1 and loss(y, y) == 1
    assert all(not g.any() for g in grad(topographic, argnums=(0, 1))(x, y))


def test_what_is_not_finite_is_not_hidden() -> None:
    x = numbers(5, 3)
    for bad in (float("nan"), float("inf")):
        y = x.clone()
        y[2, 1] = bad
        assert topographic(x, y).isnan() and topographic(y, x).isnan()
        assert orthogonality(y).isnan()
        assert not commitment(y, x)[2].isfinite()


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "widths differ": (lambda: commitment(numbers(4, 3), numbers(4, 2)), ValueError, "e: .*z"),
    "dtypes differ": (
        lambda: codebook_error(numbers(4, 3), numbers(4, 3).float()),
        TypeError,
        "e: .*float64",
    ),
    "one vector": (lambda: orthogonality(numbers(3)), ValueError, "vectors"),
    "whole numbers": (lambda: orthogonality(torch.ones(2, 2).long()), TypeError, "vectors"),
    "no codes": (lambda: informativeness(numbers(0, 4, 5), numbers(4, 5)), ValueError, "partial.*L >= 1"),
    "would broadcast": (lambda: informativeness(numbers(2, 1, 5), numbers(4, 5)), ValueError, "partial"),
    "two rows": (lambda: topographic(numbers(2, 3), numbers(2, 3)), ValueError, "at least 3, got 2"),
    "other rows": (lambda: topographic(numbers(5, 3), numbers(4, 3)), ValueError, "y: .*got 4; x has 5"),
    "no tensor": (lambda: topographic(numbers(5, 3), []), ValueError, "y: .*list"),
    "more axes": (lambda: topographic(numbers(5, 3, 2), numbers(5, 3)), ValueError, "x: "),
    "other dtypes": (lambda: topographic(numbers(5, 3), numbers(5, 3).float()), TypeError, "y: "),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str) -> None:
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()
