"""Small motions for the tests of motion tasks."""

from __future__ import annotations

import torch

from mfk.data import Clip, MotionInfo, MotionRows, MotionSource, Skeleton, motion_source, split_segments
from mfk.kinematics import quaternion_exp, quaternion_multiply, world_from_rotations
from mfk.tasks.motion_data import MotionData
from mfk.tasks.motion_features import FeatureConfig, Frames, read_as

PARENTS = (-1, 0, 1, 0)
NAMES = ("hips", "thigh", "left_foot", "head")


def smooth(frames: int, seed: int, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Sums of slow sinusoids, [frames, size]."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(frames, dtype=torch.float64)[:, None, None] / 30
    rate, phase, width = (torch.rand(size, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return (width * torch.sin(2 * torch.pi * rate * t + 6.28 * phase)).sum(-1).to(dtype)


def frames(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tree of four bones that walks about and turns, [count, 4, 7] in world space, z up."""
    turn = torch.zeros(count, 3, dtype=dtype)
    turn[:, 2] = 2 * smooth(count, seed, 1, dtype)[:, 0]
    root = quaternion_exp(turn)
    local = quaternion_exp(0.5 * smooth(count, seed + 1, 12, dtype).unflatten(-1, (4, 3)))
    rotation = [quaternion_multiply(root, local[:, 0])]
    for bone in range(1, 4):
        rotation.append(quaternion_multiply(rotation[PARENTS[bone]], local[:, bone]))
    offsets = torch.tensor([[0, 0, 0], [0, 0.1, -0.4], [0, 0, -0.4], [0, 0, 0.6]], dtype=dtype)
    position = 2 * smooth(count, seed + 2, 3, dtype)
    return world_from_rotations(position, torch.stack(rotation, 1), offsets.expand(count, 4, 3), PARENTS)


def source(lengths: tuple[int, ...] = (60, 60, 50), labels: int = 0) -> MotionSource:
    """Clips of it, the last one held out."""
    rows = torch.cat([frames(n, 10 * i) for i, n in enumerate(lengths)])
    held_out = torch.cat([torch.full((n,), i == len(lengths) - 1) for i, n in enumerate(lengths)])
    info = MotionInfo(
        30.0,
        Skeleton(NAMES, PARENTS, "world", "z"),
        tuple(Clip(f"clip{i}", n, ("walk", "turn")[i % 2]) for i, n in enumerate(lengths)),
        tuple(f"l{i}" for i in range(labels)) if labels else None,
        ("train", "val"),
        {},
    )
    label = smooth(len(rows), 99, labels) if labels else None
    return motion_source("made", info, MotionRows(rows, None, label, {"train": ~held_out, "val": held_out}))


def data(lengths: tuple[int, ...] = (60, 60, 50), labels: int = 0) -> MotionData:
    """The same, opened."""
    made = source(lengths, labels)
    how = read_as(made.info.skeleton, FeatureConfig(), made.name)
    held_out = split_segments(made, "val")
    return MotionData(made, how, split_segments(made, "train"), held_out, held_out, labels)


WORLD = Frames(4, PARENTS, "world", 2, True, True)
