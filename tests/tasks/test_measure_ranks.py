"""What is held out, shared by several processes: the figures of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mfk

BEGIN = """
import sys
from pathlib import Path
from mfk.core import ranks

def leave(figures):
    if ranks.current().rank == 0:
        Path(sys.argv[1]).write_text(repr(figures))
"""

IK = """
from mfk import kinematics
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
    assert here.rank or all(result.microseconds_per_pose > 0 for result in results)
    assert all(len(x) == 2_500 for e in errors.values() for x in e)
    leave(([{**vars(result), "microseconds_per_pose": 0} for result in results],
           [(name, *(x.tolist() for x in e)) for name, e in errors.items()]))
"""

# Two members, so that the validation economies are shared too; 600 samples leave some splits a single block.
IRF = """
from mfk.core import tree
from mfk.tasks import irf, irf_data, irf_measure
from mfk.tasks.irf_net import IRFNetConfig, irf_nets

data = irf_data.open_irf(irf_data.IRFDataConfig(worlds=("var", "lss"), samples=600), 0)
nets = irf_nets(IRFNetConfig("mlp", "world", None, widths=(16, 8)), data.worlds, 40)
task = irf.irf_task(nets, irf_data.measure_scale(nets, data), irf.IRFConfig())
members = [task.init(seed) for seed in (0, 1)]
irf_measure._ROWS = 25
with ranks.joined() as here:
    found = irf_measure.measure(nets, members, data, here=here)
    theta = data.samples["val"]["var"].theta
    seen = irf_measure.emulated(nets, *members[0], data.worlds[0], theta, here=here)
    leave((found, seen.tolist()))
"""

VQVAE = """
import torch
from family_tables import Tokenizer
from mfk.tasks import vqvae_measure, vqvae_tokens

place = Path(sys.argv[1] + ".table")
place.mkdir()
made = Tokenizer(place, rows=900, dtype=torch.float32)
vqvae_tokens._ROWS = 256
own = (made.nets, made.config, made.params, made.state, made.x)
with ranks.joined() as here:
    found = vqvae_measure.measure(*own, here=here)
    leave((found, vqvae_tokens.encode(*own, here=here).tolist()))
"""


@pytest.mark.parametrize(("program", "count"), [(IK, 2), (IRF, 2), (VQVAE, 3)], ids=["ik", "irf", "vqvae"])
def test_several_processes_find_what_one_finds(tmp_path: Path, program: str, count: int) -> None:
    from torch.distributed import TCPStore

    path = os.pathsep.join([str(Path(mfk.__file__).parents[1]), str(Path(__file__).parent)])
    plain = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    store = TCPStore("127.0.0.1", 0, is_master=True)
    joined = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    told = [{}, *({**joined, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + program, str(tmp_path / str(n))], env={**plain, **more}
        )
        for n, more in enumerate(told)
    ]
    assert [run.wait() for run in runs] == [0] * len(runs)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["0", "1"]
    one, many = ((tmp_path / name).read_text() for name in "01")
    assert one == many and len(one) > 1_000
