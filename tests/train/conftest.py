"""A run that others are compared with."""

from __future__ import annotations

import pytest
from toy_runs import fit_toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return fit_toy(tmp_path_factory.mktemp("undisturbed") / "run")
