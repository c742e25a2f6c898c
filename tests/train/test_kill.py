"""kill -9 at twenty seeded moments, ten of them while a checkpoint is written; full and read-only disks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# One process imports everything and forks the runs, so that twenty deaths cost seconds, not minutes.
_RUNS = """
import hashlib, json, os, random, shutil, signal, sys
from pathlib import Path

import orbax.checkpoint.experimental.v1
import tensorboardX, yaml

import toy_runs, torch
from dataclasses import replace
from mfk.core import tree
from mfk.train import checkpoint

root = Path(sys.argv[1])
config = replace(toy_runs.CONFIG, steps=12, checkpoint_every=2, validate_every=4, patience=50)


def child(run, kill=None, after=None):
    # A forked run: it is killed at its `kill`-th change of files while it saves, or `after` seconds.
    number = os.fork()
    if number:
        return os.waitpid(number, 0)[1]
    try:
        events = [0]
        if after is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        saving = [False]
        save = checkpoint.save

        def watched(*args, **settings):
            saving[0] = True
            try:
                return save(*args, **settings)
            finally:
                saving[0] = False

        checkpoint.save = watched

        def hook(event, args):
            written = event == "open" and isinstance(args[1], str) and args[1][0] in "wax"
            if saving[0] and (written or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")):
                events[0] += 1
                if events[0] == kill:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        begun = (run / "config.yaml").exists()
        state = toy_runs.fit_toy(run, config, batches=toy_runs.stream(), resume=begun).state
        parts = [bytes(x.numpy().tobytes()) for x in tree.leaves(tree.map(torch.as_tensor, state))]
        result = {"hash": hashlib.sha256(b"".join(parts)).hexdigest(), "events": events[0]}
        run.with_suffix(".json").write_text(json.dumps(result))
        os._exit(0)
    except BaseException as error:
        print(f"{run}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)


def result(run):
    return json.loads(run.with_suffix(".json").read_text())


import time

seconds = float("inf")
for name in ("first", "second", "whole"):
    begun = time.monotonic()
    assert child(root / name) == 0
    seconds = min(seconds, time.monotonic() - begun)
whole = result(root / "whole")
draw = random.Random(0)
moments = [dict(kill=k) for k in sorted(draw.sample(range(1, whole["events"] * 3 // 4), 10))]
moments += [dict(after=draw.uniform(0.02, 1.0) * seconds) for _ in range(10)]
for n, moment in enumerate(moments):
    run = root / str(n)
    while (died := child(run, **moment)) == 0 and "after" in moment:
        # The end came before, on a machine that is less busy than it was: once more, and sooner.
        moment["after"] /= 2
        shutil.rmtree(run)
    unfinished = [p.name for p in run.glob("checkpoints/*") if not (p / "manifest.json").exists()]
    print(json.dumps({"moment": moment, "unfinished": unfinished}))
    assert died == signal.SIGKILL
    assert child(run) == 0
    assert result(run)["hash"] == whole["hash"], moment
"""


def _python(code: str, *arguments: str, **settings) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=environment,
        **settings,
    )


@pytest.mark.slow
def test_twenty_deaths_change_no_bit(tmp_path):
    done = _python(_RUNS, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    deaths = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(deaths) == 20
    inside = [death for death in deaths if "kill" in death["moment"]]
    # Some left a checkpoint half-written, which was then not one.
    assert any(death["unfinished"] for death in inside)


_FULL = """
import resource, sys
from pathlib import Path
import toy_runs
from mfk.train import checkpoint
from mfk.train.checkpoint import saved

run = Path(sys.argv[1])
save, saves = checkpoint.save, [0]

def limited(*args, **settings):
    saves[0] += 1
    if saves[0] == 3:
        # No file may grow past this: the third checkpoint cannot be written.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    return save(*args, **settings)

checkpoint.save = limited
try:
    toy_runs.fit_toy(run)
except OSError as error:
    print(f"error: {error}")
    print([c.step for c in saved(run / "checkpoints")])
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(tmp_path):
    done = _python(_FULL, str(tmp_path / "run"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    message, steps = done.stdout.strip().splitlines()
    found = re.match(r"error: .*checkpoints/(\d{8}): could not write the checkpoint \(.*\)", message)
    assert found, message
    left = json.loads(steps)
    assert len(left) == 2 and f"left as they were: {left}" in message and int(found.group(1)) not in left


_READ_ONLY = """
import os, sys
from dataclasses import replace
from pathlib import Path
import toy_runs

run = Path(sys.argv[1])
toy_runs.fit_toy(run, replace(toy_runs.CONFIG, steps=4))
for folder in (run / "checkpoints", run / "logs", run):
    os.chmod(folder, 0o555)
for file in run.iterdir():
    if file.is_file():
        os.chmod(file, 0o444)
if os.geteuid() == 0:  # root may write anywhere
    for path in [run, *run.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
try:
    toy_runs.fit_toy(run, resume=True)
except OSError as error:
    print(f"error: {error}")
"""


@pytest.mark.slow
def test_a_read_only_folder_is_an_error_that_names_it(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path("/tmp") or not os.access(folder, os.W_OK):
            break
        folder.chmod(0o755)
    done = _python(_READ_ONLY, str(tmp_path / "run"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stdout.startswith("error: ") and str(tmp_path / "run") in done.stdout
    assert "Permission denied" in done.stdout
    from mfk.train import find

    assert find(tmp_path / "run").step == 4
