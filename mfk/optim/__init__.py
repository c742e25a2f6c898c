"""Floor 1: optimizers as (init, update) pairs, clipping, averaging, schedules."""

from mfk.optim.adam import AdamWState, adamw, decays_by_name
from mfk.optim.clip import clip_by_global_norm, clip_factor
from mfk.optim.ema import ema_update
from mfk.optim.members import stacked
from mfk.optim.schedules import constant, epochs_to_steps, warmup_constant, warmup_cosine, warmup_linear

__all__ = [
    "AdamWState",
    "adamw",
    "clip_by_global_norm",
    "clip_factor",
    "constant",
    "decays_by_name",
    "ema_update",
    "epochs_to_steps",
    "stacked",
    "warmup_constant",
    "warmup_cosine",
    "warmup_linear",
]
