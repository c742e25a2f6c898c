"""All solutions of a UR10 in closed form, from its Denavit-Hartenberg parameters; independent of mfk.

Source: Hawkins 2013, "Analytic inverse kinematics for the Universal Robots UR-5/UR-10 arms", Georgia Tech.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

D1, A2, A3, D4, D5, D6 = 0.1273, -0.612, -0.5723, 0.163941, 0.1157, 0.0922
TWISTS = (math.pi / 2, 0.0, 0.0, math.pi / 2, -math.pi / 2, 0.0)
LENGTHS = (0.0, A2, A3, 0.0, 0.0, 0.0)
OFFSETS = (D1, 0.0, 0.0, D4, D5, D6)


def link(i: int, angle: float) -> np.ndarray:
    """The transform [4, 4] of joint i + 1 at an angle."""
    c, s, ca, sa = math.cos(angle), math.sin(angle), math.cos(TWISTS[i]), math.sin(TWISTS[i])
    a, d = LENGTHS[i], OFFSETS[i]
    return np.array([[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]])


def forward(q: np.ndarray) -> np.ndarray:
    """base_T_tool0, [4, 4], the base turned as the robot's own controller has it."""
    pose = np.eye(4)
    for i, angle in enumerate(q):
        pose = pose @ link(i, angle)
    return pose


def solutions(pose: np.ndarray) -> list[np.ndarray]:
    """All q in (-pi, pi] that reach a pose [4, 4], each checked by `forward`; up to eight."""
    found: list[np.ndarray] = []
    wrist = pose @ np.array([0, 0, -D6, 1.0])
    reach = math.hypot(wrist[0], wrist[1])
    if abs(D4) > reach:
        return []
    back = np.linalg.inv(pose)
    for first, fifth, third in itertools.product((1, -1), repeat=3):
        q1 = math.atan2(wrist[1], wrist[0]) + first * math.acos(D4 / reach) + math.pi / 2
        s1, c1 = math.sin(q1), math.cos(q1)
        cosine5 = (pose[0, 3] * s1 - pose[1, 3] * c1 - D4) / D6
        if abs(cosine5) > 1:
            continue
        q5 = fifth * math.acos(cosine5)
        s5 = math.sin(q5)
        if abs(s5) < 1e-9:
            continue
        q6 = math.atan2((-back[1, 0] * s1 + back[1, 1] * c1) / s5, (back[0, 0] * s1 - back[0, 1] * c1) / s5)
        front = np.linalg.inv(link(0, q1)) @ pose @ np.linalg.inv(link(4, q5) @ link(5, q6))
        x, y = front[0, 3], front[1, 3]
        square = x * x + y * y
        cosine3 = (square - A2**2 - A3**2) / (2 * A2 * A3)
        if abs(cosine3) > 1:
            continue
        q3 = third * math.acos(cosine3)
        q2 = math.atan2(y, x) - math.atan2(A3 * math.sin(q3), A2 + A3 * math.cos(q3))
        rest = np.linalg.inv(link(1, q2) @ link(2, q3)) @ front
        q4 = math.atan2(rest[1, 0], rest[0, 0])
        q = np.array([q1, q2, q3, q4, q5, q6])
        q = q - 2 * math.pi * np.round(q / (2 * math.pi))
        assert np.abs(forward(q) - pose).max() < 1e-7
        found.append(q)
    return found
