"""Pictures of stick figures, read back by Pillow, and their numbers, read back by numpy."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mfk.tasks.movies import boxes_for_unknown
from mfk.tasks.stick_drawing import contact_sheet, draw_stick, save_stick

BLUE, RED = np.array([31, 119, 180]), np.array([214, 39, 40])  # matplotlib's tab:blue, tab:red
HEADING = 28  # pixels above the panel, of a movie with no title


def walk(frames: int) -> Tensor:
    """The documented walk: feet and hands swing at 8 rad/s while the hip goes at 1.9 units/s; [T, 20]."""
    time = torch.arange(frames) / 25
    x, swing, none = 1.9 * time, torch.sin(8 * time), torch.zeros(frames)
    hip, neck = torch.stack([x, 1 + none], 1), torch.stack([x, 2 + none], 1)
    feet = [torch.stack([x + s * 0.4 * swing, none], 1) for s in (1, -1)]
    hands = [torch.stack([x + s * (0.3 * swing + 0.2), 1.2 + none], 1) for s in (-1, 1)]
    return torch.cat([neck, hip, hip, feet[0], hip, feet[1], neck, hands[0], neck, hands[1]], 1)


def standing(frames: int, left: float = -0.5, width: int = 20) -> Tensor:
    """Left limbs at x = `left` and below, right ones on the other side."""
    neck, hip, chest = [0.0, 2.0], [0.0, 1.0], [0.0, 1.5]
    if width == 20:
        ends = [neck, hip, hip, [left, 0.0], hip, [-left, 0.0], neck, [left, 1.2], neck, [-left, 1.2]]
    else:
        ends = [neck, [0.0, 2.3], neck, chest, chest, hip]
        for x in (left, -left):
            ends += [[x / 2, 1.9], [x, 1.6], [x, 1.6], [x, 1.2]]
        for x in (left, -left):
            ends += [[x / 2, 1.0], [x, 0.5], [x, 0.5], [x, 0.0]]
        ends += [[left / 2, 1.0], [-left / 2, 1.0]]
    return torch.tensor(ends).reshape(1, width).repeat(frames, 1)


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as file:
        found = []
        for frame in range(getattr(file, "n_frames", 1)):
            file.seek(frame)
            found.append(np.asarray(file.convert("RGB")).astype(int))
        return found


def places(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(y, x) of the pixels of a colour, [n, 2]."""
    return np.argwhere(np.abs(picture - colour).max(-1) < 40)


def test_a_gif_holds_every_frame_for_its_time(tmp_path: Path) -> None:
    draw_stick(tmp_path / "walk.gif", walk(10), fps=25)
    with Image.open(tmp_path / "walk.gif") as file:
        assert (file.size[0], getattr(file, "n_frames", 1), file.info["duration"]) == (320, 10, 40)
        assert file.size[1] % 2 == 0
    seen = pictures(tmp_path / "walk.gif")
    assert all((a != b).any() for a, b in pairwise(seen))


@pytest.mark.parametrize("width", [20, 48])
@pytest.mark.parametrize("left", [-0.5, 0.5])
def test_left_is_blue_and_right_is_red(tmp_path: Path, width: int, left: float) -> None:
    draw_stick(tmp_path / "stand.gif", standing(1, left, width))
    (picture,) = pictures(tmp_path / "stand.gif")
    blue, red = places(picture, BLUE), places(picture, RED)
    assert min(len(blue), len(red)) > 300
    assert (blue[:, 1].mean() < 160) == (left < 0) == (red[:, 1].mean() > 160)
    # The hip, at x = 0, is in the middle, and the figure is its own mirror image.
    assert abs(blue[:, 1].mean() + red[:, 1].mean() - 319) < 3
    assert abs(len(blue) - len(red)) < 0.15 * len(blue)


def test_the_camera_follows_the_hip_and_the_ground_stands_still(tmp_path: Path) -> None:
    still = standing(3)
    gone = still.clone()
    gone[:, 0::2] += 0.13 * torch.arange(3)[:, None]  # every x
    draw_stick(tmp_path / "gone.gif", gone)
    draw_stick(tmp_path / "still.gif", still)
    seen, stood = pictures(tmp_path / "gone.gif"), pictures(tmp_path / "still.gif")
    for k in (1, 2):
        for colour in (BLUE, RED):
            assert np.array_equal(places(seen[k], colour), places(seen[0], colour))
    height = len(seen[0])
    ground = height - 320 + round(320 * 0.88)
    ticks = [np.flatnonzero(x[ground + 3].min(-1) < 200) for x in seen]
    # One unit is 320 pixels over the side of the square: read off the feet, which are one unit apart.
    feet = [places(seen[0], c)[places(seen[0], c)[:, 0] > ground - 8][:, 1].mean() for c in (BLUE, RED)]
    unit = feet[1] - feet[0]
    middle = [int(x[np.argmin(np.abs(x - 160))]) for x in ticks[:1]]
    for k in (1, 2):
        assert np.abs(ticks[k] - (middle[0] - k * 0.13 * unit)).min() <= 1.5
    assert np.array_equal(stood[0][HEADING:], stood[2][HEADING:])


