"""The MeanFlow gradient compiled by mfk.jit against the ways that others compute it, in one run.

Claim: mfk.jit is faster than every one of them, with its own matrix products and with theirs. They are:

* torch.func.jvp recorded by autograd, then torch.autograd.grad: what py-meanflow's loss does;
* torch.func.grad over torch.func.jvp: what mfk's losses do where they are not compiled;
* double backward, the forward derivative as two reverse ones: what code without forward mode does. The
  field is evaluated once for value and rate.

All have the same network, weights and batch, and their gradients must agree before anything is timed.
Each is measured with torch's default matrix products and with the exact route of
`mfk.core.compiler.matmul` set around it; without mfk, a peer has the default.

    python benchmarks/versus_eager_peers.py [--threads N] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import networks
import timing
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp

from mfk import jit
from mfk.core import Batch, Params
from mfk.core.compiler import Matmul, exact_matmul

AGREE = 1e-4  # of the gradient's norm
MATMULS: tuple[Matmul, ...] = ("default", "exact")
OURS = "mfk.jit"

Gradient = Callable[[Params, Batch], Params]


def main() -> None:
    """Compare the gradients, measure, print the table, and write the JSON."""
    parser = timing.parser(__doc__, repeats=30)
    parser.add_argument("--width", type=int, default=networks.WIDTH)
    parser.add_argument("--batch", type=int, default=networks.BATCH)
    arguments = timing.parse(parser)
    before = timing.facts()
    params, _ = networks.model(arguments.width).init(0)
    batch = networks.batch(arguments.batch)
    calls: dict[str, Callable[[], Params]] = {}
    for matmul in MATMULS:
        for name, gradient in peers(arguments.width).items():
            calls[f"{name}|{matmul}"] = partial(networks.under(matmul, gradient), params, batch)
        compiled = jit(functional(arguments.width), matmul=matmul)
        calls[f"{OURS}|{matmul}"] = partial(compiled, params, batch)
    worst = largest_difference(calls)
    times = timing.interleaved(calls, arguments.repeats)

    table = []
    own = times[f"{OURS}|exact"]
    print(f"MeanFlow gradient, width {arguments.width}, batch {arguments.batch}")
    print(f"{'by':<44}{'matmul':>9}{'ms':>9}{'least':>9}{'mfk, same matmul':>18}{'mfk, own':>10}")
    for name, value in times.items():
        by, matmul = name.split("|")
        row = {
            "by": by,
            "matmul": matmul,
            "seconds": value.median,
            "least_seconds": value.least,
            "mfk_same_matmul": times[f"{OURS}|{matmul}"].median / value.median,
            "mfk_own_matmul": own.median / value.median,
        }
        table.append(row)
        print(
            f"{by:<44}{matmul:>9}{1e3 * value.median:>9.2f}{1e3 * value.least:>9.2f}"
            f"{row['mfk_same_matmul']:>18.3f}{row['mfk_own_matmul']:>10.3f}"
        )
    print(f"\nlargest difference between gradients, relative to their norm: {worst:.1e}")
    made = [
        timing.Check(f"mfk.jit / {row['by']}, {row['matmul']} matmul both", row["mfk_same_matmul"], 1.0)
        for row in table
        if row["by"] != OURS
    ]
    timing.report(made)
    timing.write(
        arguments.out,
        {
            "table": table,
            "checks": [check.record() for check in made],
            "largest_difference": worst,
            "width": arguments.width,
            "batch": arguments.batch,
            "exact_route": exact_matmul(),
            "repeats": arguments.repeats,
            "versions": before,
        },
    )


def functional(width: int) -> Gradient:
    """torch.func.grad over torch.func.jvp: mfk's loss, not compiled."""
    return grad(networks.objective(networks.model(width), networks.FAMILY["meanflow"]))


def peers(width: int) -> dict[str, Gradient]:
    """Name -> the gradient of the mean MeanFlow loss by torch's own means."""
    net = networks.ResidualMLP(width)

    def recorded(params: Params, batch: Batch) -> Params:
        leaves = {name: x.requires_grad_() for name, x in aliases(params).items()}
        z, v, r, t = (batch[name] for name in ("z", "v", "r", "t"))

        def u(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return functional_call(net, leaves, (z, r, t))

        value, rate = jvp(u, (z, r, t), (v, torch.ones_like(r), torch.zeros_like(t)))[:2]
        loss = (value - (v + (t - r) * rate).detach()).square().sum(-1).mean()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def doubled(params: Params, batch: Batch) -> Params:
        leaves = {name: x.requires_grad_() for name, x in aliases(params).items()}
        v, t = batch["v"], batch["t"]
        z, r = batch["z"].detach().requires_grad_(), batch["r"].detach().requires_grad_()
        value = functional_call(net, leaves, (z, r, t))
        # g(w) = wᵀJ is linear in w, so that its derivative along the tangent is J tangent.
        w = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, (z, r), w, create_graph=True)
        (rate,) = torch.autograd.grad(pulled, w, (v, torch.ones_like(r)), retain_graph=True)
        loss = (value - (v + (t - r) * rate).detach()).square().sum(-1).mean()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    return {
        "torch.func.jvp under autograd (py-meanflow)": recorded,
        "torch.func.grad over jvp": functional(width),
        "double backward": doubled,
    }


def aliases(params: Params) -> Params:
    """The same numbers as leaves that may require gradients."""
    return {name: x.detach() for name, x in params.items()}


def largest_difference(calls: dict[str, Callable[[], Params]]) -> float:
    """Of any gradient from the first, relative to its norm; an exit where they do not agree."""
    reference: Params | None = None
    worst = 0.0
    for name, call in calls.items():
        found = call()
        reference = reference or found
        difference = networks.difference(found, reference)
        if not difference < AGREE:
            sys.exit(
                f"benchmarks/versus_eager_peers.py: {name} differs by {difference:.1e} of the gradient's "
                f"norm; expected less than {AGREE:g}"
            )
        worst = max(worst, difference)
    return worst


if __name__ == "__main__":
    main()
