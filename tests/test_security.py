"""Files of somebody else's run nothing, lead to no other file, and take no memory that they only speak of."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from mfk.core.config import load_yaml
from mfk.core.files import read_json
from mfk.core.types import describe
from mfk.data import LoaderConfig, open_families, open_motion, read_stick, read_tensors, stick_from_bvh
from mfk.data.irf_zarr import open_array
from mfk.kinematics import load_urdf, urdf_text
from mfk.tasks.ik_pretrained import load_ik
from mfk.train import CheckpointError, find
from mfk.train.arrays import read_arrays

ROOT = Path(__file__).parents[1]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """What must not be there after the test."""
    place = tmp_path / "run by a file"
    yield place
    assert not place.exists()


def test_pickles_of_users_are_not_run(tmp_path: Path, mark: Path) -> None:
    for name, kinds in (("zip", {}), ("old", {"_use_new_zipfile_serialization": False})):
        path = tmp_path / f"{name}.pt"
        torch.save({"a": torch.ones(2), "b": Evil(mark)}, path, **kinds)
        for read in (read_tensors, read_stick):
            with pytest.raises(ValueError, match=rf"{name}\.pt: refused, nothing in it was run"):
                read(path)
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ValueError, match=r"old\.pt: refused, nothing"):
        read_tensors(path)
    np.savez(tmp_path / "a.npz", a=np.array([Evil(mark)], dtype=object))
    for read in (read_tensors, open_families):
        with pytest.raises(
            ValueError, match=r"a\.npz: 'a': refused: expected numbers, got an array of dtype"
        ):
            read(tmp_path / "a.npz")
    # Only to see that what was refused would have run.
    with pytest.raises(FileExistsError):
        mark.mkdir()
        try:
            pickle.loads(pickle.dumps(Evil(mark)))
        finally:
            mark.rmdir()


def test_a_tar_of_torch_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.pt"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("../out", "storages", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"a\.pt: the file is damaged"):
        read_tensors(path)
    assert [*tmp_path.rglob("*")] == [path.parent, path]


def test_a_pickle_asks_for_no_memory(tmp_path: Path) -> None:
    """``bytearray(n)`` in torch's own list of what it may call would fill n bytes."""
    content = b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85Rs."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    magic = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (tmp_path / "old.pt").write_bytes(magic + content.replace(b"builtins", b"__builtin__"))
    for name in ("a.pt", "old.pt"):
        with pytest.raises(ValueError, match=rf"{name}: refused, .* but it asks for a bytearray"):
            read_tensors(tmp_path / name)


def test_codecs_of_zarr_that_unpickle_are_refused(tmp_path: Path, mark: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 2), dtype="f4", zarr_format=2, compressors=None)[:] = 1.0
    about = json.loads((tmp_path / "a.zarr/.zarray").read_text())
    assert open_array(tmp_path / "a.zarr", 2).shape == (2, 2)
    (tmp_path / "a.zarr/0.0").write_bytes(pickle.dumps(Evil(mark)))
    for change in ({"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}):
        (tmp_path / "a.zarr/.zarray").write_text(json.dumps(about | change))
        # Zarr 3.1 refuses to open it, earlier ones did not.
        with pytest.raises(
            ValueError, match=r"a\.zarr: (refused: expected a codec|cannot be read as a Zarr array)"
        ):
            open_array(tmp_path / "a.zarr", 2)
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps(about | {"filters": [{"id": "base64"}]}))
    with pytest.raises(ValueError, match=r"a\.zarr: refused: expected a codec among .*, got 'base64'"):
        open_array(tmp_path / "a.zarr", 2)
    objects = {"dtype": "|O", "filters": [{"id": "pickle"}], "fill_value": None}
    (tmp_path / "a.zarr/.zarray").write_text(json.dumps(about | objects))
    with pytest.raises(ValueError, match=r"a\.zarr: "):
        open_array(tmp_path / "a.zarr", 2)


def test_types_of_parquet_that_unpickle_are_not_run(tmp_path: Path, mark: Path) -> None:
    kept = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Evil(mark)),
    }
    field = pa.field("a::x", pa.float32(), metadata=kept)
    pq.write_table(
        pa.table([pa.array([1.0], pa.float32())], schema=pa.schema([field])), tmp_path / "a.parquet"
    )
    try:
        assert open_families(tmp_path / "a.parquet").families["a"].tolist() == [[1.0]]
    except ValueError as error:
        assert "a.parquet: column 'a::x': expected a feature" in str(error)
    with pytest.raises(ValueError, match=r"a\.parquet: expected a column frames"):
        open_motion(tmp_path / "a.parquet")


