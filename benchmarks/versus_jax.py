"""The MeanFlow gradient compiled by mfk.jit against the same one compiled by jax.jit, in one run.

Claim: with matrix products of comparable speed, mfk takes no longer than JAX on the CPU.

Both sides have the same network, weights and batch; JAX's side is plain jax.numpy, with jax.jvp inside
jax.grad inside jax.jit. The gradients must agree to 1e-4 of their norm before anything is timed. The
libraries' own matrix products differ, and by more than the rest of the step: their speed is stated beside
the ratios, for torch's default, for mfk's exact route and for JAX.

JAX takes one thread for each core that the process may use, so --threads N ties the process to N cores; torch
gets as many threads. Before each timed call there is a pause, in which idle threads of the other library
stop spinning.

Needs JAX: `pip install mfk[bench]`.

    python benchmarks/versus_jax.py [--threads N] [--share 1.0 0.25] [--repeats N] [--out FILE]
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
import timing
import torch
from torch import Tensor
from torch.func import grad

from mfk import jit
from mfk.core import Params
from mfk.core.compiler import exact_matmul

PAUSE = 0.005  # s
AGREE = 1e-4  # of the gradient's norm
PRODUCT = (1024, 512, 512)
SHARES = (1.0, 0.25)


def main() -> None:
    """Compare the gradients, measure, print the tables, and write the JSON."""
    parser = timing.parser(__doc__, repeats=40)
    parser.add_argument("--width", type=int, default=networks.WIDTH)
    parser.add_argument("--batch", type=int, default=networks.BATCH)
    arguments = timing.parse(parser)
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    if len(cores) < arguments.threads:
        parser.error(f"--threads: {arguments.threads} asked for, {len(cores)} cores are there")
    os.sched_setaffinity(0, cores)  # before JAX starts its threads
    jax = load()
    before = timing.facts("jax", "jaxlib")

    products = speeds(jax, arguments.repeats)
    print(f"matrix product {' x '.join(map(str, PRODUCT))}, fp32, {arguments.threads} threads")
    for name, value in products.items():
        print(f"{name:<20}{value:>8.0f} GFLOP/s")

    model = networks.model(arguments.width)
    params, _ = model.init(0)
    theirs = {name: to_jax(jax, name, x) for name, x in params.items()}
    gradient = grad(networks.objective(model, networks.FAMILY["meanflow"]))
    table, differences = [], {}
    print(f"\nMeanFlow gradient, width {arguments.width}, batch {arguments.batch}")
    print(f"{'rows with a JVP':>15}{'':2}{'compiled by':<20}{'ms':>9}{'least':>9}{'x JAX':>8}")
    for share in SHARES:
        batch = networks.batch(arguments.batch, share)
        numpy = {name: jax.numpy.asarray(x.numpy()) for name, x in batch.items()}
        compiled = jax.jit(jax.grad(jax_loss(jax)))
        default, exact = jit(gradient, matmul="default"), jit(gradient, matmul="exact")
        calls: dict[str, Callable[[], Any]] = {
            "jax.jit": lambda f=compiled, b=numpy: jax.block_until_ready(f(theirs, b)),
            "mfk.jit, default": lambda f=default, b=batch: f(params, b),
            "mfk.jit, exact": lambda f=exact, b=batch: f(params, b),
        }
        differences[str(share)] = agreement(calls)
        times = timing.interleaved(calls, arguments.repeats, pause=PAUSE)
        for name, value in times.items():
            row = {
                "share": share,
                "case": name,
                "seconds": value.median,
                "least_seconds": value.least,
                "ratio": value.median / times["jax.jit"].median,
                "ratio_of_least": value.least / times["jax.jit"].least,
            }
            table.append(row)
            print(
                f"{100 * share:>14.0f}%{'':2}{name:<20}{1e3 * value.median:>9.2f}{1e3 * value.least:>9.2f}"
                f"{row['ratio']:>8.3f}"
            )
    worst = max(difference for pair in differences.values() for difference in pair.values())
    print(f"\nlargest difference from JAX's gradient, relative to its norm: {worst:.1e}")
    timing.write(
        arguments.out,
        {
            "gflops": products,
            "product": PRODUCT,
            "table": table,
            "differences": differences,
            "width": arguments.width,
            "batch": arguments.batch,
            "exact_route": exact_matmul(),
            "repeats": arguments.repeats,
            "versions": before,
        },
    )


def load() -> Any:
    """The module, on the CPU alone, or an exit that says how to get it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        # By name, so that type checking does not need an optional package.
        return importlib.import_module("jax")
    except ImportError as error:
        sys.exit(
            f"benchmarks/versus_jax.py compares with JAX, which is missing: pip install mfk[bench] ({error})"
        )


