"""mfk.nn.quantize beside vector_quantize_pytorch.VectorQuantize: error, codes in use, time of a step.

Both: Euclidean, moving averages with one decay, k-means to start from, straight-through, dead codes replaced
by rows of the batch at every step. Theirs counts a code as dead below 1 row a batch of the moving average,
ours below a share of the uniform count that is the same number. Theirs starts from 10 iterations of k-means
of the first batch, ours from k-means++ of it; theirs with its "rotation trick" (its default, in place of
straight-through) stands beside it.

1. Rows that stay as they are: `synthetic_blocks`, each block by itself, 64 codes; the error and the codes in
   use of rows that were held out.
2. The same autoencoder around six codebooks, 80 features to six latents of 8 numbers and back;
   torch.optim.Adam, equal starts, batches and losses; three seeds.
3. A step of the quantiser by itself, forward and backward, and of the whole autoencoder; interleaved. Ours is
   compiled by `mfk.jit` in a further case, for which a module that writes to its own buffers is not made.

Nothing is claimed but that ours is as good and no slower.

    python benchmarks/vqvae_peers.py [--threads N] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from typing import Any, Protocol

import timing
import torch
from torch import Tensor, nn

from mfk.core import jit
from mfk.data import synthetic_blocks
from mfk.nn import CodebookState, kmeans_codebook, quantize, reset_dead

DECAY, DEAD, CODES, BATCH, WIDTH, BOOKS = 0.95, 1.0, 64, 256, 8, 6
HELD = 500
SEEDS = (0, 1, 2)
PASSES, EPOCHS = 20, 40
COMMIT = 0.25
STEPS = ((64, 8, 256), (64, 64, 256), (512, 64, 2048))  # codes, their width, rows: what is timed


class Quantizer(Protocol):
    """One codebook that learns from the rows it sees while `train` is set."""

    def __call__(self, z: Tensor, train: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [B, D] -> quantised [B, D], indices [B], commitment error."""
        ...


