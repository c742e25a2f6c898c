"""One optimizer step: mfk.optim against torch.optim.AdamW, in one run.

Claim: the pure update costs what torch's fused optimizer costs, at most 1.1 times as much, although it
checks every gradient's layout. 15.8M fp32 parameters in 47 leaves.

Beside it, without a claim: what the train step does with a gradient (norm, one multiplication that divides
and clips, an update that a gradient which is not finite undoes) and torch.nn.utils.clip_grad_norm_ before
torch's optimizers. The one makes a scaled copy of the gradient, the other scales in place.

    python benchmarks/optimizer.py [--threads N] [--repeats N] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timing
import torch
from torch import Tensor

from mfk.core import Params, tree
from mfk.optim import adamw, clip_factor, decays_by_name

LR, CLIP, LIMIT = 1e-3, 1.0, 1.1
REFERENCES = {"update": "torch.optim, fused", "clip and update": "torch.optim, fused, after clip_grad_norm_"}


def main() -> None:
    """Measure, print the table and the checks, and write the JSON."""
    arguments = timing.parse(timing.parser(__doc__, repeats=40))
    before = timing.facts()
    torch.manual_seed(0)
    grads = {name: torch.randn_like(x) for name, x in make_params().items()}
    strided = {name: g.T.contiguous().T if g.ndim == 2 else g for name, g in grads.items()}
    groups: dict[str, dict[str, Callable[[], Any]]] = {
        "update": {
            "torch.optim, fused": stateful(grads, fused=True),
            "torch.optim, foreach": stateful(grads, foreach=True),
            "torch.optim, plain": stateful(grads, foreach=False, fused=False),
            "mfk, fused": functional(grads),
            "mfk, fused, decay by name": functional(grads, decay=decays_by_name),
            "mfk, fused, transposed gradients": functional(strided),
            "mfk, foreach": functional(grads, fused=False),
        },
        "clip and update": {
            "torch.optim, fused, after clip_grad_norm_": stateful(grads, clip=True, fused=True),
            "torch.optim, foreach, after clip_grad_norm_": stateful(grads, clip=True, foreach=True),
            "mfk, fused, as the train step does": functional(grads, clip=True),
        },
    }
    times = timing.interleaved(
        {k: v for cases in groups.values() for k, v in cases.items()}, arguments.repeats
    )
    table = []
    print(f"{sum(g.numel() for g in grads.values()):,} parameters, {len(grads)} leaves")
    print(f"{'':<46}{'ms':>8}{'least':>8}{'x torch fused':>15}")
    for group, cases in groups.items():
        print(group)
        for name in cases:
            value = times[name]
            row = {
                "group": group,
                "case": name,
                "seconds": value.median,
                "least_seconds": value.least,
                "ratio": value.median / times[REFERENCES[group]].median,
            }
            table.append(row)
            print(f"  {name:<44}{1e3 * value.median:>8.2f}{1e3 * value.least:>8.2f}{row['ratio']:>15.3f}")
    made = [
        timing.Check("update: mfk / torch, both fused", row["ratio"], LIMIT)
        for row in table
        if row["case"] == "mfk, fused"
    ]
    timing.report(made)
    timing.write(
        arguments.out,
        {
            "parameters": sum(g.numel() for g in grads.values()),
            "leaves": len(grads),
            "table": table,
            "checks": [check.record() for check in made],
            "repeats": arguments.repeats,
            "versions": before,
        },
    )


def make_params() -> Params:
    """The shapes of a residual network: 15 blocks of norm, linear and bias around a width of 1024."""
    shapes = {"in.weight": (1024, 16), "in.bias": (1024,)}
    for i in range(15):
        shapes |= {
            f"{i}.norm.weight": (1024,),
            f"{i}.linear.weight": (1024, 1024),
            f"{i}.linear.bias": (1024,),
        }
    return {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}


def functional(grads: Params, clip: bool = False, **settings: Any) -> Callable[[], None]:
    """A function that makes one update with mfk, after what the train step does before it."""
    params, optimizer = make_params(), adamw(**settings)
    held = [params, optimizer.init(params)]
    weight = torch.tensor(1024.0)

    def update() -> None:
        held[:] = optimizer.update(grads, held[1], held[0], LR)

    @torch.no_grad()
    def clip_and_update() -> None:
        norm = tree.global_norm(grads) / weight
        found_inf = 1.0 - torch.isfinite(norm).float()
        scaled = torch._foreach_mul(tree.leaves(grads), clip_factor(norm, CLIP) / weight)
        held[:] = optimizer.update(
            tree.unflatten(grads, list(scaled)), held[1], held[0], LR, found_inf=found_inf
        )

    return clip_and_update if clip else update


def stateful(grads: Params, clip: bool = False, **settings: Any) -> Callable[[], None]:
    """A function that makes one update with torch.optim, of gradients of its own."""
    params: dict[str, Tensor] = {name: torch.nn.Parameter(x) for name, x in make_params().items()}
    optimizer = torch.optim.AdamW(params.values(), lr=LR, **settings)
    for name, p in params.items():
        p.grad = grads[name].clone()

    def update() -> None:
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), CLIP)
        optimizer.step()

    return update


if __name__ == "__main__":
    main()
