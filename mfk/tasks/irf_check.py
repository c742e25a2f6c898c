"""Whether a data set is of the worlds that it names: by its manifest, and by responses that are theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mfk.data import IRFDataset
from mfk.data.worlds import OBSERVABLES, World

ROWS = 16
"""Samples of each split whose responses are compared, spread evenly."""

TOLERANCE = 1e-4
"""Of a shock's largest response: theta and responses were rounded to float32, each perhaps by itself."""


def check_names(files: IRFDataset, world: World) -> None:
    """The sizes of a world's arrays, and the names in the manifest where it has any, are the world's own.

    Raises:
        ValueError: they are not.
    """
    path = files.zarr_root / "manifest.json"
    info = files.get_world_info(world.name)
    own = {"param_manifest": world.parameters.names, "shock_manifest": world.shocks.names}
    found = (info["n_params"], info["n_shocks"])
    expected = tuple(len(names) for names in own.values())
    if found != expected:
        raise ValueError(
            f"data: {files.zarr_root}: world {world.name}: expected {expected[0]} parameters and "
            f"{expected[1]} shocks, got {found[0]} and {found[1]}"
        )
    told = files.manifest["simulators"][world.name]
    for key, names in own.items():
        there = told.get(key, {}).get("names") if isinstance(told, dict) else None
        if there is None:
            continue
        odd = [k for k, (ours, theirs) in enumerate(zip(names, there, strict=True)) if ours != theirs]
        if odd:
            raise ValueError(
                f"data: {path}: {key} of world {world.name}: expected {names[odd[0]]!r} at place {odd[0]}, "
                f"got {there[odd[0]]!r} ({len(odd)} of {len(names)} names are others); the order is that "
                f"of mfk.data.worlds.WORLDS[{world.name!r}]"
            )


def check_responses(place: Path, world: World, theta: Tensor, irf: Tensor, samples: Tensor) -> None:
    """Some stored responses are what the world answers to the stored parameters, but for float32's rounding.

    Args:
        place: folder of the data set.
        world: of the samples.
        theta: float64 [N, P].
        irf: float32 [N, S, H + 1, V].
        samples: their numbers in the files, int64 [N].

    Raises:
        ValueError: a sample has no solution, or other responses.
    """
    if not len(theta):
        return
    some = torch.linspace(0, len(theta) - 1, min(ROWS, len(theta))).round().long()
    theta, irf, samples = theta[some], irf[some].double(), samples[some]
    where = f"data: {place / world.name}"
    try:
        exact = world.irf(theta, irf.shape[2] - 1)
    except ValueError as error:
        numbers = ", ".join(map(str, samples.tolist()))
        raise ValueError(f"{where}: of the samples {numbers}, in this order: {error}") from error
    largest = exact.abs().amax((2, 3), keepdim=True)  # [N, S, 1, 1]
    odd = ~((irf - exact).abs() <= TOLERANCE * largest).flatten(1).all(1)
    if not bool(odd.any()):
        return
    row = int(odd.nonzero()[0])
    s, h, v = (int(k) for k in torch.unravel_index((irf - exact)[row].abs().argmax(), irf.shape[1:]))
    raise ValueError(
        f"{where}: expected responses of the stored parameters, theta in the order of "
        f"mfk.data.worlds.WORLDS[{world.name!r}], got others in {int(odd.sum())} of {len(odd)} samples that "
        f"were compared. Sample {int(samples[row])}, shock {world.shocks.names[s]}, period {h}, "
        f"{OBSERVABLES[v]}: expected {float(exact[row, s, h, v]):.6g}, got {float(irf[row, s, h, v]):.6g}. "
        "--no-compare takes them as they are."
    )
