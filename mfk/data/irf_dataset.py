"""Impulse responses on disk as a torch data set, and batches of them, of one world or of several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mfk.core.types import describe
from mfk.data.irf_zarr import WorldFiles, open_world, read_chunk, read_json

_CHUNKS_KEPT = 64  # in memory; of 1,000 samples each about 1 MB

Sample = dict[str, Any]
"""theta float32 [P], irf float32 [S, H + 1, 3], world_id str, and sample_idx int, the number in the files."""


class IRFDataset(Dataset[Sample]):
    """The samples of one split of some worlds, read lazily: see `mfk.data.irf_layout` for the files.

    Samples come world by world, each in the order of its split. Opening reads the manifest, the splits and
    the arrays' shapes; a chunk is read when one of its samples is asked for, and the last few are kept.
    """

    def __init__(
        self,
        zarr_root: Path | str,
        world_ids: Sequence[str],
        split: str = "train",
        *,
        one_period_late: bool = False,
    ) -> None:
        """Open a data set.

        Args:
            zarr_root: its folder; arrays may be Zarr 2 or 3.
            world_ids: which worlds, in this order.
            split: train, val, test_interpolation, test_extrapolation_slice or test_extrapolation_corner.
            one_period_late: accept responses of world "nk" that are 0 in period 0. Those of the original
                generator are: they begin a period late and are no solution of that economy.

        Raises:
            ValueError: an unknown world or split, dimensions that do not agree, splits that overlap, or a
                file that cannot be understood. On reading a sample: a chunk that is missing, cut or
                damaged, a number that is not finite, or responses that begin late.
            FileNotFoundError: a file or folder is missing.
        """
        self.zarr_root, self.world_ids, self.split = Path(zarr_root), list(world_ids), split
        self.one_period_late = one_period_late
        if isinstance(world_ids, str) or not self.world_ids or len(set(self.world_ids)) < len(self.world_ids):
            raise ValueError(f"world_ids: expected a list of different worlds, got {describe(world_ids)}")
        if not self.zarr_root.is_dir():
            raise FileNotFoundError(f"zarr_root: there is no folder {self.zarr_root}")
        path = self.zarr_root / "manifest.json"
        self.manifest = read_json(path)
        simulators = self.manifest.get("simulators")
        if not isinstance(simulators, dict):
            raise ValueError(f"{path}: expected the worlds under 'simulators', got {describe(simulators)}")
        self._worlds = {name: open_world(self.zarr_root, name, split, simulators) for name in self.world_ids}
        horizons = {name: files.irfs.shape[2] - 1 for name, files in self._worlds.items()}
        if len(set(horizons.values())) > 1:
            raise ValueError(f"world_ids: expected worlds of one horizon, got {horizons}")
        self._ends = np.cumsum([len(files.samples) for files in self._worlds.values()])
        self._chunks: OrderedDict[tuple[str, str, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Samples of all worlds."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        """The sample at a place in the split, 0 <= index < len; negative ones count from the end."""
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise TypeError(
                f"index: expected an int, got {describe(index)}; torch.utils.data.Subset takes several"
            )
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index: expected a place in {len(self)} samples, got {index}")
        which = int(np.searchsorted(self._ends, place, side="right"))
        world_id = self.world_ids[which]
        files = self._worlds[world_id]
        sample = int(files.samples[place - (self._ends[which] - len(files.samples))])
        return {
            "theta": torch.from_numpy(self._row(world_id, "theta", sample).copy()),
            "irf": torch.from_numpy(self._row(world_id, "irfs", sample).copy()),
            "world_id": world_id,
            "sample_idx": sample,
        }

    def read(self, world_id: str) -> dict[str, Tensor]:
        """All samples of a world in memory: theta [n, P], irf [n, S, H + 1, 3], sample_idx int64 [n]."""
        files = self._files(world_id)
        found: dict[str, Tensor] = {}
        for key, name in (("theta", "theta"), ("irf", "irfs")):
            array = getattr(files, name)
            out = np.empty((len(files.samples), *array.shape[1:]), dtype=np.float32)
            chunk, place = np.divmod(files.samples, array.chunks[0])
            for number in np.unique(chunk):
                rows = chunk == number
                out[rows] = self._chunk(world_id, name, int(number))[place[rows]]
            found[key] = torch.from_numpy(out)
        return found | {"sample_idx": torch.from_numpy(files.samples.copy())}

    def get_world_info(self, world_id: str) -> dict[str, int]:
        """n_params, n_shocks, H, and n_samples in this split; ValueError for another world."""
        files = self._files(world_id)
        return {
            "n_params": files.theta.shape[1],
            "n_shocks": files.irfs.shape[1],
            "H": files.irfs.shape[2] - 1,
            "n_samples": len(files.samples),
        }

    def get_param_manifest(self, world_id: str) -> dict[str, Any]:
        """The manifest's names, units, bounds and defaults of theta; ValueError for another world."""
        told = self._files(world_id).manifest
        if "param_manifest" not in told:
            raise ValueError(
                f"{self.zarr_root / 'manifest.json'}: has no param_manifest of world {world_id!r}"
            )
        return told["param_manifest"]

    def _files(self, world_id: str) -> WorldFiles:
        if world_id not in self._worlds:
            raise ValueError(f"world_id: expected one of {', '.join(self._worlds)}, got {describe(world_id)}")
        return self._worlds[world_id]

    def _row(self, world_id: str, name: str, sample: int) -> np.ndarray:
        size = getattr(self._worlds[world_id], name).chunks[0]
        return self._chunk(world_id, name, sample // size)[sample % size]

    def _chunk(self, world_id: str, name: str, number: int) -> np.ndarray:
        key = (world_id, name, number)
        if key in self._chunks:
            self._chunks.move_to_end(key)
            return self._chunks[key]
        path = self.zarr_root / world_id / f"{name}.zarr"
        rows = read_chunk(path, getattr(self._worlds[world_id], name), number)
        if name == "irfs" and world_id == "nk" and not self.one_period_late and not rows[:, :, 0].any():
            raise ValueError(
                f"{path}: all responses are 0 in period 0, so they begin a period late, as those of the "
                "original generator; pass one_period_late=True to take them as they are"
            )
        self._chunks[key] = rows
        while len(self._chunks) > _CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return rows


def collate_mixed_worlds(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of samples of any worlds, padded with zeros to the largest P and S among them.

    Args:
        samples: items of an `IRFDataset`, at least one.

    Returns:
        theta [B, P], irf [B, S, H + 1, 3], theta_mask bool [B, P] and shock_mask bool [B, S], which are True
        where numbers are a sample's own (the documents call the latter irf_mask; it has both names),
        world_ids (list of str) and sample_indices int64 [B].

    Raises:
        ValueError: no samples, or samples that are not of these shapes or of different horizons.
    """
    first = _check(samples)
    params = max(sample["theta"].shape[0] for sample in samples)
    shocks = max(sample["irf"].shape[0] for sample in samples)
    theta = first["theta"].new_zeros(len(samples), params)
    irf = first["irf"].new_zeros(len(samples), shocks, *first["irf"].shape[1:])
    theta_mask = torch.zeros(theta.shape, dtype=torch.bool)
    shock_mask = torch.zeros(irf.shape[:2], dtype=torch.bool)
    for row, sample in enumerate(samples):
        theta[row, : sample["theta"].shape[0]] = sample["theta"]
        theta_mask[row, : sample["theta"].shape[0]] = True
        irf[row, : sample["irf"].shape[0]] = sample["irf"]
        shock_mask[row, : sample["irf"].shape[0]] = True
    masks = {"theta_mask": theta_mask, "shock_mask": shock_mask, "irf_mask": shock_mask}
    return {"theta": theta, "irf": irf, **masks, **_labels(samples)}


def collate_single_world(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch of samples of one world, stacked as they are.

    Args:
        samples: items of an `IRFDataset`, at least one.

    Returns:
        theta [B, P], irf [B, S, H + 1, 3], world_id (str), world_ids (list of str) and sample_indices int64
        [B].

    Raises:
        ValueError: no samples, samples of several worlds, or of different shapes.
    """
    first = _check(samples)
    worlds = sorted({sample["world_id"] for sample in samples})
    if len(worlds) > 1:
        raise ValueError(f"samples: expected samples of one world, got {', '.join(worlds)}")
    for sample in samples:
        for name in ("theta", "irf"):
            if sample[name].shape != first[name].shape:
                raise ValueError(
                    f"samples: expected {name} of one shape, got {tuple(first[name].shape)} and "
                    f"{tuple(sample[name].shape)}"
                )
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("theta", "irf")}
    return {**stacked, "world_id": worlds[0], **_labels(samples)}


def _labels(samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "world_ids": [sample["world_id"] for sample in samples],
        "sample_indices": torch.tensor([sample["sample_idx"] for sample in samples], dtype=torch.int64),
    }


def _check(samples: Sequence[Sample]) -> Sample:
    """The first of the samples, after a look at all."""
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    first = samples[0]
    rest = tuple(first["irf"].shape[1:])
    for sample in samples:
        theta, irf = sample["theta"], sample["irf"]
        if theta.ndim != 1 or irf.ndim != 3 or tuple(irf.shape[1:]) != rest:
            raise ValueError(
                f"samples: expected theta [P] and irf [S, *{rest}], got {tuple(theta.shape)} and "
                f"{tuple(irf.shape)} in sample {sample['sample_idx']} of world {sample['world_id']}"
            )
        if theta.dtype != first["theta"].dtype or irf.dtype != first["irf"].dtype:
            raise ValueError(f"samples: expected one dtype, got {theta.dtype} and {first['theta'].dtype}")
    return first
