"""Which features a data set of operators has, and where they stand in its file."""

from __future__ import annotations

import itertools
import json
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from mfk.data.families_hdf5 import CHUNK, add_array, add_family
from mfk.data.operator_initial import INITIAL
from mfk.data.operator_simulate import FRAME, IC_TYPES, PARAMETERS, STEP
from mfk.data.operator_statistics import CATEGORIES, FRAME_NAMES, TRAJECTORY_NAMES

PRODUCTS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (0, 11), (1, 10), (2, 9))
"""The pairs of parameters whose products are features of the architecture."""

AGGREGATES = ("mean", "std", "cv")
"""Of a trajectory's statistics over the realisations, one after the other; cv is std over mean.

Of the variance of std and cv features over operators, an eighth is chance with 8 realisations (measured, in
the median feature), three eighths with 3; of that of means a thousandth.
"""

NOISE_REGIMES = ("low", "medium", "high")
"""Names of the thirds of the noise parameter's range."""


def column_shapes(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of a sample's columns, by name; see `mfk.data.operators.draw_operators`."""
    grid = config["grid"]
    return {
        "params": (len(PARAMETERS),),
        "fields": (2, grid, grid),
        "kinds": (1,),
        "initial": (sum(map(len, INITIAL.values())),),
        "architecture": (len(PARAMETERS) + len(PRODUCTS),),
        "trajectory": (config["realisations"], len(TRAJECTORY_NAMES)),
        "summary": (len(AGGREGATES) * len(TRAJECTORY_NAMES),),
        "temporal": (config["steps"] // FRAME, len(FRAME_NAMES)),
    }


def fill_file(file: h5py.File, columns: dict[str, Tensor], config: dict[str, int]) -> None:
    """Write the samples in the documented layout."""
    about = {**config, "step": STEP, "frame": FRAME, "made_by": "mfk.data.generate_operators"}
    datasets: dict[str, Any] = {}
    for family, (names, categories) in _registries().items():
        shape = tuple(columns[family].shape)
        datasets[family] = add_family(file, family, names, categories, shape, about)
    datasets["trajectory"] = add_array(
        file, "features/summary/per_trajectory/features", tuple(columns["trajectory"].shape)
    )
    datasets["params"] = add_array(file, "parameters/params", tuple(columns["params"].shape))
    datasets["params"].attrs["names"] = json.dumps(list(PARAMETERS))
    datasets["params"].attrs["ranges"] = json.dumps({name: tuple(x) for name, x in PARAMETERS.items()})
    datasets["fields"] = add_array(file, "inputs/fields", tuple(columns["fields"].shape))
    rows = len(columns["params"])
    for name, dataset in datasets.items():
        for first in range(0, rows, CHUNK):
            dataset[first : first + CHUNK] = columns[name][first : first + CHUNK].numpy()
    kinds = columns["kinds"][:, 0].long().tolist()
    noise = columns["params"][:, list(PARAMETERS).index("noise")]
    regimes = (noise * len(NOISE_REGIMES)).long().clamp(max=len(NOISE_REGIMES) - 1).tolist()
    metadata = file.create_group("metadata")
    words = h5py.string_dtype("utf-8")
    metadata.create_dataset("ic_types", data=[IC_TYPES[i] for i in kinds], dtype=words)
    metadata.create_dataset("evolution_policies", data=["autoregressive"] * rows, dtype=words)
    metadata.create_dataset("noise_regimes", data=[NOISE_REGIMES[i] for i in regimes], dtype=words)
    metadata.create_dataset("grid_sizes", data=np.full(rows, config["grid"], np.int32))


def _registries() -> dict[str, tuple[list[str], list[str]]]:
    """Names and categories of the features of each family."""
    about = {name: category for category, names in CATEGORIES.items() for name in names}

    def category(name: str) -> str:
        return about[name.partition("_")[2]]

    parameters = list(PARAMETERS)
    products = [f"{parameters[i]}*{parameters[j]}" for i, j in PRODUCTS]
    return {
        "initial": (
            list(itertools.chain(*INITIAL.values())),
            [category for category, names in INITIAL.items() for _ in names],
        ),
        "architecture": (
            [*parameters, *products],
            ["parameters"] * len(parameters) + ["products"] * len(products),
        ),
        "summary": (
            [f"{name}.{aggregate}" for aggregate in AGGREGATES for name in TRAJECTORY_NAMES],
            [category(name) for _ in AGGREGATES for name in TRAJECTORY_NAMES],
        ),
        "temporal": (list(FRAME_NAMES), [category(name) for name in FRAME_NAMES]),
    }
