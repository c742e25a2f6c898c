"""Settings of every test: one thread, so that many small operations neither wait nor differ; fixed draws."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
# torch.profiler reads it once, at its first use, which is some test's own.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# Processes that tests start have threads of their own, which must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whatever ran before, in this process."""
    torch.manual_seed(0)
