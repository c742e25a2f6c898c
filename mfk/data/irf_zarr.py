"""A world's folder, read: two Zarr arrays, v2 or v3, chunk by chunk, and the numbers of a split."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfk.core import files
from mfk.core.types import describe
from mfk.data.irf_splits import SPLITS

_SURELY_FINE, _RATIO = 2**28, 1000  # bytes that any array may hold; beyond, times its size on the disk
_CODECS = (
    "bytes", "transpose", "blosc", "zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "shuffle", "delta", "crc32",
    "crc32c", "adler32", "fletcher32", "sharding_indexed",
)  # fmt: skip


class WorldFiles(NamedTuple):
    """What a data set holds of a world; nothing is read yet but the shapes and the split."""

    theta: Any  # zarr.Array [N, P]
    irfs: Any  # zarr.Array [N, S, H + 1, 3]
    samples: np.ndarray  # int64 [n]: those of the split, in the order of the file
    manifest: dict[str, Any]  # what manifest.json says of the world


def open_world(root: Path, world_id: str, split: str, manifest: dict[str, Any]) -> WorldFiles:
    """Open the arrays of a world and read which samples are in the split.

    Raises:
        ValueError: an unknown world or split, arrays of other dimensions than each other or the manifest, or
            a file that cannot be understood. FileNotFoundError: a file is missing.
    """
    folder = root / world_id
    if world_id not in manifest or not folder.is_dir():
        there = ", ".join(name for name in manifest if (root / name).is_dir()) or "none"
        raise ValueError(f"world_ids: {root} has no world {world_id!r}; it has {there}")
    theta, irfs = open_array(folder / "theta.zarr", 2), open_array(folder / "irfs.zarr", 4)
    if irfs.shape[3] != 3 or irfs.shape[2] < 2:
        raise ValueError(f"{folder / 'irfs.zarr'}: expected a shape [N, S, H + 1, 3], got {irfs.shape}")
    if theta.shape[0] != irfs.shape[0]:
        raise ValueError(
            f"{folder}: expected as many responses as parameters, got {irfs.shape[0]} samples in irfs.zarr "
            f"and {theta.shape[0]} in theta.zarr"
        )
    path = root / "manifest.json"
    told = _object(path, world_id, manifest[world_id])
    for key, array, found in (("param_manifest", "theta", theta), ("shock_manifest", "irfs", irfs)):
        names = _object(path, key, told.get(key, {})).get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(x, str) for x in names)):
            raise ValueError(
                f"{path}: expected a list of names in {key} of {world_id!r}, got {describe(names)}"
            )
        if names is not None and len(names) != found.shape[1]:
            raise ValueError(
                f"{folder / array}.zarr: expected {len(names)} numbers along axis 1, as many as the {key} of "
                f"{path} names, got the shape {found.shape}"
            )
    return WorldFiles(theta, irfs, read_split(folder / "splits.json", split, theta.shape[0]), told)


def open_array(path: Path, dimensions: int) -> Any:
    """A Zarr array of numbers with so many axes, open for reading."""
    import zarr

    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such array")
    try:
        array = zarr.open_array(path, mode="r")
    except Exception as error:  # zarr and its codecs raise of every kind
        raise ValueError(f"{path}: cannot be read as a Zarr array: {_reason(error)}") from error
    # Before anything of it is decoded: one of numcodecs' codecs is pickle.
    if strange := [name for name in _codecs(array) if name not in _CODECS]:
        raise ValueError(
            f"{path}: refused: expected a codec among {', '.join(_CODECS)}, got {strange[0]!r:.80}"
        )
    if array.ndim != dimensions or 0 in array.shape:
        raise ValueError(f"{path}: expected {dimensions} axes, none of them empty, got {array.shape}")
    if min(array.chunks) < 1:
        raise ValueError(f"{path}: expected chunks of one number at least, got {array.chunks}")
    if array.shards is not None:
        # zarr takes the rest of a shard that was cut for zeros, and says nothing.
        raise ValueError(f"{path}: expected chunks in a file each, got shards of {array.shards}")
    if array.dtype not in (np.float32, np.float64):
        raise ValueError(f"{path}: expected float32 or float64, got {array.dtype}")
    # Chunks that were never written take no room, and a short file can speak of any number of samples.
    claimed = array.dtype.itemsize * max(math.prod(array.shape), math.prod(array.chunks))
    if claimed > _SURELY_FINE:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if claimed > _RATIO * size:
            raise ValueError(
                f"{path}: refused: {claimed} bytes of numbers in an array of {size} bytes on the disk"
            )
    return array


def _codecs(array: Any) -> list[str]:
    """The names of an array's codecs, of Zarr 2 as of Zarr 3."""
    if array.metadata.zarr_format == 2:
        found = [*(array.metadata.filters or ()), *filter(None, (array.metadata.compressor,))]
        return [str(getattr(codec, "codec_id", type(codec).__name__)) for codec in found]
    return [codec.to_dict()["name"] for codec in array.metadata.codecs]


