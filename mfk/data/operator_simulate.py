"""Stochastic reaction-diffusion operators on a periodic grid: twelve parameters, initial fields, time steps.

An activator u and an inhibitor v, both concentrations that stay positive:

    du/dt = D_u lap u - c d_x u + decay_u (gain S(steepness (u - threshold) - inhibition v) - u) + sigma eta
    dv/dt = D_v lap v + decay_v (drive u - v)

with S(x) = 1 / (1 + exp(-x)) and eta noise of unit variance, independent in space, of the correlation time
tau. According to the parameters it settles, switches in fronts, oscillates, or forms patterns that drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mfk.core import rng
from mfk.core.types import Rows

STEP = 0.2
"""Time of a step."""

FRAME = 5
"""Steps from one frame to the next: a frame per unit of time."""

IC_TYPES = ("field", "spots", "stripes", "front")
"""Kinds of initial fields of u."""


class Parameter(NamedTuple):
    """A physical parameter: where 0 and 1 of the unit cube lie."""

    low: float
    high: float
    geometric: bool = False  # equal ratios, not equal differences, for equal steps in the cube


PARAMETERS = {
    "diffusion_u": Parameter(0.05, 1.5, True),  # cells^2 per time, as the next
    "diffusion_v": Parameter(0.1, 10.0, True),
    "decay_u": Parameter(0.5, 1.5),  # per time, as the next
    "decay_v": Parameter(0.1, 1.0, True),
    "gain": Parameter(1.0, 2.0),  # concentration of u that production alone would keep up
    "steepness": Parameter(3.0, 12.0),
    "threshold": Parameter(0.1, 0.7),
    "inhibition": Parameter(0.0, 4.0),
    "drive": Parameter(0.3, 2.0),
    "advection": Parameter(0.0, 1.0),  # cells per time
    "noise": Parameter(0.03, 0.6, True),  # sigma, concentration per time
    "noise_time": Parameter(0.2, 3.0, True),  # tau
}
"""In the order of the unit cube. The ranges keep every simulation bounded; see `simulate`."""


def physical(cube: Tensor) -> dict[str, Tensor]:
    """Physical parameters [rows] by name, of points of the unit cube [rows, 12]."""
    found = {}
    for i, (name, range_) in enumerate(PARAMETERS.items()):
        low, high = range_.low, range_.high
        found[name] = (
            low * (high / low) ** cube[:, i] if range_.geometric else low + (high - low) * cube[:, i]
        )
    return found


def initial_fields(seed: int, block: int, rows: int, grid: int) -> tuple[Tensor, Tensor]:
    """Initial fields [rows, 2, grid, grid] of u and v, and the kind of each [rows], an index of `IC_TYPES`.

    A smooth random field of the row's own length gives the shape, and three more numbers its mean, spread and
    height: log-normal fields, spots where it is high, stripes of whole waves, a domain with a rough border.
    """
    every = Rows.all(rows)
    draw = rng.uniform(rng.key(seed, "initial", block), every, (9,), torch.float64)
    white = rng.normal(rng.key(seed, "field", block), every, (2, grid, grid), torch.float64)

    def within(i: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * draw[:, i])[:, None, None]

    smooth = _smooth(white, 0.7 * (5.0 / 0.7) ** draw[:, 0])
    mean, spread, height = within(1, 0.2, 1.0), within(2, 0.1, 0.6), within(3, 0.4, 1.4)
    waves, turn, phase = (1 + 4 * draw[:, 4]).floor(), 2 * math.pi * draw[:, 5], 2 * math.pi * draw[:, 6]
    place = torch.arange(grid, dtype=torch.float64) * (2 * math.pi / grid)
    # Whole numbers of waves along both axes: the grid is periodic.
    along_x, along_y = (waves * turn.cos()).round(), (waves * turn.sin()).round()
    along_x = torch.where((along_x == 0) & (along_y == 0), 1.0, along_x)
    angle = along_x[:, None, None] * place + along_y[:, None, None] * place[:, None] + phase[:, None, None]
    shape = smooth[:, 0]
    fields = torch.stack(
        [
            mean * (spread * shape).exp(),
            0.3 * mean + height * torch.sigmoid(6 * (shape - 1)),
            0.3 * mean + height * (1 + (angle + 0.5 * spread * shape).cos()) / 2,
            0.3 * mean
            + height * torch.sigmoid(6 * (place + phase[:, None, None]).cos() + 4 * spread * shape),
        ]
    )
    kind = (len(IC_TYPES) * draw[:, 7]).long()
    v = within(8, 0.1, 0.8) * (spread * smooth[:, 1]).exp()
    return torch.stack([fields[kind, torch.arange(rows)], v], 1).float(), kind


def simulate(
    seed: int, block: int, cube: Tensor, initial: Tensor, realisations: int, steps: int
) -> Iterator[Tensor]:
    """Frames [2, rows, realisations, grid, grid] of u and v, float32, one each `FRAME` steps.

    A step is diffusion and advection, exact, then reaction and noise, explicit (Euler; noise's increments are
    uniform numbers of variance one, which are as good as normal ones in distribution). Stable for all
    parameters: the first is an average with positive weights over the grid, as diffusion is a walk on it and
    advection one in one direction; the second moves towards a bounded value by a share below one; and u is
    reflected at 0.

    Args:
        seed: of the noise.
        block: which numbers of that seed.
        cube: [rows, 12], in [0, 1].
        initial: [rows, 2, grid, grid], >= 0, the same for all realisations.
        realisations: of the noise.
        steps: in all.
    """
    rows, grid = len(cube), initial.shape[-1]
    given = {name: value.float()[:, None, None] for name, value in physical(cube.double()).items()}
    # [rows, y, realisations, x]: both axes of the grid can be multiplied without moving numbers.
    u, v = (initial[:, k, :, None].expand(-1, -1, realisations, -1).contiguous() for k in (0, 1))
    wide, tall = (rows, grid, realisations * grid), (rows, grid * realisations, grid)
    u_y, u_x = _walk(given["diffusion_u"], None, grid), _walk(given["diffusion_u"], given["advection"], grid)
    v_y = _walk(given["diffusion_v"], None, grid)
    share_u, share_v = STEP * given["decay_u"], STEP * given["decay_v"]
    keep = torch.exp(-STEP / given["noise_time"])
    # A uniform number in [0, 1) less its mean, of variance one.
    fresh, push = (1 - keep**2).sqrt() * math.sqrt(12), STEP * given["noise"]
    noise = (rng_of(seed, "start", block, wide) - 0.5) * math.sqrt(12)
    for step in range(steps):
        u = torch.bmm(torch.bmm(u_y, u.view(wide)).view(tall), u_x).view(wide)
        v = torch.bmm(torch.bmm(v_y, v.view(wide)).view(tall), v_y).view(wide)
        made = (u - given["threshold"]).mul_(given["steepness"]).sub_(given["inhibition"] * v)
        made = made.sigmoid_().mul_(given["gain"])
        noise.mul_(keep).add_(rng_of(seed, step, block, wide).sub_(0.5).mul_(fresh))
        v.add_((given["drive"] * u).sub_(v).mul_(share_v))
        u.add_(made.sub_(u).mul_(share_u)).add_(noise * push).abs_()
        if (step + 1) % FRAME == 0:
            both = torch.stack([u, v]).view(2, rows, grid, realisations, grid)
            yield both.transpose(2, 3).contiguous()


def rng_of(seed: int, step: int | str, block: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1) of a step, or of the start."""
    return rng.uniform(rng.key(seed, "noise", block, step), Rows.all(shape[0]), shape[1:])


