from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import mfk
from mfk.nn import dropout


def keys(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 2**31, (rows,), generator=torch.Generator().manual_seed(seed))


def kept(key: Tensor, site: int, count: int, rate: float = 0.5) -> Tensor:
    """Which of `count` elements of each row stay."""
    return dropout(torch.ones(*key.shape, count), rate, key, site) != 0


def lowbias32(x: int) -> int:
    """The published mixer in unsigned arithmetic of Python."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_the_hash_is_the_published_mixer() -> None:
    key, site = 2_147_483_647, 5
    row = lowbias32(key ^ lowbias32(site + 1))
    expected = [lowbias32(row ^ lowbias32(i + 1)) >= round(0.3 * 2**32) for i in range(200)]
    assert kept(torch.tensor([key]), site, 200, 0.3)[0].tolist() == expected


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_share_of_what_is_kept(rate: float) -> None:
    """Of all, in each row, and in each column, within five standard deviations of a binomial."""
    mask = kept(torch.arange(500), 3, 400, rate).double()
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(mask.mean() - (1 - rate)) < 5 * deviation / 200_000**0.5
    assert (mask.mean(0) - (1 - rate)).abs().max() < 5 * deviation / 500**0.5
    assert (mask.mean(1) - (1 - rate)).abs().max() < 5 * deviation / 400**0.5


def agreement(a: Tensor, b: Tensor) -> float:
    """How far the share of equal bits is from a half, in standard deviations."""
    return abs((a == b).double().mean().item() - 0.5) * 2 * a.numel() ** 0.5


def test_masks_of_sites_keys_and_elements_are_independent() -> None:
    key = keys(300)
    mask = kept(key, 0, 512)
    for site in (1, 2, 1000):
        assert agreement(mask, kept(key, site, 512)) < 5
    for neighbour in (1, 2, 256, 2**30):
        assert agreement(mask, kept(key ^ neighbour, 0, 512)) < 5
    # A key that differs as sites do, and a row's mask in another order.
    assert agreement(kept(torch.arange(300), 1, 512), kept(torch.arange(300) + 1, 0, 512)) < 5
    for step in (1, 2, 7, 256):
        assert agreement(mask[:, step:], mask[:, :-step]) < 5
        swapped = torch.arange(512) ^ step
        assert agreement(mask, kept(key ^ step, 0, 512)[:, swapped]) < 5


def test_every_row_has_a_mask_of_its_own_however_the_batch_is_split() -> None:
    x, key = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0)), keys(6)
    whole = dropout(x, 0.4, key, 2)
    assert torch.equal(whole, dropout(x, 0.4, key, 2))
    assert torch.equal(
        torch.cat([dropout(x[i::2], 0.4, key[i::2], 2) for i in (0, 1)]), whole[[0, 2, 4, 1, 3, 5]]
    )
    assert torch.equal(torch.stack([dropout(a, 0.4, k, 2) for a, k in zip(x, key, strict=True)]), whole)
    assert torch.equal(vmap(lambda a, k: dropout(a, 0.4, k, 2))(x, key), whole)
    assert torch.equal(vmap(lambda a, k: dropout(a, 0.4, k, 2))(x[None], key[None])[0], whole)
    assert len({tuple(row.flatten().tolist()) for row in whole != 0}) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kept_elements_are_scaled_and_the_mask_has_no_dtype(dtype: torch.dtype) -> None:
    x = torch.linspace(1, 2, 40).reshape(2, 20).to(dtype)
    out, mask = dropout(x, 0.75, keys(2), 0), kept(keys(2), 0, 20, 0.75)
    assert out.dtype == dtype
    assert torch.equal(out, torch.where(mask, 4 * x, 0))


def test_nothing_is_dropped_without_a_key_or_a_rate() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0, keys(3), 0) is x


def test_what_is_not_finite_stays_so() -> None:
    assert dropout(torch.full((2, 50), torch.nan), 0.5, keys(2), 0).isnan().all()


def value_and_rate(x: Tensor, key: Tensor) -> Tensor:
    pushed: tuple[Any, ...] = jvp(lambda y: dropout(y, 0.3, key, 1).square(), (x,), (x.cos(),))
    return (pushed[0] + pushed[1]).sum()


def test_forward_mode_and_gradient() -> None:
    x, key = torch.randn(4, 9, dtype=torch.float64), keys(4)
    factor = kept(key, 1, 9, 0.3) / 0.7
    expected = factor.square() * (2 * x + 2 * x.cos() - 2 * x * x.sin())
    torch.testing.assert_close(grad(value_and_rate)(x, key), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_compiled_with_the_key_as_an_argument() -> None:
    x = torch.randn(4, 9, dtype=torch.float64)
    compiled = mfk.jit(grad(value_and_rate))
    for seed in (0, 1):
        torch.testing.assert_close(compiled(x, keys(4, seed)), grad(value_and_rate)(x, keys(4, seed)))
    assert compiled.traces == 1


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, True, float("nan"), "0.5"])
def test_bad_rates(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"^dropout rate: expected a number in \[0, 1\)"):
        dropout(torch.zeros(2, 3), rate, None, 0)


def test_errors_name_the_argument() -> None:
    x = torch.zeros(4, 3)
    for key in (keys(3), keys(4)[:, None], keys(4).reshape(2, 2)):
        with pytest.raises(ValueError, match=r"^key: expected the shape \(4,\), one number per row"):
            dropout(x, 0.5, key, 0)
    for wrong in (keys(4).int(), keys(4).double(), 3):
        with pytest.raises(TypeError, match=r"^key: expected an int64 tensor or None"):
            dropout(x, 0.5, wrong, 0)  # pyright: ignore[reportArgumentType]
    for site in (-1, 2**31, True, 0.5):
        with pytest.raises(ValueError, match=r"^site: expected an int in \[0, 2\*\*31\)"):
            dropout(x, 0.5, keys(4), site)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"^x: expected a floating-point tensor"):
        dropout(keys(4), 0.5, keys(4), 0)
