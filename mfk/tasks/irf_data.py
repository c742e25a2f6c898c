"""The data of an impulse-response emulator: a data set on disk or generated ones, as padded tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from mfk.core.config import refuse_unused
from mfk.core.files import fingerprint
from mfk.core.types import Batch, Params
from mfk.data import IRFDataset
from mfk.data.irf_splits import LEAST, SPLITS, split_samples
from mfk.data.worlds import WORLDS, World, draw_theta
from mfk.tasks.irf_check import check_names, check_responses
from mfk.tasks.irf_net import IRFNets

_ROWS = 512  # rows of a batch in validation
_RANKS = 200  # quantiles that the range of the training rows is remembered by
_LEAST_SCALE = 1e-12  # of the largest: what moves less is constant


@dataclass(frozen=True)
class IRFDataConfig:
    """Which economies."""

    data: Path | None = None
    """Folder of a data set (`irf.py generate`); None: generated in memory, and held out in the same way."""
    worlds: tuple[str, ...] = ("nk", "var", "lss")
    """Names of the worlds."""
    samples: int = 10_000
    """Without a folder: samples of each world; 80 % are trained on."""
    one_period_late: bool = False
    """Of a folder: take responses of nk that begin a period late, as the original generator's do, and are no
    solution: they are not compared with it, as those of other worlds are."""
    compare: bool = True
    """Of a folder: compare some responses with the world's own; off takes another simulator's (the original's
    of var are a hundredth of what its parameters say)."""


class Economies(NamedTuple):
    """Samples of one world."""

    theta: Tensor  # float64 [N, P]
    irf: Tensor  # float32 [N, S, H + 1, V]


class IRFData(NamedTuple):
    """The samples of some worlds by split."""

    name: str  # where they come from
    worlds: tuple[World, ...]
    horizon: int
    samples: dict[str, dict[str, Economies]]  # split -> world -> samples


def open_irf(config: IRFDataConfig, seed: int) -> IRFData:
    """Read the data set, or draw and solve the economies.

    Raises:
        FileNotFoundError, ValueError: a data set that cannot be used, an unknown world, a setting without
            effect.
    """
    worlds = worlds_of(config.worlds)
    if config.data is not None:
        refuse_unused(config, False, "samples")
        return _read(config, config.data, worlds)
    refuse_unused(config, False, "one_period_late", "compare")
    if isinstance(config.samples, bool) or config.samples < LEAST:
        raise ValueError(f"samples: expected at least {LEAST}, got {config.samples}")
    return generated(worlds, config.samples, seed)


def _read(config: IRFDataConfig, folder: Path, worlds: tuple[World, ...]) -> IRFData:
    _check_folder(folder)
    samples: dict[str, dict[str, Economies]] = {}
    horizon = 0
    for split in SPLITS:
        files = IRFDataset(folder, config.worlds, split, one_period_late=config.one_period_late)
        samples[split] = {}
        for world in worlds:
            check_names(files, world)
            horizon = files.get_world_info(world.name)["H"]
            read = files.read(world.name)
            theta, irf = read["theta"].double(), read["irf"]
            # What begins a period late is no solution.
            if config.compare and not (config.one_period_late and world.name == "nk"):
                check_responses(folder, world, theta, irf, read["sample_idx"])
            samples[split][world.name] = Economies(theta, irf)
    return IRFData(str(folder), worlds, horizon, samples)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        seen = "" if folder.is_absolute() else f", seen from {Path.cwd()}"
        raise FileNotFoundError(f"data: there is no folder {folder}{seen}")


def generated(worlds: Sequence[World], samples: int, seed: int) -> IRFData:
    """The samples that `mfk.data.generate_irf` would write, in memory."""
    found: dict[str, dict[str, Economies]] = {split: {} for split in SPLITS}
    for world in worlds:
        theta = draw_theta(world, seed, range(samples)).float().double()
        irf = world.irf(theta).float()
        for split, rows in split_samples(world, theta, seed).samples.items():
            found[split][world.name] = Economies(theta[rows], irf[rows])
    horizon = next(iter(found["train"].values())).irf.shape[2] - 1
    return IRFData(f"{samples:,} generated samples a world", tuple(worlds), horizon, found)


def worlds_of(names: Sequence[str]) -> tuple[World, ...]:
    """The worlds of these names; ValueError for an unknown one, one that comes twice, or none."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"worlds: expected different worlds, at least one, got {', '.join(names) or 'none'}")
    for name in names:
        if name not in WORLDS:
            raise ValueError(f"worlds: expected names of {', '.join(WORLDS)}, got {name!r}")
    return tuple(WORLDS[name] for name in names)


