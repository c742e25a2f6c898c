"""Watch inverse kinematics in a browser: the arm, its reference, a target to drag, the answer and its error.

What there is to draw is a pure function, `scene`; `show` draws it with viser, an optional package. Arms are
cylinders between the joints, so that any URDF can be shown, with meshes or without.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mfk import kinematics
from mfk.core.types import describe
from mfk.kinematics import Chain
from mfk.tasks.ik import PoseErrors, pose_errors

Solver: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(reference [dof], pose [7]) -> q [dof], all float64."""

Network: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""(reference [dof], pose [7], steps >= 1) -> q [dof]."""

Problem: TypeAlias = Callable[[int], tuple[Tensor, Tensor]]
"""number of a random pose -> (reference [dof], pose [7]), float64."""

MOST_STEPS = 4


class Cylinders(NamedTuple):
    """Cylinders of one arm, whose axes are the z axes of their own frames."""

    middle: Tensor  # [n, 3], m
    wxyz: Tensor  # [n, 4], unit
    length: Tensor  # [n], m


class Arm(NamedTuple):
    """An arm in the base frame, to draw; float64."""

    points: Tensor  # [dof + 2, 3], m: base, joints, tip, as from `joint_positions`
    links: Cylinders  # dof + 1 of them, from point to point
    joints: Cylinders  # dof of them, around points 1 ... dof, each along its joint's axis
    tip: Tensor  # [7], pose


class Scene(NamedTuple):
    """All that is drawn; float64."""

    reference: Arm
    solution: Arm
    target: Tensor  # [7], pose
    miss: Cylinders  # one, from the reached tip to the target
    errors: PoseErrors  # of the solution, []
    text: str  # the errors in mm and deg


def scene(chain: Chain, q_reference: Tensor, target: Tensor, solver: Solver) -> Scene:
    """What to draw when `solver` goes from a reference to a target.

    Args:
        chain: the robot.
        q_reference: configuration to start from, [dof] in rad or m.
        target: pose [7] = x y z [m], qw qx qy qz of the chain's tip in its base frame.
        solver: called once.

    Raises:
        ValueError: a reference or an answer that is not [dof], or a target that is no pose [7].
        TypeError: a reference or an answer that is no float32 or float64 tensor.
    """
    kinematics.check_pose(target, "target")
    if target.shape != (7,):
        raise ValueError(f"target: expected one pose, [7], got {tuple(target.shape)}")
    target, q_reference = target.double(), _configuration(chain, "q_reference", q_reference)
    q = _configuration(chain, "solver", solver(q_reference, target))
    solution = _arm(chain, q)
    errors = pose_errors(chain, q, target)
    text = (
        f"position error {float(errors.position) * 1e3:.4f} mm\n"
        f"rotation error {float(torch.rad2deg(errors.rotation)):.4f} deg"
    )
    miss = _between(torch.stack((solution.tip[:3], target[:3])))
    return Scene(_arm(chain, q_reference), solution, target, miss, errors, text)


def solver(chain: Chain, network: Network | None, steps: int, refine: bool) -> Solver:
    """Network steps from the reference, then `mfk.kinematics.solve` from there if `refine`.

    Args:
        chain: the robot.
        network: None: `mfk.kinematics.solve` from the reference is the whole of it.
        steps: of the network, from 0 (stay at the reference) to `MOST_STEPS`.
        refine: whether to go on with the numerical solver.

    Raises:
        ValueError: another number of steps.
    """
    if steps not in range(MOST_STEPS + 1):
        raise ValueError(f"steps: expected 0 to {MOST_STEPS}, got {steps!r}")

    def answer(reference: Tensor, pose: Tensor) -> Tensor:
        q = reference if network is None or steps == 0 else network(reference, pose, steps).double()
        return kinematics.solve(chain, pose, q0=q).q if network is None or refine else q

    return answer


def thickness(chain: Chain) -> float:
    """Radius of a link in m: a fiftieth of the length of the stretched-out chain."""
    lengths = torch.tensor([*(stage.offset for stage in chain.stages), chain.tip_offset]).norm(dim=-1)
    slides = [
        max(abs(lower), abs(upper))
        for kind, lower, upper in zip(chain.kinds, chain.lower_limits, chain.upper_limits, strict=True)
        if kind == "prismatic"
    ]
    return 0.02 * (float(lengths.sum()) + sum(slides))


def show(chain: Chain, problem: Problem, network: Network | None, port: int, title: str) -> None:
    """Serve the scene on this machine until Ctrl-C; a browser shows it.

    Args:
        chain: the robot.
        problem: makes the random poses; number 0 is shown first.
        network: None shows the numerical solver.
        port: the first to try; the next free one is taken.
        title: of the panel, in Markdown.

    Raises:
        ValueError: viser is not installed, or no such port.
    """
    if not 1 <= port <= 65_535:
        raise ValueError(f"port: expected 1 to 65535, got {port}")
    # Callbacks run in viser's threads. They only say that something changed; all else is done in this one,
    # once for all changes that came in the meantime.
    changed, again = threading.Event(), threading.Event()
    with _server(port) as server:
        radius = thickness(chain)
        server.scene.set_up_direction("+z")
        server.scene.add_grid("/floor", width=3.0, height=3.0, cell_size=0.1, section_size=0.5)
        server.scene.add_frame("/base", axes_length=5 * radius, axes_radius=0.3 * radius)
        gizmo = server.scene.add_transform_controls("/target", scale=11 * radius)
        server.scene.add_frame("/target/frame", axes_length=5 * radius, axes_radius=0.25 * radius)

        server.gui.add_markdown(title)
        error = server.gui.add_markdown("")
        button = server.gui.add_button("New random pose")
        steps = server.gui.add_slider(
            "Network steps", 0, MOST_STEPS, 1, 1 if network else 0, disabled=network is None
        )
        refine = server.gui.add_checkbox(
            "Refine with mfk.kinematics.solve", network is None, disabled=network is None
        )

        def another(event: Any) -> None:
            again.set()
            changed.set()

        def look(client: Any) -> None:
            client.camera.position = (42 * radius, 42 * radius, 32 * radius)
            client.camera.look_at = (0.0, 0.0, 17 * radius)

        button.on_click(another)
        for control in (steps, refine, gizmo):
            control.on_update(lambda event: changed.set())
        server.on_client_connect(look)

        number = 0
        reference, target = problem(number)
        gizmo.position, gizmo.wxyz = _numbers(target[:3]), _numbers(target[3:])
        drawn: Callable[[Scene], None] | None = None
        print(f"{chain.name} at http://localhost:{server.get_port()} until Ctrl-C", flush=True)
        while True:
            if again.is_set():
                again.clear()
                number += 1
                reference, target = problem(number)
                gizmo.position, gizmo.wxyz = _numbers(target[:3]), _numbers(target[3:])
            target = _pose(gizmo.position, gizmo.wxyz)
            found = scene(
                chain, reference, target, solver(chain, network, int(steps.value), bool(refine.value))
            )
            with server.atomic():
                if drawn is None:
                    drawn = _draw(server.scene, found, radius)
                drawn(found)
                error.content = "\n\n".join((*found.text.split("\n"), f"random pose {number}"))
            changed.wait()
            changed.clear()


@contextmanager
def _server(port: int) -> Iterator[Any]:
    """A viser server; Ctrl-C is the way to end it, and no error."""
    try:
        # By name, so that type checking does not need an optional package.
        viser = importlib.import_module("viser")
    except ImportError as error:
        raise ValueError(
            f'view: expected the package viser, which cannot be imported ({error}): pip install -e ".[view]"'
        ) from None
    # Only this machine: the page has no password.
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    try:
        server.gui.configure_theme(show_share_button=False, show_logo=False, control_width="large")
        yield server
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        server.stop()


def _draw(viewer: Any, first: Scene, radius: float) -> Callable[[Scene], None]:
    """Make the nodes of a scene; the function that moves them to those of another."""
    move_reference = _draw_arm(viewer, "/reference", first.reference, radius, (70, 110, 200), 0.3)
    move_solution = _draw_arm(viewer, "/solution", first.solution, radius, (235, 130, 40), None)
    move_miss = _draw_cylinders(viewer, "/miss", first.miss, 0.2 * radius, (220, 20, 60), None)

    def move(to: Scene) -> None:
        move_reference(to.reference)
        move_solution(to.solution)
        move_miss(to.miss)

    return move


def _draw_arm(
    viewer: Any, name: str, arm: Arm, radius: float, color: tuple[int, int, int], opacity: float | None
) -> Callable[[Arm], None]:
    dark = tuple(int(0.45 * x) for x in color)
    move_links = _draw_cylinders(viewer, f"{name}/links", arm.links, radius, color, opacity)
    move_joints = _draw_cylinders(viewer, f"{name}/joints", arm.joints, 1.3 * radius, dark, opacity)
    balls = [
        viewer.add_icosphere(f"{name}/balls/{i}", radius, color, opacity=opacity)
        for i in range(len(arm.points))
    ]
    tip = viewer.add_frame(
        f"{name}/tip", axes_length=3 * radius, axes_radius=0.2 * radius, visible=opacity is None
    )

    def move(to: Arm) -> None:
        move_links(to.links)
        move_joints(to.joints)
        for ball, point in zip(balls, to.points, strict=True):
            ball.position = _numbers(point)
        tip.position, tip.wxyz = _numbers(to.tip[:3]), _numbers(to.tip[3:])

    return move


def _draw_cylinders(
    viewer: Any,
    name: str,
    cylinders: Cylinders,
    radius: float,
    color: tuple[int, ...],
    opacity: float | None,
) -> Callable[[Cylinders], None]:
    nodes = [
        viewer.add_cylinder(f"{name}/{i}", radius, 1.0, color, opacity=opacity)
        for i in range(len(cylinders.length))
    ]

    def move(to: Cylinders) -> None:
        for node, middle, wxyz, length in zip(nodes, *to, strict=True):
            # A height of 0 has no normals to shade.
            node.visible = float(length) > 1e-6
            node.height = max(float(length), 1e-6)
            node.position, node.wxyz = _numbers(middle), _numbers(wxyz)

    return move


def _arm(chain: Chain, q: Tensor) -> Arm:
    points = kinematics.joint_positions(chain, q)
    columns = kinematics.jacobian(chain, q).mT
    slides = torch.tensor([kind == "prismatic" for kind in chain.kinds]).unsqueeze(-1)
    axes = torch.where(slides, columns[:, :3], columns[:, 3:])
    length = torch.full((chain.dof,), 3.2 * thickness(chain), dtype=torch.float64)
    joints = Cylinders(points[1:-1], _from_z(axes), length)
    return Arm(points, _between(points), joints, kinematics.forward(chain, q))


def _between(points: Tensor) -> Cylinders:
    """From each point [n + 1, 3] to the next; one of no length points along z."""
    ways = points[1:] - points[:-1]
    lengths = ways.norm(dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=points.dtype)
    directions = torch.where(lengths.unsqueeze(-1) > 0, ways / lengths.unsqueeze(-1), up)
    return Cylinders((points[1:] + points[:-1]) / 2, _from_z(directions), lengths)


def _from_z(directions: Tensor) -> Tensor:
    """Quaternions [n, 4] that turn the z axis along unit vectors [n, 3].

    A cylinder has no front and back, so that it may turn to the opposite one: never by more than a quarter.
    """
    x, y, z = torch.where(directions[:, 2:] < 0, -directions, directions).unbind(-1)
    return kinematics.quaternion_normalize(torch.stack((1 + z, -y, x, torch.zeros_like(z)), dim=-1))


def _configuration(chain: Chain, name: str, q: Tensor) -> Tensor:
    kinematics.check_joints(chain, q, name)
    if q.ndim != 1:
        raise ValueError(f"{name}: expected one configuration, [{chain.dof}], got {describe(q)}")
    return q.detach().double()


def _pose(position: Any, wxyz: Any) -> Tensor:
    """Of the browser's numbers, whose quaternions are rounded and of either sign."""
    turn = kinematics.quaternion_normalize(torch.tensor([float(x) for x in wxyz], dtype=torch.float64))
    place = torch.tensor([float(x) for x in position], dtype=torch.float64)
    return torch.cat((place, kinematics.quaternion_canonical(turn)))


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())
