"""Files of float32 tensors, written some rows at a time: torch's .pt and NumPy's .npz.

Both are zip archives of uncompressed entries, so the place of each row in the file is known before the
first is made. `lay_out` plans a file, `write_rows` puts rows where they belong, in any order and as often
as one likes, and `seal` adds what makes an archive of it: headers with checksums, and the directory. A
writer that is killed can go on with the file that it left. Memory does not grow with the rows, the file
is written once, and its bytes depend on the tensors alone, not on its name, a clock or the batches.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

from mfk.core.types import describe

SUFFIXES = (".pt", ".npz")

_ALIGNMENT = 64  # bytes, of the first number of each column: torch maps them into memory as they lie
_HEADER = 30 + 20  # bytes of an entry's header beside its name and padding; 20 are the 64-bit sizes
_DIRECTORY = 46 + 28  # bytes of an entry in the directory, at most, beside its name and padding
_END = 22 + 76  # bytes after the directory, at most
_CHUNK = 1 << 22  # bytes read at a time for the checksums
_FLOAT = 4  # bytes


class Entry(NamedTuple):
    """One file in the archive: a column of rows, or a few bytes that describe them."""

    name: str  # in the archive
    column: str  # name of the tensor; empty where there is none
    width: int  # numbers in a row
    padding: bytes  # a field of the header that moves the rows to a multiple of 64 bytes
    head: bytes  # what comes before the rows
    start: int  # byte of the file where the rows begin
    stop: int  # byte after the last row


class Layout(NamedTuple):
    """A planned file."""

    rows: int
    entries: tuple[Entry, ...]  # in the order of the file
    size: int  # bytes; the sealed file is at most this long, and a few dozen bytes shorter


def lay_out(path: Path | str, widths: Mapping[str, int], rows: int) -> Layout:
    """Plan a file of float32 tensors [rows, width]; nothing is written.

    Args:
        path: .pt is read by ``torch.load(path, weights_only=True, mmap=True)``, .npz by ``numpy.load``.
        widths: name -> width, in the order of the file.
        rows: of every tensor.

    Raises:
        ValueError: another suffix, no tensors, or fewer than one row.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file's name that ends in .pt or .npz")
    if type(rows) is not int or rows < 1:
        raise ValueError(f"rows: expected at least 1, got {describe(rows)}")
    if not widths:
        raise ValueError("widths: expected at least one tensor, got none")
    entries: list[Entry] = []
    end = 0
    for name, column, head in (_torch_entries if suffix == ".pt" else _numpy_entries)(widths, rows):
        bare = end + _HEADER + len(name) + 4
        # "FB" is the number under which torch's own files pad; readers skip what they do not know.
        padding = b"FB" + (fill := -(bare + len(head)) % _ALIGNMENT).to_bytes(2, "little") + bytes(fill)
        start = bare + fill + len(head)
        width = widths.get(column, 0)
        end = start + rows * width * _FLOAT
        entries.append(Entry(name, column, width, padding, head, start, end))
    directory = sum(_DIRECTORY + len(entry.name) + len(entry.padding) for entry in entries)
    return Layout(rows, tuple(entries), end + directory + _END)


def write_rows(file: BinaryIO, layout: Layout, first: int, columns: Mapping[str, Tensor]) -> None:
    """Write rows `first`, `first` + 1, ... of every column to a file open for reading and writing.

    Raises:
        ValueError: columns other than the planned, of other widths, of unequal lengths, or past the end.
        TypeError: not float32.
        OSError: the disk is full.
    """
    planned = {entry.column: entry for entry in layout.entries if entry.column}
    if columns.keys() != planned.keys():
        raise ValueError(f"columns: expected {', '.join(planned)}, got {', '.join(columns)}")
    count = len(next(iter(columns.values())))
    if not 0 <= first <= first + count <= layout.rows:
        raise ValueError(f"first: rows {first} to {first + count} are not among the {layout.rows} planned")
    for name, column in columns.items():
        if tuple(column.shape) != (count, planned[name].width):
            raise ValueError(f"{name}: expected shape {(count, planned[name].width)}, got {describe(column)}")
        if column.dtype != torch.float32:
            raise TypeError(f"{name}: expected float32, got {column.dtype}")
    for name, column in columns.items():
        numbers = np.ascontiguousarray(column.numpy(force=True), dtype="<f4")
        _write(file, planned[name].start + first * planned[name].width * _FLOAT, numbers.tobytes())


