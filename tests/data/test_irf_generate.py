"""Data sets of impulse responses: what is in them, what their bytes depend on, and work gone on with."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from mfk.data import SPLITS, IRFDataset, generate_irf, irf_generate, split_samples
from mfk.data.worlds import WORLDS, draw_theta, lss, superpose
from mfk.data.worlds.state_space import state_radius

N = 230
ALL = ("nk", "var", "lss")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 50 samples, for tests that need many blocks and not their numbers."""
    monkeypatch.setattr(irf_generate, "BLOCK", 50)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "new" / "v1"
    generate_irf(root, samples=N)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def arrays(root: Path, world: str) -> dict[str, np.ndarray]:
    names = ("theta", "irfs", "trajectories", "shocks")
    return {name: np.asarray(zarr.open_array(root / world / f"{name}.zarr", mode="r")[:]) for name in names}


@pytest.mark.parametrize("name", ALL)
def test_arrays_are_of_the_documented_layout_and_of_their_parameters(finished: Path, name: str) -> None:
    world, found = WORLDS[name], arrays(finished, name)
    count, size = len(world.shocks.names), len(world.parameters.names)
    assert {key: x.shape for key, x in found.items()} == {
        "theta": (N, size), "irfs": (N, count, 41, 3), "trajectories": (N, 200, 3), "shocks": (N, 200, count),
    }  # fmt: skip
    assert {x.dtype for x in found.values()} == {np.dtype("float32")}
    theta = torch.from_numpy(found["theta"]).double()
    torch.testing.assert_close(theta, draw_theta(world, 42, range(N)), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        torch.from_numpy(found["irfs"]), world.irf(theta).float(), rtol=1e-6, atol=1e-12
    )
    path = world.simulate(theta, torch.from_numpy(found["shocks"]).double())
    torch.testing.assert_close(torch.from_numpy(found["trajectories"]), path.float(), rtol=1e-5, atol=1e-9)
    if name != "var":  # which has constants
        torch.testing.assert_close(
            path, superpose(world.irf, theta, torch.from_numpy(found["shocks"]).double())
        )
    array = zarr.open_array(finished / name / "irfs.zarr", mode="r")
    assert array.chunks == (N, count, 41, 3) and array.metadata.zarr_format == 3
    assert array.attrs["horizon_range"] == "0..40" and array.attrs["convention"]
    assert zarr.open_array(finished / name / "shocks.zarr", mode="r").attrs["units"] == "standard deviations"


