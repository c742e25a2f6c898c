"""Floor 2: networks, plain nn.Modules that are usable alone, and what they are made of."""

from mfk.nn.codebook_start import kmeans_codebook, kmeans_residual
from mfk.nn.codebooks import (
    CodebookState,
    CodeSums,
    init_codebook,
    look_up,
    move_codes,
    nearest_codes,
    quantize,
    reset_dead,
)
from mfk.nn.family_encoders import MLPEncoder, TemporalCNNEncoder
from mfk.nn.gated_linear import SwiGLU
from mfk.nn.ik import KinematicNet, MeanFlowNet
from mfk.nn.irf_baselines import PerWorldNet, PooledResponseMLP, ResponseGRU, ResponseMLP
from mfk.nn.irf_emulator import ResponseNet, UniversalResponseNet
from mfk.nn.keyed_dropout import dropout
from mfk.nn.motion_mlp import MotionMLP
from mfk.nn.quantizers import fsq, fsq_codes, fsq_levels, residual, residual_codes, residual_rows
from mfk.nn.root_mean_square import RMSNorm
from mfk.nn.rotary import apply_rotary
from mfk.nn.self_attention import SelfAttention, attention
from mfk.nn.stick_denoiser import StickDenoiser
from mfk.nn.stick_transformer import STICK_PRESETS, StickCache, StickOutput, StickSizes, StickTransformer
from mfk.nn.times import time_features
from mfk.nn.transformer import MotionTransformer
from mfk.nn.unet1d import UNet1D
from mfk.nn.vq_levels import LevelConfig, auto_levels
from mfk.nn.vqvae import CategoricalVQVAE, Encoded, FamilyInput

__all__ = [
    "STICK_PRESETS",
    "CategoricalVQVAE",
    "CodeSums",
    "CodebookState",
    "Encoded",
    "FamilyInput",
    "KinematicNet",
    "LevelConfig",
    "MLPEncoder",
    "MeanFlowNet",
    "MotionMLP",
    "MotionTransformer",
    "PerWorldNet",
    "PooledResponseMLP",
    "RMSNorm",
    "ResponseGRU",
    "ResponseMLP",
    "ResponseNet",
    "SelfAttention",
    "StickCache",
    "StickDenoiser",
    "StickOutput",
    "StickSizes",
    "StickTransformer",
    "SwiGLU",
    "TemporalCNNEncoder",
    "UNet1D",
    "UniversalResponseNet",
    "apply_rotary",
    "attention",
    "auto_levels",
    "dropout",
    "fsq",
    "fsq_codes",
    "fsq_levels",
    "init_codebook",
    "kmeans_codebook",
    "kmeans_residual",
    "look_up",
    "move_codes",
    "nearest_codes",
    "quantize",
    "reset_dead",
    "residual",
    "residual_codes",
    "residual_rows",
    "time_features",
]
