"""Files of pictures that move: .gif, or .mp4 where ffmpeg is installed; and what such files ask for."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mfk.core.files import write_atomically
from mfk.core.types import describe

_BROWSERS = 50.0  # frames per second of a .gif that every program shows in time


def check_place(path: Path, suffixes: Sequence[str], name: str = "path") -> None:
    """Whether a file of one of the suffixes could be written there; messages name `name`.

    Raises:
        ValueError: another suffix, or an .mp4 without ffmpeg.
        FileNotFoundError: no such folder. IsADirectoryError: it is a folder itself.
        PermissionError: the folder cannot be written to.
    """
    if path.suffix not in suffixes:
        raise ValueError(f"{name}: expected {' or '.join('NAME' + s for s in suffixes)}, got {str(path)!r}")
    if path.suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(f"{name}: {str(path)!r} needs ffmpeg, which is not installed; a .gif does not")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name}: expected the folder {str(path.parent)!r} to be there")
    if path.is_dir():
        raise IsADirectoryError(f"{name}: expected a file, got the folder {str(path)!r}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{name}: expected a folder that can be written to, got {str(path.parent)!r}")


def check_fps(fps: float) -> None:
    """Whether these are frames per second.

    Raises:
        ValueError: not a finite number > 0.
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"fps: expected a finite number > 0, got {describe(fps)}")


def readable(text: str) -> str:
    """The text as it can be drawn: "?" for half a character, as bytes of a command line may leave it."""
    return text.encode("utf-8", "replace").decode()


@contextmanager
def boxes_for_unknown() -> Iterator[None]:
    """For ``with`` around drawing: a character that the font lacks is a box, which needs no warning."""
    with warnings.catch_warnings():
        said = r"Glyph \d+ |Matplotlib currently does not support"
        warnings.filterwarnings("ignore", message=said, category=UserWarning)
        yield


def shown_frames(path: Path, frames: int, fps: float) -> range:
    """The frames that the file will hold: all but in a .gif of more than 50 per second.

    There it is every second one, or fewer: programs would slow such a .gif down.
    """
    return range(0, frames, math.ceil(fps / _BROWSERS) if path.suffix == ".gif" else 1)


def write_movie(
    path: Path, pictures: Iterator[np.ndarray], frames: int, fps: float, colours: Sequence[str]
) -> None:
    """Write pictures as a movie, and replace the file as a whole.

    A .gif's pictures last whole hundredths of a second, chosen so that its length is right to one of them,
    and share one palette: each of the colours, and how it fades into the white.

    Args:
        path: as `check_place` found it good.
        pictures: [height, width, 3] uint8, those of `shown_frames`, at least one; height and width even,
            as an .mp4 needs them.
        frames: how many the motion has.
        fps: frames of the motion per second.
        colours: those drawn on white, by matplotlib's names.

    Raises:
        OSError: ffmpeg fails.
    """
    if path.suffix == ".gif":
        shown = shown_frames(path, frames, fps)
        ends = [min(k + shown.step, frames) / fps for k in shown]
        write_atomically(path, _gif(pictures, ends, colours))
    else:
        _mp4(path, pictures, fps)


def _gif(pictures: Iterator[np.ndarray], ends: Sequence[float], colours: Sequence[str]) -> bytes:
    """The file, whose frames end at those times in s."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    fading = np.linspace(0, 1, 256 // len(colours))[:, None]
    shades = [255 * (1 - fading * (1 - np.array(to_rgb(c)))) for c in colours]
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(np.concatenate(shades)).astype(np.uint8).tobytes())
    images = [Image.fromarray(x).quantize(palette=palette, dither=Image.Dither.NONE) for x in pictures]
    hundredths = [round(100 * end) for end in ends]
    lasting = [10 * max(end - start, 1) for start, end in zip([0, *hundredths], hundredths, strict=False)]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=lasting, loop=0)
    return file.getvalue()


def _mp4(path: Path, pictures: Iterator[np.ndarray], fps: float) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    first = next(pictures)
    height, width = first.shape[:2]
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    command = ["ffmpeg", "-y", "-loglevel", "error", *given, "-pix_fmt", "yuv420p", "-f", "mp4", str(part)]
    try:
        with tempfile.TemporaryFile() as said:
            with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said) as ffmpeg:
                assert ffmpeg.stdin is not None
                try:
                    ffmpeg.stdin.write(first.tobytes())
                    for picture in pictures:
                        ffmpeg.stdin.write(picture.tobytes())
                    ffmpeg.stdin.close()
                except BrokenPipeError:
                    pass  # ffmpeg has ended before its input: it says why
            said.seek(0)
            why = said.read().decode(errors="replace").strip().splitlines()
        if ffmpeg.returncode:
            raise OSError(f"{path}: ffmpeg failed: {why[-1] if why else f'it returned {ffmpeg.returncode}'}")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
