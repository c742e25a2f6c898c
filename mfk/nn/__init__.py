"""Floor 2: networks, plain nn.Modules that are usable alone, and what they are made of."""

from mfk.nn.ik import KinematicNet, MeanFlowNet
from mfk.nn.keyed_dropout import dropout
from mfk.nn.motion_mlp import MotionMLP
from mfk.nn.self_attention import SelfAttention, attention
from mfk.nn.times import time_features
from mfk.nn.transformer import MotionTransformer
from mfk.nn.unet1d import UNet1D

__all__ = [
    "KinematicNet",
    "MeanFlowNet",
    "MotionMLP",
    "MotionTransformer",
    "SelfAttention",
    "UNet1D",
    "attention",
    "dropout",
    "time_features",
]
