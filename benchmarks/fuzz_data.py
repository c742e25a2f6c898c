"""The readers of data files, with small samples for them and what holds of a correct result."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
import zarr.codecs
from fuzz_mutators import Finish, Sample
from torch import Tensor

from mfk.data import (
    Clip,
    FamilyTable,
    IRFDataset,
    MotionInfo,
    MotionRows,
    Skeleton,
    StickClip,
    frame_velocities,
    open_families,
    open_motion,
    read_bvh,
    read_ik,
    read_stick,
    read_tensors,
    stick_from_bvh,
    write_families,
    write_motion,
    write_stick,
)
from mfk.kinematics import forward, load_urdf, urdf_text


class Reader(NamedTuple):
    """What reads files of users."""

    samples: Callable[[Path], list[Sample]]  # (an empty folder to write in) -> valid files, and odd ones
    read: Callable[[Path], object]  # (folder that holds a sample's files) -> asserts what holds of the result
    finish: Finish | None = None
    named: str = ""  # how an error may begin that names no file: an argument, say


def folder_of(folder: Path) -> Sample:
    """The files below a folder, and nothing left there."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    sample = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    return sample


def _written(folder: Path, *writers: Callable[[Path], object]) -> list[Sample]:
    """What each writes into the folder, a sample each."""
    samples = []
    for write in writers:
        write(folder)
        samples.append(folder_of(folder))
    return samples


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def _only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


# Tensors and inverse kinematics ---------------------------------------------------------------------------


def _tensor_samples(folder: Path) -> list[Sample]:
    tensors: dict[str, Tensor] = {
        "a": _draw(3, 2), "b": _draw(4).double(), "c": torch.arange(6)[::2], "d": torch.ones(2).bfloat16(),
    }  # fmt: skip
    arrays = {"x": _draw(2, 2).numpy(), "y": np.arange(3), "z": np.ones(2, bool)}
    odd = [_draw(2), {"nested": {"a": _draw(1)}}, {"s": _draw(2, 2).to_sparse()}, {1: _draw(1), "n": None}]
    kept = _written(
        folder,
        lambda at: torch.save(tensors, at / "file.pt"),
        lambda at: torch.save(arrays, at / "file.pt"),
        lambda at: torch.save(tensors, at / "file.pt", _use_new_zipfile_serialization=False),
        lambda at: np.savez(at / "file.npz", **arrays),  # pyright: ignore[reportArgumentType]
        lambda at: np.savez_compressed(at / "file.npz", **arrays),  # pyright: ignore[reportArgumentType]
        *(lambda at, x=x: torch.save(x, at / "file.pt") for x in odd),
    )
    return kept


def _read_tensors(folder: Path) -> None:
    for value in read_tensors(_only(folder)).values():
        assert type(value) is Tensor and value.device.type == "cpu"
        value.double().sum()  # every number is there


@functools.cache
def _panda() -> Any:
    return load_urdf(urdf_text("panda"), "panda_hand")


def _ik_samples(folder: Path) -> list[Sample]:
    chain = _panda()
    q_target = (chain.lower + (chain.upper - chain.lower) * torch.rand(5, chain.dof).double()).float()
    q = (0.9 * q_target.double()).clamp(chain.lower, chain.upper).float()
    pose, r = forward(chain, q_target.double()), torch.full((5, 1), 0.25)
    rows = {"q": q, "q_target": q_target, "target_pose": pose.float(), "r": r, "t": r + 0.5}
    other = {
        "q_t": q,
        "q_star": q_target,
        "target_pos": pose[:, :3],
        "target_quat": pose[:, 3:],
        "t": r,
        "v_t": q,
    }
    return _written(
        folder,
        lambda at: torch.save(rows, at / "file.pt"),
        lambda at: np.savez(at / "file.npz", **other),  # pyright: ignore[reportArgumentType]
    )


