"""The second derivative of the tip's motion against numerical derivatives of the Jacobian."""

from __future__ import annotations

import math

import pytest
import torch

from mfk import kinematics as kin

SLIDER = kin.serial_chain(
    "slider",
    "a",
    "b",
    [
        kin.Joint("turn", "revolute", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (1.0, 2.0, 3.0), -1.0, 1.0),
        kin.Joint("slide", "prismatic", (0.3, 0.0, 0.0), (math.pi / 2, 0.0, 0.2), (0.0, 1.0, 1.0), -1.0, 1.0),
        kin.Joint("twist", "revolute", (0.0, 0.4, 0.0), (0.0, 0.1, 0.0), (0.0, -1.0, 0.0), -1.0, 1.0),
        kin.Joint("tool", "fixed", (0.1, 0.1, 0.1), (0.0, 0.0, 1.0)),
    ],
)


@pytest.mark.parametrize("chain", [kin.panda(), kin.ur10(), SLIDER], ids=["panda", "ur10", "slider"])
def test_it_is_the_jacobians_derivative_along_the_line(chain: kin.Chain) -> None:
    generator = torch.Generator().manual_seed(0)
    q, dq = (torch.randn(30, chain.dof, generator=generator, dtype=torch.float64) for _ in range(2))
    h = 1e-5
    change = (kin.jacobian(chain, q + h * dq) - kin.jacobian(chain, q - h * dq)) / (2 * h)
    expected = (change @ dq.unsqueeze(-1)).squeeze(-1)
    got = kin.velocity_product(kin.jacobian(chain, q), dq)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(kin.velocity_product(kin.jacobian(chain, q[0]), dq[0]), got[0])


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"jacobian, dq: expected shapes .* got \(2, 6, 7\) and \(7,\)"):
        kin.velocity_product(torch.zeros(2, 6, 7), torch.zeros(7))
    with pytest.raises(ValueError, match=r"got \(7, 6\) and \(6,\)"):
        kin.velocity_product(torch.zeros(7, 6), torch.zeros(6))
