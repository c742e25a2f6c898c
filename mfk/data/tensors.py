"""Reading a flat dict of tensors from a file of somebody else's, without running anything in it.

A ``.pt`` file is a pickle, and a pickle is a program. PyTorch's restricted unpickler knows tensors, but
not the numpy arrays that some generators save; and numpy's own ``dtype``, built from a forged state,
takes bytes for addresses. So numpy's names stand here for two classes that only keep what they are told,
until `_from_numpy` has checked it.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import reprlib
import stat
import struct
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfk.data.archives import NUMBERS, attempt, damaged, open_archive, read_npz

_EXPECTED = "expected a flat dict of tensors or arrays of numbers"
_DTYPES = {torch.from_numpy(np.empty(0, code)).dtype for code in NUMBERS} | {torch.bfloat16}
_LOCK = threading.Lock()  # what torch.load allows is a global of torch


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors in a file by name, on the CPU, in the dtypes and shapes that they have there.

    A ``.pt`` or ``.pth`` file holds a dict, saved by ``torch.save``, of tensors or numpy arrays; an
    ``.npz`` file holds numpy arrays, compressed or not. Nothing else is unpickled. The numbers may be
    float16 to float64, bfloat16, int8 to int64, uint8 and bool.

    Tensors of a ``.pt`` file are mapped from the file, not copied: pages are read when they are used,
    and writing to a tensor leaves the file as it is. Replace such a file by renaming another onto it,
    not in place.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read.
        ValueError: another kind of file, a damaged one, one that asks for code to be run, one that
            unpacks to 100 times its size, or one that holds something else than a flat dict of numbers.
            The message starts with the path.
    """
    path = Path(path)
    size, head = open_regular(path)
    kind = path.suffix.lower()
    if kind not in (".pt", ".pth", ".npz"):
        raise ValueError(
            f"{path}: expected a file named .pt, .pth (torch.save) or .npz (numpy), got {kind!r}"
        )
    if not size:
        raise ValueError(f"{path}: {_EXPECTED}, got an empty file")
    zipped = head == b"PK\x03\x04"
    if kind == ".npz" and not zipped:
        raise ValueError(f"{path}: expected an .npz file of numpy, which is a zip archive; this is none")
    found = read_npz(path, size) if kind == ".npz" else read_torch(path, size, zipped, _EXPECTED)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {_EXPECTED}, got {_kind(found)}")
    if not found:
        raise ValueError(f"{path}: {_EXPECTED}, got one without entries")
    for key in found:
        if type(key) is not str:
            raise ValueError(f"{path}: expected names (str) as keys, got {_kind(key)}")
    return {key: plain_tensor(f"{path}: {reprlib.repr(key)}", value) for key, value in found.items()}


def open_regular(path: Path) -> tuple[int, bytes]:
    """Size and first four bytes of a regular file."""
    if "\0" in str(path):
        raise ValueError(f"{str(path)!r}: expected a path, got one with a null character in it")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ValueError(f"{path}: expected a file, got a folder")
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path}: expected a regular file, got a device, pipe or socket")
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size, file.read(4)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except OSError as error:
        raise type(error)(f"{path}: the file cannot be read: {error.strerror}") from None


class _Dtype:
    """What a pickle says of a numpy.dtype."""

    code: Any = None  # such as "f4"
    state: Any = None  # version, byte order, and what only structured dtypes have

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array:
    """What a pickle says of a numpy.ndarray."""

    state: Any = None  # version, shape, dtype, whether columns come first, bytes

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _no_bytes() -> bytes:
    """How an array without elements is pickled; ``bytes(n)`` would take any amount of memory."""
    return b""


# numpy 1 and numpy 2 name the module differently.
_STAND_INS: list[Any] = [
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_no_bytes, "builtins.bytes"),
]


# Torch's unpickler knows this one; called with a number it takes, and fills, as many bytes.
_AMOUNT = (b"builtins\nbytearray\n", b"__builtin__\nbytearray\n")


