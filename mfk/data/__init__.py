"""Floor 2: generators and readers of training data."""

from mfk.data.augment import AugmentConfig, IKPaths, augment, check_augment
from mfk.data.ik import IKDataConfig, IKSamples, draw_ik, sampling_range
from mfk.data.ik_files import IKFile, IKRows, read_ik
from mfk.data.ik_generate import Generated, generate_ik, plan_ik
from mfk.data.loader import LoaderConfig, batches_from, batches_of, row_order, split_rows
from mfk.data.motion_memory import motion_source
from mfk.data.motion_robots import joint_motion, robot_motion
from mfk.data.tensors import read_tensors
from mfk.data.windows import AutoregressiveWindows, NextStepWindows, autoregressive_windows, next_step_windows

__all__ = [
    "AugmentConfig",
    "AutoregressiveWindows",
    "Generated",
    "IKDataConfig",
    "IKFile",
    "IKPaths",
    "IKRows",
    "IKSamples",
    "LoaderConfig",
    "NextStepWindows",
    "augment",
    "autoregressive_windows",
    "batches_from",
    "batches_of",
    "check_augment",
    "draw_ik",
    "generate_ik",
    "joint_motion",
    "motion_source",
    "next_step_windows",
    "plan_ik",
    "read_ik",
    "read_tensors",
    "robot_motion",
    "row_order",
    "sampling_range",
    "split_rows",
]