def test_a_jump_leaves_the_ground(tmp_path: Path) -> None:
    jump = standing(2)
    jump[1, 1::2] += 1.0  # every y
    draw_stick(tmp_path / "jump.gif", jump)
    low, high = (places(x, BLUE)[:, 0].max() for x in pictures(tmp_path / "jump.gif"))
    assert low - high > 50


@pytest.mark.parametrize("width", [20, 48])
def test_the_head_is_a_circle_above_the_neck(tmp_path: Path, width: int) -> None:
    motion = standing(1, width=width)
    draw_stick(tmp_path / "stand.gif", motion)
    (picture,) = pictures(tmp_path / "stand.gif")
    top = int(places(picture, BLUE)[:, 0].min())  # the arms begin at the neck, or below it
    rows, columns = np.nonzero(picture[HEADING : top - 8].min(-1) < 150)
    across, high = np.ptp(columns), np.ptp(rows)
    assert abs(columns.mean() - 159.5) < 2 and 20 < across < 60 and high > 0.7 * across
    middle = picture[HEADING + int(rows.min()) + int(across) // 2, 160]
    assert middle.min() > 230  # empty inside


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    wide = standing(1, left=3.0)
    draw_stick(tmp_path / "wide.gif", wide)
    (picture,) = pictures(tmp_path / "wide.gif")
    columns = np.concatenate([places(picture, c)[:, 1] for c in (BLUE, RED)])
    assert 3 < columns.min() < 30 and 290 < columns.max() < 317


def test_two_motions_are_drawn_to_one_scale_and_texts_are_written(tmp_path: Path) -> None:
    small, big = standing(2), 2 * standing(2, width=48)
    pair = {"a $": small, "b": big}
    draw_stick(tmp_path / "said.gif", pair, title="pair", texts=["walk", "run"])
    draw_stick(tmp_path / "plain.gif", pair, title="pair", texts=["walk", ""])
    said, plain = pictures(tmp_path / "said.gif"), pictures(tmp_path / "plain.gif")
    assert said[0].shape[1] == 640
    assert np.array_equal(said[0], plain[0]) and (said[1][:60] != plain[1][:60]).any()
    tall = [np.ptp(places(said[0][:, at], BLUE)[:, 0]) for at in (slice(0, 320), slice(320, 640))]
    assert tall[1] / tall[0] == pytest.approx(2 * 1.9 / 2, rel=0.05)  # arms begin at 1.9 and at 2


@pytest.mark.parametrize("said", ["走", "🚶", "\N{DEVANAGARI LETTER HA}", "\x1b", "\udcff"])
def test_letters_that_the_font_lacks_are_boxes(said: str, tmp_path: Path) -> None:
    """Without a warning, which would be an error here."""
    named = {"": walk(2)}, {said: walk(2)}
    draw_stick(tmp_path / "plain.gif", named[0], title=" ", texts=["", ""])
    draw_stick(tmp_path / "said.gif", named[0], title=" ", texts=["", said])
    plain, drawn = pictures(tmp_path / "plain.gif"), pictures(tmp_path / "said.gif")
    assert (plain[1] != drawn[1]).any() and np.array_equal(plain[0], drawn[0])
    draw_stick(tmp_path / "named.gif", named[1], title=said)
    contact_sheet(tmp_path / "said.png", named[1], columns=2, title=said, texts=[said] * 2)
    # Other warnings stay.
    with pytest.warns(UserWarning, match="own"), boxes_for_unknown():
        warnings.warn("own", UserWarning, stacklevel=1)


def test_a_sheet_shows_evenly_spaced_frames(tmp_path: Path) -> None:
    spread = torch.linspace(0.2, 1.0, 9)
    motion = torch.cat([standing(1, left=-float(x)) for x in spread])
    contact_sheet(tmp_path / "sheet.png", motion, columns=3)
    (sheet,) = pictures(tmp_path / "sheet.png")
    assert sheet.shape[1] == 3 * 152
    wide = []
    for i in range(3):
        cell = sheet[:, 152 * i : 152 * (i + 1)]
        wide.append(places(cell, RED)[:, 1].mean() - places(cell, BLUE)[:, 1].mean())
    # The limbs' pixels lie at the same share of the spread in all frames, here 0, 4 and 8.
    for i, k in enumerate((0, 4, 8)):
        assert wide[i] / wide[2] == pytest.approx(float(spread[k] / spread[8]), abs=0.06)


def test_a_sheet_has_rows_for_each_motion_with_times_texts_and_titles(tmp_path: Path) -> None:
    one = {"a": walk(30)}
    contact_sheet(tmp_path / "one.png", one, columns=3)
    contact_sheet(tmp_path / "said.png", one, columns=3, texts=["walk"] * 30)
    contact_sheet(tmp_path / "titled.png", one, columns=3, title="title")
    contact_sheet(tmp_path / "four.png", {**one, "b": walk(30)}, columns=3, rows=2)
    found = {x.stem: pictures(x)[0] for x in tmp_path.iterdir()}
    heights = {name: len(x) for name, x in found.items()}
    assert heights["one"] == heights["said"] < heights["titled"] < heights["one"] + 30
    assert abs(heights["four"] - 4 * heights["one"]) < 40
    assert (found["one"] != found["said"])[:30].any() and (found["one"] == found["said"])[30:].all()


def test_numbers_are_read_back_without_pickle(tmp_path: Path) -> None:
    actions = torch.arange(7)
    for width, dtype in ((20, torch.float32), (48, torch.float64)):
        motion = torch.linspace(-1, 1, 7 * width, dtype=dtype).reshape(7, width)
        save_stick(tmp_path / "a.npz", motion, fps=30, text="a person walks, é", actions=actions)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
            assert file["motion"].dtype == motion.numpy().dtype
            assert np.array_equal(file["motion"], motion.numpy())
            assert (float(file["fps"]), str(file["text"])) == (30.0, "a person walks, é")
            assert np.array_equal(file["actions"], np.arange(7)) and len(file["segments"]) == width // 4
            assert file["segments"][-1] == ("right_arm" if width == 20 else "pelvis_width")
    save_stick(tmp_path / "b.npz", walk(3))
    with np.load(tmp_path / "b.npz") as file:
        assert sorted(file.files) == ["fps", "motion", "segments", "text"]
    assert sorted(x.name for x in tmp_path.iterdir()) == ["a.npz", "b.npz"]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"path": "walk.webp"}, ValueError, "path: expected NAME.gif or NAME.mp4"),
    ({"path": "no/walk.gif"}, FileNotFoundError, "path: expected the folder"),
    ({"motion": {}}, ValueError, "motion: expected at least one"),
    ({"motion": [1.0]}, TypeError, "motion: expected a tensor or a mapping"),
    ({"motion": {"a": None}}, TypeError, r"motion\['a'\]: expected a tensor"),
    ({"motion": torch.zeros(4, 21)}, ValueError, r"motion: expected a floating tensor \[T, 20\]"),
    ({"motion": torch.zeros(4, 3, 20)}, ValueError, r"motion: expected a floating tensor \[T, 20\]"),
    ({"motion": torch.zeros(0, 20)}, ValueError, r"motion: expected a floating tensor \[T, 20\]"),
    ({"motion": torch.zeros(4, 20, dtype=torch.int64)}, ValueError, "motion: expected a floating tensor"),
    ({"motion": {"a": walk(4), "b": walk(3)}}, ValueError, r"motion\['b'\]: expected 4 frames"),
    ({"motion": walk(4) * math.nan}, ValueError, "motion: expected finite numbers, .* in frame 0"),
    ({"fps": 0}, ValueError, "fps: expected a finite number > 0"),
    ({"fps": True}, ValueError, "fps: expected a finite number > 0"),
    ({"texts": ["a"] * 3}, ValueError, "texts: expected 4, one for each frame, got 3"),
    ({"texts": "walk"}, TypeError, "texts: expected strings"),
    ({"texts": [1, 2, 3, 4]}, TypeError, "texts: expected strings"),
]