def read_torch(path: Path, size: int, zipped: bool, expected: str) -> Any:
    """What torch.load makes of a file, numpy's arrays being what `plain_tensor` takes.

    Raises:
        ValueError: damaged, or it holds more than plain containers, numbers and text; `expected` says what
            to expect. The message starts with the path.
    """
    if zipped:
        with open_archive(path, size) as archive:
            infos = archive.infolist()
            if any(info.filename.endswith(".npy") for info in infos):
                raise ValueError(f"{path}: expected a file of torch.save, got one of numpy: name it .npz")
            # A compressed record's mapped bytes would be taken for numbers.
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise ValueError(f"{path}: expected the uncompressed archive that torch.save writes")
            # torch can be told to write no checksums; then all of them are zero.
            for info in infos:
                if info.filename.endswith(".pkl") and any(
                    x in attempt(path, _stored, path, info) for x in _AMOUNT
                ):
                    raise _refused(path, expected)
            if any(info.CRC for info in infos) and (bad := attempt(path, archive.testzip)):
                raise ValueError(f"{path}: the file is damaged: the checksum of {bad!r} is wrong")
    elif _mentions(path):
        raise _refused(path, expected)
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(_STAND_INS):
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path}: refused, nothing in it was run: {_asked(str(error), expected)}"
            ) from None
        except Exception as error:  # what a forged or cut file makes of the reader can be anything
            raise damaged(path, error) from None
        finally:
            torch.serialization.add_safe_globals(others)


def _stored(path: Path, info: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry that is not compressed, whatever its checksum says."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))  # the lengths of what follows the header
        file.seek(name + extra, os.SEEK_CUR)
        return file.read(info.file_size)


def _mentions(path: Path) -> bool:
    """Whether a file of torch's old format, which is read as a whole anyhow, speaks of a bytearray."""
    longest, last = max(map(len, _AMOUNT)), b""
    with path.open("rb") as file:
        while block := file.read(2**22):
            text = last + block
            if any(word in text for word in _AMOUNT):
                return True
            last = text[-longest:]
    return False


def _refused(path: Path, expected: str) -> ValueError:
    return ValueError(f"{path}: refused, nothing in it was run: {expected}, but it asks for a bytearray")


def _asked(message: str, expected: str) -> str:
    """What torch's unpickler would not do, without its advice to allow it."""
    if name := re.search(r"GLOBAL (\S+)", message):
        return f"{expected}, but it asks for {name[1][:100]}"
    reason = message.partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or message
    return f"{expected}, saved by torch.save ({' '.join(reason.split())[:100]})"


def plain_tensor(where: str, value: Any) -> Tensor:
    """A tensor of numbers of what a file holds.

    Raises:
        ValueError: it is none, or not as it should be; starts with `where`.
    """
    if isinstance(value, _Array):
        value = _from_numpy(where, value)
    elif isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    plain = type(value) is Tensor and value.layout == torch.strided and not value.is_nested
    if not (plain and value.device.type == "cpu" and value.dtype in _DTYPES):
        raise ValueError(f"{where}: expected a tensor or an array of numbers, got {_kind(value)}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(
            f"{where}: expected all numbers of a tensor to be in the file, got a view that repeats some; "
            "save it with .contiguous()"
        )
    return value.detach()


def _from_numpy(where: str, array: _Array) -> Tensor:
    """The array that a pickle describes: version, shape, dtype, order and bytes, all of them checked."""
    match array.state:
        case int(), tuple(shape), _Dtype(code=str(code), state=(_, str(order), *_)), fortran, raw:
            pass
        case _:
            raise ValueError(f"{where}: the file is damaged: expected an array of numbers, got half of one")
    if code not in NUMBERS or order not in ("<", ">", "|", "="):
        raise ValueError(f"{where}: expected an array of numbers, got one of dtype {order + code!r:.40}")
    lengths = [n for n in shape if type(n) is int and n >= 0]
    needed = math.prod(lengths) * int(code[1:])
    if len(lengths) < len(shape) or not isinstance(raw, bytes) or needed != len(raw):
        raise ValueError(f"{where}: the file is damaged: a shape of {shape!r:.80} does not fit its bytes")
    flat = np.frombuffer(raw, np.dtype(order + code)).astype(code)
    return torch.from_numpy(flat.reshape(shape, order="F" if fortran else "C"))


def _kind(value: object) -> str:
    """A phrase for an error message that reads nothing of what a forged file may hold."""
    if isinstance(value, Tensor):
        what = type(value).__name__ if type(value) is not Tensor else "tensor"
        return f"a {what} of {value.dtype}, {value.layout}"
    return f"a {type(value).__name__.lstrip('_')}"
