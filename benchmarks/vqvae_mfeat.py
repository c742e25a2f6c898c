"""A tokenizer of handwritten digits in six families of features, beside k-means at as many bits a row.

The table is mfeat (UCI, "Multiple Features"): 2,000 digits, 649 features in six families. A fifth of the
rows is for this report alone; of the others the tokenizer holds a tenth out to pick its checkpoint, while the
methods beside it learn from all of them. Every method gets the same rows, cleaned and standardised by what
the tokenizer trained on; the error is the mean square over the rows of the report and all features.

Claim: the error is at most that of product-quantised k-means with as many bits a row, the better of two ways
to part the features: each category into as many parts as it has codebooks, with as many codes; and all
columns in the table's order into equal parts of 16 or 64 codes. Beside it the same of principal components,
dealt out so that the parts have equal products of variances (Ge et al. 2013, "Optimized product
quantization"), which no category limits to features of its own; residual k-means; and as many principal
components as have a share of those bits by reverse water-filling, not quantised, and with the error that
these bits leave at best (that of Gaussian rows with these variances).

The table is that of MFK_DATA (families/mfeat.npz), a folder that is not part of mfk: without it nothing is
run.

    MFK_DATA=DIR python benchmarks/vqvae_mfeat.py [--seeds N ...] [--threads N] [--runs DIR] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Check, facts, report, write
from torch import Tensor
from vqvae_blocks import ROOT, train

from mfk.core import rng
from mfk.core.types import Rows
from mfk.data import open_families, write_families
from mfk.nn import kmeans_codebook, quantize
from mfk.tasks.vqvae_data import part, prepare
from mfk.tasks.vqvae_tokens import decode, encode

sys.path.insert(0, str(ROOT / "experiments"))

from vqvae_runs import trained

SHARE = 0.2
SIZES = (16, 64)
SETTINGS: dict[str, Any] = {
    "train": {
        "epochs": 60, "batch_size": 256, "lr": 3e-3, "min_lr": 3e-5, "weight_decay": 0.5,
    },
    "vqvae": {
        "decay": 0.9, "commitment_cost": 1.0, "informativeness_weight": 0.0, "topo_weight": 0.0,
        "dead_code_reset_interval": 10,
    },
    "net": {"dropout": 0.0, "decoder_dim": 1024},
    "families": {
        name: {"encoder_params": {"dropout": 0.0, "batch_norm": False}}
        for name in ("fac", "fou", "kar", "mor", "pix", "zer")
    },
}  # fmt: skip


def main() -> None:
    """Train, fit, measure, print and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=None, help="folder to keep the runs in")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args()
    if not os.environ.get("MFK_DATA"):
        raise SystemExit("error: MFK_DATA: expected the folder of the data, got nothing")
    torch.set_num_threads(options.threads)
    table = open_families(Path(os.environ["MFK_DATA"]) / "families" / "mfeat.npz")
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = options.runs or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            rows = len(next(iter(table.families.values())))
            order = np.argsort(rng.uniform(rng.key(seed, "report"), Rows.all(rows)).numpy(), kind="stable")
            own, rest = (np.sort(some) for some in np.split(order, [round(SHARE * rows)]))
            file = folder / f"mfeat_{seed}.h5"
            if not file.exists():
                write_families(file, part(table, rest))
            run = train(folder / str(seed), file, SETTINGS, seed, options.threads)
            made = trained(folder / str(seed))
            known, new = (prepare(part(table, some), made.prepared) for some in (rest, own))
            tokenizer = (made.nets, made.settings.vqvae, made.params, made.state)
            decoded = decode(*tokenizer, encode(*tokenizer, new))
            errors = {"tokenizer": float((decoded - new).square().mean())}
            errors |= others(made.nets.groups, made.nets, known, new, run["held out"]["bits"], seed)
            for method, error in errors.items():
                print(f"{seed}: {method}: {error:.4f}", flush=True)
            runs.append({"seed": seed, "features": new.shape[1], "errors": errors} | run)
    checks = claims([run["errors"] for run in runs])
    report(checks)
    write(
        options.out,
        {
            "versions": facts(),
            "settings": SETTINGS,
            "runs": runs,
            "claims": [check.record() for check in checks],
        },
    )


