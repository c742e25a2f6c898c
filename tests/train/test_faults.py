"""What breaks a training from outside: what is seen, what is kept, and that the README's table says so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import make_task, validation

from mfk.core import Batches, Task, tree
from mfk.core.files import watch
from mfk.core.memory import is_out_of_memory
from mfk.data import LoaderConfig, batches_of, read_tensors
from mfk.data.loader import watched
from mfk.train import CheckpointError, FitResult, TrainConfig, find, fit, saved
from mfk.train.checkpoint import FORMAT, _seal
from mfk.train.faults import advice

ROOT = Path(__file__).parents[2]
CONFIG = TrainConfig(
    steps=12, batch_size=16, lr=1e-2, warmup_steps=3, ema_decay=0.9, validate_every=6, log_every=1,
    checkpoint_every=4, threads=1, jit=False,
)  # fmt: skip


def train(run: Path, config: TrainConfig = CONFIG, task: Task | None = None, **rest: Any) -> FitResult:
    settings: dict[str, Any] = dict(
        record={"train": {"steps": config.steps}}, validation=validation(), console=False
    )
    return fit(task or make_task(), config, run=run, **(settings | rest))


def steps_of(run: Path) -> list[int]:
    return [c.step for c in saved(run / "checkpoints")]


def same(one: FitResult, other: FitResult) -> bool:
    pairs = zip(tree.leaves(one.state), tree.leaves(other.state), strict=True)
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in pairs)


def stream(at: int = -1, act: Callable[[], None] = lambda: None) -> Batches:
    """Batches; before that of step `at`, something happens."""

    def start(first: int) -> Iterator[dict[str, torch.Tensor]]:
        for step in count(first):
            if step == at:
                act()
            yield {"x": torch.linspace(-1, step % 5, 48).reshape(16, 3)}

    return Batches(start, None)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; whoever may not mount one cannot have it."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def fill(disk: Path) -> None:
    """Write until nothing more fits."""
    with (disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@pytest.mark.parametrize("what", ["a checkpoint", "the logs"])
def test_a_full_disk_and_then_a_larger_one(disk: Path, tmp_path: Path, what: str) -> None:
    run, whole = disk / "run", tmp_path / "whole"
    config, told = (
        replace(CONFIG, log_every=None),
        r"00000008: the checkpoint needs 1\.\d MB .* the disk has 0\.0 MB",
    )
    if what == "the logs":
        # Some more fit into the last page that the disk has given them.
        config, told = (
            replace(CONFIG, steps=60, checkpoint_every=30),
            r"cannot write its logs \(No space left on",
        )
    full = config.steps // 2 + 1
    with pytest.raises(OSError, match=told):
        train(run, config, batches=stream(full, lambda: fill(disk)), validation=())
    kept = find(run).step
    assert kept == (4 if what == "a checkpoint" else 30)
    remount(disk, "size=24m")
    again = train(run, config, batches=stream(), validation=(), resume=True)
    assert same(again, train(whole, config, batches=stream(), validation=()))


def test_a_disk_that_is_mounted_read_only(disk: Path) -> None:
    """Nothing can be trained there, and what is there can be used."""
    run = disk / "run"
    train(run)
    remount(disk, "ro")
    try:
        with pytest.raises(OSError, match=r"Read-only file system.*run") as caught:
            train(run, replace(CONFIG, steps=16), resume=True)
        assert "Errno" in str(caught.value)
        with pytest.raises(OSError, match=r"Read-only file system.*other"):
            train(disk / "other")
        assert find(run).step == 12
    finally:
        remount(disk, "rw")


def edit_manifest(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = find(run).path / "manifest.json"
    sealed = json.loads(file.read_text())
    change(sealed)
    sealed["crc"] = _seal(sealed["manifest"])
    file.write_text(json.dumps(sealed))


def test_a_newer_checkpoint_is_refused_by_name_and_an_older_one_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = replace(CONFIG, steps=8)
    record = {"net": {"heads": 4}}
    train(run, config, record=record, fixed=("net",))

    def older(sealed: dict[str, Any]) -> None:
        del sealed["format"], sealed["manifest"]["settings"]

    edit_manifest(run, older)
    assert find(run).settings == {}
    assert train(run, CONFIG, record=record, fixed=("net",), resume=True).state.step == 12
    assert find(run).settings == {"net.heads": 4}
    edit_manifest(run, lambda sealed: sealed.update(format=FORMAT + 1))
    with pytest.raises(
        CheckpointError, match=rf"00000012: was written by a newer mfk: .* format {FORMAT + 1}"
    ):
        train(run, replace(CONFIG, steps=16), record=record, resume=True)
    assert (run / "checkpoints" / "00000012").is_dir()


def test_a_config_that_was_edited_is_refused(tmp_path: Path) -> None:
    """As a command line reads it, the record of a resumed run is what config.yaml says."""
    run = tmp_path / "run"
    record = {"net": {"heads": 4, "angles": [0.1, float("inf")]}, "lr": 0.1}
    train(run, record=record, fixed=("net",))
    assert find(run).settings == {"net.heads": 4, "net.angles": [0.1, "inf"]}
    longer = replace(CONFIG, steps=16)
    for change, told in (
        (
            {"heads": 8},
            r"00000012: was trained with net\.heads: 4, and now it is 8\. Put .*config\.yaml back",
        ),
        ({"angles": [0.1, 2.0]}, r"net\.angles: \[0\.1, 'inf'\], and now it is \[0\.1, 2\.0\]"),
    ):
        edited = record | {"net": {"heads": 4, "angles": [0.1, float("inf")]} | change}
        (run / "config.yaml").write_text(yaml.safe_dump(edited))
        with pytest.raises(CheckpointError, match=told):
            train(run, longer, record=edited, fixed=("net",), resume=True)
    assert steps_of(run)[-1] == 12
    (run / "config.yaml").write_text(yaml.safe_dump(record))
    other_rate = record | {"lr": 0.2}
    assert train(run, longer, record=other_rate, fixed=("net",), resume=True).state.step == 16


def _edit(file: Path) -> None:
    with file.open("r+b") as data:
        data.seek(-200_000, os.SEEK_END)
        data.write(b"\0" * 4)
    os.utime(file, ns=(0, 0))  # whatever the clock's resolution is


def _replace(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


CHANGES = {
    "cut": (lambda file: os.truncate(file, 1_000), "1,000 bytes"),
    "edited": (_edit, r"1,2\d\d,\d\d\d bytes written since"),
    "replaced": (_replace, r"1,2\d\d,\d\d\d bytes written since"),
    "removed": (Path.unlink, "no file"),
}


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_rows_are_mapped_from_it(tmp_path: Path, change: str, workers: int) -> None:
    """No step is made of the changed rows, and none of the checkpoints."""
    file, run = tmp_path / "rows.pt", tmp_path / "run"
    torch.save({"x": torch.linspace(-1, 1, 300_000).reshape(100_000, 3)}, file)
    unchanged = watch([file])
    config = LoaderConfig(num_workers=workers)
    source = watched(batches_of(read_tensors(file), 16, seed=0, config=config), unchanged)
    act, told = CHANGES[change]
    seen = []

    def start(first: int) -> Iterator[dict[str, torch.Tensor]]:
        for step, batch in enumerate(source.start(first), first):
            if step == 6:
                act(file)
            seen.append(step)
            yield batch

    with pytest.raises(
        ValueError, match=rf"rows\.pt: changed while it was in use: .* got {told}\. .*--resume"
    ):
        train(run, batches=Batches(start, source.per_epoch))
    assert seen[-1] == 6 and steps_of(run)[-1] in (4, 6)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )


_CUT = """
import os, sys
from pathlib import Path
import test_faults, torch
from mfk.data import batches_of, read_tensors
from mfk.core.types import Batches

