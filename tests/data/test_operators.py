"""Data sets of operators: what is in the file, what its bytes depend on, and work gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import mfk.data
from mfk.data import generate_operators, open_families, operators
from mfk.data.operator_initial import initial_statistics
from mfk.data.operator_layout import PRODUCTS
from mfk.data.operator_simulate import IC_TYPES, PARAMETERS
from mfk.data.operator_statistics import FRAME_NAMES, TRAJECTORY_NAMES

SMALL: dict[str, Any] = {"realisations": 2, "grid": 16, "steps": 50}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 samples, for tests that need many blocks and not their numbers."""
    monkeypatch.setattr(operators, "BLOCK", 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.h5"
    assert generate_operators(path, 90, realisations=4, grid=16, steps=100) == path
    return path


def arrays(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[:]

    with h5py.File(path) as file:
        file.visititems(add)
    return found


def test_file_has_the_documented_layout(finished: Path) -> None:
    found = arrays(finished)
    wanted = {
        "features/initial/aggregated/features": (90, 42),
        "features/architecture/aggregated/features": (90, 21),
        "features/summary/aggregated/features": (90, 3 * len(TRAJECTORY_NAMES)),
        "features/summary/per_trajectory/features": (90, 4, len(TRAJECTORY_NAMES)),
        "features/temporal/features": (90, 20, len(FRAME_NAMES)),
        "parameters/params": (90, 12),
        "inputs/fields": (90, 2, 16, 16),
    }
    for name, shape in wanted.items():
        assert (
            found[name].shape == shape and found[name].dtype == np.float32 and np.isfinite(found[name]).all()
        )
    times = [name for name in found if name.endswith("aggregated/metadata/extraction_time")]
    assert len(times) == 3 and all(found[name].dtype == np.float64 for name in times)
    rest = found.keys() - wanted.keys() - set(times)
    assert rest == {
        f"metadata/{x}" for x in ("ic_types", "evolution_policies", "noise_regimes", "grid_sizes")
    }
    assert {x.decode() for x in found["metadata/ic_types"]} == set(IC_TYPES)
    assert found["metadata/grid_sizes"].dtype == np.int32 and (found["metadata/grid_sizes"] == 16).all()
    noise = found["parameters/params"][:, list(PARAMETERS).index("noise")]
    for name, low in (("low", 0), ("medium", 1 / 3), ("high", 2 / 3)):
        chosen = noise[found["metadata/noise_regimes"] == name.encode()]
        assert len(chosen) > 10 and (chosen >= low).all() and (chosen < low + 1 / 3 + 1e-6).all()
    with h5py.File(finished) as file:
        attributes: Any = file["features/summary"].attrs
        config = json.loads(attributes["extraction_config"])
        registry = json.loads(attributes["feature_registry"])
        assert json.loads(str(file["parameters/params"].attrs["names"])) == list(PARAMETERS)
    assert {key: config[key] for key in ("seed", "realisations", "grid", "steps")} == {
        "seed": 0, "realisations": 4, "grid": 16, "steps": 100,
    }  # fmt: skip
    assert set(registry) == {"spatial", "spectral", "temporal", "cross_channel"}


def test_families_are_of_the_other_arrays(finished: Path) -> None:
    found, table = arrays(finished), open_families(finished)
    assert list(table.families) == ["architecture", "initial", "summary", "temporal"]
    params, architecture = found["parameters/params"], table.families["architecture"]
    np.testing.assert_array_equal(architecture[:, :12], params)
    np.testing.assert_allclose(
        architecture[:, 12:], np.stack([params[:, i] * params[:, j] for i, j in PRODUCTS], 1)
    )
    assert table.names["architecture"][12] == "diffusion_u*diffusion_v"
    fields = torch.from_numpy(found["inputs/fields"])
    np.testing.assert_allclose(table.families["initial"], initial_statistics(fields), rtol=1e-4, atol=1e-5)
    traces = found["features/summary/per_trajectory/features"].astype(np.float64)
    assert (traces > 0).all()
    mean, std = traces.mean(1), traces.std(1, ddof=1)
    wanted = np.concatenate([mean, std, std / mean], 1)
    np.testing.assert_allclose(table.families["summary"], wanted, rtol=1e-3, atol=1e-6)
    names = table.names["summary"]
    assert names[0] == "u_mean.mean" and names[45] == "u_mean.std" and names[-1] == "v_drift_of_mean.cv"
    # Statistics of a frame stand at the same place in the summary, averaged over the second half.
    late = table.families["temporal"][:, 10:].mean(1)
    np.testing.assert_allclose(late, table.families["summary"][:, : len(FRAME_NAMES)], rtol=1e-4, atol=1e-6)


def test_features_say_what_the_parameters_are_and_not_what_the_noise_was(finished: Path) -> None:
    traces = arrays(finished)["features/summary/per_trajectory/features"].astype(np.float64)
    first, second = traces[:, :2].mean(1), traces[:, 2:].mean(1)
    for i, name in enumerate(TRAJECTORY_NAMES):
        assert np.corrcoef(first[:, i], second[:, i])[0, 1] > 0.85, name
    params = arrays(finished)["parameters/params"]

    def r(parameter: str, feature: str) -> float:
        x = params[:, list(PARAMETERS).index(parameter)]
        return float(np.corrcoef(x, np.log(traces.mean(1)[:, TRAJECTORY_NAMES.index(feature)]))[0, 1])

    assert r("noise", "u_change") > 0.5 and r("threshold", "u_mean") < -0.4
    assert r("drive", "v_mean") > 0.2 and r("diffusion_v", "v_gradient_x") < -0.2


def test_bytes_depend_on_the_seed_and_no_more(small: None, tmp_path: Path) -> None:
    generate_operators(tmp_path / "a.h5", 10, **SMALL)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        generate_operators(tmp_path / "b.h5", 10, **SMALL)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    generate_operators(tmp_path / "long.h5", 15, **SMALL)
    for name, values in arrays(tmp_path / "a.h5").items():
        np.testing.assert_array_equal(arrays(tmp_path / "long.h5")[name][:10], values)
    generate_operators(tmp_path / "other.h5", 10, seed=1, **SMALL)
    one, other = arrays(tmp_path / "a.h5"), arrays(tmp_path / "other.h5")
    for name in ("parameters/params", "inputs/fields", "features/temporal/features"):
        assert not np.array_equal(one[name], other[name])
    # No two samples share parameters, fields or noise.
    for name in ("parameters/params", "inputs/fields", "features/summary/aggregated/features"):
        flat = one[name].reshape(10, -1)
        assert len(np.unique(flat, axis=0)) == 10


class Stop(BaseException):
    """Neither an Exception nor anything that the code knows."""


def interrupted(path: Path, at: int, samples: int = 10, **options: Any) -> Path:
    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        generate_operators(path, samples, progress=stop, **{**SMALL, **options})
    assert not path.exists()
    return path.with_name(path.name + ".parts")


def test_an_interrupted_call_is_gone_on_with(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_operators(tmp_path / "whole.h5", 10, **SMALL)
    drawn, draw = [], operators.draw_operators

    def counted(*, block: int, **options: Any) -> Any:
        drawn.append(block)
        return draw(block=block, **options)

    monkeypatch.setattr(operators, "draw_operators", counted)
    for at, left in ((0, [0, 1, 2]), (4, [1, 2]), (8, [2]), (10, [])):
        path = tmp_path / f"x{at}.h5"
        work = interrupted(path, at)
        drawn.clear()
        calls: list[int] = []
        generate_operators(path, 10, progress=lambda done, total: calls.append(done), **SMALL)  # noqa: B023
        assert drawn == left and calls[0] == at and calls[-1] == 10 and not work.exists()
        assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


CRASHES = """
import os, signal, sys
from pathlib import Path
from mfk.data import generate_operators, operators

operators.BLOCK = 2
os.fsync = lambda descriptor: None  # SIGKILL loses nothing that the system was given
folder = Path(sys.argv[1])
NAMES = ("mkdir", "posix_fallocate", "pwrite", "ftruncate", "fsync", "replace", "rename", "unlink", "rmdir")


def crash_at(event):
    # Let the process die of SIGKILL at its event-th change of the disk.
    left = [event]

    def crashing(call):
        def wrapped(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return wrapped

    for name in NAMES:
        setattr(os, name, crashing(getattr(os, name)))


def generate(path):
    return generate_operators(path, 3, realisations=2, grid=16, steps=50)


generate(folder / "whole.h5")
whole, path = (folder / "whole.h5").read_bytes(), folder / "x.h5"
event = 1
while True:
    pid = os.fork()
    if pid == 0:
        crash_at(event)
        generate(path)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (event, status)
    assert not path.exists() or path.read_bytes() == whole, event
    try:
        generate(path)
    except FileExistsError:
        assert path.exists(), event
    assert path.read_bytes() == whole, event
    assert sorted(os.listdir(folder)) == ["whole.h5", "x.h5"], (event, os.listdir(folder))
    path.unlink()
    event += int(sys.argv[2])
print(event)
"""


def crash(folder: Path, every: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(folder), str(every)],
        env={**os.environ, "PYTHONPATH": str(Path(mfk.data.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow  # a process for each of sixty kills
def test_killed_at_every_change_of_the_disk(tmp_path: Path) -> None:
    assert crash(tmp_path, every=1) > 30


def test_killed_at_some_changes_of_the_disk(tmp_path: Path) -> None:
    assert crash(tmp_path, every=9) > 30


def test_work_of_others_is_refused(small: None, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    work = interrupted(path, 4)
    for options, change in (({"seed": 1}, "seed 0 -> 1"), ({"grid": 18}, "grid 16 -> 18")):
        with pytest.raises(ValueError, match=rf"x\.h5\.parts: holds unfinished work of other .*\({change}\)"):
            generate_operators(path, 10, **{**SMALL, **options})
    with pytest.raises(ValueError, match=r"other settings \(samples 10 -> 11\)"):
        generate_operators(path, 11, **SMALL)
    record = (work / "record.json").read_text()
    for text in ("{", "[1]"):
        (work / "record.json").write_text(text)
        with pytest.raises(ValueError, match=r"record\.json: .* To begin again, delete the folder"):
            generate_operators(path, 10, **SMALL)
    (work / "record.json").write_text(record)
    (work / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"expected a folder of unfinished work, got thesis\.tex"):
        generate_operators(path, 10, **SMALL)
    (work / "thesis.tex").unlink()
    path.write_text("somebody else's")
    with pytest.raises(FileExistsError, match=r"x\.h5: exists already"):
        generate_operators(path, 10, **SMALL)
    assert path.read_text() == "somebody else's" and (work / "rows.pt.parts").exists()
    path.unlink()
    busy = []

    def second(done: int, total: int) -> None:
        with pytest.raises(FileExistsError, match=r"x\.h5: another process is writing it"):
            generate_operators(path, 10, **SMALL)
        busy.append(done)

    generate_operators(path, 10, progress=second, **SMALL)
    assert busy == [4, 8, 10]
    with pytest.raises(FileExistsError, match=r"x\.h5: exists already"):
        generate_operators(path, 10, **SMALL)
    assert os.listdir(tmp_path) == ["x.h5"]


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (0, {}, "^samples: expected an int >= 1, got 0"),
        (2.0, {}, "^samples: expected an int >= 1"),
        (True, {}, "^samples: expected an int >= 1"),
        (2, {"realisations": 1}, "^realisations: expected an int >= 2, got 1"),
        (2, {"grid": 8}, "^grid: expected an int >= 16, got 8"),
        (2, {"steps": 45}, "^steps: expected an int >= 50, got 45"),
        (2, {"steps": 52}, "^steps: expected a multiple of 5, got 52"),
        (2, {"seed": 0.5}, "^seed: expected an int, got 0.5"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, samples: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_operators(tmp_path / "x.h5", samples, **options)
    assert not os.listdir(tmp_path)


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.npz: expected a file named \.h5 or \.hdf5, got '\.npz'"):
        generate_operators(tmp_path / "x.npz", 2)
    with pytest.raises(FileNotFoundError, match=r"x\.h5: there is no folder"):
        generate_operators(tmp_path / "new" / "x.h5", 2)
    with pytest.raises(OSError, match=r"needs [0-9,.]+ MB, and its disk has"):
        generate_operators(tmp_path / "x.h5", 10**12)
    assert not os.listdir(tmp_path)


def test_numbers_that_are_not_finite_are_not_written(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "initial_statistics", lambda fields: fields[:, 0, 0, :1].repeat(1, 42) / 0)
    with pytest.raises(ValueError, match=r"^initial of sample 0 is not finite"):
        generate_operators(tmp_path / "x.h5", 5, **SMALL)
    assert not (tmp_path / "x.h5").exists()
