"""Parameters of nk estimated from US data: through an emulator, and through the exact solver.

Claim: the exact distance at the optimum that was found through the emulator is within 1 % of the distance
at the one that was found through the solver. Beside it, without a claim: the time of both, and the same
through the universal network.

What is fitted is the response to monetary policy of a vector autoregression (statsmodels' macrodata, extra
`estimate`; see mfk/tasks/irf_estimate.py). The emulators are experiments/irf.py's presets nk and universal.

    python benchmarks/irf_estimate.py [--threads N] [--runs DIR] [--out FILE]

With --runs finished runs are kept there, as of benchmarks/irf_models.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from irf_models import ROOT, train
from timing import Check, facts, report, write

sys.path.insert(0, str(ROOT / "experiments"))

from irf_estimation import EstimateNK, estimate

LIMIT = 1.01


def main() -> None:
    """Train what is missing, estimate, print and write what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=None, help="folder to keep the runs in")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = facts("scipy", "statsmodels")
    with tempfile.TemporaryDirectory() as name:
        folder = options.runs or Path(name)
        found = {}
        for preset in ("nk", "universal"):
            train(folder / preset, [preset], options.threads)
            found[preset] = estimate(EstimateNK(folder / preset, out=Path(name) / f"estimate_{preset}"))
    checks = [
        Check(f"{preset}: exact distance at the emulator's optimum / at the solver's", one["ratio"], LIMIT)
        for preset, one in found.items()
    ]
    report(checks)
    write(
        options.out,
        {"versions": before, "estimates": found, "claims": [check.record() for check in checks]},
    )


if __name__ == "__main__":
    main()