def test_manifest_has_what_is_required(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest.keys() >= {"version", "created_at", "git_hash", "simulators", "splits", "rng_seeds"}
    assert (manifest["version"], manifest["T"], manifest["H"]) == ("1.0.0", 200, 40)
    assert list(manifest["splits"]) == list(SPLITS) and manifest["rng_seeds"]["global"] == 42
    assert sum(split["fraction"] for split in manifest["splits"].values()) == pytest.approx(1.0)
    sizes = {"nk": (12, 3), "var": (27, 3), "lss": (36, 2)}
    assert list(manifest["simulators"]) == list(sizes)
    for name, (size, count) in sizes.items():
        told = manifest["simulators"][name]
        assert told["n_samples"] == N and told["config_hash"] and told["obs_manifest"]["n_canonical"] == 3
        assert {key: len(x) for key, x in told["param_manifest"].items() if key != "priors"} == {
            "names": size, "units": size, "bounds": size, "defaults": size,
        }  # fmt: skip
        assert told["shock_manifest"]["n_shocks"] == len(told["shock_manifest"]["names"]) == count
    told = manifest["simulators"]["nk"]["param_manifest"]
    assert told["names"][3] == "phi_pi" and told["bounds"][3] == [1.05, 3.5] and told["defaults"][3] == 1.5


@pytest.mark.parametrize("name", ALL)
def test_splits_are_disjoint_cover_all_and_hold_the_regions_out(finished: Path, name: str) -> None:
    splits = json.loads((finished / name / "splits.json").read_text())
    assert list(splits) == list(SPLITS)
    assert sorted(itertools.chain(*splits.values())) == list(range(N))
    assert [len(splits[split]) for split in SPLITS[:2]] == [184, 23] and len(splits[SPLITS[3]]) == 5
    assert 5 <= len(splits[SPLITS[4]]) <= 6 and splits["train"] != sorted(splits["train"])
    # By hand, from the files and the manifest's bounds.
    world = WORLDS[name]
    theta = torch.from_numpy(arrays(finished, name)["theta"]).double()
    statistic = theta[:, 3] if name == "nk" else world.persistence(theta)
    held_out = json.loads((finished / "manifest.json").read_text())["simulators"][name]["held_out"]
    in_slice = statistic > held_out["slice"]["above"]
    in_corner = (world.persistence(theta) >= held_out["corner"]["persistence_at_least"]) & (
        world.volatility(theta) >= held_out["corner"]["volatility_at_least"]
    )
    for split in SPLITS[:3]:
        assert not in_slice[splits[split]].any() and not in_corner[splits[split]].any()
    assert in_slice[splits[SPLITS[3]]].all() and in_corner[splits[SPLITS[4]]].all()
    assert statistic[splits["train"]].max() < statistic[splits[SPLITS[3]]].min()


@pytest.mark.parametrize("count", [6, 7, 13, 40, 1000])
def test_every_split_has_a_sample(count: int) -> None:
    theta = draw_theta(WORLDS["lss"], 0, range(count))
    samples, held_out = split_samples(WORLDS["lss"], theta, seed=1)
    assert sorted(itertools.chain(*samples.values())) == list(range(count))
    assert all(samples.values()) and len(samples["train"]) <= 0.8 * count
    assert held_out["slice"]["above"] == pytest.approx(
        float(state_radius(theta).sort().values[-1 - len(samples["test_extrapolation_slice"])])
    )
    assert split_samples(WORLDS["lss"], theta, seed=1).samples == samples
    if count > 13:
        assert split_samples(WORLDS["lss"], theta, seed=2).samples["train"] != samples["train"]
    with pytest.raises(ValueError, match=r"^theta: expected at least 6 samples for five splits, got 5"):
        split_samples(WORLDS["lss"], theta[:5], seed=1)
    broken = WORLDS["lss"]._replace(volatility=lambda theta: theta[:, 0] / 0)
    with pytest.raises(ValueError, match=r"^world lss: expected a finite volatility of each of"):
        split_samples(broken, theta, seed=1)


def test_bytes_depend_on_the_seed_alone(finished: Path, tmp_path: Path) -> None:
    done = generate_irf(tmp_path / "again", samples=N)
    assert done == (tmp_path / "again", 3 * N, 0) and not (tmp_path / "again.parts").exists()
    assert files(tmp_path / "again") == files(finished)
    generate_irf(tmp_path / "other", ["lss"], samples=N, seed=43)
    assert files(tmp_path / "other")["lss/theta.zarr/c/0/0"] != files(finished)["lss/theta.zarr/c/0/0"]


def test_a_longer_data_set_begins_with_a_shorter_and_worlds_do_not_matter(
    small: None, tmp_path: Path
) -> None:
    generate_irf(tmp_path / "short", ["lss"], samples=70)
    generate_irf(tmp_path / "long", ["var", "lss"], samples=120)
    for name, short in arrays(tmp_path / "short", "lss").items():
        np.testing.assert_array_equal(arrays(tmp_path / "long", "lss")[name][:70], short)


def test_processes_make_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate_irf(tmp_path / "x", samples=N, workers=2, progress=lambda *at: calls.append(at))
    assert calls == [(0, 3 * N), (N, 3 * N), (2 * N, 3 * N), (3 * N, 3 * N)]
    assert files(tmp_path / "x") == files(finished)


class Stop(BaseException):
    """Neither an Exception nor anything that the code knows."""


def interrupted(root: Path, at: int, **options: Any) -> Path:
    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        generate_irf(root, progress=stop, **options)
    assert not root.exists()
    return root.with_name(root.name + ".parts")


@pytest.mark.parametrize("at", [0, 100, 150, 280, 360])
def test_an_interrupted_call_is_gone_on_with(small: None, tmp_path: Path, at: int) -> None:
    options: dict[str, Any] = {"worlds": ["nk", "lss"], "samples": 180}
    generate_irf(tmp_path / "whole", **options)
    work = interrupted(tmp_path / "x", at, created_at="2026-01-01T00:00:00+00:00", **options)
    # What a killed process may have left of the next block: half of its files, one of them cut.
    next_block = next((k for k in range(4) if not (work / "done" / f"nk.{k}").exists()), None)
    if next_block is not None:
        chunk = work / "data" / "nk" / "theta.zarr" / "c" / str(next_block) / "0"
        chunk.parent.mkdir(parents=True, exist_ok=True)
        chunk.write_bytes(b"cut")
    calls: list[int] = []
    done = generate_irf(tmp_path / "x", progress=lambda n, total: calls.append(n), **options)
    assert done.found == at and calls[0] == at and calls[-1] == 360
    assert not work.exists()
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "x")
    # The date is that of the call which began it.
    dated = json.loads(resumed.pop("manifest.json"))
    assert dated["created_at"] == "2026-01-01T00:00:00+00:00"
    assert dated | {"created_at": irf_generate.NO_DATE} == json.loads(whole.pop("manifest.json"))
    assert resumed == whole


