"""What an emulator is judged by: errors by world, shock, variable, period and split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk.core import ranks
from mfk.core.ranks import Ranks
from mfk.core.types import Params, Tree
from mfk.data.irf_splits import SPLITS
from mfk.data.worlds import OBSERVABLES, World
from mfk.tasks.irf_data import IRFData
from mfk.tasks.irf_emulator import emulator
from mfk.tasks.irf_net import IRFNets
from mfk.tasks.irf_range import outside

Member: TypeAlias = tuple[Params, Tree]
"""Parameters of a network and state of its task; an ensemble has several."""

SOON = 3
"""Periods whose signs are compared: 0, 1, 2."""

CUTOFF = 6.0
"""Periods of a cycle that counts as of high frequency: so long or shorter."""

LEVEL = 0.95
"""Share of the numbers that an ensemble's calibrated error bars are to cover."""

_LEAST = 1e-4
_ROWS = 250
_NOTHING = 1e-12


class ResponseRow(NamedTuple):
    """Figures of one world, split, shock and variable."""

    world: str
    split: str
    shock: str
    variable: str
    samples: int
    nrmse: float  # mean over samples of the root of the mean square over periods, in deviations
    iae: float  # mean over samples of the sum over periods of |error|, in units of the observable
    sign: float  # share of the periods 0, 1, 2 whose sign is right, of those that are not 0
    hf_true: float  # share of the energy in cycles of at most six periods: exact
    hf_model: float  # and emulated
    by_period: list[float]  # of each period, root mean square error in deviations


class SplitRow(NamedTuple):
    """Figures of one world and split."""

    world: str
    split: str
    samples: int
    nrmse: float  # mean over shocks and variables
    worst: float  # of the shock and variable that has most
    gap: float  # in percent of the interpolation's
    flagged: float  # share of the samples that are said to be out of range
    covered: float | None  # share of the numbers within two deviations of an ensemble's mean
    factor: float | None  # deviations that hold 95 % of the validation economies' numbers
    covered_by_bars: float | None  # share of this split's numbers within so many


class Coverage(NamedTuple):
    """How often an ensemble's spread covers the exact numbers that are not 0 for all economies."""

    two: float  # share within two deviations of the mean
    factor: float  # deviations that hold `LEVEL` of the numbers of the validation economies
    bars: float  # share within so many


def emulated(
    nets: IRFNets, params: Params, state: Tree, world: World, theta: Tensor, *, here: Ranks | None = None
) -> Tensor:
    """The emulator's responses of one world, float32 [N, S, H + 1, V]; S = 1 of a single-shock network.

    Several ranks, which must all call this, share the economies; all return the responses of all of them,
    the same as one process.

    Args:
        nets: as of `irf_nets`.
        params: of the network.
        state: of the task.
        world: one of the emulator's.
        theta: parameters, float64 [N, P].
        here: this process among those that share the economies, `ranks.current()`; None: it takes all.

    Raises:
        ValueError: a world that the emulator does not know.
    """
    here = here or Ranks(0, 1)
    respond = emulator(nets, params, state, world.name)
    shocks = len(world.shocks.names) if nets.config.shock is None else 1
    made = torch.zeros(len(theta), shocks, nets.horizon + 1, len(OBSERVABLES), device=theta.device)
    with torch.no_grad():
        for first in range(0, len(theta), _ROWS)[here.rank :: here.count]:
            made[first : first + _ROWS] = respond(theta[first : first + _ROWS])
    # Zeros where other ranks have their responses: the sum puts them together, to the bit.
    return made if here.count == 1 else ranks.add_up(made)


def measure(
    nets: IRFNets,
    members: Sequence[Member],
    data: IRFData,
    splits: Sequence[str] = SPLITS[2:],
    *,
    here: Ranks | None = None,
) -> tuple[list[ResponseRow], dict[tuple[str, str], Coverage]]:
    """A row for each world, split, shock and variable; and how often the members' spread covers the truth.

    Of an ensemble the members' mean is judged, and there is a coverage by (world, split). What the members
    have in common is not in their spread, so that error bars are its multiple: the one that covers the
    validation economies, on which nothing was trained. The ranks `here` is one of share the economies, as of
    `emulated`.
    """
    rows: list[ResponseRow] = []
    covered: dict[tuple[str, str], Coverage] = {}
    k = nets.config.shock
    for world in nets.worlds:
        names = world.shocks.names if k is None else (world.shocks.names[k],)
        factor = None
        if len(members) > 1:
            ratios = _deviations(*_answers(nets, members, data, world, "val", here))
            factor = ratios.kthvalue(max(1, math.ceil(LEVEL * len(ratios)))).values.item()
        for split in splits:
            each, truth = _answers(nets, members, data, world, split, here)
            rows += compare(world.name, split, names, each.mean(0), truth)
            if factor is not None:
                ratios = _deviations(each, truth)
                shares = [(ratios <= c).double().mean().item() for c in (2.0, factor)]
                covered[world.name, split] = Coverage(shares[0], factor, shares[1])
    return rows, covered


