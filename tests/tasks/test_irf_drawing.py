"""Pictures of responses: what is drawn is an ensemble's mean, with its calibrated bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mfk.data.worlds import WORLDS
from mfk.tasks import irf, irf_data
from mfk.tasks.irf_drawing import draw_estimates, draw_responses, response_figure
from mfk.tasks.irf_measure import Member, deviation, emulated
from mfk.tasks.irf_net import IRFNetConfig, IRFNets, irf_nets

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.fast

SPLITS = ("test_interpolation", "test_extrapolation_corner")


@pytest.fixture(scope="module")
def made() -> tuple[IRFNets, list[Member], irf_data.IRFData]:
    data = irf_data.open_irf(irf_data.IRFDataConfig(worlds=("lss",), samples=60), 0)
    nets = irf_nets(IRFNetConfig(trunk_dim=8, trunk_layers=1), data.worlds, 40)
    task = irf.irf_task(nets, irf_data.measure_scale(nets, data), irf.IRFConfig())
    members = []
    for seed in range(3):
        params, state = task.init(seed)
        generator = torch.Generator().manual_seed(seed)
        noise = {name: 0.1 * torch.randn(x.shape, generator=generator) for name, x in params.items()}
        members.append(({name: x + noise[name] for name, x in params.items()}, state))
    return nets, members, data


def test_an_ensembles_mean_and_bars_are_drawn(made) -> None:
    nets, members, data = made
    world = WORLDS["lss"]
    samples = {split: data.samples[split]["lss"] for split in SPLITS}
    figure = response_figure(nets, members, world, samples, 2.5, 2)
    each = {
        split: torch.stack(
            [emulated(nets, params, state, world, samples[split].theta[:2]) for params, state in members]
        )
        for split in SPLITS
    }
    axis = figure.axes[3 + 1]  # shock 1, inflation
    expected = []
    for split in SPLITS:
        n = len(samples[split].theta[:2])
        expected += [samples[split].irf[row, 1, :, 1] for row in range(n)]
        expected += [each[split].mean(0)[row, 1, :, 1] for row in range(n)]
    assert len(axis.lines) == len(expected)
    for line, path in zip(axis.lines, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), path.numpy(), rtol=1e-6)
    # The bands' lower and upper edges.
    bands = [
        (each[split].mean(0)[row, 1, :, 1], 2.5 * deviation(each[split])[row, 1, :, 1])
        for split in SPLITS
        for row in range(each[split].shape[1])
    ]
    assert len(axis.collections) == len(bands)
    for drawn, (middle, bar) in zip(axis.collections, bands, strict=True):
        y = drawn.get_paths()[0].vertices[:, 1]
        assert y.min() == pytest.approx(float((middle - bar).min()), rel=1e-5)
        assert y.max() == pytest.approx(float((middle + bar).max()), rel=1e-5)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [
        "exact", "emulated, mean of 3", "± 2.5 deviations: 95 % of the validation's errors", "in range",
        "held-out corner",
    ]  # fmt: skip
    assert figure.axes[0].get_ylabel() == "to shock_0, fraction" and figure.axes[1].get_title() == "inflation"


def test_a_single_emulator_has_no_bars(made, tmp_path: Path) -> None:
    nets, members, data = made
    samples = {split: data.samples[split]["lss"] for split in SPLITS}
    figure = response_figure(nets, members[:1], WORLDS["lss"], samples, None, 2)
    assert not any(axis.collections for axis in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["exact", "emulated"]
    written = draw_responses(tmp_path / "new", nets, members, data, {"lss": 1.5})
    assert written == [tmp_path / "new" / "responses_lss.png"] and written[0].stat().st_size > 10_000


def test_the_picture_of_an_estimate_says_what_its_band_is(tmp_path: Path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    response = torch.randn(21, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw_estimates(tmp_path / "x.png", response, 0.1 + response.abs(), {"solver": response}, "words")
    words = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert words == ["measured, ± two deviations", "measured", "exact, through the solver"]
