"""The table of reachable poses."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mfk import kinematics as kin
from mfk.kinematics.seed_table import nearest_seeds, seed_table

PANDA, CPU = kin.panda(), torch.device("cpu")


def targets(chain: kin.Chain, rows: int) -> Tensor:
    u = torch.rand(rows, chain.dof, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return kin.forward(chain, chain.lower + u * (chain.upper - chain.lower)).contiguous()


def score(chain: kin.Chain, q: Tensor, target: Tensor) -> Tensor:
    """What nearness means: squared metres, and 0.3 times 1 - cos(half the angle)."""
    pose = kin.forward(chain, q.double())
    wanted = target.unsqueeze(-2).expand_as(pose) if pose.ndim > 2 else target
    half = 0.5 * kin.quaternion_angle(pose[..., 3:], wanted[..., 3:])
    return (pose[..., :3] - wanted[..., :3]).square().sum(-1) + 0.3 * (1 - half.cos())


def test_the_table_holds_configurations_within_the_limits_and_their_poses() -> None:
    table = seed_table(PANDA, CPU)
    assert len(table.q) == 100_000 and seed_table(PANDA, CPU) is table
    assert bool(((table.q.double() >= PANDA.lower) & (table.q.double() <= PANDA.upper)).all())
    torch.testing.assert_close(kin.forward(PANDA, table.q[:500]), table.pose[:500], rtol=0, atol=1e-6)
    assert int(table.first[0]) == 0 and int(table.first[-1]) == 100_000


def test_seeds_come_nearest_first_and_are_near() -> None:
    table, target = seed_table(PANDA, CPU), targets(PANDA, 300)
    seeds = nearest_seeds(table, target, 4)
    assert seeds.shape == (300, 4, 7)
    scores = score(PANDA, seeds, target)
    # Where the cell has so many; rows of other cells come last.
    ordered = (scores[:, 1:] >= scores[:, :-1] - 1e-5).all(-1)
    assert float(ordered.float().mean()) > 0.8
    # Beside the best of the whole table, which a cell does not always hold.
    every = torch.stack([score(PANDA, table.q, t.expand(100_000, 7)) for t in target[:20]])
    best = every.amin(-1)
    assert bool((scores[:20, 0] >= best - 1e-5).all())
    assert float(scores[:20, 0].mean()) < 4 * float(best.mean())
    assert float(scores[:, 0].mean()) < 0.15 * float(every.mean())


def test_a_row_of_the_table_finds_itself() -> None:
    # The few rows beyond what is looked at in a full cell are not found.
    table = seed_table(PANDA, CPU)
    found = nearest_seeds(table, table.pose[::1000], 1)[:, 0]
    assert float((found - table.q[::1000]).abs().amax(-1).eq(0).float().mean()) > 0.8


def test_more_seeds_than_a_cell_has_and_poses_out_of_reach() -> None:
    table, target = seed_table(PANDA, CPU), targets(PANDA, 3)
    many = nearest_seeds(table, target, 500)
    assert many.shape == (3, 500, 7) and len(torch.unique(many[0], dim=0)) == 500
    far = target.clone()
    far[:, :3] += 10
    assert bool(torch.isfinite(nearest_seeds(table, far, 4)).all())
    assert nearest_seeds(table, target[:0], 4).shape == (0, 4, 7)


def test_an_arm_that_moves_in_a_plane_or_on_a_line(tmp_path: Path) -> None:
    for joint in ("revolute", "prismatic"):
        urdf = tmp_path / f"{joint}.urdf"
        urdf.write_text(
            '<robot name="flat"><link name="a"/><link name="b"/><link name="c"/>'
            f'<joint name="one" type="{joint}"><parent link="a"/><child link="b"/><axis xyz="0 0 1"/>'
            '<limit lower="-1" upper="1" velocity="1" effort="1"/></joint>'
            f'<joint name="two" type="{joint}"><parent link="b"/><child link="c"/><origin xyz="0.5 0 0"/>'
            '<axis xyz="0 0 1"/><limit lower="-1" upper="1" velocity="1" effort="1"/></joint></robot>'
        )
        chain = kin.load_urdf(urdf, tip="c")
        table = seed_table(chain, CPU)
        assert int(table.cells.prod()) < 1_000_000
        target = targets(chain, 50)
        distance = (kin.forward(chain, nearest_seeds(table, target, 1)[:, 0]).double() - target)[:, :3].norm(
            dim=-1
        )
        assert float(distance.max()) < 0.2
