"""Files of tensors: what torch and numpy write comes back, and nothing that a file says is run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfk.data import archives, read_tensors

X = torch.arange(12.0).reshape(4, 3)
HEAD = b"PK\x03\x04"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensors")


def save(path: Path, data: Any, zipped: bool = True) -> Path:
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    return path


def replace_in_pickle(path: Path, old: bytes, new: bytes) -> None:
    """Rewrite a file of torch.save with other bytes in its pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if name.endswith("data.pkl"):
                assert old in content
                content = content.replace(old, new)
            archive.writestr(name, content)


def refused(path: Path, words: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=words) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves(tmp_path: Path, zipped: bool) -> None:
    data = {
        "float": X,
        "double": X.double(),
        "half": X.half(),
        "brain": X.bfloat16(),
        "int": X.long(),
        "bool": X > 3,
        "row": X[1:3],
        "column": X[:, 1],
        "leaf": X.clone().requires_grad_(),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 7),
    }
    found = read_tensors(save(tmp_path / "data.pt", data, zipped))
    assert list(found) == list(data)
    for key, value in data.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=0, atol=0)
        assert not found[key].requires_grad
    assert list(read_tensors(save(tmp_path / "data.PTH", collections.OrderedDict(a=X), zipped))) == ["a"]


ARRAYS = {
    "float": X.numpy(),
    "columns_first": np.asfortranarray(X.numpy()),
    "swapped": X.numpy().astype(">f8"),
    "int": np.arange(5),
    "byte": np.arange(5, dtype=np.uint8),
    "bool": np.array([True, False]),
    "half": X.numpy().astype(np.float16),
    "scalar": np.array(2.5),
    "none": np.empty((0, 7), np.float32),
    "every_other": X.numpy()[::2],
}


def assert_arrays(found: dict[str, Tensor]) -> None:
    assert list(found) == list(ARRAYS)
    for key, value in ARRAYS.items():
        assert found[key].numpy().dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[key].numpy(), value)
        found[key].zero_()  # writable


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_arrays_that_torch_saves(tmp_path: Path, zipped: bool) -> None:
    assert_arrays(read_tensors(save(tmp_path / "data.pt", ARRAYS, zipped)))


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_both_names_of_numpys_module(tmp_path: Path, module: bytes) -> None:
    path = save(tmp_path / "data.pt", ARRAYS)
    own = np.zeros(1).__reduce__()[0].__module__.encode()
    replace_in_pickle(path, own, module)
    assert_arrays(read_tensors(path))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_what_numpy_saves(tmp_path: Path, write: Any) -> None:
    write(tmp_path / "data.npz", **ARRAYS)
    assert_arrays(read_tensors(tmp_path / "data.npz"))


def test_tensors_are_mapped_and_the_file_is_never_written(tmp_path: Path) -> None:
    path = save(tmp_path / "data.pt", {"x": torch.randn(1000, 7)})
    path.chmod(0o444)
    before = path.read_bytes()
    x = read_tensors(path)["x"]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in maps if line[-1] == str(path)]
    assert any(int(low, 16) <= x.data_ptr() < int(high, 16) for low, high in ranges)
    x.zero_()
    assert path.read_bytes() == before


def test_torch_allows_afterwards_what_it_did(tmp_path: Path) -> None:
    path = save(tmp_path / "data.pt", ARRAYS)
    torch_own = torch.serialization.get_safe_globals()
    read_tensors(path)
    assert {*torch.serialization.get_safe_globals()} == {*torch_own}
    # What a program has allowed of numpy itself is not what reads the file, and is allowed again afterwards.
    real: list[Any] = [np.zeros(1).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype("f4"))]
    with torch.serialization.safe_globals(real):
        assert_arrays(read_tensors(path))
        assert {*torch.serialization.get_safe_globals()} == {*torch_own, *real}


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_of_torch_runs_nothing(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "data.pt", {"q": X, "z": Hostile(marker)}, zipped)
    refused(path, "refused, nothing in it was run: .* asks for posix.system")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # it does bite
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "data.pt"
    path.write_bytes(pickle.dumps({"q": Hostile(marker)}, protocol=protocol))
    refused(path, "refused, nothing in it was run")
    assert not marker.exists()


def test_a_hostile_array_runs_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "data.npz"
    np.savez(path, q=np.array([Hostile(marker)], dtype=object))
    refused(path, r"'q': refused: expected numbers, got an array of dtype '\|O'")
    assert not marker.exists()


class Forged:
    """It is pickled as a call of numpy's, with a state of one's own."""

    def __init__(self, call: Any, arguments: Any, state: Any) -> None:
        self.parts = call, arguments, state

    def __reduce__(self) -> Any:
        return self.parts


