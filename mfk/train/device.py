"""Where a run is computed."""

from __future__ import annotations

import re

import torch


def resolve_device(name: str) -> torch.device:
    """The device called `name`: auto, cpu, cuda, cuda:1, ... or mps.

    auto is CUDA where there is a device, else the CPU. mps is taken at its word and untested.

    Raises:
        ValueError: another name, or a device that this machine, or this build of torch, does not have.
    """
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"device: expected one of the {found} CUDA devices that torch finds, got {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: mps asked for, and torch finds none here")
    return device
