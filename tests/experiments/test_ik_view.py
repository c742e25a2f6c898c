"""What the viewer draws, against forward kinematics; its command line; and the page in a real browser."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ik_view
import inverse_kinematics
import panda
import pytest
import torch
import ur10
from torch import Tensor

from mfk import kinematics as kin

SCRIPT = Path(__file__).parents[2] / "experiments" / "panda.py"
# A slide along -z, an oblique axis, and a link that goes straight down from its joint.
CRANE = kin.serial_chain(
    "crane", "root", "hook",
    [
        kin.Joint("lift", "prismatic", (0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, -1.0), -0.5, 0.5),
        kin.Joint("swing", "revolute", (0.4, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 2.0, 2.0), -2.0, 2.0),
        kin.Joint("rope", "fixed", (0.0, 0.0, -0.3), (0.0, 0.0, 0.0)),
    ],
)  # fmt: skip


def middle_of(chain: kin.Chain, share: float = 0.6) -> Tensor:
    return torch.lerp(chain.lower, chain.upper, share)


def z_axis(wxyz: Tensor) -> Tensor:
    z = torch.tensor([0.0, 0.0, 1.0], dtype=wxyz.dtype).expand(len(wxyz), 3)
    return kin.quaternion_rotate(wxyz, z)


@pytest.mark.parametrize("chain", [kin.panda(), kin.ur10("ee_link"), CRANE], ids=repr)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.6])
def test_links_reach_from_joint_to_joint(chain: kin.Chain, share: float) -> None:
    q = middle_of(chain, share)
    scene = ik_view.scene(chain, q, kin.forward(chain, q), lambda reference, pose: reference)
    for arm in (scene.reference, scene.solution):
        points, (middle, wxyz, length) = kin.joint_positions(chain, q), arm.links
        torch.testing.assert_close(arm.points, points)
        half = z_axis(wxyz) * length.unsqueeze(-1) / 2
        ends = torch.stack((middle - half, middle + half))
        # A cylinder has no direction: its ends are the two points, in either order.
        turned = (ends[0] - points[:-1]).norm(dim=-1) > (ends[1] - points[:-1]).norm(dim=-1)
        ends = torch.where(turned.unsqueeze(-1), ends.flip(0), ends)
        torch.testing.assert_close(ends, torch.stack((points[:-1], points[1:])), rtol=0, atol=1e-14)
        torch.testing.assert_close(arm.tip, kin.forward(chain, q))
        assert arm.joints.middle.shape == (chain.dof, 3) and arm.joints.length.shape == (chain.dof,)


def test_joints_turn_about_their_axes() -> None:
    chain, q = kin.panda(), middle_of(kin.panda(), 0.3)
    drawn = ik_view.scene(chain, q, kin.forward(chain, q), lambda reference, pose: reference).solution.joints
    for i, axis in enumerate(z_axis(drawn.wxyz)):
        # Each of the Panda's joints turns its link about that link's own z axis.
        z = kin.forward_matrix(kin.panda(f"panda_link{i + 1}"), q[: i + 1])[:3, 2]
        assert abs(float(axis @ z)) == pytest.approx(1.0, abs=1e-13)
        torch.testing.assert_close(drawn.middle[i], kin.joint_positions(chain, q)[i + 1])
    q = middle_of(CRANE)
    scene = ik_view.scene(CRANE, q, kin.forward(CRANE, q), lambda reference, pose: reference)
    expected = torch.tensor([[0.0, 0.0, 1.0], [1 / 3, 2 / 3, 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(z_axis(scene.reference.joints.wxyz), expected)


def test_the_error_is_that_of_the_answer() -> None:
    chain = kin.panda()
    reference, q = middle_of(chain), middle_of(chain) + 0.01
    target = kin.forward(chain, q)
    # A centimetre to the side, and 2 degrees about the base's z axis.
    half = math.radians(1.0)
    spin = torch.tensor([math.cos(half), 0.0, 0.0, math.sin(half)], dtype=torch.float64)
    turned = kin.quaternion_canonical(kin.quaternion_multiply(spin, target[3:]))
    moved = torch.cat((target[:3] + torch.tensor([0.0, 0.01, 0.0], dtype=torch.float64), turned))
    asked = []

    def answer(reference: Tensor, pose: Tensor) -> Tensor:
        asked.append((reference, pose))
        return q

    scene = ik_view.scene(chain, reference, moved, answer)
    assert len(asked) == 1 and torch.equal(asked[0][0], reference) and torch.equal(asked[0][1], moved)
    assert scene.text == "position error 10.0000 mm\nrotation error 2.0000 deg"
    torch.testing.assert_close(scene.target, moved)
    torch.testing.assert_close(scene.solution.tip, target)
    torch.testing.assert_close(scene.reference.points, kin.joint_positions(chain, reference))
    torch.testing.assert_close(scene.miss.middle[0], (moved[:3] + target[:3]) / 2)
    torch.testing.assert_close(scene.miss.length, torch.tensor([0.01], dtype=torch.float64))
    assert abs(float(z_axis(scene.miss.wxyz)[0, 1])) == pytest.approx(1.0)


def test_what_the_slider_and_the_box_ask_for() -> None:
    chain = kin.panda()
    reference, goal = middle_of(chain), middle_of(chain) + 0.1
    pose, asked = kin.forward(chain, goal), []

    def network(q: Tensor, pose: Tensor, steps: int) -> Tensor:
        asked.append(steps)
        return (q + 0.01 * steps).float()

    assert torch.equal(ik_view.solver(chain, network, 0, False)(reference, pose), reference)
    assert asked == []
    three = ik_view.solver(chain, network, 3, False)(reference, pose)
    assert asked == [3] and three.dtype == torch.float64
    torch.testing.assert_close(three, reference + 0.03, rtol=0, atol=1e-6)
    for q in (ik_view.solver(chain, network, 3, True), ik_view.solver(chain, None, 0, False)):
        scene = ik_view.scene(chain, reference, pose, q)
        assert float(scene.errors.position) < 1e-6 and float(scene.errors.rotation) < 1e-6
    for steps in (-1, 5, 1.5):
        with pytest.raises(ValueError, match=f"steps: expected 0 to 4, got {steps}"):
            ik_view.solver(chain, network, steps, False)  # pyright: ignore[reportArgumentType]


def test_thickness_follows_the_chain() -> None:
    # Links of 1, 0.4 and 0.3 m, and half a metre of slide.
    assert ik_view.thickness(CRANE) == pytest.approx(0.02 * 2.2)
    assert 0.02 < ik_view.thickness(kin.panda()) < ik_view.thickness(kin.ur10()) < 0.06


def test_wrong_shapes_are_named() -> None:
    chain, q = kin.panda(), middle_of(kin.panda())
    pose = kin.forward(chain, q)
    for reference, target, answer, words in (
        (q[:6], pose, q, r"q_reference: expected shape \[..., 7\], the joints of panda, got \(6,\)"),
        (q.expand(2, 7), pose, q, r"q_reference: expected one configuration, \[7\]"),
        (q, pose.expand(2, 7), q, r"target: expected one pose, \[7\], got \(2, 7\)"),
        (q, 2 * pose, q, "target: expected unit quaternions"),
        (q, pose, q[:6], r"solver: expected shape \[..., 7\], the joints of panda, got \(6,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            ik_view.scene(chain, reference, target, lambda reference, pose, answer=answer: answer)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "port: expected 1 to 65535, got 0"),
        (["--frame", "panda_link99"], "frame: "),
        (["--checkpoint", "nowhere"], "--checkpoint: nowhere is not the folder of a run"),
        (["--checkpoint", "nowhere", "--frame", "panda_link8"], "frame: expected none beside --checkpoint"),
        ([], r'view: expected the package viser, which cannot be imported .*: pip install -e "\.\[view\]"'),
    ],
)
def test_mistakes_end_with_one_message(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    monkeypatch.setattr(sys, "argv", ["panda.py", "view", *words])
    with pytest.raises(SystemExit) as caught:
        inverse_kinematics.main("panda", panda.PRESETS, "A test.")
    out, err = capfd.readouterr()
    assert caught.value.code == 2 and not out
    assert re.match(f"error: .*{message}", err) and len(err.splitlines()) == 1


def test_the_robot_is_the_scripts_or_that_of_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(ik_view, "show", lambda *given: shown.append(given))
    urdf = tmp_path / "arm.urdf"
    urdf.write_text(kin.urdf_text("ur10"), encoding="utf-8")
    for script, words in (
        (ur10, []),
        (ur10, ["--robot", "panda", "--tip", "panda_link8", "--seed", "1", "--port", "9000"]),
        (panda, ["--urdf", str(urdf), "--frame", "wrist_3_link"]),
    ):
        monkeypatch.setattr(sys, "argv", ["x.py", "view", *words])
        inverse_kinematics.main("x", script.PRESETS, "A test.")
    chains = [given[0] for given in shown]
    assert [(chain.dof, chain.tip) for chain in chains] == [
        (6, "tool0"), (7, "panda_link8"), (6, "wrist_3_link")
    ]  # fmt: skip
    assert [port for _, _, _, port, _ in shown] == [8080, 9000, 8080]
    for chain, problem, network, _, _ in shown:
        assert network is None
        (reference, pose), (again, _), (other, _) = problem(0), problem(0), problem(1)
        assert torch.equal(reference, again) and not torch.equal(reference, other)
        assert ((reference >= chain.lower) & (reference <= chain.upper)).all()
        scene = ik_view.scene(chain, reference, pose, ik_view.solver(chain, network, 0, False))
        assert float(scene.errors.position) < 1e-6


@pytest.fixture
def chromium() -> str:
    for package in ("viser", "playwright"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install {package}")
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("needs chromium on the PATH: apt-get install chromium")
    return binary


@pytest.fixture
def viewer(chromium: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `panda.py view`, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "view", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        address = next((found for line in lines if (found := re.search(r"panda at (\S+) until", line))), None)
        assert address is not None
        yield process, address[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow  # a browser that draws without a GPU
def test_the_page_in_a_browser(viewer: tuple[subprocess.Popen[str], str], chromium: str) -> None:
    process, address = viewer
    # By name, so that type checking does not need a package that only this test uses.
    playwright = importlib.import_module("playwright.sync_api")
    arguments = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 800, "height": 600})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.locator("canvas").first.wait_for()
        # The numerical solver reaches what it is shown.
        page.get_by_text(re.compile(r"position error 0\.00\d\d mm")).wait_for()
        page.get_by_text(re.compile(r"rotation error 0\.00\d\d deg")).wait_for()
        page.get_by_text("random pose 0").wait_for()
        page.get_by_role("button", name="New random pose").click()
        page.get_by_text("random pose 1").wait_for()
        page.get_by_text(re.compile(r"position error 0\.00\d\d mm")).wait_for()
        browser.close()
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in printed and "ended" in printed
