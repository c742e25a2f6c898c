"""Any nn.Module as a pure function of its parameters."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from mfk.core import rng
from mfk.core.types import Model, Params, describe


def stateless(make: Callable[[], nn.Module]) -> Model:
    """Turn a module's constructor into a pair of pure functions.

    ``init(seed)`` builds the module with its own initialisation under a private seed (the global
    generators are left as they were) and returns ``(params, buffers)``, two dicts name -> tensor.
    ``apply(params, buffers, *inputs)`` calls the module with these and returns its output; it
    works under grad, jvp and vmap. The module itself lives on the meta device and holds no numbers.

    Args:
        make: called without arguments, returns a new module each time, e.g.
            ``lambda: MLP(width=64)``.

    Returns:
        Model: ``(init, apply)``.

    Raises:
        TypeError: `make` is not callable, returns no module, or returns the same one twice.
        ValueError: apply was given parameters that are not exactly the module's.
        RuntimeError: the module writes to a buffer while it runs (BatchNorm in training mode,
            say): that would be hidden state. Use ``.eval()`` in `make`, or another layer.
    """
    if isinstance(make, nn.Module) or not callable(make):
        raise TypeError(
            "make: expected a function that builds the module, as in "
            f"stateless(lambda: MLP(64)), got {type(make).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        built = _build(make)
    # A copy, so that a module which the caller holds on to keeps its numbers.
    skeleton = copy.deepcopy(built)
    first = weakref.ref(built)
    del built
    parameter_names = {name for name, _ in skeleton.named_parameters()}
    buffer_names = {name for name, _ in skeleton.named_buffers()}
    tied = _tied(skeleton)  # before the move to meta, which unties
    skeleton.to("meta")

    def init(seed: int) -> tuple[Params, Params]:
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it would reseed every accelerator as well.
            torch.default_generator.manual_seed(rng.key(seed, "init") % 2**63)
            module = _build(make)
        if module is first():
            raise TypeError("make: expected a new module at each call, got the same one again")
        params = {name: p.detach() for name, p in module.named_parameters()}
        buffers = {name: b.detach() for name, b in module.named_buffers()}
        return params, buffers

    def apply(params: Params, buffers: Params, *inputs: Any, **kwargs: Any) -> Any:
        _check_names("params", params, parameter_names)
        _check_names("buffers", buffers, buffer_names)
        # A module that writes to its buffers must not write to the caller's tensors.
        own = {name: b.clone() for name, b in buffers.items()}
        before = _versions(own)
        tensors = {**params, **own}
        tensors |= {other: tensors[name] for other, name in tied.items()}
        output = functional_call(skeleton, tensors, inputs, kwargs, strict=True)
        written = [name for name, version in _versions(own).items() if version != before[name]]
        if written:
            raise RuntimeError(
                f"buffers: the module wrote to {written[0]!r} while it ran, and a stateless model has "
                "nowhere to keep that. Build it with .eval(), or use a layer without running statistics."
            )
        return output

    return Model(init, apply)


def _build(make: Callable[[], nn.Module]) -> nn.Module:
    module = make()
    if not isinstance(module, nn.Module):
        raise TypeError(f"make: expected it to return a torch.nn.Module, got {describe(module)}")
    for name, p in module.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise TypeError(
                f"make: parameter {name!r} is lazy and has no shape yet; give its layer explicit sizes"
            )
    return module


def _tied(module: nn.Module) -> dict[str, str]:
    """Each further name of a tensor that has several -> the name that init gives it."""
    tied: dict[str, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        first = {id(x): name for name, x in named()}
        tied |= {n: first[id(x)] for n, x in named(remove_duplicate=False) if n != first[id(x)]}
    return tied


def _versions(buffers: Params) -> dict[str, int]:
    """How often each buffer was written to; nobody counts in inference mode or inside torch.compile."""
    if torch.compiler.is_compiling():
        return {}
    return {name: b._version for name, b in buffers.items() if not b.is_inference()}


def _check_names(argument: str, given: Params, expected: set[str]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(
            f"{argument}: expected a dict name -> tensor, as init returns it, got {describe(given)}; "
            "the call is apply(params, buffers, *inputs)"
        )
    if given.keys() == expected:
        return
    missing, unknown = sorted(expected - given.keys()), sorted(given.keys() - expected)
    raise ValueError(
        f"{argument}: expected exactly the module's {len(expected)} tensors; "
        f"missing {missing[:4]}, unknown {unknown[:4]}"
    )