def data_record(config: IRFDataConfig) -> str:
    """What tells the data of a run from others: of chunks the sizes, of all else the content.

    Raises:
        FileNotFoundError: a file or folder is missing.
    """
    if config.data is None:
        return "generated\n"
    _check_folder(config.data)
    lines = []
    for name in ("manifest.json", *(f"{world}/splits.json" for world in config.worlds)):
        file = config.data / name
        if not file.is_file():
            raise FileNotFoundError(f"data: {file}: there is no such file")
        lines.append(f"{file}: {fingerprint(file)}\n")
    for world in config.worlds:
        for name in ("theta.zarr", "irfs.zarr"):
            folder = config.data / world / name
            lines.append(f"{folder}: {_array_record(folder)}\n")
    return "".join(lines)


def _array_record(folder: Path) -> str:
    """How many files an array has, and a CRC-32 of their names and sizes, and of what describes it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(f"data: {folder}: there is no such array")
    told = [
        fingerprint(file) if file.name in ("zarr.json", ".zarray") else f"{file.stat().st_size} bytes"
        for file in files
    ]
    text = "".join(
        f"{file.relative_to(folder).as_posix()} {it}\n" for file, it in zip(files, told, strict=True)
    )
    return f"{len(files)} files, crc of their sizes {zlib.crc32(text.encode()):08x}"


def rows_of(nets: IRFNets, samples: Mapping[str, Economies]) -> Batch:
    """All samples as rows of `irf_task`'s batches, world by world.

    "world" int64 [R] is the world's number in `nets`; "theta" [R, P], "x" [R, F], "size" [R, S], "basis"
    [R, K, S, V] (where there is one) and "irf" [R, S, H + 1, V] are float32 and, where another world has
    more parameters, features, shocks or coefficients, filled up with 0 (sizes with 1); "x_mask" and
    "shock_mask" say what is a row's own.
    """
    parts: dict[str, list[Tensor]] = {}
    for number, (world, own) in enumerate(zip(nets.worlds, nets.coordinates, strict=True)):
        if world.name not in samples:
            continue
        theta, irf = samples[world.name]
        told = own.of(theta)
        row = {
            "world": torch.full((len(theta),), number),
            "theta": theta.float(),
            "x": told.x.float(),
            "x_mask": torch.ones(told.x.shape, dtype=torch.bool),
            "size": told.size.float(),
            "shock_mask": torch.ones(told.size.shape, dtype=torch.bool),
            "irf": irf.float(),
            **({} if told.basis is None else {"basis": told.basis.float()}),
        }
        for name, values in row.items():
            parts.setdefault(name, []).append(values)
    if not parts:
        raise ValueError(f"samples: expected samples of {', '.join(w.name for w in nets.worlds)}, got none")
    return {name: torch.cat(filled(name, values)) for name, values in parts.items()}


def filled(name: str, parts: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of rows, each filled up behind its own to the largest size of each axis."""
    sizes = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    fill = 1.0 if name == "size" else 0
    out = []
    for part in parts:
        more = [n for axis in range(part.ndim - 1, 0, -1) for n in (0, sizes[axis - 1] - part.shape[axis])]
        out.append(pad(part, more, value=fill))
    return out


def validation_batches(nets: IRFNets, data: IRFData) -> list[Batch]:
    """The validation split, world by world, some rows at a time."""
    whole = rows_of(nets, data.samples["val"])
    return [
        {name: x[first : first + _ROWS] for name, x in whole.items()}
        for first in range(0, len(whole["world"]), _ROWS)
    ]


