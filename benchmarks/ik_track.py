"""Following a path: how many poses a second, one path on one core.

Claim: `mfk.kinematics.track` follows a path of the Panda at 1,000 poses a second or more, batch 1, with
its step compiled.

    python benchmarks/ik_track.py [--repeats N] [--out FILE]
"""

from __future__ import annotations

import math
import statistics
import time

import timing
import torch

from mfk import kinematics as kin

LEAST = 1_000.0  # poses a second
POSES = 2_000
DT = 0.005  # s


def main() -> None:
    """Measure, print the table and the check, and write the JSON."""
    parser = timing.parser(__doc__, repeats=5)
    parser.set_defaults(threads=1)
    arguments = timing.parse(parser)
    rows = []
    for name, chain in (("panda", kin.panda()), ("ur10", kin.ur10())):
        s = torch.linspace(0, 2 * math.pi, POSES, dtype=torch.float64).unsqueeze(-1)
        phase = torch.arange(chain.dof, dtype=torch.float64)
        q = (chain.lower + chain.upper) / 2 + 0.3 * torch.sin(s * (1 + phase) / 2 + phase)
        poses = kin.forward(chain, q).contiguous()
        for jit in (True, False):
            kin.track(chain, poses[:5], q[0], DT, jit=jit)
            seconds = []
            for _ in range(arguments.repeats):
                begun = time.perf_counter()
                got = kin.track(chain, poses, q[0], DT, jit=jit)
                seconds.append(time.perf_counter() - begun)
            rows.append(
                {
                    "robot": name,
                    "step": "compiled" if jit else "eager",
                    "poses_per_second": POSES / statistics.median(seconds),
                    "reached": float(got.reached.double().mean()),
                    "worst_mm": float(got.position_error.max()) * 1e3,
                }
            )
    print(f"{'robot':<8}{'step':<10}{'poses/s':>10}{'reached':>10}{'worst mm':>12}")
    for row in rows:
        print(
            f"{row['robot']:<8}{row['step']:<10}{row['poses_per_second']:>10.0f}{100 * row['reached']:>9.1f}%"
            f"{row['worst_mm']:>12.2e}"
        )
    slowness = LEAST / rows[0]["poses_per_second"]
    checks = [timing.Check("panda, compiled: 1,000 / poses a second", slowness, 1.0)]
    timing.report(checks)
    timing.write(
        arguments.out,
        {
            "poses": POSES,
            "table": rows,
            "checks": [check.record() for check in checks],
            "repeats": arguments.repeats,
            "versions": timing.facts(),
        },
    )


if __name__ == "__main__":
    main()