def others(
    groups: Sequence[Sequence[int]], nets: Any, known: Tensor, new: Tensor, bits: float, seed: int
) -> dict[str, float]:
    """Method -> mean squared error of the rows `new`, learned from the rows `known`."""
    sizes = [
        [level.tokens for level, (g, _) in zip(nets.levels, nets.codebooks, strict=True) if g == k]
        for k in range(len(groups))
    ]
    parts, codes = [], []
    for own, each in zip(groups, sizes, strict=True):
        pieces = [piece.tolist() for piece in np.array_split(np.array(own), len(each)) if len(piece)]
        parts += pieces
        codes += each[: len(pieces)]
    found = {"product k-means, the categories in parts, of features": product(known, new, parts, codes, seed)}
    values, vectors = torch.linalg.eigh(known.double().T.cov())
    values, axes = values.flip(0).clamp(min=1e-9), vectors.flip(1)
    middle = known.double().mean(0)
    turned = (((known.double() - middle) @ axes).float(), ((new.double() - middle) @ axes).float())
    for size in SIZES:
        count = max(1, round(bits / np.log2(size)))
        same = [round(2 ** (bits / count))] * count
        name = f"product k-means, {count} parts, {same[0]} codes, of"
        columns = [piece.tolist() for piece in np.array_split(np.arange(known.shape[1]), count)]
        found[f"{name} features"] = product(known, new, columns, same, seed)
        found[f"{name} components"] = product(*turned, balanced(values, count), same, seed)
    left = 0.0
    for own, each in zip(groups, sizes, strict=True):
        left += float(stages(known[:, own], new[:, own], each, seed).square().sum())
    found["residual k-means of each category, its codes"] = left / new.numel()
    count = max(1, round(bits / np.log2(SIZES[-1])))
    same = [round(2 ** (bits / count))] * count
    rest = stages(known, new, same, seed)
    found[f"residual k-means, {count} stages, {same[0]} codes"] = float(rest.square().mean())
    count, level = water_filled(values, bits)
    kept = turned[1].clone()
    kept[:, :count] = 0
    found[f"{count} principal components, not quantised"] = float(kept.square().mean())
    bound = float(kept.square().mean()) + count * level / new.shape[1]
    found[f"{count} principal components, reverse water-filling"] = bound
    return found


def product(
    known: Tensor, new: Tensor, parts: Sequence[Sequence[int]], codes: Sequence[int], seed: int
) -> float:
    """Error of k-means of each part of the columns; what is in no part is left at 0."""
    left = new.clone()
    for i, (own, count) in enumerate(zip(parts, codes, strict=True)):
        left[:, own] = stages(known[:, own], new[:, own], [count], rng.key(seed, i))
    return float(left.square().mean())


def stages(known: Tensor, new: Tensor, codes: Sequence[int], seed: int) -> Tensor:
    """What k-means of the rows, of what it leaves over, and so on, leave of other rows."""
    for i, count in enumerate(codes):
        book = kmeans_codebook(known, count, seed=rng.key(seed, i), starts=1)
        known, new = (rows - quantize(book, rows, train=False)[0] for rows in (known, new))
    return new


def balanced(values: Tensor, count: int) -> list[list[int]]:
    """Components dealt out to parts of equal numbers, each to the part with the least product so far."""
    most = -(-len(values) // count)
    parts: list[list[int]] = [[] for _ in range(count)]
    logs = [0.0] * count
    for i, value in enumerate(values.tolist()):
        k = min((k for k in range(count) if len(parts[k]) < most), key=lambda k: logs[k])
        parts[k].append(i)
        logs[k] += float(np.log(value / values[-1].item()))
    return parts


def water_filled(values: Tensor, bits: float) -> tuple[int, float]:
    """How many components get a share of the bits, those above a level θ: Σ log2(λ / θ) / 2 = bits; and θ."""
    count = len(values)
    while float((values[:count] / values[count - 1]).log2().sum()) / 2 > bits:
        count -= 1
    return count, float(2 ** (values[:count].log2().mean() - 2 * bits / count))


def claims(errors: Sequence[dict[str, float]]) -> list[Check]:
    """The tokenizer's error over those of the best product-quantised k-means, of the worst run."""
    checks = []
    for what in ("features", "components"):
        ratios = [
            found["tokenizer"] / min(x for name, x in found.items() if name.endswith(f"of {what}"))
            for found in errors
        ]
        name = f"error / the best product-quantised k-means' of {what}, the worst run's"
        checks.append(Check(name, max(ratios), 1.0))
    return checks


if __name__ == "__main__":
    main()