def measure_scale(nets: IRFNets, data: IRFData) -> Params:
    """What is measured of each world's training rows alone, and carried in the state.

    With W worlds: "x_mean", "x_std" [W, F] of the features; "irf_std" [W, S, V], deviation of the responses
    to shocks of unit size over rows and periods, the unit of the loss; "out_mean" and "out_std"
    [W, K, H + 1, 1], or [W, S, H + 1, V], which turn a network's output into coefficients: those constant
    ones that fit best, and the deviation that they leave; 0 where that is nothing. "theta_low", "theta_high"
    [W, P] and "ranks" [W, 2, 200], "joint" [W], "statistic_low", "statistic_high" [W, 3] are the range of the
    training rows, for `mfk.tasks.irf_range`. Numbers that do not vary have a deviation of 1.
    """
    found: dict[str, list[Tensor]] = {}
    for world in nets.worlds:
        batch = rows_of(nets, {world.name: data.samples["train"][world.name]})
        measured = _standard(batch) | _range(world, data.samples["train"][world.name].theta)
        for name, value in measured.items():
            found.setdefault(name, []).append(value.unsqueeze(0))
    fills = {"x_std": 1.0, "irf_std": 1.0}
    out = {}
    for name, parts in found.items():
        sizes = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
        whole = torch.full((len(parts), *sizes), fills.get(name, 0.0), dtype=parts[0].dtype)
        for number, part in enumerate(parts):
            whole[(number, *(slice(0, n) for n in part.shape[1:]))] = part[0]
        out[name] = whole
    return out


def _standard(batch: Batch) -> Params:
    x = batch["x"].double()
    if len(x) < 2:
        raise ValueError(f"data: expected at least two training samples of each world, got {len(x)}")
    unit = batch["irf"].double() / batch["size"].double()[..., None, None]  # [N, S, H + 1, V]
    irf_std = _varying(unit.transpose(1, 2).flatten(0, 1).std(0))
    if "basis" not in batch:
        mean = unit.mean(0)
        out_std = irf_std.unsqueeze(-2).expand(mean.shape)
        left = (unit - mean).square().mean((0, 3), keepdim=True)[0]
    else:
        basis = batch["basis"].double()
        k = basis.shape[1]
        weighted = (basis / irf_std).flatten(2)  # [N, K, S V]
        target = (unit / irf_std.unsqueeze(-2)).transpose(1, 2).flatten(2)  # [N, H + 1, S V]
        gram = torch.einsum("nki,nli->kl", weighted, weighted)
        right = torch.einsum("nki,nhi->kh", weighted, target)
        ridge = 1e-9 * gram.diagonal().mean() * torch.eye(k, dtype=gram.dtype)
        mean = torch.linalg.solve(gram + ridge, right)  # [K, H + 1]
        rest = target - torch.einsum("kh,nki->nhi", mean, weighted)  # [N, H + 1, S V]
        reach = weighted != 0
        squares = torch.einsum("nki,nhi->kh", reach.double(), rest.square())  # [K, H + 1]
        size = weighted.square().sum((0, 2))
        out_std = (squares.mean(1) / size).sqrt()[:, None, None].expand(k, mean.shape[1], 1)
        left, mean = squares.unsqueeze(-1), mean.unsqueeze(-1)
    # A period in which nothing varies, as that before a shock is felt, is told exactly.
    out_std = torch.where(left > _LEAST_SCALE * left.max(), out_std, 0.0)
    return {
        "x_mean": x.mean(0).float(),
        "x_std": _varying(x.std(0)).float(),
        "irf_std": irf_std.float(),
        "out_mean": mean.float(),
        "out_std": out_std.float(),
    }


def _range(world: World, theta: Tensor) -> Params:
    statistics = torch.stack([getattr(world, name)(theta) for name in ("persistence", "volatility", "slice")])
    levels = torch.linspace(0, 1, _RANKS, dtype=torch.float64)
    quantiles = torch.stack([torch.quantile(row, levels) for row in statistics[:2]])
    ranks = torch.stack(
        [torch.searchsorted(q, row.contiguous()) for q, row in zip(quantiles, statistics, strict=False)]
    )
    return {
        "theta_low": theta.amin(0),
        "theta_high": theta.amax(0),
        "statistic_low": statistics.amin(1),
        "statistic_high": statistics.amax(1),
        "ranks": quantiles,
        "joint": ranks.amin(0).amax().double(),
    }


def _varying(std: Tensor) -> Tensor:
    return torch.where(std > _LEAST_SCALE * std.max().clamp(min=1e-300), std, 1.0)