@pytest.mark.parametrize(("changes", "error", "match"), WRONG)
def test_mistakes_name_the_argument_and_leave_no_file(
    tmp_path: Path, changes: Any, error: type[Exception], match: str
) -> None:
    given: dict[str, Any] = {"motion": walk(4), **changes}
    with pytest.raises(error, match=f"^{match}"):
        draw_stick(tmp_path / given.pop("path", "walk.gif"), given.pop("motion"), **given)
    assert not list(tmp_path.iterdir())


def test_mistakes_of_sheets_and_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path: expected NAME.png"):
        contact_sheet(tmp_path / "a.gif", walk(9))
    for name in ("columns", "rows"):
        for wrong in (0, 1.5, True):
            value: Any = wrong
            with pytest.raises(ValueError, match=f"^{name}: expected an integer >= 1"):
                contact_sheet(tmp_path / "a.png", walk(9), **{name: value})
    with pytest.raises(ValueError, match=r"^columns: expected rows \* columns <= 9, the frames, got 10"):
        contact_sheet(tmp_path / "a.png", walk(9), columns=5, rows=2)
    with pytest.raises(ValueError, match=r"^path: expected NAME.npz"):
        save_stick(tmp_path / "a.npy", walk(9))
    with pytest.raises(ValueError, match=r"^motion: expected float32 or float64"):
        save_stick(tmp_path / "a.npz", walk(9).bfloat16())
    with pytest.raises(TypeError, match=r"^text: expected a string"):
        save_stick(tmp_path / "a.npz", walk(9), text=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^actions: expected an int64 tensor \[9\]"):
        save_stick(tmp_path / "a.npz", walk(9), actions=torch.zeros(8, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^actions: expected a tensor"):
        save_stick(tmp_path / "a.npz", walk(9), actions=[0] * 9)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