def _read_ik(folder: Path) -> None:
    chain = _panda()
    rows = read_ik(_only(folder), chain).rows
    assert all(bool(x.isfinite().all()) and x.dtype == torch.float32 for x in rows if x is not None)
    assert float((rows.pose[:, 3:].norm(dim=-1) - 1).abs().max()) < 1e-5
    for q in (rows.q, rows.q_target):
        assert bool((q.double() >= chain.lower - 1e-6).all()) and bool(
            (q.double() <= chain.upper + 1e-6).all()
        )


def _read_urdf(folder: Path) -> None:
    chain = load_urdf(_only(folder), "panda_hand")
    assert chain.dof > 0 and bool((chain.lower <= chain.upper).all()) and bool(chain.lower.isfinite().all())


# Recordings and motion ------------------------------------------------------------------------------------

_JOINTS = (
    "neck", "head", "chest",
    *(f"{s}_{x}" for s in "lr" for x in ("shoulder", "elbow", "hand", "hip", "knee", "foot")),
)  # fmt: skip


def _bvh(rows: int = 4, joints: Iterable[str] = _JOINTS) -> bytes:
    lines = ["HIERARCHY", "ROOT root", "{", "OFFSET 0 0 0"]
    lines.append("CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation")
    for i, name in enumerate(joints):
        lines += [f"JOINT b_{name}", "{", f"OFFSET {i - 7} {60 - 9 * i} 1", "CHANNELS 1 Zrotation"]
        lines += ["End Site", "{", "OFFSET 0 1 0", "}", "}"]
    lines += ["}", "MOTION", f"Frames: {rows}", "Frame Time: 0.0333333"]
    lines += [" ".join([f"{9 * t} 90 {t}", *["1.5"] * (3 + len(list(joints)))]) for t in range(rows)]
    return ("\n".join(lines) + "\n").encode()


def _read_bvh(folder: Path) -> None:
    found = read_bvh(_only(folder), positions="add")
    assert found.translations.shape[:2] == (found.header.frames, len(found.header.bone_names))
    assert bool(found.translations.isfinite().all()) and bool(found.rotations.isfinite().all())
    assert float((found.rotations.norm(dim=-1) - 1).abs().max()) < 1e-9


def _mocap_samples(folder: Path) -> list[Sample]:
    del folder
    index = b"clip,file,skeleton,action,text\nfirst,one.bvh,mine,walk,a person moves\n"
    bones = {"other": {name: f"b_{name}" for name in _JOINTS}, "mine": "other"}
    joints = json.dumps({"skeletons": bones}).encode()
    return [{"one.bvh": _bvh(), "index.csv": index, "joint_map.json": joints}]


def _read_mocap(folder: Path) -> None:
    for clip in stick_from_bvh(folder, folder / "index.csv", folder / "joint_map.json", width=20):
        assert bool(clip.motion.isfinite().all()) and clip.motion.shape[1] == 20 and len(clip.motion) >= 2
        assert clip.physics is not None and bool(clip.physics.isfinite().all())


_BONES = ("Hips", "Left Arm")
_INFO = MotionInfo(
    30.0, Skeleton(_BONES, (-1, 0), "world", "y"), (Clip("a", 3, "walk"), Clip("b", 2)), ("run", "walk"),
    ("train",), {"unit": "m"},
)  # fmt: skip


def _motion(rows: int, bare: bool = False) -> MotionRows:
    frames = _draw(rows, len(_BONES), 7)
    frames[..., 3:] /= frames[..., 3:].norm(dim=-1, keepdim=True)
    if bare:
        return MotionRows(frames, None, None, {})
    labels = torch.rand(rows, 2)
    return MotionRows(frames, frame_velocities(frames, 30.0), labels, {"train": labels[:, 0] > 0.5})