def _walk(diffusion: Tensor, advection: Tensor | None, grid: int) -> Tensor:
    """Probabilities [rows, from, to] of a walk on a ring for the time of a step: exp of its generator.

    Diffusion steps to either side at the rate D, advection to the right at the rate c, cells of length one.
    The generator is circulant, so that waves are its eigenvectors. Symmetric without advection.
    """
    angle = 2 * math.pi * torch.arange(grid // 2 + 1, dtype=torch.float64) / grid
    rate = diffusion[:, 0].double() * (2 * angle.cos() - 2) + 0j
    if advection is not None:
        rate = rate + advection[:, 0].double() * (torch.exp(-1j * angle) - 1)
    hops = torch.fft.irfft(torch.exp(STEP * rate), n=grid).clamp_min(0)
    place = torch.arange(grid)
    return (hops / hops.sum(-1, keepdim=True))[:, (place - place[:, None]) % grid].float()


def _smooth(white: Tensor, length: Tensor) -> Tensor:
    """White noise [rows, K, n, n] smoothed over lengths [rows] in cells; of mean 0, variance 1."""
    grid = white.shape[-1]
    angle_y = 2 * math.pi * torch.fft.fftfreq(grid, dtype=torch.float64)[:, None]
    angle_x = 2 * math.pi * torch.fft.rfftfreq(grid, dtype=torch.float64)
    damp = torch.exp(-0.5 * (angle_x**2 + angle_y**2) * length[:, None, None] ** 2)
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) * damp[:, None], s=(grid, grid))
    smooth = smooth - smooth.mean((-2, -1), keepdim=True)
    return smooth / smooth.square().mean((-2, -1), keepdim=True).sqrt()
