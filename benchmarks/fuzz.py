"""Every reader of users' files on files that are made wrong: its own error or a correct result, and no other.

    python benchmarks/fuzz.py --readers "ik data" checkpoint --inputs 1000

The claims: of 10,000 inputs a reader each ends in an error of a documented type whose text names the file,
or in a result of which holds what the reader promises; no process dies, none takes longer than ten seconds or
more than a gigabyte beyond what it had. Warnings count as errors. An input that ends otherwise is kept.

Inputs are drawn by hypothesis from (seed, reader, batch). Each reader runs in processes of its own, in which
memory is limited and a watch ends what hangs; after a crash the next process goes on behind it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_mutators
import timing
import torch
from fuzz_data import READERS as OF_DATA
from fuzz_data import Reader
from fuzz_mutators import Sample
from fuzz_runs import READERS as OF_RUNS
from hypothesis import HealthCheck, Phase, given, seed, settings

from mfk.train import CheckpointError

READERS: dict[str, Reader] = OF_DATA | OF_RUNS
ROOT = Path(__file__).resolve().parents[1]
BATCH, EACH = 1000, 25  # inputs of one process; of one drawing of hypothesis
SECONDS, MEMORY = 10.0, 2**30  # that an input may take; bytes beyond what the process had before
_SPACE = 6 * 2**30  # of addresses; what is only mapped, not used, counts here
_ACCEPTED = (
    ValueError, TypeError, CheckpointError, OSError, FileNotFoundError, FileExistsError, NotADirectoryError,
    IsADirectoryError, PermissionError,
)  # fmt: skip


class Finding(NamedTuple):
    """An input that ended otherwise than it may."""

    reader: str
    number: int
    what: str
    kept: str  # folder of the input


class Ended(NamedTuple):
    """How an input ended."""

    outcome: str  # "result", or the error's type
    wrong: str  # "" or what is wrong with it


class _TooLong(BaseException):
    pass


def ended(reader: Reader, folder: Path) -> Ended:
    """Read the sample that lies in a folder."""
    try:
        with warnings.catch_warnings(), _time_limit():
            warnings.simplefilter("error")
            reader.read(folder)
    except _TooLong:
        return Ended("too long", f"took longer than {SECONDS:g} s")
    except Exception as error:
        text, kind = str(error), type(error)
        named = str(folder) in text or (reader.named and text.startswith(reader.named))
        if kind in _ACCEPTED and named:
            return Ended(kind.__name__, "")
        frames = traceback.extract_tb(error.__traceback__)
        at = next((f for f in reversed(frames) if f.filename.startswith(str(ROOT))), frames[-1])
        where = f"{Path(at.filename).name}:{at.lineno} {at.name}"
        return Ended(kind.__name__, f"{kind.__name__} at {where}: {' '.join(text.split())[:300]}")
    return Ended("result", "")


@contextmanager
def _time_limit() -> Iterator[None]:
    def over(number: int, frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def put(folder: Path, sample: Sample) -> None:
    """Write a sample's files into a folder, which then holds nothing else."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            if not any(name.startswith(entry.name + "/") for name in sample):
                shutil.rmtree(entry.path)
            else:
                for path in sorted(Path(entry.path).rglob("*"), reverse=True):
                    if path.is_file() and str(path.relative_to(folder)) not in sample:
                        path.unlink()
        elif entry.name not in sample:
            os.unlink(entry.path)
    for name, content in sample.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        # A new file each time: a mapping of the last one may live yet.
        path.unlink(missing_ok=True)
        path.write_bytes(content)


