from __future__ import annotations

import json
import logging
import math
import re
import shutil
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import pytest
import torch
from toy import make_task

from mfk.core import tree
from mfk.optim import adamw
from mfk.train import (
    CheckpointError,
    Guard,
    TrainState,
    arrays,
    find,
    init_state,
    load,
    load_params,
    load_state,
    save,
    saved,
)


class _Opt(NamedTuple):
    step: torch.Tensor
    mu: Any


def _state(step: int = 3, scale: float = 1.0) -> TrainState:
    """Every kind of leaf that a state may hold."""
    g = torch.Generator().manual_seed(0)
    params = {
        "net.0.weight": scale * torch.randn(4, 3, generator=g),
        "images": torch.randn(2, 3, 4, 5, generator=g).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4, generator=g).T,
        "double": torch.randn(2, generator=g, dtype=torch.float64),
    }
    state = {
        "narrow": torch.randn(64, generator=g).bfloat16(),
        "half": torch.randn(3, generator=g).half(),
        "special": torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45]),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "nested": [torch.tensor(2), (torch.ones(1),)],
    }
    opt = _Opt(torch.tensor(5.0), tree.map(torch.zeros_like, params))
    guard = Guard(
        torch.tensor(2),
        torch.tensor(0),
        torch.tensor(1),
        torch.tensor(0.5),
        torch.tensor(9),
        best=0.1 + 0.2,
        best_step=2**60,
    )
    return TrainState(step, params, state, opt, tree.clone(params), guard)


def _bits(x: Any) -> Any:
    return x.contiguous().reshape(-1).view(torch.uint8).tolist() if isinstance(x, torch.Tensor) else x


def test_everything_comes_back_bit_by_bit(tmp_path):
    state = _state()
    path = save(tmp_path / "checkpoints", state, {"val_loss": 0.5})
    assert path == tmp_path / "checkpoints" / "00000003"
    like = tree.map(lambda x: torch.zeros_like(x) if isinstance(x, torch.Tensor) else type(x)(7), state)
    back = load(tmp_path / "checkpoints", like)
    assert type(back) is TrainState and type(back.opt) is _Opt and type(back.guard) is Guard
    for (name, x), (_, y) in zip(tree.named_leaves(state), tree.named_leaves(back), strict=True):
        assert type(x) is type(y), name
        assert _bits(x) == _bits(y), name
        if isinstance(x, torch.Tensor):
            assert x.dtype == y.dtype and x.shape == y.shape and x.stride() == y.stride(), name
    for x in tree.leaves(like.params):
        assert not x.any()
    # What was read may be donated, so it must be writable memory of its own.
    back.params["net.0.weight"].add_(1)


def test_parameters_for_inference_and_carried_state(tmp_path):
    task = make_task()
    state = init_state(task, adamw(), 0, ema=True)
    state = state._replace(
        step=1, ema=tree.map(lambda x: x + 1, state.params), state={"calls": torch.tensor(9.0)}
    )
    save(tmp_path / "a", state)
    save(tmp_path / "b", state._replace(ema=None))
    params, carried = task.init(5)
    for name, p in load_params(tmp_path / "a", params).items():
        assert torch.equal(p, state.ema[name])
    for name, p in load_params(tmp_path / "b", params).items():
        assert torch.equal(p, state.params[name])
    assert load_state(tmp_path / "a", carried)["calls"] == 9


def test_what_may_be_given_as_the_folder(tmp_path):
    for step in (1, 2):
        save(tmp_path / "run" / "checkpoints", _state(step))
    assert load(tmp_path / "run", _state()).step == 2
    assert load(tmp_path / "run", _state(), 1).step == 1
    assert load(str(tmp_path / "run" / "checkpoints"), _state()).step == 2
    assert load(tmp_path / "run" / "checkpoints" / "00000001", _state()).step == 1


def test_all_are_kept_on_request(tmp_path):
    for step in range(4):
        save(tmp_path, _state(step), {"val_loss": float(step)}, keep_last=None, best_metric="val_loss")
    assert [c.step for c in saved(tmp_path)] == [0, 1, 2, 3]


def test_retention(tmp_path):
    values = [math.nan, 5.0, 3.0, 4.0, math.inf, 6.0, 3.0]
    kept = []
    for step, value in enumerate(values):
        save(
            tmp_path, _state(step), {"val_loss": value, "other": -value}, keep_last=2, best_metric="val_loss"
        )
        kept.append([c.step for c in saved(tmp_path)])
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert find(tmp_path, "best").step == 2 and find(tmp_path, "best").best_metric == "val_loss"
    assert find(tmp_path).step == 6
    metrics = saved(tmp_path)[0].metrics
    assert metrics == {"val_loss": 3.0, "other": -3.0}
    save(tmp_path, _state(7), keep_last=1)
    assert [c.step for c in saved(tmp_path)] == [7]
    # Without a metric the best one is the latest.
    assert find(tmp_path, "best").step == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000007"]


def test_metrics_that_json_does_not_know(tmp_path):
    save(tmp_path, _state(1), {"a": math.nan, "b": math.inf, "c": -math.inf})
    json.loads((tmp_path / "00000001" / "manifest.json").read_text(), parse_constant=pytest.fail)
    metrics = saved(tmp_path)[0].metrics
    assert math.isnan(metrics["a"]) and metrics["b"] == math.inf and metrics["c"] == -math.inf