def _motion_samples(suffix: str) -> Callable[[Path], list[Sample]]:
    def samples(folder: Path) -> list[Sample]:
        bare = _INFO._replace(label_names=None, splits=(), clips=(Clip("one", 4),))
        path = folder / f"file{suffix}"
        writers: list[Callable[[Path], object]] = [lambda at: write_motion(path, bare, [_motion(4, True)])]
        if suffix != ".json":
            writers.append(lambda at: write_motion(path, _INFO, [_motion(3), _motion(2)]))
        if suffix == ".h5":
            writers += [
                functools.partial(_odd_hdf5, place="frames", shape=(4, 14), number=n) for n in range(8)
            ]
        return _written(folder, *writers)

    return samples


def _read_motion(folder: Path) -> None:
    source = open_motion(_only(folder))
    bones = len(source.info.skeleton.bone_names)
    for first, end in itertools.pairwise(source.edges[:4]):
        rows = source.read(first, end)
        assert rows.frames.shape == (end - first, bones, 7) and bool(rows.frames.isfinite().all())
    for name in source.info.splits:
        assert source.split(name).shape == (source.edges[-1],)


def _odd_hdf5(folder: Path, place: str, shape: tuple[int, ...], number: int) -> None:
    """A file whose array is of a kind that HDF5 knows and no reader expects."""
    file: Any
    with h5py.File(folder / "file.h5", "w") as file:
        file.attrs["fps"], file.attrs["bone_names"] = 30.0, json.dumps(list(_BONES))
        values = np.zeros(shape, "f4")
        match number:
            case 0:
                file[place] = h5py.ExternalLink("/etc/other.h5", place)
            case 1:
                file[place] = h5py.SoftLink("/nowhere")
            case 2:
                size = values.nbytes
                file.create_dataset(place, shape, "f4", external=[("/etc/services", 0, size)])
            case 3:
                layout = h5py.VirtualLayout(shape, "f4")
                layout[:] = h5py.VirtualSource("/etc/other.h5", "x", shape)
                file.create_virtual_dataset(place, layout)
            case 4:
                file[place] = h5py.Empty("f4")
            case 5:
                file.create_dataset(place, shape, h5py.string_dtype())
            case 6:
                file.create_dataset(
                    place, (2**40, *shape[1:]), "f4", chunks=(64, *shape[1:]), compression="gzip"
                )
            case _:
                file.create_dataset(place, data=values.astype([("a", "f4")]))
                file.attrs["metadata"] = np.void(b"\x00\xff")


# Stick figures, impulse responses, families ---------------------------------------------------------------


def _stick_samples(folder: Path) -> list[Sample]:
    motion = _draw(3, 20)
    full = StickClip("a person walks", motion, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 6))
    full = full._replace(source="file", meta={"clip": "x", "n": [1, 2.5, None]}, embedding=_draw(4))
    return _written(
        folder,
        lambda at: write_stick(at / "file.pt", [full, StickClip("b", _draw(2, 48))]),
        lambda at: torch.save(
            [StickClip("b", motion)._asdict()], at / "file.pt", _use_new_zipfile_serialization=False
        ),
    )


def _read_stick(folder: Path) -> None:
    for clip in read_stick(_only(folder)):
        assert bool(clip.motion.isfinite().all()) and clip.motion.shape[-1] in (20, 48)
        assert isinstance(clip.description, str)


def _irf_samples(folder: Path) -> list[Sample]:
    def write(at: Path, number: int) -> None:
        options: dict[str, Any] = [
            {"compressors": zarr.codecs.ZstdCodec(level=0, checksum=True)},
            {"compressors": None},
            {"compressors": zarr.codecs.BloscCodec()},
            {"zarr_format": 2},
            {"zarr_format": 2, "compressors": None},
        ][number]
        for name, shape in (("theta", (6, 2)), ("irfs", (6, 1, 3, 3))):
            path = at / "w" / f"{name}.zarr"
            path.parent.mkdir(exist_ok=True)
            array = zarr.create_array(
                path, shape=shape, chunks=(4, *shape[1:]), dtype="float32", overwrite=True, **options
            )
            array[:] = _draw(*shape).numpy()
        told = {"param_manifest": {"names": ["a", "b"]}, "shock_manifest": {"names": ["s"]}}
        (at / "manifest.json").write_text(json.dumps({"simulators": {"w": told}, "T": 200}))
        (at / "w" / "splits.json").write_text(json.dumps({"train": [0, 1, 2, 4], "val": [3], "test_x": [5]}))

    return _written(folder, *(functools.partial(write, number=number) for number in range(5)))


