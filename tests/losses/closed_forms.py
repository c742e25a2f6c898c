"""Average velocities known in closed form (start-indexed, forward time), in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """P1: N(m0, s0^2) to N(m1, s1^2) with correlation rho, each dimension alike."""

    m0: float = 0.0
    s0: float = 1.0
    m1: float = 2.0
    s1: float = 0.5
    rho: float = 0.0

    def mean(self, t: Tensor) -> Tensor:
        return (1 - t) * self.m0 + t * self.m1

    def variance(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2 * self.s0**2 + 2 * t * (1 - t) * self.rho * self.s0 * self.s1 + t**2 * self.s1**2

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        half_rate = -(1 - t) * self.s0**2 + (1 - 2 * t) * self.rho * self.s0 * self.s1 + t * self.s1**2
        return (self.m1 - self.m0) + half_rate / self.variance(t) * (z - self.mean(t))

    def u(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """At t = r the limit, the marginal velocity."""
        span = torch.where(t == r, torch.ones_like(t), t - r)
        sigma_r, sigma_t = self.variance(r).sqrt(), self.variance(t).sqrt()
        apart = (self.m1 - self.m0) + (sigma_t - sigma_r) / (span * sigma_r) * (z - self.mean(r))
        return torch.where(t == r, self.velocity(z, r), apart)

    def one_step(self, z0: Tensor) -> Tensor:
        return self.m1 + self.s1 / self.s0 * (z0 - self.m0)


@dataclass(frozen=True)
class Point:
    """P3: any prior to the point c."""

    c: float = 0.7

    def u(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return (self.c - z) / (1 - r)


@dataclass(frozen=True)
class TwoBranches:
    """P4: N(0, s0^2) to +c or -c with equal odds, in one dimension."""

    c: float = 1.0
    s0: float = 0.8

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        pull = self.c * torch.tanh(self.c * t * z / ((1 - t) ** 2 * self.s0**2))
        return (pull - z) / (1 - t)

    def share_below(self, z: Tensor, t: Tensor) -> Tensor:
        width = (1 - t) * self.s0
        below = [torch.special.ndtr((z - sign * t * self.c) / width) for sign in (1.0, -1.0)]
        return 0.5 * (below[0] + below[1])

    def density(self, z: Tensor, t: Tensor) -> Tensor:
        width = (1 - t) * self.s0
        normal = [torch.exp(-0.5 * ((z - sign * t * self.c) / width) ** 2) for sign in (1.0, -1.0)]
        return 0.5 * (normal[0] + normal[1]) / (width * (2 * torch.pi) ** 0.5)

    def flow(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Where the flow takes z from r to t < 1: the quantile is kept. Differentiable once.

        Bisection finds the place; one Newton step from there carries the derivative.
        """
        share = self.share_below(z, r)
        low, high = torch.full_like(share, -8.0), torch.full_like(share, 8.0)
        fixed, end = share.detach(), t.detach()
        for _ in range(80):
            middle = 0.5 * (low + high)
            left = self.share_below(middle, end) < fixed
            low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        place = 0.5 * (low + high)
        return place - (self.share_below(place, t) - share) / self.density(place, end)

    def u(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """For r < t; at t = 1 every z is on its branch."""
        if bool((t == 1).all()):
            return (self.c * torch.sign(z) - z) / (1 - r)
        return (self.flow(z, r, t) - z) / (t - r)
