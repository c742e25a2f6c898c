"""Which run torchrun's processes had begun before they were started anew."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from mfk.core import ranks
from mfk.core.files import write_atomically

LAUNCH = ".launch"
"""The file in a run's folder that tells who started it; only of runs that torchrun has started."""


def mark(run: Path) -> None:
    """Note which torchrun has begun the run, in its folder and with torchrun; nothing where none has."""
    me = _launcher()
    if me is not None:
        write_atomically(run / LAUNCH, me + "\n")
        ranks.remember("run", str(run))


def begun(out: Path | str | None, name: str, root: Path | str = "outputs") -> Path | None:
    """The folder, as of `mfk.train.claim_run`, of the run that this torchrun has begun, if there is one.

    torchrun itself knows it; or where its store does not outlive a restart, the folder knows its process.
    """
    me = _launcher()
    if me is None:
        return None
    known = ranks.recalled("run")
    if known is not None:
        return Path(known) if out is None else Path(out)
    folders = [Path(out)] if out is not None else sorted(Path(root, name).glob("[0-9]*"), reverse=True)
    for folder in folders:
        with suppress(OSError, ValueError):
            if (folder / LAUNCH).read_text(encoding="utf-8").strip() == me:
                return folder
    return None


def _launcher() -> str | None:
    """Machine, number and start of the process that started this one; None if it is not torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    started = ""
    with suppress(OSError, IndexError):
        # The number of a process comes again; with its time of start it does not.
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {parent} {started}"