def to_jax(jax: Any, name: str, x: Tensor) -> Any:
    """A parameter in JAX's own layout: weights are [inputs, outputs] there."""
    return jax.numpy.asarray((x.T if is_matrix(name, x) else x).contiguous().numpy())


def is_matrix(name: str, x: Tensor) -> bool:
    """Whether the parameter is a linear layer's weight."""
    return name.endswith("weight") and x.ndim == 2


def jax_loss(jax: Any) -> Callable[[Any, Any], Any]:
    """networks.objective of MeanFlow, written for JAX."""
    jnp = jax.numpy

    def linear(p: Any, name: str, x: Any) -> Any:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def norm(p: Any, name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def field(p: Any, z: Any, r: Any, t: Any) -> Any:
        h = linear(p, "enter", jnp.concatenate((z, r, t), -1))
        for k in range(networks.BLOCKS):
            x = jax.nn.silu(linear(p, f"blocks.{k}.first", norm(p, f"blocks.{k}.norm", h)))
            h = h + linear(p, f"blocks.{k}.second", x)
        return linear(p, "leave", h)

    def loss(p: Any, b: Any) -> Any:
        n, rows = len(b["t"]), len(b["z"])
        z, v, r, t = b["z"][:n], b["v"][:n], b["r"][:n], b["t"]
        value, rate = jax.jvp(
            lambda z, r, t: field(p, z, r, t), (z, r, t), (v, jnp.ones_like(r), jnp.zeros_like(t))
        )
        total = ((value - jax.lax.stop_gradient(v + (t - r) * rate)) ** 2).sum()
        if n < rows:
            z, v, r = b["z"][n:], b["v"][n:], b["r"][n:]
            total = total + ((field(p, z, r, r) - v) ** 2).sum()
        return total / rows

    return loss


def agreement(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Norm of each gradient's difference from JAX's, over the norm of that one; an exit if it is large."""
    theirs: Params = {}
    for name, x in calls["jax.jit"]().items():
        y = torch.from_numpy(np.array(x))  # a copy: JAX's arrays are read-only
        theirs[name] = y.T if is_matrix(name, y) else y
    found = {}
    for case, call in calls.items():
        if case == "jax.jit":
            continue
        found[case] = networks.difference(call(), theirs)
        if not found[case] < AGREE:
            sys.exit(
                f"benchmarks/versus_jax.py: {case} differs from JAX's gradient by {found[case]:.1e} of its "
                f"norm; expected less than {AGREE:g}"
            )
    return found


def speeds(jax: Any, repeats: int) -> dict[str, float]:
    """GFLOP/s of one matrix product."""
    m, k, n = PRODUCT
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    x, y = jax.numpy.asarray(a.numpy()), jax.numpy.asarray(b.numpy())
    product = jax.jit(jax.numpy.matmul)
    exact = torch.ops.mfk.strict_mm if exact_matmul() == "strict" else networks.under("exact", torch.mm)
    calls: dict[str, Callable[[], Any]] = {
        "torch, default": lambda: a @ b,
        "torch, exact": lambda: exact(a, b),
        "JAX": lambda: jax.block_until_ready(product(x, y)),
    }
    times = timing.interleaved(calls, repeats, pause=PAUSE)
    return {name: 2e-9 * m * k * n / value.median for name, value in times.items()}


if __name__ == "__main__":
    main()
