"""Reading data sets of impulse responses, Zarr 2 and 3, and batches of one world or of several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import torch
import zarr
import zarr.codecs
from torch.utils.data import DataLoader

from mfk.data import IRFDataset, collate_mixed_worlds, collate_single_world, generate_irf, irf_dataset

KINDS = ("v2", "v2 zlib", "v3", "v3 blosc", "v3 plain")
SIZES = {"small": (100, 3, 1), "large": (50, 5, 2)}  # world -> samples, parameters, shocks


def write(path: Path, values: np.ndarray, kind: str) -> None:
    """An array in chunks of 30 samples, which need not divide their number."""
    options: dict[str, Any] = {
        "v2": {"zarr_format": 2, "compressors": numcodecs.Blosc()},  # as zarr 2 writes by default
        "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
        "v3": {},
        "v3 blosc": {"compressors": zarr.codecs.BloscCodec()},
        "v3 plain": {"compressors": None},
        "sharded": {"shards": (60, *values.shape[1:])},
    }[kind]
    array = zarr.create_array(
        path, shape=values.shape, chunks=(30, *values.shape[1:]), dtype=values.dtype, **options
    )
    array[:] = values


def make(root: Path, kind: str = "v3") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A data set in the documents' own form, random numbers; world -> theta, irfs."""
    rng, data, simulators = np.random.default_rng(0), {}, {}
    for name, (samples, params, shocks) in SIZES.items():
        theta = rng.standard_normal((samples, params)).astype(np.float32)
        irfs = rng.standard_normal((samples, shocks, 41, 3)).astype(np.float32)
        (root / name).mkdir(parents=True)
        write(root / name / "theta.zarr", theta, kind)
        write(root / name / "irfs.zarr", irfs, kind)
        order = rng.permutation(samples).tolist()
        cut, end = samples * 8 // 10, samples * 9 // 10
        splits = {"train": order[:cut], "val": order[cut:end], "test_interpolation": order[end:]}
        (root / name / "splits.json").write_text(json.dumps(splits))
        names = {"names": [f"p{i}" for i in range(params)], "units": ["-"] * params}
        simulators[name] = {"n_samples": samples, "param_manifest": names}
        data[name] = (theta, irfs)
    (root / "manifest.json").write_text(json.dumps({"version": "1.0.0", "simulators": simulators}))
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make(tmp_path / "v1")
    return tmp_path / "v1"


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_split(tmp_path: Path, kind: str) -> None:
    data = make(tmp_path / "v1", kind)
    dataset = IRFDataset(tmp_path / "v1", ["small", "large"], "train")
    assert len(dataset) == 80 + 40 and (dataset.world_ids, dataset.split) == (["small", "large"], "train")
    for name, offset in (("small", 0), ("large", 80)):
        numbers = json.loads((tmp_path / "v1" / name / "splits.json").read_text())["train"]
        for place, number in enumerate(numbers):
            sample = dataset[offset + place]
            assert (sample["world_id"], sample["sample_idx"]) == (name, number)
            np.testing.assert_array_equal(sample["theta"], data[name][0][number])
            np.testing.assert_array_equal(sample["irf"], data[name][1][number])
        read = dataset.read(name)
        assert read["sample_idx"].tolist() == numbers
        np.testing.assert_array_equal(read["theta"], data[name][0][numbers])
        np.testing.assert_array_equal(read["irf"], data[name][1][numbers])
    assert dataset[-1]["sample_idx"] == dataset[119]["sample_idx"]
    for place in (120, -121):
        with pytest.raises(IndexError, match=f"^index: expected a place in 120 samples, got {place}"):
            dataset[place]
    for index in (slice(0, 3), [0, 1], 1.0, True):
        with pytest.raises(TypeError, match=r"^index: expected an int, got"):
            dataset[index]  # pyright: ignore[reportArgumentType]
    number: Any = np.int64(3)
    assert dataset[number]["sample_idx"] == dataset[3]["sample_idx"]
    assert len(IRFDataset(tmp_path / "v1", ["large"], "test_interpolation")) == 5
    info = dataset.get_world_info("large")
    assert info == {"n_params": 5, "n_shocks": 2, "H": 40, "n_samples": 40}
    assert dataset.get_param_manifest("small")["names"] == ["p0", "p1", "p2"]
    with pytest.raises(ValueError, match=r"^world_id: expected one of small, large, got 'nk'"):
        dataset.get_world_info("nk")


