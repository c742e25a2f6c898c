"""Floor 2: networks, plain nn.Modules that are usable alone."""

from mfk.nn.ik import KinematicNet, MeanFlowNet

__all__ = ["KinematicNet", "MeanFlowNet"]