file, run = Path(sys.argv[1]) / "rows.pt", Path(sys.argv[1]) / "run"
torch.save({"x": torch.linspace(-1, 1, 300_000).reshape(100_000, 3)}, file)
source = batches_of(read_tensors(file), 16, seed=0)

def start(first):
    for step, batch in enumerate(source.start(first), first):
        if step == 6:
            os.truncate(file, 0)
        yield batch

test_faults.train(run, batches=Batches(start, source.per_epoch))
"""


def test_a_file_that_is_cut_in_the_midst_of_a_read_ends_the_process(tmp_path: Path) -> None:
    """Nothing can answer SIGBUS: this is what is left where nobody looked before, or not in time."""
    done = python(_CUT, str(tmp_path))
    assert done.returncode == -7, done.stderr[-3000:]
    assert steps_of(tmp_path / "run")[-1] in (4, 6)
    assert train(tmp_path / "run", batches=stream(), resume=True).state.step == 12


def starved(at: int) -> Task:
    """The task; from step `at` on its draw asks for more memory than there can be."""
    task = make_task()

    def draw(seed, step, rows, state, batch):
        if step >= at:
            torch.empty(2**60, dtype=torch.uint8)
        return task.draw(seed, step, rows, state, batch)

    return task._replace(draw=draw)


def test_memory_that_runs_out_names_what_to_lower(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = replace(CONFIG, accumulate=2)
    with pytest.raises(MemoryError) as caught:
        train(run, config, starved(6))
    said = str(caught.value)
    assert said.startswith("out of memory (") and "can't allocate memory" in said
    for part in ("--accumulate 4 (the same result", "--batch-size 8", "--precision bf16", "00000006"):
        assert part in said
    again = train(run, replace(config, accumulate=4), resume=True)
    whole = train(tmp_path / "whole", config)
    for one, other in zip(tree.leaves(again.state.params), tree.leaves(whole.state.params), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_advice_is_of_what_can_be_lowered() -> None:
    least = TrainConfig(batch_size=1, accumulate=1, precision="bf16")
    assert advice(least) == "Lower what it takes: a smaller network, or fewer rows to validate."
    several = advice(replace(least, batch_size=6, accumulate=4, members=3))
    assert "--accumulate 6" in several and "--batch-size 3" in several and "fewer --members" in several


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


_LITTLE = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import test_faults
from mfk.core import cli

run = Path(sys.argv[1])

def program():
    test_faults.train(run.with_name("first"), replace(test_faults.CONFIG, steps=4))  # everything is imported
    lines = Path("/proc/self/status").read_text().splitlines()
    size = next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (1024 * size + 2**28,) * 2)
    test_faults.train(run, replace(test_faults.CONFIG, batch_size=30_000_000))

cli.main(program)
"""


