"""Better coordinates of an economy than its parameters as they stand: theta reshaped, no recursion run.

An emulator's network sees features x of the parameters, and says coefficients of each period; the response
to shock s is put together from these and from matrices of the parameters::

    irf[s, h, v] = size_s Σ_k coefficient_{k, h} basis_k[s, v]

The size of a shock thus enters exactly as it must, linearly. Which basis belongs to a world:

- nk: a coefficient for each shock and variable; x are the eight parameters that are no sizes, σ and κ and the
  persistences by their logarithms.
- var: W L with W = 1, A1, A2, A1 A1, A1 A2, A2 A1, A2 A2: similar matrices have similar responses, and so it
  is for any emulator of this form. x are the entries of A1, A2 and these products, the traces of products of
  up to three, and the coefficients of the companion matrix's characteristic polynomial.
- lss: C B and C A B; x are the coefficients of A's characteristic polynomial, as a change of the states'
  coordinates changes no response.

Products of at most three of theta's matrices: what the 40 periods are made of stays the network's to learn.
A world without an entry here, or kind "raw", is theta as it stands: x = theta, sizes 1, no basis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.data.worlds import OBSERVABLES, World
from mfk.data.worlds.state_space import SIGMA

Kind: TypeAlias = Literal["raw", "world"]


class Described(NamedTuple):
    """An economy in coordinates."""

    x: Tensor  # [..., F], features for the network
    size: Tensor  # [..., S], of each shock, in units of the observables
    basis: Tensor | None  # [..., K, S, V]; None: coefficients are [S, H + 1, V] themselves


class Coordinates(NamedTuple):
    """How a world's parameters are described."""

    of: Callable[[Tensor], Described]  # theta [..., P] -> described, of theta's dtype
    features: int  # F
    coefficients: int | None  # K; None: no basis
    each: bool  # whether the basis says no more than which shock and variable a coefficient is


def coordinates(world: World, kind: Kind) -> Coordinates:
    """The coordinates of a world."""
    of = _OWN.get(world.name) if kind == "world" else None
    each = kind == "world" and (of is None or of is _nk)
    if of is None:
        shocks, basis = len(world.shocks.names), kind == "world"

        def raw(theta: Tensor) -> Described:
            size = theta.new_ones(*theta.shape[:-1], shocks)
            return Described(theta, size, _each(size) if basis else None)

        of = raw
    example = of(torch.tensor(world.parameters.defaults, dtype=torch.float64, device="cpu"))
    return Coordinates(
        of, example.x.shape[-1], None if example.basis is None else example.basis.shape[-3], each
    )


def characteristic(matrix: Tensor) -> Tensor:
    """Coefficients e_1, ..., e_n of det(z - M) = z^n - e_1 z^(n-1) + e_2 z^(n-2) - ..., [..., n].

    M is [..., n, n]. By Newton's identities from the traces of powers.
    """
    n, power = matrix.shape[-1], matrix
    traces = [_trace(matrix)]
    for _ in range(n - 1):
        power = power @ matrix
        traces.append(_trace(power))
    found = [torch.ones_like(traces[0])]
    for k in range(1, n + 1):
        terms = [(-1) ** (i - 1) * found[k - i] * traces[i - 1] for i in range(1, k + 1)]
        found.append(torch.stack(terms).sum(0) / k)
    return torch.stack(found[1:], -1)


def _nk(theta: Tensor) -> Described:
    sigma, beta, kappa, phi_pi, phi_y = theta[..., :5].unbind(-1)
    rates = torch.stack((sigma.log(), beta, kappa.log(), phi_pi, phi_y), -1)
    size = theta[..., 8:11]
    return Described(torch.cat((rates, -torch.log1p(-theta[..., 5:8])), -1), size, _each(size))


def _var(theta: Tensor) -> Described:
    first, second = theta[..., 3:12].unflatten(-1, (3, 3)), theta[..., 12:21].unflatten(-1, (3, 3))
    zero, entries = torch.zeros_like(theta[..., 0]), theta[..., 21:].unbind(-1)
    lower = dict(zip(((i, j) for i in range(3) for j in range(i + 1)), entries, strict=True))
    factor = torch.stack([lower.get((i, j), zero) for i in range(3) for j in range(3)], -1).unflatten(
        -1, (3, 3)
    )
    one = torch.eye(3, dtype=theta.dtype, device=theta.device).expand_as(first)
    pairs = [a @ b for a in (first, second) for b in (first, second)]
    triples = [a @ pair for a in (first, second) for pair in pairs]
    words = torch.stack([one, first, second, *pairs], -3)
    traces = torch.stack([_trace(word) for word in (first, second, *pairs, *triples)], -1)
    below = torch.cat((one, torch.zeros_like(one)), -1)
    companion = torch.cat((torch.cat((first, second), -1), below), -2)
    x = torch.cat((words[..., 1:, :, :].flatten(-3), traces, characteristic(companion)), -1)
    size = factor.square().sum(-2).sqrt()
    basis = (words @ factor.unsqueeze(-3)).mT / size.unsqueeze(-1).unsqueeze(-3)
    return Described(x, size, basis)


def _lss(theta: Tensor) -> Described:
    matrix, loading, seen = theta.split((16, 8, 12), -1)
    matrix, loading, seen = (
        y.unflatten(-1, shape) for y, shape in ((matrix, (4, 4)), (loading, (4, 2)), (seen, (3, 4)))
    )
    size = loading.square().sum(-2).sqrt()
    products = torch.stack((seen @ loading, seen @ matrix @ loading), -3).mT
    return Described(characteristic(matrix), SIGMA * size, products / size.unsqueeze(-1).unsqueeze(-3))


def _each(size: Tensor) -> Tensor:
    """A basis with one element for each shock and variable, [..., S V, S, V]."""
    shocks, variables = size.shape[-1], len(OBSERVABLES)
    one = torch.eye(shocks * variables, dtype=size.dtype, device=size.device)
    return one.unflatten(-1, (shocks, variables)).expand(*size.shape[:-1], -1, -1, -1)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


_OWN: dict[str, Callable[[Tensor], Described]] = {"nk": _nk, "var": _var, "lss": _lss}
