"""Floor 2: networks, plain nn.Modules that are usable alone, and the attention that they may be made of."""

from mfk.nn.ik import KinematicNet, MeanFlowNet
from mfk.nn.self_attention import SelfAttention, attention

__all__ = ["KinematicNet", "MeanFlowNet", "SelfAttention", "attention"]