def test_yaml_makes_no_objects_and_does_not_grow(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "a.yaml"
    laughs = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{y}: &{y} [*{x}, *{x}, *{x}]\n" for x, y in zip("abc", "bcd", strict=True)
    )
    for text in (
        f"x: !!python/object/apply:os.mkdir ['{mark}']",
        "x: !!python/name:os.system",
        "a: !a 1",
        laughs,
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml: line 1, column .*: anchors, aliases and tags"):
            load_yaml(LoaderConfig, path)
    path.write_text("workers: 0x" + "f" * 5000)
    with pytest.raises(ValueError, match=r"a\.yaml: line 1, .*: expected an integer of at most 400 digits"):
        load_yaml(LoaderConfig, path)
    path.write_text("x: " + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.yaml: nested too deeply"):
        load_yaml(LoaderConfig, path)


def test_json_that_is_too_deep_or_too_long_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"[" * 100_000, b"1" * 5000, b"{", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: expected JSON: "):
            read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match=r"a\.json: expected text in UTF-8, got byte 0xff"):
        read_json(path)
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    assert len(describe(nested)) < 200


@pytest.mark.parametrize(
    "head",
    [
        "<!DOCTYPE robot>",
        '<!DOCTYPE robot SYSTEM "http://localhost/x.dtd">',
        '<!DOCTYPE robot [<!ENTITY x "panda">]>',
        '<!DOCTYPE robot [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE robot [<!ENTITY % x SYSTEM "file:///etc/hostname"> %x;]>',
    ],
)
def test_xml_has_no_entities_and_no_document_type(head: str, tmp_path: Path) -> None:
    text = urdf_text("panda")
    text = head + text[text.index("<robot") :].replace(
        'name="panda"', 'name="&x;"' if "ENTITY x" in head else "", 1
    )
    (tmp_path / "a.urdf").write_text(text)
    for given in (text, tmp_path / "a.urdf"):
        with pytest.raises(ValueError, match="expected a URDF without document type, entities or external"):
            load_urdf(given, "panda_hand")


def test_a_network_s_file_names_no_other_file(tmp_path: Path) -> None:
    about = {
        "format": "mfk.ik.1", "network": {}, "record": {},
        "robot": {"urdf": f"{tmp_path}/<robot", "frame": "a", "base": "b"},
    }  # fmt: skip
    from mfk.tasks import ik_pretrained

    about["format"] = ik_pretrained.FORMAT
    np.savez(tmp_path / "a.npz", about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    (tmp_path / "<robot").write_text(urdf_text("panda"))
    with pytest.raises(ValueError, match=r"a\.npz: robot: expected the text of a URDF"):
        load_ik(tmp_path / "a.npz")


def test_names_in_archives_are_no_paths(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    array = io.BytesIO()
    np.save(array, np.ones(2, np.float32))
    names = ["../out.npy", "/tmp/absolute.npy", "a/../../b.npy"]
    with zipfile.ZipFile(tmp_path / "in/a.npz", "w") as archive:
        for name in names:
            archive.writestr(name, array.getvalue())
        link = zipfile.ZipInfo("link.npy")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, array.getvalue())
    assert len(read_tensors(tmp_path / "in/a.npz")) == 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.npz", "in"]


def test_archives_that_grow_are_refused_before_they_do(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=r"a\.npz: refused: its \d+ bytes would unpack to 314572800"):
        read_tensors(tmp_path / "a.npz")


def _evil_hdf5(folder: Path, kind: str, place: str) -> Path:
    path, other = folder / "a.h5", folder / "other.h5"
    shape = (3, 7)
    with h5py.File(other, "w") as file:
        file[place] = np.ones(shape, "f4")
    (folder / "secret").write_bytes(bytes(4 * 21))
    with h5py.File(path, "w") as file:
        file.attrs["fps"], file.attrs["bone_names"] = 30.0, '["a"]'
        if kind == "link":
            file[place] = h5py.ExternalLink(str(other), place)
        elif kind == "group":
            file[place.partition("/")[0]] = h5py.ExternalLink(str(other), place.partition("/")[0])
        elif kind == "bytes":
            file.create_dataset(place, shape, "f4", external=[(str(folder / "secret"), 0, 4 * 21)])
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[:] = h5py.VirtualSource(str(other), place, shape)
            file.create_virtual_dataset(place, layout)
    return path


@pytest.mark.parametrize("kind", ["link", "group", "bytes", "virtual"])
def test_hdf5_reads_no_other_file(kind: str, tmp_path: Path) -> None:
    for read, place in ((open_motion, "frames"), (open_families, "features/a/features")):
        if place.startswith("features"):
            place = "features/a/aggregated/features"
        path = _evil_hdf5(tmp_path, kind, place)
        file: Any
        with h5py.File(path) as file:
            assert file[place].shape == (3, 7)  # to h5py it is an array as any other
        with pytest.raises(ValueError, match=r"a\.h5: .*refused: expected"):
            read(path)


def test_arrays_that_a_file_only_speaks_of_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["fps"], file.attrs["bone_names"] = 30.0, '["a"]'
        file.create_dataset("frames", (2**40, 7), "f4", chunks=(64, 7))
    with pytest.raises(ValueError, match=r"a\.h5: /frames: refused: 30786325577728 bytes of numbers"):
        open_motion(tmp_path / "a.h5")
    for chunks in ((4, 2), (2**30, 2)):
        zarr.create_array(tmp_path / "a.zarr", shape=(2**30, 2), chunks=chunks, dtype="f4", overwrite=True)
        with pytest.raises(ValueError, match=r"a\.zarr: refused: 8589934592 bytes of numbers"):
            open_array(tmp_path / "a.zarr", 2)


def test_an_index_of_recordings_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "out.bvh").write_text("HIERARCHY")
    (folder / "link.bvh").symlink_to(tmp_path / "out.bvh")
    joints = ("neck", "head", "chest", *(f"{s}_{x}" for s in "lr" for x in _LIMBS))
    (folder / "map.json").write_text(json.dumps({"skeletons": {"m": {name: name for name in joints}}}))
    for name in ("../out.bvh", str(tmp_path / "out.bvh"), "link.bvh", "a\0b"):
        (folder / "index.csv").write_text(f"clip,file,skeleton,action,text\none,{name},m,walk,walks\n")
        with pytest.raises(ValueError, match=r"index\.csv: clip 'one': expected a file in .*, got "):
            stick_from_bvh(folder, folder / "index.csv", folder / "map.json")


_LIMBS = ("shoulder", "elbow", "hand", "hip", "knee", "foot")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "a\0b"])
def test_a_checkpoint_s_manifest_names_its_own_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "00000001"
    folder.mkdir()
    record = {
        "step": 1,
        "metrics": {},
        "best_metric": None,
        "leaves": {},
        "files": {name: [1, zlib.crc32(b"x")]},
    }
    sealed = {"crc": zlib.crc32(json.dumps(record).encode()), "manifest": record}
    (folder / "manifest.json").write_text(json.dumps(sealed))
    with pytest.raises(CheckpointError, match=r"00000001: .*expected files in the checkpoint's folder, got"):
        find(folder)