MAKE = np.zeros(1).__reduce__()[0]
F4 = np.dtype("f4")
FORGED = [
    (Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (5,), F4, False, b"1234")), "shape of .5,. does not fit"),
    (Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (-1, -1), F4, False, b"1234")), "does not fit"),
    (Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (2**62, 4), F4, False, b"")), "does not fit"),
    (Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (1,), F4, False, "text")), "does not fit"),
    (Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (1,), "f4", False, b"1234")), "got half of one"),
    (Forged(MAKE, (np.ndarray, (0,), b"b"), "nothing"), "got half of one"),
    (Forged(MAKE, (np.ndarray, (10**12,), b"b"), None), "got half of one"),
    (Forged(np.ndarray, ((10**12,),), None), "damaged|got half of one"),
    (Forged(bytes, (10**12,), None), "damaged"),
]


@pytest.mark.parametrize(("forged", "words"), FORGED)
def test_forged_arrays_are_not_built(tmp_path: Path, forged: Forged, words: str) -> None:
    refused(save(tmp_path / "data.pt", {"q": forged}), words)


def test_a_dtype_that_hides_objects(tmp_path: Path) -> None:
    """numpy takes the flags of a forged dtype at their word, and then bytes for the addresses of objects."""
    fields = {"x": (np.dtype(object), 0)}
    hidden = Forged(np.dtype, ("V8", False, True), (3, "|", None, ("x",), fields, 8, 1, 0))
    array = Forged(MAKE, (np.ndarray, (0,), b"b"), (1, (1,), hidden, False, b"\x41" * 8))
    refused(save(tmp_path / "data.pt", {"q": array}), "expected an array of numbers, got one of dtype '|V8'")


CONTENT = [
    ([X], "got a list"),
    (X, "got a tensor"),
    ({}, "got one without entries"),
    ({1: X}, r"expected names \(str\) as keys, got a int"),
    ({"a": {"b": X}}, "'a': expected a tensor or an array of numbers, got a dict"),
    ({"a": 3}, "'a': .* got a int"),
    ({"a": [1.0]}, "'a': .* got a list"),
    ({"a": torch.nn.Parameter(X)}, "'a': .* got a Parameter"),
    ({"a": X.to_sparse()}, "'a': .* got a tensor of torch.float32, torch.sparse_coo"),
    ({"a": X.to("meta")}, "'a': expected a tensor or an array of numbers"),
    ({"a": X + 1j}, "'a': .* torch.complex64"),
    ({"a": torch.zeros(1, 1).expand(10**9, 7)}, "'a': .* got a view that repeats some"),
    ({"a": torch.zeros(4).as_strided((3, 2), (1, 1))}, "'a': .* got a view that repeats some"),
    ({"a": np.array([None])}, r"'a': .* got one of dtype '\|O8'"),
    ({"a": np.array(["x"])}, "'a': .* got one of dtype '<U1'"),
    ({"a": np.zeros(2, complex)}, "'a': .* got one of dtype '<c16'"),
    ({"a": np.zeros(2, [("x", "f4")])}, r"'a': .* got one of dtype '\|V4'"),
    ({"a": np.float32(1)}, r"refused, .* asks for numpy.*multiarray\.scalar"),
    (torch.nn.Linear(1, 1), r"refused, .* asks for torch\.nn\.modules\.linear\.Linear"),
]


@pytest.mark.parametrize(("content", "words"), CONTENT, ids=[words for _, words in CONTENT])
def test_other_content_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    refused(save(tmp_path / "data.pt", content), words)


def test_lists_without_end(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    refused(save(tmp_path / "data.pt", {"a": endless}), "'a': .* got a list")


def test_nested_tensors_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: the API is a prototype
        nested = torch.nested.nested_tensor([X, X[:2]])
    refused(save(tmp_path / "data.pt", {"a": nested}), "'a': expected a tensor or an array of numbers, got a")


@pytest.mark.parametrize(
    "value", [np.array(["x"]), np.zeros(2, complex), np.zeros(2, [("x", "f4")]), np.zeros(2, "M8[s]")]
)
def test_other_arrays_are_refused(tmp_path: Path, value: Any) -> None:
    np.savez(tmp_path / "data.npz", q=value)
    refused(tmp_path / "data.npz", "'q': refused: expected numbers, got an array of dtype")


def test_paths(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "there is no such file", FileNotFoundError)
    (tmp_path / "folder.pt").mkdir()
    refused(tmp_path / "folder.pt", "expected a file, got a folder")
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "expected a regular file")
    for suffix in (".pt", ".npz"):
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}", "got an empty file")
    (tmp_path / "data.csv").write_text("q\n1\n")
    refused(tmp_path / "data.csv", r"expected a file named \.pt, .* got '\.csv'")
    refused(tmp_path / "data.csv" / "x.pt", "cannot be read: Not a directory", OSError)
    refused(tmp_path / ("x" * 300 + ".pt"), "cannot be read: File name too long", OSError)
    np.savez(tmp_path / "data.npz", q=X.numpy())
    (tmp_path / "data.npz").rename(tmp_path / "data.pt")
    refused(tmp_path / "data.pt", r"got one of numpy: name it \.npz")
    save(tmp_path / "other.pt", {"q": X}).rename(tmp_path / "other.npz")
    refused(tmp_path / "other.npz", r"expected arrays \(\.npy\) in the archive, got 'other/data.pkl'")
    save(tmp_path / "old.npz", {"q": X}, zipped=False)
    refused(tmp_path / "old.npz", "which is a zip archive; this is none")


