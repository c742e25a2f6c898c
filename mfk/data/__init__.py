"""Floor 2: generators and readers of training data."""

from mfk.data.augment import AugmentConfig, IKPaths, augment, check_augment
from mfk.data.bvh import Bvh, bvh_frames, read_bvh, read_bvh_header
from mfk.data.bvh_text import BvhHeader
from mfk.data.categories import Categories, discover_categories, manual_categories
from mfk.data.cleaning import Cleaning, CleaningConfig, clean, fit_cleaning
from mfk.data.families import FamilyTable, open_families, write_families
from mfk.data.ik import IKDataConfig, IKSamples, draw_ik, sampling_range
from mfk.data.ik_files import IKFile, IKRows, read_ik
from mfk.data.ik_generate import Generated, generate_ik, plan_ik
from mfk.data.irf_dataset import IRFDataset, collate_mixed_worlds, collate_single_world
from mfk.data.irf_generate import GeneratedIRF, generate_irf
from mfk.data.irf_splits import SPLITS, split_samples
from mfk.data.loader import LoaderConfig, batches_from, batches_of, row_order, split_rows
from mfk.data.motion import Clip, MotionInfo, MotionRows, MotionSource, Skeleton, Space, Up, clip_starts
from mfk.data.motion_batches import WindowConfig, motion_batches
from mfk.data.motion_files import open_motion, write_motion
from mfk.data.motion_import import import_bvh
from mfk.data.motion_info import same_skeleton
from mfk.data.motion_memory import motion_source
from mfk.data.motion_robots import joint_motion, robot_motion
from mfk.data.motion_rows import frame_velocities
from mfk.data.motion_windows import (
    Segments,
    Windows,
    find_windows,
    held_out_clips,
    read_windows,
    split_segments,
)
from mfk.data.operators import generate_operators
from mfk.data.stick import (
    ACTIONS,
    ENVIRONMENTS,
    FPS,
    GRAVITIES,
    GRAVITY,
    SEGMENTS,
    UNIT,
    StickClip,
    five_segments,
    segment_lengths,
    shared_point_gap,
    stick_frames,
    stick_physics,
    stick_points,
)
from mfk.data.stick_actions import GENERATED_ACTIONS, stick_pose
from mfk.data.stick_augment import mirror_stick, resample_labels, resample_stick, scale_stick, shift_stick
from mfk.data.stick_check import StickFinding, StickLimits, check_stick, drop_found
from mfk.data.stick_files import read_stick, write_stick
from mfk.data.stick_generate import generate_stick, schedule_motion
from mfk.data.stick_mocap import stick_from_bvh
from mfk.data.stick_words import ACTION_WORDS, action_schedule
from mfk.data.synthetic_blocks import synthetic_blocks
from mfk.data.tensors import read_tensors
from mfk.data.text_hash import embed_text, hash_text
from mfk.data.windows import AutoregressiveWindows, NextStepWindows, autoregressive_windows, next_step_windows

__all__ = [
    "ACTIONS",
    "ACTION_WORDS",
    "ENVIRONMENTS",
    "FPS",
    "GENERATED_ACTIONS",
    "GRAVITIES",
    "GRAVITY",
    "SEGMENTS",
    "SPLITS",
    "UNIT",
    "AugmentConfig",
    "AutoregressiveWindows",
    "Bvh",
    "BvhHeader",
    "Categories",
    "Cleaning",
    "CleaningConfig",
    "Clip",
    "FamilyTable",
    "Generated",
    "GeneratedIRF",
    "IKDataConfig",
    "IKFile",
    "IKPaths",
    "IKRows",
    "IKSamples",
    "IRFDataset",
    "LoaderConfig",
    "MotionInfo",
    "MotionRows",
    "MotionSource",
    "NextStepWindows",
    "Segments",
    "Skeleton",
    "Space",
    "StickClip",
    "StickFinding",
    "StickLimits",
    "Up",
    "WindowConfig",
    "Windows",
    "action_schedule",
    "augment",
    "autoregressive_windows",
    "batches_from",
    "batches_of",
    "bvh_frames",
    "check_augment",
    "check_stick",
    "clean",
    "clip_starts",
    "collate_mixed_worlds",
    "collate_single_world",
    "discover_categories",
    "draw_ik",
    "drop_found",
    "embed_text",
    "find_windows",
    "fit_cleaning",
    "five_segments",
    "frame_velocities",
    "generate_ik",
    "generate_irf",
    "generate_operators",
    "generate_stick",
    "hash_text",
    "held_out_clips",
    "import_bvh",
    "joint_motion",
    "manual_categories",
    "mirror_stick",
    "motion_batches",
    "motion_source",
    "next_step_windows",
    "open_families",
    "open_motion",
    "plan_ik",
    "read_bvh",
    "read_bvh_header",
    "read_ik",
    "read_stick",
    "read_tensors",
    "read_windows",
    "resample_labels",
    "resample_stick",
    "robot_motion",
    "row_order",
    "same_skeleton",
    "sampling_range",
    "scale_stick",
    "schedule_motion",
    "segment_lengths",
    "shared_point_gap",
    "shift_stick",
    "split_rows",
    "split_samples",
    "split_segments",
    "stick_frames",
    "stick_from_bvh",
    "stick_physics",
    "stick_points",
    "stick_pose",
    "synthetic_blocks",
    "write_families",
    "write_motion",
    "write_stick",
]
