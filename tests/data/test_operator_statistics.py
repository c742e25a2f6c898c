"""Statistics of fields against loops, closed forms and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from mfk.data.operator_initial import (
    FILTERS,
    INITIAL,
    _bank,
    initial_statistics,
    morphology,
    mutual_information,
)
from mfk.data.operator_simulate import initial_fields
from mfk.data.operator_statistics import (
    BANDS,
    FIELD,
    FRAME_NAMES,
    TRAJECTORY_NAMES,
    agreement,
    field_statistics,
    trajectory_statistics,
)


def slow(field: np.ndarray) -> dict[str, float]:
    """The statistics of a field [n, n], in double precision, as the docstring has them."""
    n = len(field)
    centred = field - field.mean()
    variance = centred.var()
    power = np.abs(np.fft.fft2(centred)) ** 2 / n**4
    k = np.fft.fftfreq(n) * n
    wave = np.hypot(k[:, None], k)
    share = power / power.sum()
    counts = np.histogram(field, 16)[0] / field.size

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    def length(axis: int) -> float:
        kept = [(centred * np.roll(centred, lag, axis)).mean() / variance for lag in range(n)]
        return float(np.square(kept).sum())

    found = {
        "mean": field.mean(),
        "std": math.sqrt(variance),
        "area_above": (centred > 0).mean(),
        "flatness": np.abs(centred).mean() / math.sqrt(variance),
        "gradient_x": math.sqrt(((centred - np.roll(centred, 1, 1)) ** 2).mean()),
        "gradient_y": math.sqrt(((centred - np.roll(centred, 1, 0)) ** 2).mean()),
        "centroid": (share * wave).sum(),
        "spectral_entropy": entropy(share) / math.log(n * n),
        "length_x": length(1),
        "length_y": length(0),
        "entropy": entropy(counts) / math.log(16),
    }
    for i, (low, high) in enumerate(BANDS):
        found[f"band_{i}"] = share[(wave > low) & (wave <= high)].sum()
    return found


@pytest.mark.parametrize("size", [16, 17, 32])
def test_field_statistics_are_those_of_loops(size: int) -> None:
    fields, _ = initial_fields(0, 0, 12, size)
    found = field_statistics(fields)
    assert found.shape == (12, 2, len(FIELD))
    for row in range(12):
        for species in (0, 1):
            wanted = slow(fields[row, species].double().numpy())
            got: dict[str, float] = dict(zip(FIELD, found[row, species].tolist(), strict=True))
            assert got.keys() == wanted.keys()
            for name, value in wanted.items():
                # A value within rounding of a bin's edge may fall on either side.
                assert got[name] == pytest.approx(value, rel=2e-4, abs=4e-3 if name == "entropy" else 1e-5), (
                    name
                )


def test_statistics_of_known_fields() -> None:
    x = 2 * math.pi * torch.arange(32) / 32
    wave = (1 + torch.sin(3 * x)).expand(32, 32)
    got = dict(zip(FIELD, field_statistics(wave).tolist(), strict=True))
    assert got["centroid"] == pytest.approx(3, rel=1e-5) and got["band_1"] == pytest.approx(1, rel=1e-5)
    assert got["length_x"] == pytest.approx(16, rel=1e-4) and got["length_y"] == pytest.approx(32, rel=1e-4)
    assert got["spectral_entropy"] == pytest.approx(math.log(2) / math.log(1024), abs=1e-3)
    assert got["gradient_y"] == pytest.approx(0, abs=1e-3)
    turned = field_statistics(wave.T)
    assert float(turned[FIELD.index("length_y")]) == pytest.approx(16, rel=1e-4)
    assert bool(field_statistics(torch.ones(4, 32, 32)).isfinite().all())
    white = torch.from_numpy(np.random.default_rng(0).normal(size=(64, 32, 32))).float()
    mean = dict(zip(FIELD, field_statistics(white).mean(0).tolist(), strict=True))
    assert mean["flatness"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.005)
    assert mean["gradient_x"] == pytest.approx(math.sqrt(2), abs=0.01)


def test_trajectory_statistics_are_those_of_numpy() -> None:
    frames = torch.from_numpy(np.random.default_rng(1).random((12, 2, 3, 2, 16, 16))).float()
    frames[1:] = 0.5 * frames[1:] + 0.5 * frames[:-1].roll(1, -1)  # moves to the right
    initial, _ = initial_fields(0, 0, 3, 16)
    by_frame, found = trajectory_statistics(list(frames), initial)
    assert by_frame.shape == (3, 2, 12, len(FRAME_NAMES)) and found.shape == (3, 2, len(TRAJECTORY_NAMES))
    torch.testing.assert_close(found[..., : len(FRAME_NAMES)], by_frame[:, :, 6:].mean(2))
    torch.testing.assert_close(by_frame[..., 4, :15], field_statistics(frames[4, 0]))
    torch.testing.assert_close(by_frame[..., 4, 15:30], field_statistics(frames[4, 1]))
    half = frames.double().numpy()[6:]
    for species, letter in enumerate("uv"):
        for row in range(3):
            x = half[:, species, row, 1]
            r = {
                (lag, shift): np.mean(
                    [
                        np.corrcoef(x[t].ravel(), np.roll(x[t - lag], shift, 1).ravel())[0, 1]
                        for t in range(lag, 6)
                    ]
                )
                for lag, shift in ((1, 0), (4, 0), (1, 1))
            }
            end, start = x[-1].std(), float(initial[row, species].double().std(correction=0))
            wanted = {
                "growth": end / (end + start),
                "spread_in_time": math.sqrt(x.var(0).mean()),
                "change": math.sqrt((np.diff(x, axis=0) ** 2).mean()),
                "memory_1": (1 + r[1, 0]) / 2,
                "memory_4": (1 + r[4, 0]) / 2,
                "shifted_memory": (1 + r[1, 1]) / 2,
                "drift_of_mean": x.mean((1, 2)).std(),
            }
            for name, value in wanted.items():
                got = float(found[row, 1, TRAJECTORY_NAMES.index(f"{letter}_{name}")])
                assert got == pytest.approx(value, rel=1e-4), name
            assert wanted["shifted_memory"] > wanted["memory_1"] + 0.1


def test_agreement() -> None:
    x, y = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 8, 8))).float()
    wanted = [
        (1 + np.corrcoef(a.ravel(), b.ravel())[0, 1]) / 2 for a, b in zip(x.numpy(), y.numpy(), strict=True)
    ]
    np.testing.assert_allclose(agreement(x, y), wanted, rtol=1e-4)
    torch.testing.assert_close(agreement(x, 3 * x + 1), torch.ones(5))
    torch.testing.assert_close(agreement(x, -x), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(agreement(x, torch.ones_like(x)), torch.full((5,), 0.5), atol=1e-3, rtol=0)


def test_initial_statistics_have_the_documented_number() -> None:
    fields, _ = initial_fields(0, 0, 6, 32)
    found = initial_statistics(fields)
    assert found.shape == (6, 42) and [len(names) for names in INITIAL.values()] == [4, 3, 4, 3, 28]
    names = [name for each in INITIAL.values() for name in each]
    assert len(set(names)) == 42
    got = dict(zip(names, found.T.double().numpy(), strict=True))
    stats = field_statistics(fields).double().numpy()
    for letter, species in (("u", 0), ("v", 1)):
        for name in ("mean", "std", "entropy"):
            np.testing.assert_allclose(
                got[f"{letter}_{name}"], stats[:, species, FIELD.index(name)], rtol=1e-6
            )
    np.testing.assert_allclose(got["u_area"], stats[:, 0, FIELD.index("area_above")], rtol=1e-6)
    # The bank, by scipy: correlation with filters that are stretched by zeros.
    place = 0
    for i, (dilation, count) in enumerate(FILTERS):
        for each in _bank(i).double().numpy():
            stretched = np.zeros((2, 4 * dilation + 1, 4 * dilation + 1))
            stretched[:, ::dilation, ::dilation] = each
            for row, field in enumerate(fields.double().numpy()):
                response = sum(
                    scipy.ndimage.correlate(x, w, mode="wrap") for x, w in zip(field, stretched, strict=True)
                )
                rectified = np.maximum(response, 0)
                assert got[f"filter_{place:02d}_mean"][row] == pytest.approx(rectified.mean(), rel=1e-3)
                peak = math.sqrt((rectified**2).mean()) / rectified.mean()
                assert got[f"filter_{place:02d}_peak"][row] == pytest.approx(peak, rel=1e-3)
            place += 1
        assert len(_bank(i)) == count


def test_mutual_information() -> None:
    x = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    joint = np.histogram2d(x[0].numpy().ravel(), x[1].numpy().ravel(), 8)[0] / 1024
    product = joint.sum(1, keepdims=True) * joint.sum(0)
    wanted = (joint[joint > 0] * np.log(joint / product)[joint > 0]).sum() / math.log(8)
    assert float(mutual_information(x[0], x[1])) == pytest.approx(wanted, rel=1e-3)
    assert float(mutual_information(x[0], x[0])) > 0.99


def test_morphology_counts_pieces_and_holes() -> None:
    def count(cells: np.ndarray, neighbours: np.ndarray | None) -> int:
        labels: Any = scipy.ndimage.label(cells, neighbours)
        return labels[1]

    draw = np.random.default_rng(0)
    for _ in range(20):
        inside = np.zeros((16, 16), bool)
        inside[1:-1, 1:-1] = draw.random((14, 14)) > 0.4  # nothing goes around the torus
        pieces = count(inside, None)
        holes = count(~inside, np.ones((3, 3))) - 1  # one of them is the outside
        area, border, euler = morphology(torch.from_numpy(inside))
        assert float(euler) == pieces - holes
        sides = sum((inside != np.roll(inside, 1, axis)).sum() for axis in (0, 1))
        assert float(area) == pytest.approx(inside.mean()) and float(border) == pytest.approx(sides / 256)
