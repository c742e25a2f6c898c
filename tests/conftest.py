"""Settings of every test: one thread, so that many small operations neither wait nor differ."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)