def read_split(path: Path, split: str, samples: int) -> np.ndarray:
    """The sample numbers of a split, int64; those of all splits are below `samples`, each there once.

    Raises:
        ValueError: there is no such split, a list cannot be understood, or two of the documented splits, or
            one of these and `split`, have a sample in common. FileNotFoundError: there is no file.
    """
    splits = read_json(path)
    if split not in splits:
        raise ValueError(f"split: {path} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    found: dict[str, np.ndarray] = {}
    of = np.full(samples, -1)  # number of the split that a sample is in
    for name in [split, *(name for name in SPLITS if name in splits and name != split)]:
        numbers = found[name] = _numbers(path, name, splits[name], samples)
        both = numbers[of[numbers] >= 0]
        if both.size:
            raise ValueError(
                f"{path}: expected each sample in one split, got sample {both[0]} in "
                f"{list(found)[of[both[0]]]!r} and {name!r}, of which {both.size} are the same"
            )
        of[numbers] = len(found) - 1
    return found[split]


def _numbers(path: Path, split: str, given: Any, samples: int) -> np.ndarray:
    """A list of sample numbers, checked."""
    if not isinstance(given, list):
        raise ValueError(f"{path}: expected a list of sample numbers in {split!r}, got {describe(given)}")
    odd = next((place for place, number in enumerate(given) if type(number) is not int), None)
    if odd is not None:
        raise ValueError(
            f"{path}: expected a list of sample numbers in {split!r}, "
            f"got {describe(given[odd])} at place {odd}"
        )
    outside = next((number for number in given if not 0 <= number < samples), None)
    if outside is not None or len(set(given)) < len(given):
        what = "a sample twice" if outside is None else f"sample {outside} of {samples}"
        raise ValueError(
            f"{path}: expected each number once, from 0 to {samples - 1}, in {split!r}, got {what}"
        )
    return np.asarray(given, dtype=np.int64)


def _object(path: Path, name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected a JSON object under {name!r}, got {describe(given)}")
    return given


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    data = files.read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, got {describe(data)}")
    return data


def read_chunk(path: Path, array: Any, number: int) -> np.ndarray:
    """The samples of a chunk, float32 [rows, ...].

    Raises:
        ValueError: its file is missing (which zarr would read as the fill value, of a file that was lost as
            of one that was left out), cut or damaged, or holds a number that is not finite.
    """
    rest = [range(-(-size // extent)) for size, extent in zip(array.shape[1:], array.chunks[1:], strict=True)]
    for index in itertools.product([number], *rest):
        file = path / array.metadata.encode_chunk_key(index)
        if not file.is_file():
            raise ValueError(
                f"{file}: this chunk of the array is missing. If all its numbers are the fill value "
                f"{array.fill_value}, zarr left it out: write it with write_empty_chunks=True in the array's "
                "config, so that it cannot be taken for one that was lost"
            )
        _check_blosc(file, array)
    first = number * array.chunks[0]
    try:
        rows = np.asarray(array[first : first + array.chunks[0]], dtype=np.float32)
    except Exception as error:  # zarr and its codecs raise of every kind
        raise ValueError(f"{path}: chunk {number} is cut or damaged: {_reason(error)}") from error
    finite = np.isfinite(rows).reshape(len(rows), -1).all(1)
    if not finite.all():
        raise ValueError(f"{path}: sample {first + int(np.argmin(finite))} holds a number that is not finite")
    return rows


def _check_blosc(file: Path, array: Any) -> None:
    """Blosc reads on past the end of a chunk that was cut; its header tells how long it ought to be."""
    if not (array.compressors and type(array.compressors[-1]).__name__.startswith("Blosc")):
        return
    with file.open("rb") as stream:
        header = stream.read(16)
    size, expected = file.stat().st_size, int.from_bytes(header[12:], "little")
    if len(header) < 16 or size != expected:
        raise ValueError(
            f"{file}: this chunk is cut or damaged: it has {size} bytes, by its header {expected}"
        )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
