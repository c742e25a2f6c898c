"""Floor 3: runs any Task. The state, one step, the loop, checkpoints, logs."""

from mfk.train.begin import check_fit
from mfk.train.board import add_image
from mfk.train.changes import check_settings, read_settings
from mfk.train.checkpoint import (
    CheckpointError,
    Saved,
    find,
    load,
    load_members,
    load_params,
    load_state,
    save,
    saved,
)
from mfk.train.config import TrainConfig
from mfk.train.device import resolve_device
from mfk.train.divergence import TrainingDiverged
from mfk.train.ensemble import ensemble, member_seed, with_members
from mfk.train.launch import RunConfig, launch
from mfk.train.log import Sink, open_sink, read_history
from mfk.train.loop import FitResult, fit
from mfk.train.runs import DATA, check_same_data, claim_run, read_versions, run_of, versions, write_record
from mfk.train.shards import Shards, shards_of
from mfk.train.state import Guard, MemberBest, TrainState, inference_params, init_state
from mfk.train.step import TrainStep, make_train_step
from mfk.train.validate import validation_metrics

__all__ = [
    "DATA",
    "CheckpointError",
    "FitResult",
    "Guard",
    "MemberBest",
    "RunConfig",
    "Saved",
    "Shards",
    "Sink",
    "TrainConfig",
    "TrainState",
    "TrainStep",
    "TrainingDiverged",
    "add_image",
    "check_fit",
    "check_same_data",
    "check_settings",
    "claim_run",
    "ensemble",
    "find",
    "fit",
    "inference_params",
    "init_state",
    "launch",
    "load",
    "load_members",
    "load_params",
    "load_state",
    "make_train_step",
    "member_seed",
    "open_sink",
    "read_history",
    "read_settings",
    "read_versions",
    "resolve_device",
    "run_of",
    "save",
    "saved",
    "shards_of",
    "validation_metrics",
    "versions",
    "with_members",
    "write_record",
]