def test_chunks_are_read_when_asked_for_and_the_last_are_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []
    original = irf_dataset.read_chunk

    def counted(path: Path, array: Any, number: int) -> np.ndarray:
        read.append((f"{path.parent.name} {path.stem}", number))
        return original(path, array, number)

    monkeypatch.setattr(irf_dataset, "read_chunk", counted)
    monkeypatch.setattr(irf_dataset, "_CHUNKS_KEPT", 4)
    dataset = IRFDataset(root, ["small"], "train")
    assert not read
    first = dataset[0]["sample_idx"] // 30
    assert read == [("small theta", first), ("small irfs", first)]
    dataset[0]
    assert len(read) == 2
    for place in range(80):
        dataset[place]
    assert len(read) > 8 and len(dataset._chunks) == 4


def test_a_data_set_that_was_generated_is_read(tmp_path: Path) -> None:
    generate_irf(tmp_path / "v1", samples=40)
    dataset = IRFDataset(str(tmp_path / "v1"), ["nk", "var", "lss"], "train")
    infos = {name: dataset.get_world_info(name) for name in dataset.world_ids}
    assert {name: (x["n_params"], x["n_shocks"], x["H"]) for name, x in infos.items()} == {
        "nk": (12, 3, 40), "var": (27, 3, 40), "lss": (36, 2, 40),
    }  # fmt: skip
    batch = next(iter(DataLoader(dataset, batch_size=96, collate_fn=collate_mixed_worlds)))
    assert batch["theta"].shape == (96, 36) and batch["irf"].shape == (96, 3, 41, 3)
    corner = IRFDataset(tmp_path / "v1", ["nk"], "test_extrapolation_corner")
    assert len(corner) >= 1


def test_mixed_worlds_are_padded_and_masked(root: Path) -> None:
    dataset = IRFDataset(root, ["small", "large"], "train")
    samples = [dataset[0], dataset[80], dataset[1]]
    batch = collate_mixed_worlds(samples)
    assert batch["theta"].shape == (3, 5) and batch["irf"].shape == (3, 2, 41, 3)
    assert batch["theta_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 3 + [False] * 2]
    assert batch["shock_mask"].tolist() == [[True, False], [True, True], [True, False]]
    assert batch["theta_mask"].dtype == batch["irf_mask"].dtype == torch.bool
    assert torch.equal(batch["irf_mask"], batch["shock_mask"])
    assert batch["world_ids"] == ["small", "large", "small"]
    assert batch["sample_indices"].tolist() == [sample["sample_idx"] for sample in samples]
    for row, sample in enumerate(samples):
        assert torch.equal(batch["theta"][row][batch["theta_mask"][row]], sample["theta"])
        assert torch.equal(batch["irf"][row][batch["shock_mask"][row]], sample["irf"])
    assert (batch["theta"][~batch["theta_mask"]] == 0).all() and (batch["irf"][0, 1] == 0).all()


def test_one_world_is_stacked(root: Path) -> None:
    loader = DataLoader(IRFDataset(root, ["small"], "train"), batch_size=8, collate_fn=collate_single_world)
    batch = next(iter(loader))
    assert batch["theta"].shape == (8, 3) and batch["irf"].shape == (8, 1, 41, 3)
    assert batch["world_id"] == "small" and batch["world_ids"] == ["small"] * 8
    assert len(batch["sample_indices"]) == 8


def test_batches_refuse_what_they_cannot_be_made_of(root: Path) -> None:
    dataset = IRFDataset(root, ["small", "large"], "train")
    small, large = dataset[0], dataset[80]
    with pytest.raises(ValueError, match=r"^samples: expected samples of one world, got large, small"):
        collate_single_world([small, large])
    with pytest.raises(ValueError, match=r"^samples: expected theta of one shape, got \(3,\) and \(2,\)"):
        collate_single_world([small, small | {"theta": small["theta"][:2]}])
    for collate in (collate_mixed_worlds, collate_single_world):
        with pytest.raises(ValueError, match=r"^samples: expected at least one, got none"):
            collate([])
        with pytest.raises(ValueError, match=r"^samples: expected theta .* \(1, 20, 3\) in sample .* small"):
            collate([small, small | {"irf": small["irf"][:, :20]}])
        with pytest.raises(ValueError, match=r"^samples: expected one dtype, got torch.float64 and"):
            collate([small, small | {"theta": small["theta"].double()}])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["theta", "irfs"])
