"""An ensemble's prediction and its calibration, against closed forms and SciPy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

from mfk import kinematics
from mfk.core import Model, tree
from mfk.data import IKDataConfig
from mfk.tasks import ik, ik_compare, ik_solve
from mfk.tasks.ik_uncertainty import (
    calibrate,
    calibration_lines,
    calibration_markdown,
    calibrations,
    predict,
    rank_correlation,
)

CHAIN = kinematics.panda()


def _network(members: int) -> tuple[Model, dict, dict]:
    model = ik.ik_model(CHAIN, ik.NetConfig(width=16, blocks=1))
    params = tree.stack([model.init(i)[0] for i in range(members)])
    # The last layer begins small: make the members differ.
    generator = torch.Generator().manual_seed(0)
    params = {n: p + 0.05 * torch.randn(p.shape, generator=generator) for n, p in params.items()}
    return model, params, tree.stack([model.init(i)[1] for i in range(members)])


def test_the_prediction_is_the_mean_and_the_spread_the_distance_from_it() -> None:
    k, (model, params, buffers) = 3, _network(3)
    problems = ik_compare.held_out(CHAIN, IKDataConfig(), 20)
    pose = kinematics.forward(CHAIN, problems.q_target.double())
    found = predict(CHAIN, model, params, buffers, pose, problems.q_reference)
    each = [
        ik_solve.solve_pose(
            CHAIN, model, tree.member(params, i), tree.member(buffers, i), pose, problems.q_reference
        )
        for i in range(k)
    ]
    assert found.q.dtype == torch.float32
    torch.testing.assert_close(found.q, sum(each) / k, atol=1e-5, rtol=0)
    mean = kinematics.forward(CHAIN, found.q.double())
    poses = [kinematics.forward(CHAIN, q.double()) for q in each]
    squares = torch.stack([(p[:, :3] - mean[:, :3]).square().sum(-1) for p in poses])
    moved = (squares.sum(0) / (k - 1)).sqrt()
    torch.testing.assert_close(found.spread.position, moved, rtol=1e-4, atol=0)
    # |<a, b>| of two unit quaternions is the cosine of half the angle between them.
    angles = [2 * (p[:, 3:] * mean[:, 3:]).sum(-1).abs().clamp(max=1).acos() for p in poses]
    turned = (torch.stack(angles).square().sum(0) / (k - 1)).sqrt()
    torch.testing.assert_close(found.spread.rotation, turned, rtol=1e-3, atol=1e-6)
    assert float(found.spread.position.min()) > 1e-4


def test_equal_members_have_no_spread_and_one_is_none() -> None:
    model, params, buffers = _network(2)
    params, buffers = ({n: x[:1].expand(2, *x.shape[1:]) for n, x in t.items()} for t in (params, buffers))
    problems = ik_compare.held_out(CHAIN, IKDataConfig(), 5)
    pose = kinematics.forward(CHAIN, problems.q_target.double())
    found = predict(CHAIN, model, params, buffers, pose, problems.q_reference)
    assert float(found.spread.position.max()) < 1e-6 and float(found.spread.rotation.max()) < 1e-6
    with pytest.raises(ValueError, match="params: expected at least two members, stacked, got 1"):
        predict(CHAIN, model, {n: p[:1] for n, p in params.items()}, buffers, pose, problems.q_reference)


def _scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    result: Any = spearmanr(x.numpy(), y.numpy())
    return float(result.statistic)


def test_rank_correlation_equals_scipys() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, generator=generator, dtype=torch.float64)
    y = x + torch.randn(200, generator=generator, dtype=torch.float64)
    for a, b in ((x, y), (x, -y), ((4 * x).round(), (2 * y).round())):
        assert rank_correlation(a, b) == pytest.approx(_scipy(a, b), abs=1e-12)
    assert math.isnan(rank_correlation(x, torch.ones(200)))
    assert math.isnan(rank_correlation(x, torch.full((200,), math.nan)))


def test_a_spread_that_is_right() -> None:
    """Errors |e| with e ~ N(0, spread^2): coverage erf(c / sqrt 2), rms error = spread in every bin."""
    rows, generator = 40_000, torch.Generator().manual_seed(2)
    spread = torch.linspace(0.5, 5.0, rows, dtype=torch.float64)[torch.randperm(rows, generator=generator)]
    errors = (spread * torch.randn(rows, generator=generator, dtype=torch.float64)).abs()
    found = calibrate(errors, spread, "mm")
    for c, share in found.coverage.items():
        assert share == pytest.approx(math.erf(int(c) / math.sqrt(2)), abs=0.01)
    assert found.factor_90 == pytest.approx(1.645, abs=0.03)
    assert [b.poses for b in found.bins] == [4_000] * 10
    assert all(b.error == pytest.approx(b.spread, rel=0.06) for b in found.bins)
    assert [b.spread for b in found.bins] == sorted(b.spread for b in found.bins)
    assert 0.3 < found.rank_correlation < 0.9


def test_few_rows_and_bad_ones() -> None:
    found = calibrate(torch.tensor([1.0, 0.0, 4.0]), torch.tensor([1.0, 0.0, 2.0]), "mm")
    assert [b.poses for b in found.bins] == [1, 1, 1] and found.rank_correlation == pytest.approx(1.0)
    assert found.coverage == pytest.approx({"1": 2 / 3, "2": 1.0, "3": 1.0}) and found.factor_90 == 2
    for errors, spread in ((torch.ones(2), torch.ones(3)), (torch.ones(0), torch.ones(0))):
        with pytest.raises(ValueError, match="errors, spread: expected vectors of one length"):
            calibrate(errors, spread, "mm")


def test_the_text_of_the_report() -> None:
    errors = ik.PoseErrors(torch.tensor([1e-3, 4e-3]), torch.tensor([math.pi / 180, math.pi / 90]))
    spread = ik.PoseErrors(torch.tensor([1e-3, 2e-3]), torch.tensor([math.pi / 180, math.pi / 60]))
    found = calibrations(errors, spread)
    text = "\n".join(calibration_markdown(4, found))
    assert "of 4 networks" in text and "50.0 % within 1 x spread" in text
    assert "| 1 | 2 | 4 | 2.00 |" in text and "| 1 | 3 | 2 | 0.67 |" in text
    assert [line.split(":")[0] for line in calibration_lines(found)] == ["position", "rotation"]