def each_input(
    name: str, samples: list[Sample], count: int, number: int, call: Callable[[Sample], None]
) -> None:
    """Call with each of `count` inputs that `number` (a seed) draws."""
    place = 0

    @seed(zlib.crc32(name.encode()) + number)
    @settings(
        max_examples=-(-count // EACH), database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    @given(fuzz_mutators.draws)
    def run(drawn: tuple[int, list[Any]]) -> None:
        nonlocal place
        for sample in fuzz_mutators.inputs(samples, drawn, place, EACH, READERS[name].finish):
            call(sample)
        place += EACH

    run()


def batch(name: str, number: int, count: int, skip: int, work: Path, said: Any) -> None:
    """Run a batch in this process; what came out goes into the pipe `said`."""
    reader, folder = READERS[name], work / "input"
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    samples = make_samples(reader, work)
    check_valid(reader, samples, folder)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + _SPACE, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    base, place = _peak(), 0
    counts: Counter[str] = Counter()
    slowest = 0.0

    def one(sample: Sample) -> None:
        nonlocal place, slowest, base
        place += 1
        if place <= skip:
            return
        said.send(("at", place))
        put(folder, sample)
        begun = time.process_time()
        outcome, wrong = ended(reader, folder)
        slowest = max(slowest, time.process_time() - begun)
        grown = _peak() - base
        if not wrong and grown > MEMORY:
            wrong = f"took {grown / 2**20:.0f} MiB"
        if grown > MEMORY // 4:
            Path("/proc/self/clear_refs").write_text("5")
            base = max(base, _peak())
        counts[outcome] += 1
        if wrong:
            put(folder, sample)  # a reader may have written there
            said.send(("wrong", place, wrong))
            said.recv()  # it has been kept

    try:
        each_input(name, samples, count, number, one)
    except BaseException:  # of ours, not of the reader's
        said.send(("broken", traceback.format_exc(limit=-6)))
    else:
        said.send(("done", place - skip, dict(counts), slowest))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_samples(reader: Reader, work: Path) -> list[Sample]:
    """A reader's samples, the same ones each time."""
    folder = work / "samples"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    return reader.samples(folder)


def check_valid(reader: Reader, samples: list[Sample], folder: Path) -> None:
    """The first sample is read without an error; anything else would test nothing."""
    folder.mkdir(exist_ok=True)
    put(folder, samples[0])
    reader.read(folder)


def fuzz(name: str, count: int, number: int, keep: Path, show: Callable[[str], None]) -> dict[str, Any]:
    """All inputs of a reader; the figures, and what was found."""
    counts: Counter[str] = Counter()
    findings: list[Finding] = []
    done, slowest, begun = 0, 0.0, time.perf_counter()
    context = multiprocessing.get_context("fork")
    for first in range(0, count, BATCH):
        size, skip, ran = min(BATCH, count - first), 0, False
        while not ran:
            with tempfile.TemporaryDirectory(dir=_fast()) as folder:
                work = Path(folder)
                ours, theirs = context.Pipe()
                arguments = (name, 1000 * number + first // BATCH, size, skip, work, theirs)
                process = context.Process(target=batch, args=arguments)
                process.start()
                theirs.close()
                at = skip
                while True:
                    try:
                        if not _heard(ours, process):
                            os.kill(process.pid or 0, signal.SIGUSR1)  # it says where it is
                            time.sleep(0.5)
                            process.kill()
                            process.join()
                            message: tuple[Any, ...] = ("wrong", at, "hangs, and no signal ends it")
                        else:
                            message = ours.recv()
                    except EOFError:
                        process.join()
                        message = ("wrong", at, f"the process died with {process.exitcode}")
                    match message:
                        case ("at", place):
                            at = place
                            continue
                        case ("broken", text):
                            raise RuntimeError(f"{name}: {text}")
                        case ("done", made, outcomes, longest):
                            done, ran = done + made, True
                            counts.update(outcomes)
                            slowest = max(slowest, longest)
                            break
                        case ("wrong", place, what):
                            if place == skip and not process.is_alive():
                                raise RuntimeError(f"{name}: its samples cannot be made: {what}")
                            findings.append(_kept(name, first + place, what, work / "input", keep, findings))
                            if process.is_alive():
                                ours.send("kept")
                                continue
                            counts["died"] += 1
                            done, skip = done + place - skip, place
                            break
                process.join()
        speed = done / (time.perf_counter() - begun)
        show(f"{name}: {done:,}/{count:,} inputs, {speed:.0f}/s, {len(findings)} found")
    seconds = time.perf_counter() - begun
    results = counts.pop("result", 0)
    return {
        "reader": name, "inputs": done, "results": results, "errors": dict(counts), "found": len(findings),
        "slowest_s": round(slowest, 3), "inputs_per_s": round(done / seconds, 1),
        "findings": [finding._asdict() for finding in findings[:20]],
    }  # fmt: skip


def _heard(pipe: Any, process: Any) -> bool:
    """Wait for a message; False after so much time of the processor, or ten minutes, that none will come."""
    ticks, begun = _ticks(process), time.monotonic()
    while not pipe.poll(2.0):
        busy = (_ticks(process) - ticks) / os.sysconf("SC_CLK_TCK")
        if busy > 3 * SECONDS or time.monotonic() - begun > 600:
            return False
    return True


def _ticks(process: Any) -> int:
    """Time of the processor that a process has had; other programs may have most of it."""
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return 0
    return sum(map(int, text.rpartition(")")[2].split()[11:13]))


def _kept(name: str, number: int, what: str, folder: Path, keep: Path, before: list[Finding]) -> Finding:
    """Copy the input, of each kind of finding the first three."""
    place = what.split(": ")[0]
    same = sum(finding.what.split(": ")[0] == place for finding in before)
    kept = keep / f"{name.replace(' ', '_')}-{number}"
    if same < 3:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        print(f"{name}, input {number}: {what}", file=sys.stderr)
    return Finding(name, number, what, str(kept) if same < 3 else "")


def _fast() -> str | None:
    """Memory instead of a disk, where there is such a folder."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def summary(rows: list[dict[str, Any]]) -> list[timing.Check]:
    """What is claimed of the readers."""
    return [
        timing.Check(
            "inputs of a reader, the fewest", min(row["inputs"] for row in rows), 10_000, "at least"
        ),
        timing.Check("other outcomes, of all readers", sum(row["found"] for row in rows), 0),
        timing.Check(
            "seconds of the processor, the slowest input", max(row["slowest_s"] for row in rows), SECONDS
        ),
    ]


def main() -> None:
    """Run the readers, print a table, write the JSON; of other readers its rows stay."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--inputs", type=int, default=10_000, help="of each reader")
    made.add_argument("--readers", nargs="+", default=[*READERS], choices=[*READERS], metavar="NAME")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--keep", type=Path, default=Path("outputs/fuzz"), help="folder of the inputs that are found"
    )
    made.add_argument("--out", type=Path, help="write the results as JSON to this file")
    arguments = made.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if arguments.out is not None and arguments.out.is_file():
        rows = {row["reader"]: row for row in json.loads(arguments.out.read_text(encoding="utf-8"))["table"]}
    about = timing.facts("hypothesis", "h5py", "pyarrow", "zarr", "tensorstore", "PyYAML", "defusedxml")
    for name in arguments.readers:
        row = rows[name] = fuzz(name, arguments.inputs, arguments.seed, arguments.keep, _show)
        errors = sum(row["errors"].values())
        print(
            f"{name:18} {row['inputs']:7,} inputs {row['results']:7,} results {errors:7,} errors "
            f"{row['found']:5,} found, slowest {row['slowest_s']:.2f} s, {row['inputs_per_s']:.0f}/s",
            flush=True,
        )
        table = [rows[known] for known in READERS if known in rows]
        checks = [check.record() for check in summary(table)]
        # After each reader: a run of hours that is stopped has its figures.
        timing.write(
            arguments.out, {"versions": about, "seed": arguments.seed, "table": table, "checks": checks}
        )
    timing.report(summary([*rows.values()]))


def _show(text: str) -> None:
    """Progress, on one line of a terminal."""
    terminal = sys.stderr.isatty()
    print(f"\r{text}\x1b[K" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