# The code itself ------------------------------------------------------------------------------------------

_RUN = {"eval", "exec", "compile", "__import__"}
_UNSAFE_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
# An error that goes from one process of a run to another is unpickled by whom it was pickled; an exported
# program is read back by whom it was written; the fuzzer takes apart what it made.
_OWN = {
    "mfk/core/ranks.py": {"pickle.loads"},
    "mfk/tasks/motion_export.py": {"torch.jit.load"},
    "benchmarks/fuzz_mutators.py": {"ElementTree.fromstring"},
}


def unsafe(source: str, name: str) -> list[str]:
    """What a module does that no module should, as "line: call"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{node.lineno}: import {m}" for m in modules if m.partition(".")[0] in _UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        last = call.rpartition(".")[2]
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        bad = (
            call in _RUN
            or call in ("os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "torch.jit.load")
            or (call.startswith("pickle.") and last in ("load", "loads", "Unpickler"))
            or (call == "yaml.load" and given.get("Loader") != "_Loader")
            or (call == "torch.load" and given.get("weights_only") != "True")
            or (call in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
            or (last == "read_array" and given.get("allow_pickle") != "False")
            or given.get("allow_pickle") == "True"
            or given.get("shell", "False") != "False"
            or (last in ("extractall", "extract", "unpack_archive") and given.get("filter") != "'data'")
            or (last in ("fromstring", "XML", "iterparse") and "Safe" not in call)
        )
        if bad and call not in _OWN.get(name, ()):
            found.append(f"{node.lineno}: {call}")
    return found


@pytest.mark.parametrize("folder", ["mfk", "experiments", "benchmarks"])
def test_the_code_runs_no_text_and_unpickles_no_file(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 10
    found = {}
    for path in files:
        name = str(path.relative_to(ROOT))
        if lines := unsafe(path.read_text(encoding="utf-8"), name):
            found[name] = lines
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "exec(x)", "pickle.load(f)", "pickle.loads(x)", "yaml.load(x)",
        "yaml.load(x, Loader=yaml.Loader)",
        "subprocess.run(x, shell=True)", "np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "os.system(x)", "tar.extractall(x)",
        "import dill", "from joblib import load",
        "ElementTree.fromstring(x)",
    ],
)  # fmt: skip
def test_the_walk_over_the_code_would_find_it(line: str) -> None:
    assert len(unsafe(line, "x.py")) == 1


def test_reading_arrays_of_a_checkpoint_needs_none_of_it(tmp_path: Path) -> None:
    """Orbax's own files hold no pickle: a folder that is none of its is an error, and nothing runs."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/_METADATA").write_bytes(pickle.dumps(Evil(tmp_path / "run")))
    with pytest.raises(Exception, match=r"(?s).+"):
        read_arrays(tmp_path / "a")
    assert not (tmp_path / "run").exists()
