"""The derivative of a solution with respect to its target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

from mfk import kinematics as kin

PANDA, UR10 = kin.panda(), kin.ur10()


def regular(chain: kin.Chain, rows: int, seed: int = 0) -> Tensor:
    """Configurations away from limits and singularities."""
    u = torch.rand(50 * rows, chain.dof, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = chain.lower + (0.1 + 0.8 * u) * (chain.upper - chain.lower)
    least = torch.linalg.svdvals(kin.jacobian(chain, q))[:, -1]
    return q[least > 0.08][:rows]


def moved(target: Tensor, twist: Tensor) -> Tensor:
    """A pose moved by a twist [..., 6] of the base frame."""
    turned = kin.quaternion_multiply(kin.quaternion_exp(twist[..., 3:]), target[..., 3:])
    return torch.cat((target[..., :3] + twist[..., :3], turned), dim=-1)


@pytest.mark.parametrize("weights", [None, (1, 1, 1, 1, 1, 0), (1, 1, 1, 0, 0, 0)])
def test_against_central_differences(weights: tuple[float, ...] | None) -> None:
    q = regular(UR10, 10)
    assert len(q) == 10
    target = kin.forward(UR10, q).contiguous()

    def solved(twist: Tensor) -> Tensor:
        found = kin.solve(UR10, moved(target, twist.expand(10, 6)), q0=q, tol=1e-13, weights=weights)
        assert bool(found.converged.all())
        return found.q

    zero, h = torch.zeros(6, dtype=torch.float64), 1e-4
    derivative = jacrev(solved)(zero)
    torch.testing.assert_close(jacfwd(solved)(zero), derivative, rtol=1e-12, atol=1e-12)

    def at(k: float, i: int) -> Tensor:
        return solved(k * h * torch.eye(6, dtype=torch.float64)[i])

    if weights is not None:
        # Steps of a start at q are not the smallest ones to second order: to first they are.
        differences = torch.stack([(at(0.01, i) - at(-0.01, i)) / (0.02 * h) for i in range(6)], dim=-1)
        torch.testing.assert_close(differences, derivative, rtol=1e-3, atol=1e-3)
        return
    # Of fourth order.
    differences = torch.stack(
        [(8 * (at(1, i) - at(-1, i)) - (at(2, i) - at(-2, i))) / (12 * h) for i in range(6)], dim=-1
    )
    error = (differences - derivative).flatten(1).norm(dim=1) / derivative.flatten(1).norm(dim=1)
    assert float(error.max()) < 1e-6


def test_the_change_follows_the_target_and_is_the_smallest() -> None:
    q = regular(PANDA, 20)
    target = kin.forward(PANDA, q).contiguous()
    derivative = vmap(jacrev(lambda pose, start: kin.solve(PANDA, pose, q0=start).q))(target, q)
    solution = kin.solve(PANDA, target, q0=q).q
    j = kin.jacobian(PANDA, solution)
    eye = torch.eye(3, dtype=torch.float64).expand(20, 3, 3)
    torch.testing.assert_close(j[:, :3] @ derivative[..., :3], eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(j[:, 3:] @ derivative[..., :3], torch.zeros_like(eye), rtol=0, atol=1e-6)
    null = torch.linalg.svd(j, full_matrices=True).Vh[:, 6]
    assert float((null.unsqueeze(1) @ derivative).abs().max()) < 1e-9
    # A longer quaternion is the same rotation.
    assert float((derivative[..., 3:] @ target[:, 3:].unsqueeze(-1)).abs().max()) < 1e-9


def test_reverse_forward_and_vmap_agree() -> None:
    q = regular(PANDA, 6)
    target = kin.forward(PANDA, q).contiguous()
    tangent = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change: Tensor = jvp(lambda pose: kin.solve(PANDA, pose, q0=q).q, (target,), (tangent,))[1]
    leaf = target.clone().requires_grad_()
    (kin.solve(PANDA, leaf, q0=q).q * change.detach()).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close((leaf.grad * tangent).sum(), (change * change).sum(), rtol=1e-10, atol=0)
    batched = vmap(lambda pose, start: kin.solve(PANDA, pose, q0=start))(
        target.reshape(2, 3, 7), q.reshape(2, 3, 7)
    )
    torch.testing.assert_close(batched.q.reshape(6, 7), kin.solve(PANDA, target, q0=q).q, rtol=0, atol=0)
    shared = vmap(lambda pose: kin.solve(PANDA, pose, q0=q[0]).q)(target)
    torch.testing.assert_close(shared, kin.solve(PANDA, target, q0=q[0]).q, rtol=0, atol=1e-5)


def test_several_solutions_each_have_their_derivative() -> None:
    target = kin.forward(UR10, regular(UR10, 1))[0].contiguous()

    def solved(pose: Tensor) -> Tensor:
        return kin.solve(UR10, pose, num_solutions=2).q

    derivative, solutions = jacrev(solved)(target), solved(target)
    assert derivative.shape == (2, 6, 7)
    j = kin.jacobian(UR10, solutions)
    torch.testing.assert_close(
        j[:, :3] @ derivative[..., :3], torch.eye(3).double().expand(2, 3, 3), rtol=0, atol=1e-6
    )


def test_a_joint_on_its_limit_is_held_and_what_is_not_converged_does_not_move() -> None:
    q = regular(PANDA, 1)[0]
    q[1] = PANDA.upper[1]
    target = kin.forward(PANDA, q).contiguous()
    found = kin.solve(PANDA, target, q0=q)
    assert float(found.q[1]) == float(PANDA.upper[1])
    derivative = jacrev(lambda pose: kin.solve(PANDA, pose, q0=q).q)(target)
    assert float(derivative[1].abs().max()) == 0.0
    # The other six carry the whole change.
    j = kin.jacobian(PANDA, found.q)
    torch.testing.assert_close(j[:3] @ derivative[:, :3], torch.eye(3).double(), rtol=0, atol=1e-6)
    far = target.clone()
    far[:3] = 5.0
    away = jacrev(lambda pose: kin.solve(PANDA, pose, max_starts=2).q)(far)
    assert float(away.abs().max()) == 0.0


def test_a_free_position_turns_with_its_target() -> None:
    weights = (1, 1, 0, 1, 1, 1)
    q = regular(UR10, 3)
    tip = kin.forward(UR10, q)
    axis = kin.quaternion_to_matrix(tip[:, 3:])[:, :, 2]
    target = torch.cat((tip[:, :3] + 0.1 * axis, tip[:, 3:]), dim=-1)  # the tip is a way along the free axis

    def solved(twist: Tensor) -> Tensor:
        return kin.solve(UR10, moved(target, twist.expand(3, 6)), q0=q, tol=1e-12, weights=weights).q

    zero, h = torch.zeros(6, dtype=torch.float64), 1e-6
    derivative = jacfwd(solved)(zero)
    j = kin.jacobian(UR10, q)
    for i in range(6):
        step = h * torch.eye(6, dtype=torch.float64)[i]
        change = (solved(step) - solved(-step)) / (2 * h)
        # The smallest change is not what a search takes; in what counts they are the same.
        local = kin.quaternion_to_matrix(target[:, 3:]).mT
        for rows, counts in ((slice(0, 3), [0, 1]), (slice(3, 6), [0, 1, 2])):
            got, want = (
                (local @ j[:, rows] @ x.unsqueeze(-1))[:, counts, 0] for x in (derivative[..., i], change)
            )
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert float(derivative[..., 3:].abs().max()) > 0.1


def test_a_limit_of_float32_holds_too() -> None:
    q = regular(PANDA, 1)[0]
    q[1] = PANDA.upper[1]
    target = kin.forward(PANDA, q).contiguous()
    both = [
        jacrev(lambda pose, d=d: kin.solve(PANDA, pose, q0=q.to(d)).q)(target.to(d))
        for d in (torch.float32, torch.float64)
    ]
    assert float(both[0][1].abs().max()) == 0.0
    torch.testing.assert_close(both[0].double(), both[1], rtol=1e-3, atol=1e-3)


def test_a_forward_derivative_of_a_forward_derivative_is_refused() -> None:
    # torch would lose the tangent of what a custom function has saved, and return another number.
    target = kin.forward(UR10, regular(UR10, 1)[0]).contiguous()
    with pytest.raises(NotImplementedError, match="in reverse mode"):
        jacfwd(jacfwd(lambda pose: kin.solve(UR10, pose).q.square().sum()))(target)
    mixed = jacfwd(jacrev(lambda pose: kin.solve(UR10, pose).q.square().sum()))(target)
    twice = jacrev(jacrev(lambda pose: kin.solve(UR10, pose).q.square().sum()))(target)
    torch.testing.assert_close(mixed, twice, rtol=1e-6, atol=1e-6)


def test_float32_and_second_derivatives() -> None:
    q = regular(UR10, 2)
    target = kin.forward(UR10, q).contiguous()
    leaf = target.float().requires_grad_()
    kin.solve(UR10, leaf, q0=q).q.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32

    def along(s: Tensor) -> Tensor:
        twist = torch.stack((s, 0.5 * s, -s, 0.3 * s, s, 0.2 * s))
        return kin.solve(UR10, moved(target[0], twist), q0=q[0], tol=1e-12).q

    zero, h = torch.zeros((), dtype=torch.float64), 1e-4
    second = jacrev(jacrev(along))(zero)
    expected = (along(zero + h) - 2 * along(zero) + along(zero - h)) / h**2
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-3)
