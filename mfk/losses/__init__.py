"""Floor 1: losses as pure functions of a field, their weights, their times, and the sampler."""

from mfk.losses.flow import MeanFlowTerms, flow_matching, meanflow, meanflow_residual, meanflow_terms
from mfk.losses.sampling import sample
from mfk.losses.times import TimeConfig, draw_times, end_times, jvp_rows
from mfk.losses.weighting import adaptive_weight, distance_weight

__all__ = [
    "MeanFlowTerms",
    "TimeConfig",
    "adaptive_weight",
    "distance_weight",
    "draw_times",
    "end_times",
    "flow_matching",
    "jvp_rows",
    "meanflow",
    "meanflow_residual",
    "meanflow_terms",
    "sample",
]