def seal(file: BinaryIO, layout: Layout) -> None:
    """Make the archive complete, once all rows are written; doing it again changes nothing.

    It writes around the rows, never over them: one that is killed has spoilt nothing.
    """
    frame = _Frame([(entry.start, entry.stop) for entry in layout.entries])
    with zipfile.ZipFile(frame, "w") as archive:
        for entry in layout.entries:
            info = zipfile.ZipInfo(entry.name)  # dated 1980
            info.extra = entry.padding
            with archive.open(info, "w", force_zip64=True) as out:
                out.write(entry.head)
                for chunk in _chunks(file, entry.start, entry.stop):
                    out.write(chunk)
    end = frame.tell()
    assert end <= layout.size and not frame.overlaps(), "the headers are not as long as planned"
    for offset, piece in frame.pieces:
        _write(file, offset, piece)
    os.ftruncate(file.fileno(), end)


class _Frame(io.RawIOBase):
    """Where zipfile writes to: it keeps the headers and drops the rows, which lie in the file already."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self.spans = spans  # of the rows
        self.pieces: list[tuple[int, bytes]] = []  # (offset, what belongs there), later ones replace earlier
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET, "zipfile writes by absolute positions"
        self._position = offset
        return offset

    def write(self, data: Any) -> int:
        first, last = self._position, self._position + len(data)
        self._position = last
        if any(start <= first and last <= stop for start, stop in self.spans):
            return len(data)
        offset, before = self.pieces.pop() if self.pieces else (first, b"")
        if offset + len(before) == first:
            self.pieces.append((offset, before + bytes(data)))
        else:
            self.pieces += [(offset, before), (first, bytes(data))]
        return len(data)

    def overlaps(self) -> bool:
        return any(
            offset < stop and start < offset + len(piece)
            for offset, piece in self.pieces
            for start, stop in self.spans
        )


def _write(file: BinaryIO, offset: int, data: bytes) -> None:
    """All of `data`, past Python's buffer: what a full disk refuses must not be tried again on closing."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[written:], offset + written


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        chunk = os.pread(file.fileno(), min(_CHUNK, stop - start), start)
        if not chunk:
            raise OSError(f"{file.name}: expected {stop - start} more bytes of rows, the file has been cut")
        start += len(chunk)
        yield chunk


def _numpy_entries(widths: Mapping[str, int], rows: int) -> Iterator[tuple[str, str, bytes]]:
    """(name, column, head) of each entry of an .npz."""
    for name, width in widths.items():
        head = io.BytesIO()
        described = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(head, described)
        yield f"{name}.npy", name, head.getvalue()


def _torch_entries(widths: Mapping[str, int], rows: int) -> Iterator[tuple[str, str, bytes]]:
    """(name, column, head) of each entry of a .pt.

    torch.save's own, but .format_version: that one promises headers without the 64-bit sizes.
    """
    yield "archive/data.pkl", "", _pickled(widths, rows)
    yield "archive/byteorder", "", b"little"
    for i, name in enumerate(widths):
        yield f"archive/data/{i}", name, b""
    yield "archive/version", "", b"3\n"


class _Storage(NamedTuple):
    key: str  # of its entry, archive/data/<key>
    numbers: int


class _Column(NamedTuple):
    storage: _Storage
    rows: int
    width: int

    def __reduce__(self) -> tuple[Any, ...]:
        # As a tensor reduces itself: storage, offset, shape, strides, requires_grad, hooks.
        shape, strides = (self.rows, self.width), (self.width, 1)
        return _rebuild_tensor_v2, (self.storage, 0, shape, strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return "storage", torch.FloatStorage, obj.key, "cpu", obj.numbers
        return None


def _pickled(widths: Mapping[str, int], rows: int) -> bytes:
    """What torch.save pickles for a dict of tensors, without the tensors."""
    columns = {
        name: _Column(_Storage(str(i), rows * width), rows, width)
        for i, (name, width) in enumerate(widths.items())
    }
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(columns)
    return stream.getvalue()
