"""Data files: what their rows are, and what their bytes depend on."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfk import kinematics
from mfk.core import Rows
from mfk.data import IKDataConfig, draw_ik, generate_ik, ik_generate, plan_ik
from mfk.losses import TimeConfig

PANDA = kinematics.panda()
ROWS = 100_000  # one block and a half
FIRST_SOLUTION = [1.579836, 1.598625, 1.517870, -2.124059, -1.872279, 3.740960, 0.300524]
START_TIMES = [0.202209, 0.133629]  # of the second block
KEYS = ["q", "target_pose", "q_target", "r", "t", "v_t"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "panda.pt"
    generate_ik(path, PANDA, rows=ROWS, seed=5)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 rows, for tests that need many blocks and not their numbers."""
    monkeypatch.setattr(ik_generate, "BLOCK", 64)


def load(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True, mmap=True)
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: x.double().numpy() for name, x in load(path).items()}


def panda_matrices(q: np.ndarray) -> np.ndarray:
    """panda_link0_T_panda_hand by the robot's published frames, [rows, 4, 4], apart from mfk."""
    quarter = math.pi / 2
    frames = [
        (0, 0, 0.333, 0), (0, 0, 0, -quarter), (0, -0.316, 0, quarter), (0.0825, 0, 0, quarter),
        (-0.0825, 0.384, 0, -quarter), (0, 0, 0, quarter), (0.088, 0, 0, quarter),
    ]  # fmt: skip
    result = np.tile(np.eye(4), (len(q), 1, 1))
    for (x, y, z, roll), angle in zip(frames, q.T, strict=True):
        c, s = math.cos(roll), math.sin(roll)
        result = result @ np.array([[1, 0, 0, x], [0, c, -s, y], [0, s, c, z], [0, 0, 0, 1]])
        result = result @ turn(angle)
    flange = np.eye(4)
    flange[2, 3] = 0.107
    return result @ flange @ turn(np.array([-math.pi / 4]))


def turn(angle: np.ndarray) -> np.ndarray:
    matrix = np.tile(np.eye(4), (len(angle), 1, 1))
    matrix[:, 0, 0] = matrix[:, 1, 1] = np.cos(angle)
    matrix[:, 1, 0] = np.sin(angle)
    matrix[:, 0, 1] = -np.sin(angle)
    return matrix


def rotations(quaternion: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def test_rows_are_what_they_are_defined_to_be(finished: Path) -> None:
    file = arrays(finished)
    assert list(file) == KEYS
    assert [file[name].shape for name in KEYS] == [(ROWS, width) for width in (7, 7, 7, 1, 1, 7)]
    assert all(x.dtype == torch.float32 for x in load(finished).values())
    reference = file["q_target"] - file["v_t"]
    path = (1 - file["r"]) * reference + file["r"] * file["q_target"]
    np.testing.assert_allclose(file["q"], path, atol=2e-6, rtol=0)
    exact = panda_matrices(file["q_target"])
    np.testing.assert_allclose(file["target_pose"][:, :3], exact[:, :3, 3], atol=2e-6, rtol=0)
    np.testing.assert_allclose(rotations(file["target_pose"][:, 3:]), exact[:, :3, :3], atol=5e-6, rtol=0)
    assert (file["target_pose"][:, 3] >= 0).all()
    assert (file["r"] >= 0).all() and (file["r"] <= file["t"]).all() and (file["t"] <= 1).all()
    upper = np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973])
    lower = np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973])
    for q, tolerance in ((file["q_target"], 0.0), (reference, 1e-6)):
        assert (q >= lower - tolerance).all() and (q <= upper + tolerance).all()
    # Uniform over the limits, noise of 0.1 rad, times of two sorted uniform numbers.
    np.testing.assert_allclose(file["q_target"].mean(0), (lower + upper) / 2, atol=0.03)
    assert file["v_t"][(np.abs(file["q_target"]) < 1.0).all(1)].std() == pytest.approx(0.1, rel=0.1)
    assert file["r"].mean() == pytest.approx(1 / 3, abs=5e-3)
    assert file["t"].mean() == pytest.approx(2 / 3, abs=5e-3)
    # No block repeats another.
    assert len(np.unique(file["q_target"], axis=0)) == ROWS


