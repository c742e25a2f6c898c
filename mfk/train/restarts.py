"""Which run torchrun's processes had begun before they were started anew."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from mfk.core.files import write_atomically

LAUNCH = ".launch"
"""The file in a run's folder that tells who started it; only of runs that torchrun has started."""


def mark(run: Path) -> None:
    """Note in the run's folder which torchrun has begun it; nothing where none has."""
    me = _launcher()
    if me is not None:
        write_atomically(run / LAUNCH, json.dumps(me) + "\n")


def begun(out: Path | str | None, name: str, root: Path | str = "outputs") -> Path | None:
    """The folder, as of `mfk.train.claim_run`, of the run that this torchrun has begun, if there is one.

    It is that of the same agent, or of the same run id where processes count as started again (the first
    may be on another machine by then).
    """
    me = _launcher()
    if me is None:
        return None
    folders = [Path(out)] if out is not None else sorted(Path(root, name).glob("[0-9]*"), reverse=True)
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    for folder in folders:
        with suppress(OSError, ValueError):
            found = json.loads((folder / LAUNCH).read_text(encoding="utf-8"))
            same = again and me["id"] is not None and found["id"] == me["id"]
            if same or found["agent"] == me["agent"]:
                return folder
    return None


def _launcher() -> dict[str, str | None] | None:
    """The agent that started this process, and the id of its run; None if torchrun did not."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    name = os.environ["TORCHELASTIC_RUN_ID"]
    parent = os.getppid()
    started = ""
    with suppress(OSError, IndexError):
        # The number of a process comes again; with its time of start it does not.
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return {"id": None if name == "none" else name, "agent": f"{socket.gethostname()} {parent} {started}"}