def ours(codes: int, seed: int) -> Quantizer:
    """Our functions, their state kept between calls."""
    kept: list[CodebookState] = []
    draws = torch.Generator().manual_seed(seed)

    def call(z: Tensor, train: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not kept:
            kept.append(kmeans_codebook(z.detach(), codes, seed=seed, starts=1))
        quantized, indices, after, metrics = quantize(kept[0], z, decay=DECAY, train=train)
        if train:
            picked = torch.randint(len(z), (codes,), generator=draws)
            kept[0], _ = reset_dead(after, z[picked], threshold=100 * DEAD * codes / len(z), max_fraction=1.0)
        del metrics
        return quantized, indices, (z - quantized.detach()).square().mean()

    return call


def theirs(width: int, codes: int, rotation: bool) -> Quantizer:
    """The other library's module."""
    library: Any = importlib.import_module("vector_quantize_pytorch")
    module = library.VectorQuantize(
        dim=width, codebook_size=codes, decay=DECAY, kmeans_init=True, kmeans_iters=10,
        threshold_ema_dead_code=DEAD, rotation_trick=rotation, commitment_weight=1.0,
    )  # fmt: skip

    def call(z: Tensor, train: bool) -> tuple[Tensor, Tensor, Tensor]:
        module.train(train)
        quantized, indices, loss = module(z)
        return quantized, indices, loss

    return call


KINDS: dict[str, Callable[[int, int, int], Quantizer]] = {
    "mfk": lambda width, codes, seed: ours(codes, seed),
    "vector-quantize-pytorch": lambda width, codes, seed: theirs(width, codes, False),
    "vector-quantize-pytorch, rotation": lambda width, codes, seed: theirs(width, codes, True),
}


def main() -> None:
    """Measure, print the tables, and write the JSON."""
    made = timing.parser(__doc__, repeats=200)
    made.set_defaults(threads=1)
    options = timing.parse(made)
    before = timing.facts("vector-quantize-pytorch")
    fixed = [{"by": name, **still(make)} for name, make in KINDS.items() if "rotation" not in name]
    learned = [
        {"by": name, **averaged([autoencode(make, seed) for seed in SEEDS])} for name, make in KINDS.items()
    ]
    for row in fixed + learned:
        print(", ".join(f"{k} {x if isinstance(x, str) else round(x, 4)}" for k, x in row.items()))
    steps = step_times(options.repeats)
    for row in steps:
        print(f"{row['case']:<30} {row['by']:<36} {1e6 * row['seconds']:8.0f} us {row['ratio']:6.2f}")
    checks = claims(fixed, learned, steps)
    timing.report(checks)
    timing.write(
        options.out,
        {
            "versions": before,
            "repeats": options.repeats,
            "fixed": fixed,
            "learned": learned,
            "steps": steps,
            "claims": [check.record() for check in checks],
        },
    )


def table_of(seed: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Standardised training rows, held-out rows, and the columns of each block."""
    x, groups = synthetic_blocks(seed)
    rows = torch.from_numpy(x)
    known, new = rows[HELD:], rows[:HELD]
    middle, scale = known.mean(0), known.std(0)
    blocks = [(torch.from_numpy(groups) == g).nonzero().flatten().tolist() for g in range(BOOKS)]
    return (known - middle) / scale, (new - middle) / scale, blocks


def batches(rows: Tensor, passes: int, seed: int) -> list[Tensor]:
    """Shuffled batches, the last of a pass being full."""
    draws = torch.Generator().manual_seed(seed)
    every = [rows[torch.randperm(len(rows), generator=draws)] for _ in range(passes)]
    return [some for each in every for some in each.split(BATCH) if len(some) == BATCH]


def still(make: Callable[[int, int, int], Quantizer]) -> dict[str, float]:
    """Held-out error and codes in use, of each block's rows; means over blocks and seeds."""
    errors, used = [], []
    for seed in SEEDS:
        known, new, blocks = table_of(seed)
        torch.manual_seed(seed)  # the module draws from torch's own generator
        for own in blocks:
            quantizer = make(len(own), CODES, seed)
            for some in batches(known[:, own], PASSES, seed):
                quantizer(some, True)
            with torch.no_grad():
                quantized, indices, _ = quantizer(new[:, own], False)
            errors.append(float((quantized - new[:, own]).square().mean()))
            used.append(len(indices.unique()) / CODES)
    return {"mse": statistics.mean(errors), "used": statistics.mean(used)}


class Autoencoder(nn.Module):
    """An encoder to six latents, quantisers between, and a decoder."""

    def __init__(self, features: int) -> None:
        """With weights of torch's own generator."""
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, BOOKS * WIDTH))
        self.decoder = nn.Sequential(nn.Linear(BOOKS * WIDTH, 128), nn.ReLU(), nn.Linear(128, features))

    def loss(self, x: Tensor, quantizers: list[Quantizer], train: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, mean squared error, indices [B, books]."""
        said = [q(z, train) for q, z in zip(quantizers, self.encoder(x).split(WIDTH, -1), strict=True)]
        error = (self.decoder(torch.cat([q for q, _, _ in said], -1)) - x).square().mean()
        commitment = torch.stack([loss.squeeze() for _, _, loss in said]).mean()
        return error + COMMIT * commitment, error, torch.stack([index for _, index, _ in said], -1)


def autoencode(make: Callable[[int, int, int], Quantizer], seed: int) -> dict[str, float]:
    """Train the autoencoder; its held-out error and codes in use."""
    known, new, _ = table_of(seed)
    torch.manual_seed(seed)
    model = Autoencoder(known.shape[1])
    quantizers = [make(WIDTH, CODES, seed) for _ in range(BOOKS)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for some in batches(known, EPOCHS, seed):
        optimizer.zero_grad()
        model.loss(some, quantizers, True)[0].backward()
        optimizer.step()
    with torch.no_grad():
        _, error, indices = model.loss(new, quantizers, False)
    return {"mse": float(error), "used": statistics.mean(len(i.unique()) / CODES for i in indices.T)}


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def step_times(repeats: int) -> list[dict[str, Any]]:
    """Quantisers by themselves, forward and backward, and the autoencoder's step."""
    found = []
    for codes, width, count in STEPS:
        rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
        cases = {name: quantizer_step(make(width, codes, 0), rows) for name, make in KINDS.items()}
        cases["mfk, compiled"] = compiled_step(rows, codes)
        found += timed(f"{count:,} rows, {codes} codes of {width}", cases, repeats)
    known, _, _ = table_of(0)
    steps = {}
    for name, make in KINDS.items():
        torch.manual_seed(0)
        steps[name] = autoencoder_step(make, known[:BATCH])
    return found + timed("autoencoder", steps, repeats)


def timed(case: str, cases: dict[str, Callable[[], Any]], repeats: int) -> list[dict[str, Any]]:
    """Medians, and their ratio to the other library's."""
    times = timing.interleaved(cases, repeats, warm=10)
    theirs = times["vector-quantize-pytorch"].median
    return [
        {"case": case, "by": name, "seconds": found.median, "ratio": found.median / theirs}
        for name, found in times.items()
    ]


def quantizer_step(quantizer: Quantizer, rows: Tensor) -> Callable[[], Any]:
    """Quantise rows and take the derivative of their sum and of the commitment error."""

    def call() -> Tensor:
        z = rows.clone().requires_grad_()
        quantized, _, commitment = quantizer(z, True)
        return torch.autograd.grad(quantized.sum() + commitment.sum(), z)[0]

    return call


def compiled_step(rows: Tensor, codes: int) -> Callable[[], Any]:
    """The same of mfk's functions, as one compiled function of the state."""
    kept = [kmeans_codebook(rows, codes, seed=0, starts=1)]
    threshold = 100 * DEAD * codes / len(rows)

    def loss(z: Tensor, book: CodebookState, picked: Tensor) -> tuple[Tensor, CodebookState]:
        quantized, _, after, _ = quantize(book, z, decay=DECAY)
        fresh, _ = reset_dead(after, z[picked], threshold=threshold, max_fraction=1.0)
        return quantized.sum() + (z - quantized.detach()).square().mean(), fresh

    step = jit(torch.func.grad(loss, has_aux=True))
    draws = torch.Generator().manual_seed(0)

    def call() -> Tensor:
        picked = torch.randint(len(rows), (codes,), generator=draws)
        gradient, kept[0] = step(rows, kept[0], picked)
        return gradient

    return call


def autoencoder_step(make: Callable[[int, int, int], Quantizer], rows: Tensor) -> Callable[[], Any]:
    """One step of training."""
    model = Autoencoder(rows.shape[1])
    quantizers = [make(WIDTH, CODES, 0) for _ in range(BOOKS)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def call() -> None:
        optimizer.zero_grad()
        model.loss(rows, quantizers, True)[0].backward()
        optimizer.step()

    return call


def claims(
    fixed: list[dict[str, Any]], learned: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> list[timing.Check]:
    """Ours over theirs."""
    checks = []
    for where, rows in (("rows", fixed), ("autoencoder", learned)):
        our, their = rows[:2]
        checks.append(timing.Check(f"{where}: mse / theirs", our["mse"] / their["mse"], 1.0))
        checks.append(
            timing.Check(f"{where}: codes in use / theirs", our["used"] / their["used"], 1.0, "at least")
        )
    checks += [
        timing.Check(f"{row['case']}: seconds / theirs", row["ratio"], 1.0)
        for row in steps
        if row["by"] == "mfk"
    ]
    return checks


if __name__ == "__main__":
    main()