def _read_irf(folder: Path) -> None:
    data = IRFDataset(folder, ["w"])
    found = data.read("w")
    assert len(data) == len(found["theta"]) == len(found["irf"])
    assert bool(found["theta"].isfinite().all()) and bool(found["irf"].isfinite().all())
    if len(data):
        assert torch.equal(data[0]["theta"], found["theta"][0])


def _family_samples(suffix: str) -> Callable[[Path], list[Sample]]:
    arrays = {"alpha": _draw(4, 3).numpy(), "waves": _draw(4, 2, 2).numpy()}
    names = {name: tuple(f"{name}_{i}" for i in range(x.shape[-1])) for name, x in arrays.items()}

    def parquet(at: Path, number: int) -> None:
        columns: dict[str, Any] = [
            {"a::x": pa.array([1.0, None, 3.0]), "a::y": pa.array([1, 2, 3]), "labels": pa.array([0, 1, 2])},
            {"a": pa.array([[1.0, 2.0], [3.0, 4.0]]), "b": pa.array([[1], [2]], pa.list_(pa.int16(), 1))},
            {"a::x": pa.array([1.0] * 100).dictionary_encode(), "b::y": pa.array([2.0] * 100, pa.float16())},
        ][number]
        pq.write_table(pa.table(columns), at / "file.parquet", compression="snappy" if number else "none")

    def samples(folder: Path) -> list[Sample]:
        writers: list[Any]
        if suffix == ".h5":
            writers = [lambda at: write_families(at / "file.h5", FamilyTable(arrays, names))]
            place = "features/alpha/aggregated/features"
            writers += [functools.partial(_odd_hdf5, place=place, shape=(4, 3), number=n) for n in range(8)]
        elif suffix == ".npz":
            writers = [
                lambda at: np.savez(at / "file.npz", labels=np.arange(4), **arrays),  # pyright: ignore[reportArgumentType]
                lambda at: np.savez_compressed(at / "file.npz", a=np.ones((3, 2), "i2")),
            ]
        else:
            writers = [functools.partial(parquet, number=number) for number in range(3)]
        return _written(folder, *writers)

    return samples


def _read_families(folder: Path) -> None:
    table = open_families(_only(folder))
    rows = {len(values) for values in table.families.values()}
    assert len(rows) == 1 and table.families.keys() == table.names.keys()
    for name, values in table.families.items():
        assert values.dtype == np.float32 and values.shape[-1] == len(table.names[name])


def one_file(name: str, *contents: bytes) -> Callable[[Path], list[Sample]]:
    """Samples of one file each."""
    return lambda folder: [{name: content} for content in contents]


READERS: dict[str, Reader] = {
    "tensors": Reader(_tensor_samples, _read_tensors),
    "ik data": Reader(_ik_samples, _read_ik),
    "urdf": Reader(one_file("robot.urdf", urdf_text("panda").encode()), _read_urdf),
    "bvh": Reader(one_file("file.bvh", _bvh(2, _JOINTS[:3]), _bvh(3, _JOINTS[:2])), _read_bvh),
    "mocap folder": Reader(_mocap_samples, _read_mocap),
    "motion parquet": Reader(_motion_samples(".parquet"), _read_motion),
    "motion hdf5": Reader(_motion_samples(".h5"), _read_motion),
    "motion json": Reader(_motion_samples(".json"), _read_motion),
    "stick": Reader(_stick_samples, _read_stick),
    "irf zarr": Reader(_irf_samples, _read_irf),
    "families hdf5": Reader(_family_samples(".h5"), _read_families),
    "families npz": Reader(_family_samples(".npz"), _read_families),
    "families parquet": Reader(_family_samples(".parquet"), _read_families),
}