def array_file(shape: tuple[int, ...], content: bytes) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return head.getvalue() + content


@pytest.mark.parametrize(
    ("shape", "content", "words"),
    [
        ((10**6, 10**6), b"\0" * 40, "'q': the file is damaged: the array's header speaks of 4000000000128"),
        ((2**32, 2**32), b"", "the array's header speaks of"),
        ((2,), b"\0" * 12, "the array's header speaks of 136 bytes, there are 140"),
        ((-1,), b"", "damaged"),
        ((-1, -2), b"\0" * 8, "damaged"),
    ],
)
def test_headers_that_lie(tmp_path: Path, shape: tuple[int, ...], content: bytes, words: str) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("q.npy", array_file(shape, content))
    refused(path, words)


def test_archives_that_are_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("q.npy", array_file((1,), b"1234"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("q.npy", array_file((1,), b"5678"))
    refused(path, r"expected names to differ, got 'q\.npy' twice")
    np.savez_compressed(path, q=np.zeros(100_000, np.float32))
    assert len(read_tensors(path)["q"]) == 100_000
    monkeypatch.setattr(archives, "_SURELY_FINE", 10_000)
    refused(path, "refused: its .* bytes would unpack to 400128")
    compressed, plain = tmp_path / "compressed.pt", save(tmp_path / "plain.pt", {"q": X})
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(compressed, "expected the uncompressed archive")


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    for path in (save(tmp_path / "data.pt", {"q": X}), tmp_path / "data.npz"):
        if path.suffix == ".npz":
            np.savez(path, q=X.numpy())
        content = bytearray(path.read_bytes())
        content[content.index(X.numpy().tobytes()) + 5] ^= 1
        path.write_bytes(content)
        refused(path, "the file is damaged")


def test_checksums_may_be_left_out(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "data.pt", {"q": X})
    finally:
        torch.serialization.set_crc32_options(True)
    torch.testing.assert_close(read_tensors(path)["q"], X, rtol=0, atol=0)


def test_a_storage_larger_than_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "data.pt", {"q": torch.zeros(200)}, zipped=False)
    path.write_bytes(path.read_bytes().replace(b"K\xc8", b"J\x00\x00\x00\x7f"))  # 200 -> 2**31 - 2**24
    refused(path, "damaged")
    path = save(tmp_path / "data.pt", {"q": torch.zeros(200)})
    replace_in_pickle(path, b"K\xc8", b"J\x00\x00\x00\x7f")
    refused(path, "damaged")


def sample(folder: Path, kind: str) -> tuple[Path, bytes]:
    path = folder / f"sample{'.npz' if 'npz' in kind else '.pt'}"
    tensors = {"q": X, "n": X.double()}
    arrays: dict[str, Any] = {key: value.numpy() for key, value in tensors.items()}
    if "npz" in kind:
        write = np.savez_compressed if "compressed" in kind else np.savez
        write(path, **arrays)
    else:
        save(path, arrays if "numpy" in kind else tensors, zipped="legacy" not in kind)
    return path, path.read_bytes()


KINDS = ["zip", "zip numpy", "legacy", "legacy numpy", "npz", "npz compressed"]


def fails_or_reads(path: Path) -> dict[str, Tensor] | None:
    """What is read; None where that ended in a ValueError or OSError with the file's name."""
    try:
        return read_tensors(path)
    except (ValueError, OSError) as error:
        assert str(error).startswith(str(path))
        return None


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(folder: Path, kind: str) -> None:
    path, content = sample(folder, kind)
    assert list(read_tensors(path)) == ["q", "n"]
    for length in range(0, len(content), max(1, len(content) // 150)):
        path.write_bytes(content[:length])
        assert fails_or_reads(path) is None


@settings(max_examples=250)
@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", HEAD, b"\x80\x02", b"\x80\x02}q\x00", b"\x80\x04\x95", b"\x93NUMPY\x01\x00"]),
    suffix=st.sampled_from([".pt", ".npz"]),
)
def test_any_bytes(folder: Path, content: bytes, head: bytes, suffix: str) -> None:
    path = folder / f"bytes{suffix}"
    path.write_bytes(head + content)
    with pytest.raises((ValueError, OSError)) as error:
        read_tensors(path)
    assert str(error.value).startswith(str(path))


@settings(max_examples=250)
@given(kind=st.sampled_from(KINDS), place=st.floats(0, 1), value=st.binary(min_size=1, max_size=4))
def test_bytes_changed_anywhere(folder: Path, kind: str, place: float, value: bytes) -> None:
    path, content = sample(folder, kind)
    start = int(place * (len(content) - 1))
    path.write_bytes(content[:start] + value + content[start + len(value) :])
    found = fails_or_reads(path)
    if found is not None and "legacy" not in kind:
        # Archives have checksums of all but the names of their entries; the old format has none.
        assert [x.dtype for x in found.values()] == [torch.float32, torch.float64]
        for x in found.values():
            np.testing.assert_array_equal(x.numpy(), X.numpy())
