"""Many Levenberg-Marquardt searches at once, in a fixed number of lanes.

A lane holds one search: a pose, and the configuration that one start has come to. What is done, or leads
nowhere, gives its lane to the next pose at once; when none is left, the unsolved poses get several starts
beside each other, and at last fewer lanes are used. So nothing finished costs time, no pose waits for
another, and the shapes are few, which a compiled step needs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mfk.kinematics.chain import Chain
from mfk.kinematics.levenberg import Step, open_limits

_SIZES = {"cpu": (64, 512, 4096), "cuda": (1024, 16_384, 65_536)}
_BETWEEN_LOOKS = {"cpu": 1, "cuda": 4}  # steps; on a GPU a look waits for it


class Patience(NamedTuple):
    """When a start is given up."""

    steps: int  # at most so many
    every: int  # after each so many steps,
    factor: float  # the error has to be below this part of what it was


_STRICT = Patience(40, 5, 0.5)
_LENIENT = Patience(150, 20, 0.8)
_ASIDE = 0.2
_STRICT_STARTS = 20  # of a pose; later ones get more time: what needs it lies at a limit or a singularity


class Search(NamedTuple):
    """What to find."""

    target: Tensor  # [n, 7], float64, unit quaternions
    seeds: Tensor  # [n, m, dof], float64: the first starts of each pose
    count: int  # distinct solutions wanted of each
    tolerance: tuple[float, float]  # m, rad
    separation: float  # rad or m: solutions are distinct where some joint differs by more
    starts: int  # without a new solution before a pose is given up
    redundant: bool  # whether solutions are no isolated points
    first_alone: bool  # whether a pose's further starts wait for the end of its first one
    offset: Tensor  # [dof], in [0, 1): begin of the sequence of further starts


class Found(NamedTuple):
    """What was found."""

    q: Tensor  # [n, count, dof]; rows beyond `number` are NaN
    number: Tensor  # [n], int64, distinct solutions
    best: Tensor  # [n, dof], where the error was least, if none was found
    steps: Tensor  # [n], int64, of all starts of a pose


def search(chain: Chain, step: Step, task: Search) -> Found:
    """Search until each pose has its solutions, or has had its starts in vain.

    A start is given up where its error stops falling; the first ones, of which most poses need one or two,
    sooner than later ones.
    """
    return _Search(chain, step, task).run()


class _Search:
    """The search while it runs: the lanes, and the accounts of the poses."""

    def __init__(self, chain: Chain, step: Step, task: Search) -> None:
        self.chain, self.step, self.task = chain, step, task
        n, device = len(task.target), task.target.device
        self.device = device
        kind = device.type if device.type in _SIZES else "cuda"
        self.sizes, self.between = _SIZES[kind], _BETWEEN_LOOKS[kind]
        self.lower, self.upper = (x.unsqueeze(-1) for x in open_limits(chain, device))
        self.begin, self.extent = chain.lower.to(device), (chain.upper - chain.lower).to(device)
        self.turns = torch.tensor([kind != "prismatic" for kind in chain.kinds], device=device)
        self.ratio = _ratios(chain.dof).to(device)
        # The poses.
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        self.q = task.target.new_full((n, task.count, chain.dof), torch.nan)
        self.number, self.steps = zeros.clone(), zeros.clone()
        self.best = (self.begin + 0.5 * self.extent).repeat(n, 1)
        self.least = task.target.new_full((n,), torch.inf)
        self.begun, self.running, self.failed = zeros.clone(), zeros.clone(), zeros.clone()
        self.over = torch.zeros(n, dtype=torch.bool, device=device)
        self.untouched = 0  # the first pose that has had no start
        self.open = torch.arange(n, device=device)  # not over, when last looked at
        # The lanes; `pose` is -1 for an idle one.
        self._allot(self._size())

    def run(self) -> Found:
        """See `search`."""
        self._refill(torch.arange(len(self.pose), device=self.device))
        while bool((self.pose >= 0).any()):
            for _ in range(self.between):
                self._advance()
            lanes = self.closed.nonzero()[:, 0]
            if len(lanes):
                self._close(lanes)
                stale = ((self.pose >= 0) & self.over[self.pose.clamp(min=0)]).nonzero()[:, 0]
                self._release(stale)
                self._shrink()
                self._refill((self.pose < 0).nonzero()[:, 0])
        return Found(self.q, self.number, self.best, self.steps)

    def _advance(self) -> None:
        """One step in each lane; those that are closed stay where they are."""
        after, position, rotation = self.step(self.at, self.target, self.lower, self.upper)
        error = position + rotation
        reached = (position <= self.task.tolerance[0] ** 2) & (rotation <= self.task.tolerance[1] ** 2)
        self.age = self.age + (~self.closed).long()
        due = self.age % self.every == 0
        lost = (due & (error > self.factor * self.mark)) | (self.age >= self.limit)
        self.mark = torch.where(due, error, self.mark)
        self.reached = torch.where(self.closed, self.reached, reached)
        self.error = torch.where(self.closed, self.error, error)
        self.closed = self.closed | ((self.pose >= 0) & (reached | lost))
        self.at = torch.where(self.closed, self.at, after)

    def _close(self, lanes: Tensor) -> None:
        """Enter what closed lanes have found into the accounts of their poses."""
        hit = self.reached[lanes]
        pending = lanes[hit]
        while len(pending):
            first = _first_of_each(self.pose[pending])
            self._enter(pending[first])
            others = torch.ones_like(pending, dtype=torch.bool)
            others[first] = False
            pending = pending[others]
        missed = lanes[~hit]
        self.failed.index_add_(0, self.pose[missed], torch.ones_like(missed))
        if len(missed):
            ordered = missed[torch.argsort(self.error[missed], stable=True)]
            ordered = ordered[_first_of_each(self.pose[ordered])]
            ordered = ordered[self.error[ordered] < self.least[self.pose[ordered]]]
            self.best[self.pose[ordered]] = self.at[:, ordered].T
            self.least[self.pose[ordered]] = self.error[ordered]
        poses = self.pose[lanes]
        done = (self.number[poses] >= self.task.count) | (self.failed[poses] >= self.task.starts)
        self.over[poses[done]] = True
        self._release(lanes)

    def _enter(self, lanes: Tensor) -> None:
        """Solutions of lanes of different poses: kept where they are wanted and new."""
        poses, q = self.pose[lanes], self.at[:, lanes].T
        new = self.number[poses] < self.task.count
        if self.task.count > 1:
            apart = self.q[poses] - q.unsqueeze(1)
            apart = torch.where(self.turns, torch.remainder(apart + torch.pi, 2 * torch.pi) - torch.pi, apart)
            new &= ~(apart.abs().amax(-1) < self.task.separation).any(-1)
        self.failed[poses] = torch.where(new, 0, self.failed[poses] + 1)
        poses, q = poses[new], q[new]
        self.q[poses, self.number[poses]] = q
        self.number[poses] += 1

    def _release(self, lanes: Tensor) -> None:
        poses = self.pose[lanes]
        self.steps.index_add_(0, poses, self.age[lanes])
        self.running.index_add_(0, poses, torch.full_like(poses, -1))
        self.pose[lanes] = -1
        self.closed[lanes] = False

    def _size(self) -> int:
        """How many lanes there is work for."""
        wanted = len(self.open) * self.task.count
        return next((size for size in self.sizes if size >= wanted), self.sizes[-1])

    def _shrink(self) -> None:
        """Fewer lanes where few poses are left; those that run are kept, as far as they fit."""
        if self.untouched < len(self.task.target) or len(self.pose) == self.sizes[0]:
            return
        self.open = self.open[~self.over[self.open]]
        size = self._size()
        if size >= len(self.pose):
            return
        kept = torch.argsort((self.pose < 0).long(), stable=True)
        left = kept[size:]
        self._release(left[self.pose[left] >= 0])
        kept = kept[:size]
        at, age, mark, pose = self.at[:, kept], self.age[kept], self.mark[kept], self.pose[kept]
        target, every, factor, limit = (
            self.target[kept],
            self.every[kept],
            self.factor[kept],
            self.limit[kept],
        )
        self._allot(size)
        self.at, self.age, self.mark, self.pose = at.contiguous(), age, mark, pose
        self.target, self.every, self.factor, self.limit = target.contiguous(), every, factor, limit

    def _allot(self, size: int) -> None:
        new = self.task.target.new_zeros
        self.pose = torch.full((size,), -1, device=self.device)
        self.at, self.target = new(self.chain.dof, size), new(size, 7)
        self.target[:, 3] = 1.0
        self.age = torch.zeros(size, dtype=torch.int64, device=self.device)
        self.every, self.limit = self.age + _STRICT.every, self.age + _STRICT.steps
        self.factor, self.mark, self.error = new(size), new(size), new(size)
        self.closed = torch.zeros(size, dtype=torch.bool, device=self.device)
        self.reached = self.closed.clone()

    def _refill(self, lanes: Tensor) -> None:
        """Give idle lanes the next starts."""
        poses, attempts = self._next(len(lanes))
        lanes = lanes[: len(poses)]
        self.pose[lanes], self.target[lanes] = poses, self.task.target[poses]
        self.at[:, lanes] = self._start(poses, attempts).T
        self.age[lanes], self.mark[lanes], self.error[lanes] = 0, torch.inf, torch.inf
        late = attempts >= _STRICT_STARTS
        self.every[lanes] = torch.where(late, _LENIENT.every, _STRICT.every)
        self.limit[lanes] = torch.where(late, _LENIENT.steps, _STRICT.steps)
        self.factor[lanes] = torch.where(late, _LENIENT.factor**2, _STRICT.factor**2).double()

    def _next(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` starts, as poses and the numbers of their attempts."""
        end = min(self.untouched + count, len(self.task.target))
        poses = torch.arange(self.untouched, end, device=self.device)
        attempts = torch.zeros_like(poses)
        self.untouched = end
        self._count_begun(poses)
        if len(poses) < count:
            again, turn = self._further(count - len(poses))
            poses, attempts = torch.cat((poses, again)), torch.cat((attempts, self.begun[again] + turn))
            self._count_begun(again)
        return poses, attempts

    def _further(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` more starts of poses that are not over, and which of a pose's starts of now each is.

        Those with the fewest come first; a pose may get several, but no more than it has left.
        """
        self.open = self.open[~self.over[self.open]]
        if not len(self.open):
            return self.open, self.open
        order = self.open[torch.argsort(self.begun[self.open], stable=True)]
        room = self.task.starts - self.failed[order] - self.running[order]
        if self.task.first_alone:
            undecided = (self.failed[order] == 0) & (self.number[order] == 0)
            room = torch.where(undecided, 0, room)
        rounds = min(-(-count // len(order)), self.task.starts)
        turn = torch.arange(rounds, device=self.device).repeat_interleave(len(order))
        allowed = turn < room.repeat(rounds)
        return order.repeat(rounds)[allowed][:count], turn[allowed][:count]

    def _count_begun(self, poses: Tensor) -> None:
        self.begun.index_add_(0, poses, torch.ones_like(poses))
        self.running.index_add_(0, poses, torch.ones_like(poses))

    def _start(self, poses: Tensor, attempts: Tensor) -> Tensor:
        """Configurations [n, dof]: the seeds first, then points that fill the range of the joints evenly."""
        place = poses.double() * 1009 + attempts.double() + 1
        q = self.begin + self.extent * torch.frac(self.task.offset + place.unsqueeze(-1) * self.ratio)
        if self.task.redundant and self.task.count > 1:
            q = torch.where(self._beside(poses, attempts), self._moved(poses, attempts, q), q)
        given = self.task.seeds.shape[1]
        if given:
            seeded = self.task.seeds[poses, attempts.clamp(max=given - 1)]
            q = torch.where((attempts < given).unsqueeze(-1), seeded, q)
        return q

    def _beside(self, poses: Tensor, attempts: Tensor) -> Tensor:
        """Which starts begin beside a known solution: every second one, [n, 1]."""
        return ((attempts % 2 == 1) & (self.number[poses] > 0)).unsqueeze(-1)

    def _moved(self, poses: Tensor, attempts: Tensor, q: Tensor) -> Tensor:
        """Known solutions moved a part of the way to q [n, dof]: a redundant arm's solutions fill a curve."""
        known = self.q[poses, (attempts // 2) % self.number[poses].clamp(min=1)]
        return known + _ASIDE * (q - known)


def _first_of_each(values: Tensor) -> Tensor:
    """The positions at which each value occurs first."""
    ordered, order = torch.sort(values, stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]


def _ratios(dof: int) -> Tensor:
    """Steps of an additive recurrence that fills a cube of so many dimensions evenly.

    Powers of 1 / g, where g is the root above 1 of g^(dof + 1) = g + 1.

    Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences".
    """
    g = 2.0
    for _ in range(60):
        g = (1 + g) ** (1 / (dof + 1))
    return torch.tensor([g ** -(i + 1) for i in range(dof)], dtype=torch.float64, device="cpu")
