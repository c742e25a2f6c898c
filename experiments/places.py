"""Files and folders that a user names: told by the flag, what was expected, and what came."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def told(flag: str, place: Path, expected: str) -> Iterator[None]:
    """For ``with``: an error in the system's own words becomes one of this flag.

    Raises:
        OSError: of the same class; one in our words, which name what is wrong already, is left as it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        # A file that is being written has a name that the user does not know.
        inside = error.filename not in (None, str(place)) and not str(error.filename).endswith(".part")
        came = f"{error.filename}: {error.strerror}" if inside else error.strerror
        raise type(error)(f"{flag}: {place}: expected {expected}, got: {came}") from None


def check_readable(flag: str, file: Path) -> None:
    """OSError unless there is such a file, and it can be read."""
    with told(flag, file, "a file that can be read"):
        file.open("rb").close()


def check_folder(flag: str, folder: Path) -> None:
    """OSError unless `folder` is one that can be written to, or could be made."""
    with told(flag, folder, "a folder that can be written to"):
        above = next((place for place in (folder, *folder.parents) if place.exists()), Path())
        if not above.is_dir():
            raise NotADirectoryError(f"{flag}: {folder}: expected a folder, got the file {above}")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(
                f"{flag}: {folder}: expected a folder that can be written to, got {above}, which cannot"
            )


def check_file(flag: str, file: Path) -> None:
    """OSError unless such a file can be written."""
    if file.is_dir():
        raise IsADirectoryError(f"{flag}: {file}: expected a file, got a folder")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{flag}: {file}: expected the folder {file.parent} to be there")
    check_folder(flag, file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise PermissionError(f"{flag}: {file}: expected a file that can be written, got one that cannot")


def check_new(flag: str, file: Path, overwrite: bool) -> None:
    """ValueError or OSError unless clips can be written to NAME.pt, or replaced where that is said."""
    if file.suffix != ".pt":
        raise ValueError(f"{flag}: expected NAME.pt, got {file}")
    with told(flag, file, "a file that can be written"):
        if not file.parent.is_dir():
            raise FileNotFoundError(f"{flag}: {file}: expected the folder {file.parent} to be there")
        if file.is_dir():
            raise IsADirectoryError(f"{flag}: {file}: expected a file, got a folder")
        if file.exists() and not overwrite:
            raise FileExistsError(f"{flag}: {file} is there already; --overwrite replaces it")
    check_folder(flag, file.parent)
