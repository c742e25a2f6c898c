from __future__ import annotations

import math

import pytest
import torch

from mfk import kinematics
from mfk.core import Rows
from mfk.data import IKDataConfig, draw_ik, sampling_range

PANDA = kinematics.panda()
CONTINUOUS = """<robot name="spinner">
  <link name="base"/><link name="arm"/><link name="tip"/>
  <joint name="turn" type="continuous"><parent link="base"/><child link="arm"/><axis xyz="0 0 1"/></joint>
  <joint name="slide" type="prismatic"><parent link="arm"/><child link="tip"/><axis xyz="1 0 0"/>
    <limit lower="0" upper="9" effort="1" velocity="1"/></joint>
</robot>"""


@pytest.mark.parametrize("reference", ["local", "uniform", "mixture"])
def test_limits_poses_and_moments(reference) -> None:
    got = draw_ik(PANDA, IKDataConfig(reference), seed=0, step=1, rows=Rows.all(20_000))
    lower, upper = PANDA.lower, PANDA.upper
    for q in (got.q_target, got.q_reference):
        assert q.dtype == torch.float32
        assert (q.double() >= lower).all() and (q.double() <= upper).all()
    exact = kinematics.forward(PANDA, got.q_target.double())
    torch.testing.assert_close(got.pose.double(), exact, atol=2e-6, rtol=0)
    # Uniform in the limits: mean and variance of a uniform distribution.
    width = upper - lower
    torch.testing.assert_close(got.q_target.double().mean(0), lower + width / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(got.q_target.double().var(0), width**2 / 12, rtol=0.05, atol=0)


def test_local_noise_has_the_configured_deviation() -> None:
    got = draw_ik(PANDA, IKDataConfig(sigma=0.02), 0, 0, Rows.all(20_000))
    inside = ((got.q_target - PANDA.lower > 0.1) & (PANDA.upper - got.q_target > 0.1)).all(-1)
    noise = (got.q_reference - got.q_target)[inside]
    assert float(noise.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(noise.mean())) < 5e-4


def test_sigmas_are_spread_evenly_over_their_logarithms() -> None:
    got = draw_ik(PANDA, IKDataConfig(sigma=0.001, sigma_max=0.1), 0, 0, Rows.all(20_000))
    inside = ((got.q_target - PANDA.lower > 0.6) & (PANDA.upper - got.q_target > 0.6)).all(-1)
    size = (got.q_reference - got.q_target)[inside].double().square().mean(-1).sqrt().log10()
    # A root mean square of seven scatters about its sigma, and lies 0.03 below it.
    assert float(size.mean()) == pytest.approx(-2.03, abs=0.02)
    assert float(size.quantile(0.1)) == pytest.approx(-2.8, abs=0.06)
    assert float(size.quantile(0.9)) == pytest.approx(-1.2, abs=0.06)
    whole = draw_ik(PANDA, IKDataConfig(sigma=0.05, sigma_max=0.5), 3, 4, Rows.all(10))
    part = draw_ik(PANDA, IKDataConfig(sigma=0.05, sigma_max=0.5), 3, 4, Rows(range(1, 10, 3), 10))
    torch.testing.assert_close(whole.q_reference[1::3], part.q_reference, rtol=0, atol=1e-7)


def test_mixture_share() -> None:
    got = draw_ik(PANDA, IKDataConfig("mixture", uniform_share=0.3), 0, 0, Rows.all(20_000))
    far = (got.q_reference - got.q_target).norm(dim=-1) > 1.0
    assert float(far.float().mean()) == pytest.approx(0.3, abs=0.02)


def test_rows_do_not_depend_on_the_split() -> None:
    config = IKDataConfig("mixture")
    whole = draw_ik(PANDA, config, 3, 4, Rows.all(10))
    part = draw_ik(PANDA, config, 3, 4, Rows(range(1, 10, 3), 10))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[1::3], b, rtol=0, atol=1e-7)
    other = draw_ik(PANDA, config, 3, 5, Rows.all(10))
    assert not torch.equal(other.q_target, whole.q_target)


def test_ur10_is_sampled_within_one_turn() -> None:
    lower, upper = sampling_range(kinematics.ur10())
    assert (lower == -math.pi).all() and (upper == math.pi).all()
    assert sampling_range(PANDA)[0].equal(PANDA.lower)


def test_continuous_and_prismatic_joints() -> None:
    chain = kinematics.load_urdf(CONTINUOUS, "tip")
    lower, upper = sampling_range(chain)
    assert lower.tolist() == [-math.pi, 0.0] and upper.tolist() == [math.pi, 9.0]


@pytest.mark.parametrize(
    ("limits", "window"),
    [
        ((4.0, 12.0), (4.0, 4.0 + 2 * math.pi)),
        ((0.0, 3 * math.pi), (0.0, 2 * math.pi)),
        ((-math.pi / 2, 2 * math.pi), (-math.pi / 2, 1.5 * math.pi)),
        ((-9.0, 9.0), (-math.pi, math.pi)),
        ((-9.0, 1.0), (1.0 - 2 * math.pi, 1.0)),
        ((-3.0, 3.0), (-3.0, 3.0)),
    ],
)
def test_a_wide_joint_is_sampled_over_one_turn_inside_its_limits(
    limits: tuple[float, float], window: tuple[float, float]
) -> None:
    joint = kinematics.Joint("turn", "revolute", (0, 0, 0), (0, 0, 0), lower=limits[0], upper=limits[1])
    lower, upper = sampling_range(kinematics.serial_chain("arm", "base", "tip", [joint]))
    assert lower.tolist() == pytest.approx([window[0]]) and upper.tolist() == pytest.approx([window[1]])


def test_a_setting_without_effect_is_refused() -> None:
    for config, name in (
        (IKDataConfig("uniform", sigma=0.3), "sigma"),
        (IKDataConfig("local", uniform_share=0.1), "uniform_share"),
        (IKDataConfig("uniform", sigma_max=0.5), "sigma_max"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: .* no effect"):
            draw_ik(PANDA, config, 0, 0, Rows.all(4))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (IKDataConfig(sigma=0.0), "sigma"),
        (IKDataConfig(sigma=float("nan")), "sigma"),
        (IKDataConfig(sigma=0.2, sigma_max=0.2), "sigma_max"),
        (IKDataConfig(sigma=0.2, sigma_max=float("inf")), "sigma_max"),
        (IKDataConfig("mixture", uniform_share=1.2), "uniform_share"),
        (IKDataConfig("global"), "reference"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings(config: IKDataConfig, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        draw_ik(PANDA, config, 0, 0, Rows.all(4))