@pytest.mark.slow
def test_a_limit_of_memory_ends_with_one_message(tmp_path: Path) -> None:
    done = python(_LITTLE, str(tmp_path / "run"))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert done.stderr.startswith("error: out of memory (") and "--accumulate 2 " in done.stderr
    assert steps_of(tmp_path / "run") == [0] and "checkpoints/00000000" in done.stderr


_WORKER = """
import multiprocessing, os, signal, sys
from pathlib import Path
import test_faults, torch
from mfk.core import cli
from mfk.core.types import Batches
from mfk.data import LoaderConfig, batches_of

data = {"x": torch.linspace(-1, 1, 3_000).reshape(1_000, 3)}
source = batches_of(data, 16, seed=0, config=LoaderConfig(num_workers=2))

def start(first):
    for step, batch in enumerate(source.start(first), first):
        if step == 6 and len(sys.argv) == 2:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        yield batch

config = test_faults.replace(test_faults.CONFIG, steps=2_000, log_every=None, checkpoint_every=4)
if len(sys.argv) > 2:
    config = test_faults.CONFIG
cli.main(lambda: test_faults.train(
    Path(sys.argv[1]), config, batches=Batches(start, source.per_epoch), resume=len(sys.argv) > 2
))
"""


def test_a_worker_that_dies_ends_with_one_message(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = python(_WORKER, str(run))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert re.match(
        r"error: num_workers: a worker that gathers batches died .*worker.*\S Last good checkpoint: ",
        done.stderr,
    )
    assert steps_of(run)[-1] >= 4


def test_every_row_of_the_table_names_tests_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| fault | what you see | what is kept | tests |\n|---|---|---|---|\n")[2]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.partition("\n\n")[0].splitlines()]
    assert len(rows) >= 18 and all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    for fault, _, _, tests in rows:
        named = re.findall(r"`([\w/]+\.py): (\w+)`", tests)
        assert named, fault
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (fault, name)
