"""Data sets that are not of the worlds that they name, and what tells one from another."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from mfk.data import generate_irf
from mfk.tasks.irf_data import IRFDataConfig, data_record, open_irf

pytestmark = pytest.mark.fast

ALL = ("nk", "var", "lss")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "v1"
    generate_irf(root, samples=60)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "v1"))


def read(root: Path, worlds: tuple[str, ...] = ALL, **options: Any) -> Any:
    return open_irf(IRFDataConfig(data=root, worlds=worlds, **options), 0)


def change(root: Path, world: str, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    array: Any = zarr.open_array(root / world / f"{name}.zarr", mode="r+")
    array[:] = how(np.asarray(array[:]))


@pytest.mark.parametrize("world", ALL)
@pytest.mark.parametrize("key", ["param_manifest", "shock_manifest"])
def test_names_are_the_worlds(root: Path, world: str, key: str) -> None:
    file = root / "manifest.json"
    manifest = json.loads(file.read_text())
    told = manifest["simulators"][world][key]
    first, last = told["names"][0], told["names"][-1]
    told["names"].reverse()
    file.write_text(json.dumps(manifest))
    message = rf"^data: .*manifest\.json: {key} of world {world}: expected '{first}' at place 0, got '{last}'"
    with pytest.raises(ValueError, match=message):
        read(root, (world,))
    # A manifest need not tell them.
    del told["names"]
    file.write_text(json.dumps(manifest))
    assert len(read(root, (world,)).samples["train"][world].theta) == 48


@pytest.mark.parametrize("world", ALL)
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("theta", lambda x: x[:, ::-1]),
        ("theta", lambda x: np.roll(x, 1, axis=0)),  # of the sample before
        ("irfs", lambda x: 0.01 * x),
        ("irfs", lambda x: x[:, ::-1]),
        ("irfs", lambda x: x * 1.001),
        ("irfs", lambda x: x[..., ::-1]),
    ],
)
def test_responses_are_those_of_the_parameters(root: Path, world: str, name: str, how: Any) -> None:
    change(root, world, name, how)
    with pytest.raises(
        ValueError, match=rf"^data: .*v1/{world}: (expected responses of|of the samples \d+, )"
    ):
        read(root, (world,))
    read(root, tuple(set(ALL) - {world}))
    open_irf(IRFDataConfig(data=root, worlds=(world,), compare=False), 0)


@pytest.mark.parametrize("world", ALL)
def test_a_rounded_last_bit_is_no_mistake(root: Path, world: str) -> None:
    """Parameters that were rounded after they had been solved, and responses of another library's sums."""
    rng = np.random.default_rng(0)
    for name in ("theta", "irfs"):
        change(root, world, name, lambda x: x * (1 + rng.uniform(-1.2e-7, 1.2e-7, x.shape).astype(x.dtype)))
    read(root, (world,))


def test_what_is_shown_is_what_is_there(root: Path) -> None:
    sample = json.loads((root / "nk" / "splits.json").read_text())["val"][0]

    def spoilt(x: np.ndarray) -> np.ndarray:
        x[sample, 2, 7, 1] = 0.5
        return x

    change(root, "nk", "irfs", spoilt)
    message = (
        rf"got others in 1 of \d+ .* Sample {sample}, shock cost_push, period 7, inflation: .* got 0\.5\. "
        "--no-compare"
    )
    with pytest.raises(ValueError, match=message):
        read(root)


def test_responses_that_begin_late_are_not_compared(root: Path) -> None:
    def late(x: np.ndarray) -> np.ndarray:
        return np.concatenate((np.zeros_like(x[:, :, :1]), x[:, :, :-1]), 2)

    change(root, "nk", "irfs", late)
    with pytest.raises(ValueError, match="one_period_late=True"):
        read(root, ("nk",))
    read(root, ("nk",), one_period_late=True)
    change(root, "lss", "irfs", late)
    with pytest.raises(ValueError, match="v1/lss: expected responses of the stored parameters"):
        read(root, one_period_late=True)


def test_a_record_tells_data_that_changed(root: Path) -> None:
    config = IRFDataConfig(data=root, worlds=("nk", "lss"))
    before = data_record(config)
    assert data_record(config) == before and len(before.splitlines()) == 3 + 4
    for name in ("manifest.json", "lss/splits.json", "nk/irfs.zarr/zarr.json", "lss/theta.zarr/c/0/0"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(content + b" ")
        assert data_record(config) != before, name
        (root / name).write_bytes(content)
    (root / "nk" / "theta.zarr" / "c" / "0" / "1").touch()
    assert data_record(config) != before
    (root / "var" / "splits.json").unlink()  # of a world that is not asked for
    assert len(data_record(config).splitlines()) == 7


def test_files_that_are_missing_are_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.rmtree(root / "nk" / "irfs.zarr")
    with pytest.raises(FileNotFoundError, match=r"^data: .*nk/irfs\.zarr: there is no such array"):
        data_record(IRFDataConfig(data=root))
    os.remove(root / "nk" / "splits.json")
    with pytest.raises(FileNotFoundError, match=r"^data: .*nk/splits\.json: there is no such file"):
        data_record(IRFDataConfig(data=root))
    monkeypatch.chdir(root)
    for call in (data_record, lambda config: open_irf(config, 0)):
        seen = re.escape(str(root))
        with pytest.raises(FileNotFoundError, match=rf"^data: there is no folder v1, seen from {seen}$"):
            call(IRFDataConfig(data=Path("v1")))
        with pytest.raises(FileNotFoundError, match=r"^data: there is no folder /nowhere/v1$"):
            call(IRFDataConfig(data=Path("/nowhere/v1")))
