"""Held-out poses that several processes share."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import mfk

PROGRAM = """
import pickle, sys
from mfk import kinematics
from mfk.core import ranks
from mfk.data import IKDataConfig
from mfk.tasks import ik, ik_compare

chain = kinematics.panda()
model = ik.ik_model(chain, ik.NetConfig())
params, buffers = model.init(0)
named = ik_compare.solvers(chain, model, params, params, buffers)
named = {name: named[name] for name in ("network, 1 step", "do nothing", "untrained + 1 LM step")}
with ranks.joined() as here:
    problems = ik_compare.held_out(chain, IKDataConfig(), 2_500)
    results, errors = ik_compare.compare(chain, problems, named, repeats=1, here=here)
    if here.rank == 0:
        rows = [{**vars(result), "microseconds_per_pose": 0} for result in results]
        assert all(result.microseconds_per_pose > 0 for result in results)
        pickle.dump((rows, [(name, *(x.tolist() for x in e)) for name, e in errors.items()]),
                    open(sys.argv[1], "wb"))
"""


def test_two_processes_find_the_errors_that_one_finds(tmp_path: Path) -> None:
    from torch.distributed import TCPStore

    plain = {**os.environ, "PYTHONPATH": str(Path(mfk.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    store = TCPStore("127.0.0.1", 0, is_master=True)
    joined = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path / name)], env={**plain, **more})
        for name, more in (
            ("one", {}),
            ("two", {**joined, "RANK": "0", "LOCAL_RANK": "0"}),
            ("none", {**joined, "RANK": "1", "LOCAL_RANK": "1"}),
        )
    ]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    one, two = (pickle.loads((tmp_path / name).read_bytes()) for name in ("one", "two"))
    assert one == two and len(one[1][0][1]) == 2_500
