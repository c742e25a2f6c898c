"""Floor 1: losses as pure functions of a field or a motion, their weights, times, and the samplers."""

from mfk.losses.classification import class_error
from mfk.losses.codes import codebook_error, commitment, informativeness, orthogonality, topographic
from mfk.losses.consistency import (
    alpha_flow,
    alpha_flow_terms,
    alpha_schedule,
    shortcut,
    shortcut_terms,
    split_meanflow,
    split_meanflow_terms,
)
from mfk.losses.diffusion import add_noise, sample_ddim, signal_shares
from mfk.losses.fields import FieldTerms
from mfk.losses.finite_difference import finite_difference_terms, meanflow_finite_difference
from mfk.losses.flow import MeanFlowTerms, flow_matching, meanflow, meanflow_residual, meanflow_terms
from mfk.losses.guidance import guided, guided_velocity
from mfk.losses.horizon import (
    horizon_absolute_error,
    horizon_squared_error,
    horizon_weights,
    own_shocks,
    smoothness,
    sum_shocks,
)
from mfk.losses.improved import improved_meanflow, improved_meanflow_terms
from mfk.losses.motion import (
    finite_difference_velocity,
    foot_sliding,
    quaternion_distance,
    quaternion_norm,
)
from mfk.losses.physics import (
    acceleration_consistency,
    gravity_in_flight,
    in_flight,
    jerk,
    velocity_consistency,
)
from mfk.losses.regression import absolute_error, masked_rows, masked_sum, smooth_l1_error, squared_error
from mfk.losses.rollout import step_weights, teacher_ratio
from mfk.losses.sampling import sample, sample_euler, sample_midpoint
from mfk.losses.terminal import terminal_velocity, terminal_velocity_terms
from mfk.losses.times import TimeConfig, draw_times, end_times, jvp_rows, split_times
from mfk.losses.torus import on_torus, torus_path, wrap
from mfk.losses.weighting import adaptive_weight, alpha_weight, distance_weight

__all__ = [
    "FieldTerms",
    "MeanFlowTerms",
    "TimeConfig",
    "absolute_error",
    "acceleration_consistency",
    "adaptive_weight",
    "add_noise",
    "alpha_flow",
    "alpha_flow_terms",
    "alpha_schedule",
    "alpha_weight",
    "class_error",
    "codebook_error",
    "commitment",
    "distance_weight",
    "draw_times",
    "end_times",
    "finite_difference_terms",
    "finite_difference_velocity",
    "flow_matching",
    "foot_sliding",
    "gravity_in_flight",
    "guided",
    "guided_velocity",
    "horizon_absolute_error",
    "horizon_squared_error",
    "horizon_weights",
    "improved_meanflow",
    "improved_meanflow_terms",
    "in_flight",
    "informativeness",
    "jerk",
    "jvp_rows",
    "masked_rows",
    "masked_sum",
    "meanflow",
    "meanflow_finite_difference",
    "meanflow_residual",
    "meanflow_terms",
    "on_torus",
    "orthogonality",
    "own_shocks",
    "quaternion_distance",
    "quaternion_norm",
    "sample",
    "sample_ddim",
    "sample_euler",
    "sample_midpoint",
    "shortcut",
    "shortcut_terms",
    "signal_shares",
    "smooth_l1_error",
    "smoothness",
    "split_meanflow",
    "split_meanflow_terms",
    "split_times",
    "squared_error",
    "step_weights",
    "sum_shocks",
    "teacher_ratio",
    "terminal_velocity",
    "terminal_velocity_terms",
    "topographic",
    "torus_path",
    "velocity_consistency",
    "wrap",
]