def test_a_step_is_saved_once(tmp_path):
    save(tmp_path, _state(1))
    with pytest.raises(FileExistsError, match="00000001"):
        save(tmp_path, _state(1))
    with pytest.raises(ValueError, match="keep_last"):
        save(tmp_path, _state(2), keep_last=0)


def test_leaves_that_cannot_be_stored(tmp_path):
    with pytest.raises(TypeError, match="'state/name' must be a tensor, int or float, got str"):
        save(tmp_path, _state()._replace(state={"name": "x"}))
    assert saved(tmp_path) == []


def _like(**changes: Any) -> TrainState:
    return _state()._replace(**changes)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (_like(ema=None), r"does not know: \['ema/double'"),
        (_like(params={**_state().params, "new": torch.ones(1)}), r"lacks: \['params/new'\]"),
        (_like(params={**_state().params, "double": torch.ones(2)}), "'params/double'.*float32.*float64"),
        (
            _like(params={**_state().params, "net.0.weight": torch.ones(3, 4)}),
            r"'params/net.0.weight' should have shape \(3, 4\).*found \(4, 3\)",
        ),
        (_like(step=torch.tensor(3)), "'step'.*int64.*int"),
    ],
)
def test_another_model_is_refused(tmp_path, like, message):
    save(tmp_path, _state())
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, like)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value).splitlines()) < 5


def test_folders_without_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "nothing", _state())
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        load(tmp_path, _state())
    save(tmp_path, _state())
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4; there are \[3\]"):
        load(tmp_path, _state(), 4)
    save(tmp_path, _state(4), {"val_loss": math.nan}, best_metric="val_loss")
    with pytest.raises(CheckpointError, match="no checkpoint records a finite 'val_loss'"):
        load(tmp_path, _state(), "best")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "00000009").mkdir()
    assert [c.step for c in saved(tmp_path)] == [3, 4]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    save(folder, _state()._replace(params={"w": torch.arange(20_000.0)}, ema=None, opt={}))
    return folder


def _small_like() -> TrainState:
    return _state()._replace(params={"w": torch.zeros(20_000)}, ema=None, opt={})


def test_any_damaged_file_is_an_error(tmp_path, written):
    files = [p.relative_to(written) for p in written.rglob("*") if p.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        for damage in ("truncate", "delete", "flip"):
            folder = tmp_path / f"{number}-{damage}"
            shutil.copytree(written, folder)
            content = bytearray((folder / file).read_bytes())
            if not content:
                continue
            if damage == "delete":
                (folder / file).unlink()
            elif damage == "truncate":
                (folder / file).write_bytes(content[: len(content) // 2])
            else:
                content[len(content) // 2] ^= 0x55
                (folder / file).write_bytes(content)
            with pytest.raises(CheckpointError, match=re.escape(str(folder))):
                load(folder, _small_like())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file", _state())
    with pytest.raises(OSError, match="file"):
        save(tmp_path / "file" / "checkpoints", _state())


def test_a_failing_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    save(tmp_path, _state(1))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp, "save", full)
    with pytest.raises(OSError, match=r"00000002.*No space left.*left as they were: \[1\]"):
        save(tmp_path, _state(2), keep_last=1)
    assert load(tmp_path, _state()).step == 1


def test_leftovers_of_a_killed_process_are_ignored_and_swept(tmp_path):
    save(tmp_path, _state(1))
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000002.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000000.deleted")
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000002")
    (tmp_path / "00000002" / "manifest.json").unlink()
    assert [c.step for c in saved(tmp_path)] == [1]
    save(tmp_path, _state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_no_thread_is_left(tmp_path):
    before = set(threading.enumerate())  # other tests' compilers
    save(tmp_path, _state(1))
    load(tmp_path, _state())
    for thread in threading.enumerate():
        if thread not in before and not thread.daemon:
            thread.join(timeout=10)
            assert not thread.is_alive(), thread.name


_QUIET = """
import sys, torch
from pathlib import Path
import mfk.train
assert not {"jax", "orbax", "orbax.checkpoint", "tensorboardX", "rich", "yaml"} & set(sys.modules)
from mfk.train import Guard, TrainState, load, save
guard = Guard(*[torch.tensor(0)] * 5)
state = TrainState(1, {"w": torch.ones(3)}, {}, {}, None, guard)
save(Path(sys.argv[1]), state)
load(Path(sys.argv[1]), state)
import jax, os
assert "JAX_PLATFORMS" not in os.environ and jax.default_backend() == "cpu"
"""


def test_a_fresh_process_prints_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _QUIET, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("file", "told"), [("orbax", False), ("other", True)])
def test_late_reports_of_orbax_are_dropped_and_no_others(file: str, told: bool) -> None:
    code = compile("raise ValueError('late')", f"/somewhere/{file}/write.py", "exec")
    with pytest.raises(ValueError, match="late") as caught:
        exec(code, {})
    info = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, "never retrieved", (), info)
    assert arrays._not_of_orbax(record) is told
    plain = logging.LogRecord("asyncio", logging.ERROR, "base_events.py", 1, "slow", (), None)
    assert arrays._not_of_orbax(plain)
