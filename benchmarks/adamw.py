"""One AdamW update: mfk.optim.adamw against torch.optim.AdamW, in one run.

Claim: the pure update costs what torch's fused optimizer costs (ratio about 1), although it checks
every gradient's layout. 15.8M fp32 parameters in 47 leaves; the median of the repeats, the
candidates taking turns so that other load on the machine falls on all of them.

    python benchmarks/adamw.py [--threads N] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mfk.optim import adamw, decays_by_name
from mfk.train.runs import versions


def make_params() -> dict[str, Tensor]:
    """The shapes of a residual network: 15 blocks of norm, linear and bias around a width of 1024."""
    shapes = {"in.weight": (1024, 16), "in.bias": (1024,)}
    for i in range(15):
        shapes |= {
            f"{i}.norm.weight": (1024,),
            f"{i}.linear.weight": (1024, 1024),
            f"{i}.linear.bias": (1024,),
        }
    return {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}


def functional(grads: dict[str, Tensor], **settings) -> Callable[[], None]:
    """A function that makes one update with mfk."""
    params, optimizer = make_params(), adamw(**settings)
    held = [params, optimizer.init(params)]

    def update() -> None:
        held[:] = optimizer.update(grads, held[1], held[0], 1e-3)

    return update


def stateful(grads: dict[str, Tensor], **settings) -> Callable[[], None]:
    """A function that makes one update with torch.optim."""
    params = {name: torch.nn.Parameter(x) for name, x in make_params().items()}
    optimizer = torch.optim.AdamW(params.values(), lr=1e-3, **settings)
    for name, p in params.items():
        p.grad = grads[name]
    return optimizer.step


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    grads = {name: torch.randn_like(x) for name, x in make_params().items()}
    strided = {name: g.T.contiguous().T if g.ndim == 2 else g for name, g in grads.items()}
    candidates = {
        "torch.optim, fused": stateful(grads, fused=True),
        "mfk, fused": functional(grads),
        "mfk, fused, decay by name": functional(grads, decay=decays_by_name),
        "mfk, fused, transposed gradients": functional(strided),
        "torch.optim, foreach": stateful(grads, foreach=True),
        "mfk, foreach": functional(grads, fused=False),
    }
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(arguments.repeats):
        for name, update in candidates.items():
            start = time.perf_counter()
            update()
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = medians["torch.optim, fused"]
    print(f"{sum(g.numel() for g in grads.values()):,} parameters, {len(grads)} leaves")
    for name, value in medians.items():
        print(f"{name:34s} {value:8.2f} ms   {value / reference:5.2f} x torch fused")
    print(json.dumps({"milliseconds": medians, "versions": versions(seed=0)}))


if __name__ == "__main__":
    main()