KILLED = """
import os, signal, sys
from mfk.data import generate_irf
generate_irf(sys.argv[1], samples=230, progress=lambda done, _: done and os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_process_is_gone_on_with(finished: Path, tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x")])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "x.parts" / "done" / "nk.0").exists() and not (tmp_path / "x").exists()
    assert generate_irf(tmp_path / "x", samples=N).found >= N
    assert files(tmp_path / "x") == files(finished)


def test_a_process_killed_at_the_very_end_leaves_nothing_to_do(small: None, tmp_path: Path) -> None:
    work = interrupted(tmp_path / "x", 90, worlds=["lss"], samples=90)
    kept = tmp_path / "kept"
    shutil.copytree(work, kept)
    generate_irf(tmp_path / "x", ["lss"], samples=90)
    before = files(tmp_path / "x")
    shutil.copytree(kept, work)
    shutil.rmtree(work / "data")  # it has become the data set
    assert generate_irf(tmp_path / "x", ["lss"], samples=90).found == 90
    assert files(tmp_path / "x") == before and not work.exists()
    # Unfinished work beside a data set that somebody else made.
    shutil.copytree(kept, work)
    with pytest.raises(FileExistsError, match="x: exists already"):
        generate_irf(tmp_path / "x", ["lss"], samples=90)


def test_refusals(small: None, tmp_path: Path) -> None:
    options: dict[str, Any] = {"worlds": ["lss"], "samples": 120}
    work = interrupted(tmp_path / "x", 50, **options)
    with pytest.raises(
        ValueError, match=r"x\.parts: holds unfinished work of other settings \(seed 42 -> 1\)"
    ):
        generate_irf(tmp_path / "x", seed=1, **options)
    chunk = work / "data" / "lss" / "irfs.zarr" / "c" / "0" / "0" / "0" / "0"
    size = chunk.stat().st_size
    os.truncate(chunk, 100)
    message = rf"irfs.zarr/c/0/0/0/0: was made before with {size} bytes, and has 100\. To begin again"
    with pytest.raises(ValueError, match=message):
        generate_irf(tmp_path / "x", **options)
    mark = work / "done" / "lss.0"
    sizes = mark.read_text()
    for text, what in (("", "expected JSON"), ("[1, 2]", r"expected the sizes of 4 files, got \[1, 2\]")):
        mark.write_text(text)
        with pytest.raises(ValueError, match=rf"done/lss\.0: {what}.* To begin again, delete the folder"):
            generate_irf(tmp_path / "x", **options)
    mark.write_text(sizes)
    chunk.rename(work / "data" / "away")
    with pytest.raises(ValueError, match=r"irfs.zarr/c/0/0/0/0: was made before and is gone"):
        generate_irf(tmp_path / "x", **options)
    record = (work / "record.json").read_text()
    said = ("Expecting property name", "expected settings", "expected settings")
    for text, what in zip(("{", "[1]", "{}"), said, strict=True):
        (work / "record.json").write_text(text)
        with pytest.raises(ValueError, match=rf"record\.json: .*{what}.* To begin again, delete the folder"):
            generate_irf(tmp_path / "x", **options)
    (work / "record.json").write_text(record)
    (work / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"x\.parts: expected a folder of unfinished work, got thesis\.tex"):
        generate_irf(tmp_path / "x", **options)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there: exists already"):
        generate_irf(tmp_path / "there", **options)
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worlds": ["nk", "rbc"]}, r"^worlds: expected worlds or names of nk, var, lss, got 'rbc'"),
        ({"worlds": "nk"}, r"^worlds: expected at least one world in a list, got 'nk'"),
        ({"worlds": ["nk", "nk"]}, r"^worlds: expected each world once, got nk, nk"),
        ({"samples": 5}, r"^samples: expected an int >= 6, got 5"),
        ({"workers": 0}, r"^workers: expected an int >= 1, got 0"),
        ({"seed": 0.5}, r"^seed: expected an int, got 0.5"),
        ({"version": "1.0"}, r"^version: expected three numbers with points, such as 1.0.0, got '1.0'"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_irf(tmp_path / "x", **options)
    assert os.listdir(tmp_path) == []


def test_numbers_that_are_not_finite_are_not_written(small: None, tmp_path: Path) -> None:
    world = WORLDS["lss"]._replace(irf=lambda theta, horizon=40: lss(theta, horizon) / 0)
    with pytest.raises(ValueError, match=r"^world lss: irfs of sample 0 is not finite"):
        generate_irf(tmp_path / "x", [world], samples=20)
    assert not (tmp_path / "x").exists()


def nothing(theta: torch.Tensor, horizon: int = 40) -> torch.Tensor:
    return 0 * theta[..., :1, None, None].expand(*theta.shape[:-1], 2, horizon + 1, 3)


def test_an_economy_that_nothing_moves_is_written_and_read(small: None, tmp_path: Path) -> None:
    """zarr leaves out chunks of zeros if it may, and whoever reads takes them for lost."""
    still = WORLDS["lss"]._replace(
        name="still",
        irf=nothing,
        simulate=lambda theta, shocks: 0 * shocks[..., :1].expand(*shocks.shape[:-1], 3),
    )
    generate_irf(tmp_path / "x", [still], samples=60)
    read = IRFDataset(tmp_path / "x", ["still"]).read("still")
    assert len(read["irf"]) == 48 and not read["irf"].any() and read["theta"].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../evil"}, r"^world: expected a name of letters, .* got '\.\./evil'"),
        ({"name": ""}, r"^world: expected a name of letters"),
        (
            {"irf": lambda theta, horizon=40: lss(theta, horizon)[..., :2]},
            r"^world lss: expected responses \[2",
        ),
    ],
)
def test_worlds_that_were_changed_are_checked(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_irf(tmp_path / "x", [WORLDS["lss"]._replace(**changes)], samples=20)
    assert os.listdir(tmp_path) == []
