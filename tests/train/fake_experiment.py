"""An experiment by the book, in plain Python: it starts at once. Tests copy it into a folder of their own.

It leaves marks: each start, each dry run and each step is a line or a file. Its validation is
100 lr + seed + 1 / (1 + step).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Train:
    lr: float = 1e-3
    steps: int = 4
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    window: tuple[int, int] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    trackers: tuple[str, ...] = ()
    best_metric: str = "error"
    threads: int | None = None


@dataclass(frozen=True)
class RunSettings:
    out: str | None = None
    resume: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Fake:
    train: Train = field(default_factory=Train)
    pause: float = 0.0
    last_words: float = 0.0
    shuffle: bool = True
    batch_size: int = 8
    data: str | None = None
    run: RunSettings = field(default_factory=RunSettings)


PRESETS = {"default": ("as it is", Fake()), "long": ("ten times", Fake(train=Train(steps=40)))}
TYPES = {"lr": float, "steps": int, "seed": int, "pause": float, "last_words": float, "batch_size": int}


def main():
    words, preset = sys.argv[1:], "default"
    if words and words[0] in PRESETS:
        preset = words.pop(0)
    given = {}
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            given[name.replace("-", "_")] = [value] if value else []
        else:
            given[name.replace("-", "_")].append(word)
    given = {name: " ".join(value) for name, value in given.items()}
    marks = Path(__file__).parent / "marks"
    marks.mkdir(exist_ok=True)
    if "dry_run" in given:
        (marks / f"dry-{os.getpid()}").write_text(json.dumps(given))
        if float(given.get("lr", 0)) > 1:
            sys.exit("error: lr: expected at most 1")
        return
    if "resume" in given:
        folder = Path(given["resume"])
        settings = json.loads((folder / "config.yaml").read_text())
        record = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        first, best = (record[-1]["step"], record[-1].get("val/error")) if record else (0, None)
    else:
        folder = Path(given["out"])
        if (folder / "config.yaml").exists() or (folder / "history.jsonl").exists():
            sys.exit("error: already holds a run")
        flat = asdict(PRESETS[preset][1])
        settings = flat["train"] | {name: x for name, x in flat.items() if name not in ("train", "run")}
        settings |= {name: TYPES.get(name, str)(value) for name, value in given.items()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(json.dumps(settings))
        (folder / "history.jsonl").write_text("")
        first, best = 0, None
    lock = folder / "at-work"
    if lock.exists():
        sys.exit("error: two processes in one folder")
    lock.write_text(str(os.getpid()))
    stopped = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    with (folder / "starts").open("a") as file:
        print(json.dumps([time.time(), os.getpid(), os.environ.get("OMP_NUM_THREADS")]), file=file)
    print(f"training {settings}")
    for step in range(first + 1, settings["steps"] + 1):
        if stopped:
            break
        best = 100 * settings["lr"] + settings["seed"] + 1 / (1 + step)
        with (folder / "history.jsonl").open("a") as file:
            print(json.dumps({"step": step, "time": 0.0, "train/loss": best / 2}), file=file)
            print(json.dumps({"step": step, "time": 0.0, "val/error": best, "val/rate": -best}), file=file)
        if (marks / f"break-{settings['seed']}").exists():
            lock.unlink()
            raise RuntimeError(f"seed {settings['seed']} is broken")
        if (marks / f"kill-{settings['seed']}").exists():
            lock.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if not (marks / "fast").exists():
            time.sleep(settings["pause"])
    if stopped:
        time.sleep(settings["last_words"])
        print("stopped and saved")
        lock.unlink()
        sys.exit(143)
    (folder / "result.json").write_text(
        json.dumps(
            {
                "steps": settings["steps"],
                "stopped_early": False,
                "best_metric": settings["best_metric"],
                "best": best,
                "best_step": settings["steps"],
                "skipped_steps": 0,
            }
        )
    )
    (folder / "report.json").write_text("{}")
    lock.unlink()


if __name__ == "__main__":
    main()