def _answers(
    nets: IRFNets, members: Sequence[Member], data: IRFData, world: World, split: str, here: Ranks | None
) -> tuple[Tensor, Tensor]:
    """The members' responses [M, N, S, H + 1, V] of a split's economies, and the exact ones, float64."""
    samples, k = data.samples[split][world.name], nets.config.shock
    each = torch.stack(
        [emulated(nets, *member, world, samples.theta, here=here) for member in members]
    ).double()
    return each, (samples.irf if k is None else samples.irf[:, k : k + 1]).double()


def deviation(each: Tensor) -> Tensor:
    """The members' deviation of each number, [M, N, S, H + 1, V] -> [N, S, H + 1, V].

    At least 1e-4 of the largest mean over the periods: where a response has died out the members agree to the
    last bit, which says nothing of their error.
    """
    return torch.maximum(each.std(0), _LEAST * each.mean(0).abs().amax(-2, keepdim=True))


def _deviations(each: Tensor, truth: Tensor) -> Tensor:
    """Errors of the members' mean in their deviations, of all numbers that are not 0 for all economies."""
    error = (truth - each.mean(0)).abs()
    ratio = torch.where(error == 0, 0.0, error / deviation(each))
    return ratio[:, (truth != 0).any(0)].flatten()


def compare(world: str, split: str, shocks: Sequence[str], made: Tensor, truth: Tensor) -> list[ResponseRow]:
    """Figures of emulated responses beside exact ones, both float64 [N, S, H + 1, V].

    The unit is the deviation of the exact responses over samples and periods, of each shock and variable; 1
    where that is less than 1e-12.
    """
    unit = truth.transpose(1, 2).flatten(0, 1).std(0, correction=0)  # [S, V]
    unit = torch.where(unit < _NOTHING, 1.0, unit)
    error = (made - truth) / unit.unsqueeze(-2)
    nrmse = error.square().mean(-2).sqrt().mean(0)
    iae = (made - truth).abs().sum(-2).mean(0)
    soon = truth[:, :, :SOON]
    counts = soon.abs() > _NOTHING * soon.abs().max()
    right = ((made[:, :, :SOON].sign() == soon.sign()) & counts).sum((0, 2)) / counts.sum((0, 2))
    exact, emulator = (high_frequency(x).mean(0) for x in (truth, made))
    period = error.square().mean(0).sqrt()
    return [
        ResponseRow(
            world, split, shock, variable, len(truth), nrmse[s, v].item(), iae[s, v].item(),
            right[s, v].item(), exact[s, v].item(), emulator[s, v].item(), period[s, :, v].tolist(),
        )
        for s, shock in enumerate(shocks)
        for v, variable in enumerate(OBSERVABLES)
    ]  # fmt: skip


def high_frequency(response: Tensor) -> Tensor:
    """Share of a response's energy in cycles of at most six periods, [..., H + 1, V] -> [..., V]; 0 of 0."""
    power = torch.fft.rfft(response, dim=-2).abs().square()
    fast = torch.fft.rfftfreq(response.shape[-2], device=response.device) >= 1 / CUTOFF
    whole = power.sum(-2)
    return torch.where(whole > 0, power[..., fast, :].sum(-2) / torch.where(whole > 0, whole, 1.0), 0.0)


def summarise(
    nets: IRFNets,
    state: Tree,
    data: IRFData,
    rows: Sequence[ResponseRow],
    covered: Mapping[tuple[str, str], Coverage],
) -> list[SplitRow]:
    """A row for each world and split, with the gap to the interpolation and the share out of range."""
    found: dict[tuple[str, str], list[ResponseRow]] = {}
    for row in rows:
        found.setdefault((row.world, row.split), []).append(row)
    mean = {key: sum(r.nrmse for r in group) / len(group) for key, group in found.items()}
    numbers: Mapping[str, int] = {world.name: i for i, world in enumerate(nets.worlds)}
    out = []
    for (world, split), group in found.items():
        number = numbers[world]
        theta = data.samples[split][world].theta
        flags = outside(nets.worlds[number], number, state["scale"], theta).flag
        inside = mean.get((world, "test_interpolation"), float("nan"))
        out.append(
            SplitRow(
                world,
                split,
                group[0].samples,
                mean[world, split],
                max(r.nrmse for r in group),
                100 * (mean[world, split] / inside - 1),
                float(flags.double().mean()),
                *(covered.get((world, split)) or (None, None, None)),
            )
        )
    return out
