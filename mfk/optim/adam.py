"""AdamW as a pair of functions, on torch's fused kernel."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from mfk.core import tree
from mfk.core.types import Optimizer, Tree, describe
from mfk.optim.layout import check_like, dense, laid_out, may_overlap


class AdamWState(NamedTuple):
    """What AdamW carries from step to step."""

    step: Tensor  # [], float32: updates made (skipped ones do not count); exact up to 2^24
    mu: Tree  # the parameters' shapes and dtypes: running mean of the gradient
    nu: Tree  # the parameters' shapes and dtypes: running mean of its square


class _Leaves(NamedTuple):
    p: list[Tensor]
    g: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]


class _Settings(NamedTuple):
    beta1: float
    beta2: float
    eps: float
    lr: float
    weight_decay: float


def adamw(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decay: Callable[[str], bool] | None = None,
    fused: bool = True,
) -> Optimizer:
    """Adam with decoupled weight decay.

    With g the gradient, t the number of this update and all operations elementwise::

        m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2
        p <- p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    ``update(grads, opt_state, params, lr, found_inf=None)`` DONATES `opt_state` and `params`: their
    memory is reused for the result. `grads` are left as they are. `found_inf` is a 0-dimensional
    float tensor, 0 or 1; a 1 leaves everything as it was, without a host synchronisation.

    Gradients may have any memory layout. (The fused kernel walks through memory and is silently
    wrong where a gradient's strides are not its parameter's, so such gradients are copied first.)

    Args:
        betas: b1 and b2, in [0, 1).
        eps: added to the root, >= 0; with 0 an entry whose gradient is always zero becomes NaN.
        weight_decay: wd, as a share of the learning rate, >= 0.
        decay: name of a leaf (as in ``tree.named_leaves``) -> whether it is decayed; None decays
            every leaf, as torch.optim.AdamW does. See `decays_by_name`.
        fused: use the fused kernel where there is one (CPU, CUDA); otherwise foreach calls.

    Returns:
        Optimizer: ``(init, update)``.

    Raises:
        ValueError: a setting is out of range; a gradient does not match its parameter in name,
            shape, dtype or device; two parameters, or entries of one, share memory.
        TypeError: a parameter is not float32 or float64 (keep fp32 masters of narrow parameters).

    Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization (2019), Algorithm 2.
    """
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(
            f"betas: expected two numbers, got {describe(betas)}; the learning rate is an argument of update"
        )
    _check_range("betas[0]", betas[0], 1.0)
    _check_range("betas[1]", betas[1], 1.0)
    _check_range("eps", eps)
    _check_range("weight_decay", weight_decay)

    @lru_cache(maxsize=16)
    def decays(spec: optree.PyTreeSpec) -> tuple[float, ...]:
        if decay is None:
            return (weight_decay,) * spec.num_leaves
        names = [name for name, _ in tree.named_leaves(optree.tree_unflatten(spec, range(spec.num_leaves)))]
        return tuple(weight_decay if decay(name) else 0.0 for name in names)

    def init(params: Tree) -> AdamWState:
        named = tree.named_leaves(params)
        _check_params(named)
        device = named[0][1].device if named else torch.device("cpu")
        zero = torch.zeros((), dtype=torch.float32, device=device)
        return AdamWState(zero, _zeros(params), _zeros(params))

    @torch.no_grad()
    def update(
        grads: Tree, opt_state: AdamWState, params: Tree, lr: float, found_inf: Tensor | None = None
    ) -> tuple[Tree, AdamWState]:
        _check_range("lr", lr)
        p, spec = optree.tree_flatten(params)
        g = check_like("grads", grads, "params", params)
        m = check_like("opt_state.mu", opt_state.mu, "params", params)
        v = check_like("opt_state.nu", opt_state.nu, "params", params)
        step = opt_state.step.add_(1.0 if found_inf is None else 1.0 - found_inf)
        groups: dict[tuple[float, torch.dtype, bool], list[int]] = {}
        for i, (x, rate) in enumerate(zip(p, decays(spec), strict=True)):
            is_dense = dense(x)
            if is_dense:
                g[i], m[i], v[i] = laid_out(g[i], x), laid_out(m[i], x), laid_out(v[i], x)
            elif may_overlap(x):
                raise ValueError(f"params: {_shares_itself(tree.named_leaves(params)[i][0], x)}")
            kernel = fused and is_dense and x.device.type in ("cpu", "cuda")
            groups.setdefault((rate, x.dtype, kernel), []).append(i)
        for (rate, _, kernel), index in groups.items():
            settings = _Settings(betas[0], betas[1], eps, float(lr), rate)
            group = _Leaves(*([leaves[i] for i in index] for leaves in (p, g, m, v)))
            (_fused if kernel else _foreach)(group, step, settings, found_inf)
        return params, AdamWState(step, optree.tree_unflatten(spec, m), optree.tree_unflatten(spec, v))

    return Optimizer(init, update)


def decays_by_name(name: str) -> bool:
    """Whether the usual rule decays the leaf: no for biases and for the gains of norms, else yes.

    It goes by words: ``bias`` (``in_proj_bias``, ``bias_ih_l0``), ``ln``, ``gn``, ``bn`` and those that
    end in ``norm`` (``layer_norm``, ``norm1``, ``LayerNorm``). A norm inside an nn.Sequential carries
    no such word: name it, or give a rule of your own.
    """
    words = re.findall(r"[a-z]+", name.lower())
    return not any(word in ("bias", "ln", "gn", "bn") or word.endswith("norm") for word in words)


def _fused(leaves: _Leaves, step: Tensor, settings: _Settings, found_inf: Tensor | None) -> None:
    torch._fused_adamw_(
        leaves.p,
        leaves.g,
        leaves.m,
        leaves.v,
        [],
        [step] * len(leaves.p),
        lr=settings.lr,
        beta1=settings.beta1,
        beta2=settings.beta2,
        weight_decay=settings.weight_decay,
        eps=settings.eps,
        amsgrad=False,
        maximize=False,
        found_inf=found_inf,
    )


def _foreach(leaves: _Leaves, step: Tensor, settings: _Settings, found_inf: Tensor | None) -> None:
    (p, g, m, v), (b1, b2, eps, lr, weight_decay) = leaves, settings
    kept = [] if found_inf is None else [x.clone() for x in (*p, *m, *v)]
    t = step.double()
    torch._foreach_lerp_(m, g, 1 - b1)
    torch._foreach_mul_(v, b2)
    torch._foreach_addcmul_(v, g, g, 1 - b2)
    root = torch._foreach_sqrt(v)
    torch._foreach_div_(root, torch.sqrt(1 - b2**t))
    torch._foreach_add_(root, eps)
    torch._foreach_mul_(root, 1 - b1**t)
    torch._foreach_mul_(p, 1 - lr * weight_decay)
    torch._foreach_addcdiv_(p, m, root, -lr)
    if found_inf is not None:
        for x, old in zip([*p, *m, *v], kept, strict=True):
            x.copy_(torch.where(found_inf > 0, old, x))


def _zeros(params: Tree) -> Tree:
    return tree.map(lambda p: torch.zeros_like(p, requires_grad=False), params)


def _check_range(name: str, value: Any, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        raise ValueError(f"{name}: expected a finite number in [0, {below}), got {describe(value)}")


def _check_params(named: list[tuple[str, Any]]) -> None:
    spans: list[tuple[int, int, str]] = []
    for name, x in named:
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"params: leaf {name!r} must be a float32 or float64 tensor, got {describe(x)}. "
                "Keep fp32 master parameters and cast inside the loss."
            )
        if x.device != named[0][1].device:
            raise ValueError(
                f"params: leaf {name!r} is on {x.device}, {named[0][0]!r} on {named[0][1].device}; "
                "expected one device"
            )
        if may_overlap(x):
            raise ValueError(f"params: {_shares_itself(name, x)}")
        if x.numel():
            reach = sum((length - 1) * stride for length, stride in zip(x.shape, x.stride(), strict=True))
            spans.append((x.data_ptr(), x.data_ptr() + reach * x.element_size(), name))
    spans.sort()
    for (_, end, name), (start, _, other) in itertools.pairwise(spans):
        if start <= end:
            raise ValueError(
                f"params: leaves {name!r} and {other!r} share memory, so one update would be "
                "made twice; keep one of them, or clone"
            )


def _shares_itself(name: str, x: Tensor) -> str:
    return (
        f"entries of leaf {name!r} share memory (shape {tuple(x.shape)}, strides {x.stride()}); "
        "expand() does that: clone the tensor first"
    )
