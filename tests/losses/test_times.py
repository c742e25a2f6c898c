from __future__ import annotations

import math

import pytest
import torch

from mfk.core import Rows
from mfk.losses import TimeConfig, draw_times, end_times, split_times


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal", "beta"])
def test_order_range_and_share(distribution) -> None:
    config = TimeConfig(distribution=distribution, jvp_share=0.25)
    r, t = draw_times(config, seed=0, step=3, rows=Rows.all(1000))
    assert r.shape == (1000, 1) and t.shape == (250, 1)
    assert (r >= 0).all() and (t <= 1).all() and (r[:250] <= t).all()


def test_distributions_against_their_moments() -> None:
    rows = Rows.all(200_000)
    whole = {"jvp_share": 1.0}
    for config, mean in (
        (TimeConfig("uniform", **whole), 0.5),
        (TimeConfig("beta", alpha=2, beta=5, **whole), 2 / 7),
        # E sigmoid(N(0.4, 1)) by quadrature.
        (TimeConfig("logit_normal", location=0.4, **whole), 0.5829),
    ):
        r, t = draw_times(config, seed=1, step=0, rows=rows)
        # min and max of two draws together have the mean of the distribution.
        assert float((r + t).mean()) / 2 == pytest.approx(mean, abs=2e-3)
    r, t = draw_times(TimeConfig("uniform", **whole), seed=1, step=0, rows=rows)
    assert float(r.mean()) == pytest.approx(1 / 3, abs=3e-3)
    assert float(t.mean()) == pytest.approx(2 / 3, abs=3e-3)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_micro_batches_hold_the_same_meanflow_rows(parts: int) -> None:
    total = 65
    config = TimeConfig(jvp_share=0.5)
    r, t = draw_times(config, 0, 0, Rows.all(total))
    seen = 0
    for k in range(parts):
        index = range(k, total, parts)
        part_r, part_t = draw_times(config, 0, 0, Rows(index, total))
        torch.testing.assert_close(part_r, r[k::parts], rtol=0, atol=0)
        torch.testing.assert_close(part_t, t[k::parts][: len(part_t)], rtol=0, atol=0)
        assert len(part_t) == len(t[k::parts])
        seen += len(part_t)
    assert seen == len(t) == round(0.5 * total)


def test_mfik_times_against_their_moments() -> None:
    """r ~ Beta(2, 5) and t ~ U(r, 1): E r = 2/7, E t = (1 + E r) / 2."""
    r, t = draw_times(TimeConfig("mfik", jvp_share=1.0), seed=2, step=0, rows=Rows.all(200_000))
    assert (t >= r).all() and float(t.max()) <= 1
    assert float(r.mean()) == pytest.approx(2 / 7, abs=2e-3)
    assert float(t.mean()) == pytest.approx((1 + 2 / 7) / 2, abs=2e-3)
    assert float(((t - r) / (1 - r)).var()) == pytest.approx(1 / 12, rel=0.02)


def test_a_setting_without_effect_is_refused() -> None:
    for config, name in (
        (TimeConfig(location=1.0), "location"),
        (TimeConfig("logit_normal", alpha=3.0), "alpha"),
        (TimeConfig("mfik", scale=2.0), "scale"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .* no effect"):
            draw_times(config, 0, 0, Rows.all(4))


def test_ends_of_the_share() -> None:
    assert len(draw_times(TimeConfig(jvp_share=0.0), 0, 0, Rows.all(8))[1]) == 0
    assert len(draw_times(TimeConfig(jvp_share=1.0), 0, 0, Rows.all(8))[1]) == 8


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (TimeConfig(jvp_share=1.5), "jvp_share"),
        (TimeConfig("logit_normal", scale=0.0), "scale"),
        (TimeConfig("logit_normal", scale=math.inf), "scale"),
        (TimeConfig("logit_normal", location=math.nan), "location"),
        (TimeConfig("beta", alpha=-1.0), "alpha"),
        (TimeConfig("beta", alpha=math.inf), "alpha"),
        (TimeConfig("mfik", beta=math.nan), "beta"),
        (TimeConfig("normal"), "distribution"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings(config: TimeConfig, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        draw_times(config, 0, 0, Rows.all(4))


R, T = torch.full((4, 1), 0.2), torch.full((4, 1), 0.9)


def test_end_times_of_given_start_times() -> None:
    config = TimeConfig(jvp_share=0.5)
    assert torch.equal(end_times(config, R, T, 0, 0, Rows.all(4)), T[:2])
    drawn = end_times(config, R, None, 0, 0, Rows.all(4))
    assert drawn.shape == (2, 1) and bool((drawn >= 0.2).all())


@pytest.mark.parametrize(
    ("r", "t", "error", "name"),
    [
        (R[:, 0], None, ValueError, "r"),
        (R[:1], None, ValueError, "r"),
        (R[:, 0], T, ValueError, "r"),
        (R, T[:2], ValueError, "t"),
        (R, T[:, 0], ValueError, "t"),
        (R, T.double(), TypeError, "t"),
        (R.long(), None, TypeError, "r"),
    ],
)
def test_times_that_would_broadcast_are_refused(r, t, error, name) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        end_times(TimeConfig(jvp_share=1.0), r, t, 0, 0, Rows.all(4))


@pytest.mark.parametrize(
    ("r", "t", "error", "name"),
    [
        (R, T.double(), TypeError, "t"),
        (R, None, TypeError, "t"),
        (R[:2], T[:2], ValueError, "r"),
        (R, T[:, 0], ValueError, "t"),
    ],
)
def test_times_that_cannot_be_split(r, t, error, name) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        split_times(r, t, 0, 0, Rows.all(4))