def test_settings_reach_the_rows(tmp_path: Path) -> None:
    generate_ik(
        tmp_path / "x.npz",
        kinematics.ur10(),
        rows=20_000,
        config=IKDataConfig("uniform"),
        times=TimeConfig("mfik", jvp_share=1.0),
    )
    file = arrays(tmp_path / "x.npz")
    assert file["q"].shape == (20_000, 6)
    assert file["r"].mean() == pytest.approx(2 / 7, abs=5e-3)
    assert ((file["t"] - file["r"]) / (1 - file["r"])).mean() == pytest.approx(0.5, abs=0.01)
    # Uniform references on (-pi, pi): the difference of two has this deviation.
    assert file["v_t"].std() == pytest.approx(math.sqrt(2 / 12) * 2 * math.pi, rel=0.01)


def test_the_first_row_stays_what_it_was(finished: Path) -> None:
    """Of a seed, for good: a file that somebody has published can be made again."""
    file = arrays(finished)
    np.testing.assert_allclose(file["q_target"][0], FIRST_SOLUTION, atol=1e-5)
    np.testing.assert_allclose(file["r"][65_536:65_538, 0], START_TIMES, atol=1e-6)


def test_formats_agree_and_bytes_depend_on_nothing_but_the_settings(finished: Path, tmp_path: Path) -> None:
    generate_ik(tmp_path / "other name.pt", PANDA, rows=ROWS, seed=5)
    assert (tmp_path / "other name.pt").read_bytes() == finished.read_bytes()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for name in ("a.npz", "b.npz"):
            generate_ik(tmp_path / name, PANDA, rows=ROWS, seed=5)
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    theirs = load(tmp_path / "a.npz")
    assert list(theirs) == KEYS
    assert all(torch.equal(theirs[name], x) for name, x in load(finished).items())
    # The size was known, but for the slack in what comes after the rows.
    assert 0 < plan_ik("x.npz", PANDA, ROWS).size - (tmp_path / "a.npz").stat().st_size < 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz", "other name.pt"]


def test_a_longer_file_begins_with_a_shorter_one(finished: Path, tmp_path: Path) -> None:
    for rows in (1, 65_537):
        generate_ik(tmp_path / f"{rows}.pt", PANDA, rows=rows, seed=5)
        shorter = load(tmp_path / f"{rows}.pt")
        for name, x in load(finished).items():
            assert shorter[name].numpy().tobytes() == x[:rows].numpy().tobytes()


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(["local", "uniform", "mixture"]))
@settings(max_examples=15)
def test_rows_depend_on_the_seed_and_their_number_alone(few: int, more: int, reference: str) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as name:
        folder = Path(name)
        patch.setattr(ik_generate, "BLOCK", 64)
        config = IKDataConfig(reference)  # pyright: ignore[reportArgumentType]
        for rows in (few, few + more):
            generate_ik(folder / f"{rows}.pt", PANDA, rows=rows, config=config)
        shorter, longer = load(folder / f"{few}.pt"), load(folder / f"{few + more}.pt")
        assert all(torch.equal(x[:few], shorter[name]) for name, x in longer.items())


def test_other_settings_make_other_rows(small: None, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"config": IKDataConfig(sigma=0.2)},
        {"config": IKDataConfig("mixture")},
        {"times": TimeConfig("mfik", jvp_share=1.0)},
    ]
    files = []
    for i, option in enumerate(options):
        generate_ik(tmp_path / f"{i}.pt", PANDA, rows=100, **option)
        files.append((tmp_path / f"{i}.pt").read_bytes())
    assert len(set(files)) == len(options)


def test_rows_are_not_those_of_a_training_with_the_same_seed(small: None, tmp_path: Path) -> None:
    generate_ik(tmp_path / "x.pt", PANDA, rows=64, seed=3)
    trained_on = draw_ik(PANDA, IKDataConfig(), 3, 0, Rows.all(64)).q_target
    assert not torch.isin(load(tmp_path / "x.pt")["q_target"], trained_on).all(1).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": 0}, ValueError, "^rows: expected at least 1, got 0"),
        ({"rows": True}, ValueError, "^rows: expected"),
        ({"path": "x.h5"}, ValueError, r"^x\.h5: expected a file's name that ends"),
        ({"config": IKDataConfig(sigma=-1.0)}, ValueError, "^sigma: expected"),
        ({"config": IKDataConfig(uniform_share=0.3)}, ValueError, "^uniform_share: .* no effect"),
        ({"times": TimeConfig()}, ValueError, "^jvp_share: expected 1"),
        ({"times": TimeConfig("mfik", alpha=-1.0, jvp_share=1.0)}, ValueError, "^alpha: expected"),
        ({"seed": 1.5}, TypeError, "^key: expected ints"),
    ],
)
def test_bad_settings_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], error: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        generate_ik(**{"path": "x.pt", "chain": PANDA, "rows": 10, **change})
    assert not list(tmp_path.iterdir())
