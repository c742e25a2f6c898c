"""The documented layout of a data set of impulse responses: one folder of Zarr arrays for each world.

    <root>/manifest.json
    <root>/<world>/splits.json
    <root>/<world>/theta.zarr         [N, P]
    <root>/<world>/irfs.zarr          [N, S, 41, 3]
    <root>/<world>/trajectories.zarr  [N, 200, 3]
    <root>/<world>/shocks.zarr        [N, 200, S], in standard deviations

All arrays are float32 in Zarr 3, in chunks of 1,000 samples.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mfk.data.irf_splits import splits_manifest
from mfk.data.worlds import HORIZON, OBSERVABLES, World

PERIODS = 200
"""T, of a trajectory."""

NO_DATE = "1980-01-01T00:00:00+00:00"
"""What `created_at` says where no date was given: a clock would make every data set another."""


def lay_out_arrays(folder: Path, world: World, samples: int, block: int) -> None:
    """Make a world's arrays, in chunks of `block` samples, where they are not there yet."""
    import zarr
    from zarr.codecs import ZstdCodec

    shocks, periods = len(world.shocks.names), (PERIODS,)
    plans: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "theta": (
            (len(world.parameters.names),),
            {
                "description": "Parameters: (n_samples, n_params)",
                "dimensions": ["sample", "parameter"],
                "units": "natural units (ground truth)",
            },
        ),
        "irfs": (
            (shocks, HORIZON + 1, len(OBSERVABLES)),
            {
                "description": "IRFs: (n_samples, n_shocks, H+1, 3)",
                "dimensions": ["sample", "shock", "horizon", "observable"],
                "observable_names": list(OBSERVABLES),
                "horizon_range": f"0..{HORIZON}",
                "convention": "IRF[h] = y_shocked[h] - y_baseline[h], shock of one s.d. in period 0",
            },
        ),
        "trajectories": (
            (*periods, len(OBSERVABLES)),
            {
                "description": "Trajectories: (n_samples, T, n_obs)",
                "dimensions": ["sample", "time", "observable"],
                "observable_names": list(OBSERVABLES),
            },
        ),
        "shocks": (
            (*periods, shocks),
            {
                "description": "Shock sequences: (n_samples, T, n_shocks)",
                "dimensions": ["sample", "time", "shock"],
                "units": "standard deviations",
            },
        ),
    }
    for name, (shape, attributes) in plans.items():
        path = folder / f"{name}.zarr"
        if (path / "zarr.json").exists():
            continue
        zarr.create_array(
            path,
            shape=(samples, *shape),
            chunks=(min(block, samples), *shape),
            dtype="float32",
            compressors=ZstdCodec(level=0, checksum=True),  # a byte that changed is an error
            attributes=attributes,
            overwrite=True,
        )
        sync_file(path / "zarr.json")


def chunk_files(folder: Path, number: int) -> Iterator[Path]:
    """The files that hold a block's samples, one of each array."""
    for name, dimensions in (("theta", 2), ("irfs", 4), ("trajectories", 3), ("shocks", 3)):
        yield folder.joinpath(f"{name}.zarr", "c", str(number), *["0"] * (dimensions - 1))


def describe_data_set(
    simulators: Mapping[str, Any], record: Mapping[str, Any], seed: int, made_by: Mapping[str, Any]
) -> str:
    """The manifest as text: `simulators` by name, version, date and commit of the record, and the seeds."""
    text = {
        **{name: record[name] for name in ("version", "created_at", "git_hash")},
        "simulators": {name: {**world, "config_hash": "default"} for name, world in simulators.items()},
        "splits": splits_manifest(seed),
        "rng_seeds": {
            "global": seed,
            "per_sample": True,
            "derivation_algorithm": "blake2b of seed, stream, world and sample; Philox",
        },
        "T": PERIODS,
        "H": HORIZON,
        "notes": "made with " + ", ".join(f"{name} {value}" for name, value in made_by.items()),
    }
    return json.dumps(text, indent=1) + "\n"


def sync_file(path: Path) -> None:
    """Have a file's bytes on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