def test_chunks_that_are_cut_or_missing(tmp_path: Path, kind: str, name: str) -> None:
    make(tmp_path / "v1", kind)
    files = [
        path
        for path in sorted((tmp_path / "v1" / "large" / f"{name}.zarr").rglob("*"))
        if path.is_file() and path.name not in (".zarray", ".zattrs", "zarr.json")
    ]
    whole = files[0].read_bytes()
    for length in (len(whole) // 2, 1, 0):
        files[0].write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"large/{name}\.zarr.* chunk.* is cut or damaged: ."):
            IRFDataset(tmp_path / "v1", ["large"], "train").read("large")
    files[0].unlink()
    with pytest.raises(ValueError, match=rf"large/{name}\.zarr/.*0.*: this chunk of the array is missing"):
        IRFDataset(tmp_path / "v1", ["large"], "train").read("large")


def test_chunks_of_the_fill_value_that_zarr_left_out(tmp_path: Path) -> None:
    make(tmp_path / "v1")
    irfs = np.ones((100, 1, 41, 3), dtype=np.float32)
    irfs[30:60] = 0.0
    path = tmp_path / "v1" / "small" / "irfs.zarr"
    shutil.rmtree(path)
    write(path, irfs, "v3")
    message = r"irfs\.zarr/c/1/0/0/0: this chunk .* missing. .* fill value 0.0, .*write_empty_chunks=True in"
    with pytest.raises(ValueError, match=message):
        IRFDataset(tmp_path / "v1", ["small"], "train").read("small")
    array: Any = zarr.open_array(path, mode="r+")
    array.with_config({"write_empty_chunks": True})[:] = irfs
    read = IRFDataset(tmp_path / "v1", ["small"], "train").read("small")
    np.testing.assert_array_equal(read["irf"], irfs[read["sample_idx"]])


def test_generated_chunks_of_which_a_byte_changed(tmp_path: Path) -> None:
    generate_irf(tmp_path / "v1", ["lss"], samples=20)
    path = tmp_path / "v1" / "lss" / "theta.zarr" / "c" / "0" / "0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"lss/theta\.zarr: chunk 0 is cut or damaged"):
        IRFDataset(tmp_path / "v1", ["lss"], "train")[0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(root: Path, value: float) -> None:
    array: Any = zarr.open_array(root / "small" / "irfs.zarr", mode="r+")
    array[37, 0, 5, 1] = value
    dataset = IRFDataset(root, ["small"], "train")
    with pytest.raises(ValueError, match=r"small/irfs\.zarr: sample 37 holds a number that is not finite"):
        dataset.read("small")
    with pytest.raises(ValueError, match="sample 37 holds a number"):
        for place in range(len(dataset)):
            dataset[place]


def replace(root: Path, name: str, values: np.ndarray) -> None:
    shutil.rmtree(root / "small" / f"{name}.zarr")
    zarr.create_array(root / "small" / f"{name}.zarr", data=values)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("theta", (100, 4), r"small/theta\.zarr: expected 3 numbers along axis 1, .* \(100, 4\)"),
        ("theta", (100,), r"small/theta\.zarr: expected 2 axes, none of them empty, got \(100,\)"),
        ("theta", (90, 3), r"small: expected as many responses as parameters, got 100 .* and 90"),
        ("irfs", (100, 41, 3), r"small/irfs\.zarr: expected 4 axes"),
        ("irfs", (100, 1, 41, 2), r"small/irfs\.zarr: expected a shape \[N, S, H \+ 1, 3\], got"),
        (
            "irfs",
            (100, 1, 21, 3),
            r"^world_ids: expected worlds of one horizon, got .*'small': 20, 'large': 40",
        ),
    ],
)
def test_other_dimensions(root: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    replace(root, name, np.ones(shape, dtype=np.float32))
    with pytest.raises(ValueError, match=message):
        IRFDataset(root, ["small", "large"], "train")


def test_mistakes_are_named(root: Path) -> None:
    def refused(message: str, worlds: Any = ("small",), split: str = "train", at: Path = root) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            IRFDataset(at, worlds, split)

    refused(r"^world_ids: .*v1 has no world 'nk'; it has small, large", ["small", "nk"])
    refused(r"^world_ids: expected a list of different worlds, got 'small'", "small")
    refused(r"^world_ids: expected a list of different worlds, got \[\]", [])
    refused(
        r"^split: .*small/splits\.json has no split 'test'; it has train, val, test_interpolation",
        split="test",
    )
    refused(r"^zarr_root: there is no folder .*nowhere", at=root / "nowhere")
    manifest = (root / "manifest.json").read_text()
    for told, message in (
        (5, r"manifest\.json: expected a JSON object under 'small', got 5"),
        ({"param_manifest": 5}, r"manifest\.json: expected a JSON object under 'param_manifest', got 5"),
        ({"shock_manifest": {"names": 5}}, r"expected a list of names in shock_manifest of 'small', got 5"),
        ({"param_manifest": {"names": [1, 2, 3]}}, r"expected a list of names in param_manifest of 'small'"),
    ):
        (root / "manifest.json").write_text(json.dumps({"simulators": {"small": told}}))
        refused(message)
    (root / "manifest.json").write_text(manifest)
    splits = root / "small" / "splits.json"
    for text, message in (
        (
            '{"train": [0, 100]}',
            r"splits\.json: expected each number once, from 0 to 99, in 'train', got sample 100",
        ),
        ('{"train": [0, 0]}', r"splits\.json: expected each number once, .* got a sample twice"),
        (
            '{"train": [0.5]}',
            r"splits\.json: expected a list of sample numbers in 'train', got 0.5 \(float\) at place 0",
        ),
        (
            '{"train": [0, [1, 2]]}',
            r"splits\.json: expected a list of sample numbers in 'train', got \[1, 2\] \(list\) at place 1",
        ),
        ('{"train": 7}', r"splits\.json: expected a list of sample numbers in 'train', got 7"),
        (
            '{"train": [true]}',
            r"splits\.json: expected a list of sample numbers in 'train', got True \(bool\) at place 0",
        ),
        (
            '{"train": [0, 5, 7], "val": [5, 2, 7], "test_interpolation": [3]}',
            r"splits\.json: expected each sample in one split, got sample 5 in 'train' and 'val', of which 2",
        ),
        # In splits that are not asked for as well.
        (
            '{"train": [0, 5], "val": [2], "test_extrapolation_slice": [3, 2]}',
            r"got sample 2 in 'val' and 'test_extrapolation_slice'",
        ),
        (
            '{"train": [0, 5], "test_interpolation": [-1]}',
            r"splits\.json: expected each number once, from 0 to 99, in 'test_interpolation', got sample -1",
        ),
        ('{"train": ', r"splits\.json: expected JSON"),
        ("[1]", r"splits\.json: expected a JSON object, got \[1\]"),
    ):
        splits.write_text(text)
        refused(message)
    splits.unlink()
    refused(r"small/splits\.json: there is no such file")
    replace(root, "theta", np.ones((100, 3), dtype=np.int32))
    refused(r"small/theta\.zarr: expected float32 or float64, got int32")
    shutil.rmtree(root / "small" / "theta.zarr")
    write(root / "small" / "theta.zarr", np.ones((100, 3), dtype=np.float32), "sharded")
    refused(r"small/theta\.zarr: expected chunks in a file each, got shards of \(60, 3\)")
    replace(root, "theta", np.ones((100, 3), dtype=np.float32))
    about = root / "small" / "theta.zarr" / "zarr.json"
    told = json.loads(about.read_text())
    told["chunk_grid"]["configuration"]["chunk_shape"] = [20, 0]
    about.write_text(json.dumps(told))
    refused(r"small/theta\.zarr: expected chunks of one number at least, got \(20, 0\)")
    (root / "small" / "theta.zarr" / "zarr.json").write_text("{")
    refused(r"small/theta\.zarr: cannot be read as a Zarr array: .")
    shutil.rmtree(root / "small" / "theta.zarr")
    refused(r"small/theta\.zarr: there is no such array")
    (root / "manifest.json").write_text('{"simulators": []}')
    refused(r"manifest\.json: expected the worlds under 'simulators', got \[\]")
    (root / "manifest.json").unlink()
    refused(r"manifest\.json: there is no such file")


def test_responses_that_begin_a_period_late_are_refused_until_asked_for(tmp_path: Path) -> None:
    generate_irf(tmp_path / "v1", ["nk", "lss"], samples=20)
    assert (IRFDataset(tmp_path / "v1", ["lss"], "train").read("lss")["irf"][:, :, 0] == 0).all()
    array: Any = zarr.open_array(tmp_path / "v1" / "nk" / "irfs.zarr", mode="r+")
    array[:, :, 0] = 0.0
    with pytest.raises(ValueError, match=r"nk/irfs\.zarr: all responses are 0 in period 0.*one_period_late"):
        IRFDataset(tmp_path / "v1", ["nk"], "train")[0]
    dataset = IRFDataset(tmp_path / "v1", ["nk"], "train", one_period_late=True)
    assert (dataset.read("nk")["irf"][:, :, 0] == 0).all()
