"""Recordings become one file: clips, splits, labels, velocities; what does not belong together is refused."""

from __future__ import annotations

import itertools
import math
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mfk.data import (
    Clip,
    Skeleton,
    bvh_frames,
    clip_starts,
    frame_velocities,
    import_bvh,
    open_motion,
    read_bvh,
)

HEAD = """HIERARCHY
ROOT Hips
{
    OFFSET 0 0 0
    CHANNELS 6 Xposition Yposition Zposition Zrotation Yrotation Xrotation
    JOINT Chest
    {
        OFFSET 0 20 0
        CHANNELS 3 Zrotation Yrotation Xrotation
        JOINT Head
        {
            OFFSET 0 30 1
            CHANNELS 3 Zrotation Yrotation Xrotation
            End Site
            {
                OFFSET 0 10 0
            }
        }
    }
}
MOTION
"""
NAMES = [f"clip {i:02d}" for i in range(10)]


def write(folder: Path, name: str, frames: int = 4, head: str = HEAD, seconds: str = "0.0333333") -> Path:
    numbers = torch.randn(frames, 12, generator=torch.Generator().manual_seed(frames)) * 60
    lines = [" ".join(f"{x:.4f}" for x in row) for row in numbers.tolist()]
    path = folder / f"{name}.bvh"
    path.write_text(f"{head}Frames: {frames}\nFrame Time: {seconds}\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "recordings"
    folder.mkdir()
    return [write(folder, name, 1 + i) for i, name in enumerate(NAMES)]


@pytest.mark.parametrize("suffix", [".parquet", ".h5"])
def test_what_the_file_holds(tmp_path: Path, files: list[Path], suffix: str) -> None:
    actions = {name: ("walk", "run", "box")[i % 3] for i, name in enumerate(NAMES)} | {"not here": "swim"}
    told: list[tuple[int, int, str]] = []
    output = tmp_path / f"motion{suffix}"
    info = import_bvh(
        files,
        output,
        metres_per_unit=0.01,
        up="z",
        actions=actions,
        held_out=["clip 03", "clip 07"],
        progress=lambda done, total, name: told.append((done, total, name)),
    )
    source = open_motion(output)
    assert source.info == info
    assert info.fps == 30.0
    assert info.skeleton == Skeleton(("Hips", "Chest", "Head"), (-1, 0, 1), "world", "z")
    assert info.clips == tuple(Clip(name, 1 + i, actions[name]) for i, name in enumerate(NAMES))
    assert info.label_names == ("box", "run", "walk")
    assert info.splits == ("train", "val")
    assert told == [(i + 1, 10, name) for i, name in enumerate(NAMES)]
    starts = clip_starts(info)
    for i, file in enumerate(files):
        rows = source.read(starts[i], starts[i + 1])
        expected = bvh_frames(read_bvh(file), 0.01)
        assert torch.equal(rows.frames, expected)
        assert rows.velocities is not None
        assert torch.equal(rows.velocities, frame_velocities(expected, 30.0))
        one_hot = [float(actions[NAMES[i]] == name) for name in ("box", "run", "walk")]
        assert rows.labels is not None
        assert rows.labels.tolist() == [one_hot] * (i + 1)
        assert rows.splits["val"].tolist() == [i in (3, 7)] * (i + 1)
        assert rows.splits["train"].tolist() == [i not in (3, 7)] * (i + 1)


def held_out(output: Path) -> list[int]:
    source = open_motion(output)
    starts = clip_starts(source.info)
    flags = source.read(0, starts[-1]).splits["val"]
    for first, end in itertools.pairwise(starts):
        assert bool(flags[first:end].all()) == bool(flags[first:end].any())  # whole clips
    return [i for i, first in enumerate(starts[:-1]) if flags[first]]


def test_the_draw_of_clips(tmp_path: Path, files: list[Path]) -> None:
    drawn = []
    for seed in (0, 0, *range(1, 20)):
        output = tmp_path / "motion.h5"
        info = import_bvh(files, output, metres_per_unit=1.0, validation_share=0.3, seed=seed, overwrite=True)
        assert info.label_names is None
        drawn.append(held_out(output))
        assert len(drawn[-1]) == 3
    assert drawn[0] == drawn[1]
    assert {i for clips in drawn for i in clips} == {*range(10)}
    import_bvh(files, output, metres_per_unit=1.0, overwrite=True)
    assert len(held_out(output)) == round(0.15 * 10)
    import_bvh(files, output, metres_per_unit=1.0, validation_share=0.0, velocities=False, overwrite=True)
    assert held_out(output) == []
    assert open_motion(output).read(0, 2).velocities is None
    import_bvh(files, output, metres_per_unit=1.0, held_out=[], overwrite=True)
    assert held_out(output) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": []}, "files: expected at least one, got none"),
        ({"actions": {"clip 00": "walk"}}, "expected an action for clip 'clip 01' in actions, got none"),
        ({"held_out": ["clip 3"]}, r"held_out: expected names of clips \(clip 00, .*\), got 'clip 3'"),
        ({"held_out": "clip 03"}, "held_out: expected names of clips .* got 'clip 03'"),
        ({"held_out": NAMES}, "held_out: expected a clip that is left for training, got all of them"),
        ({"validation_share": 0.97}, "validation_share: 0.97 of 10 clips leaves none for training"),
        ({"validation_share": 1.0}, "validation_share: expected a share between 0 and 1, got 1.0"),
        ({"validation_share": math.nan}, "validation_share: expected a share"),
        ({"metres_per_unit": 0.0}, "metres_per_unit: expected a positive number"),
        ({"up": "w"}, "up: expected one of x, y, z, got 'w'"),
        ({"positions": "sum"}, "positions: expected add, replace or None, got 'sum'"),
    ],
)
def test_settings_that_are_refused(
    tmp_path: Path, files: list[Path], changed: dict[str, Any], message: str
) -> None:
    settings = {"files": files, "metres_per_unit": 0.01} | changed
    with pytest.raises(ValueError, match=message):
        import_bvh(output=tmp_path / "motion.parquet", **settings)
    assert [file.name for file in tmp_path.iterdir()] == ["recordings"]


@pytest.mark.parametrize(
    ("head", "seconds", "message"),
    [
        (HEAD, "0.025", "expected 30 frames per second, as {first} has, got 40"),
        (
            HEAD.replace("Chest", "Spine"),
            "0.0333333",
            "bone 1: expected 'Chest', as {first} has, got 'Spine'",
        ),
        (
            HEAD.replace("OFFSET 0 20 0", "OFFSET 0 20.1 0"),
            "0.0333333",
            "bone 'Chest': expected OFFSET 0, 20, 0, as {first} has, got 0, 20.1, 0; "
            "expected one actor's files, or other_proportions",
        ),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, files: list[Path], head: str, seconds: str, message: str
) -> None:
    other = write(files[0].parent, "other", head=head, seconds=seconds)
    expected = re.escape(f"{other}: {message.format(first=files[0])}")
    with pytest.raises(ValueError, match=f"^{expected}$"):
        import_bvh([*files, other], tmp_path / "motion.h5", metres_per_unit=0.01)


def test_proportions(tmp_path: Path, files: list[Path]) -> None:
    longer = HEAD.replace("OFFSET 0 20 0", "OFFSET 0 25 0")
    other = write(files[0].parent, "other", head=longer)
    output = tmp_path / "motion.h5"
    info = import_bvh([*files, other], output, metres_per_unit=0.01, other_proportions=True, held_out=[])
    frames = open_motion(output).read(0, clip_starts(info)[-1]).frames
    length = (frames[:, 1, :3] - frames[:, 0, :3]).norm(dim=-1)
    torch.testing.assert_close(length[:-4], torch.full((55,), 0.2))
    torch.testing.assert_close(length[-4:], torch.full((4,), 0.25))
    # Written with other digits, or at another place of the root, they are the same proportions.
    for head in (
        HEAD.replace("OFFSET 0 30 1", "OFFSET 0.00001 30.001 1"),
        HEAD.replace("OFFSET 0 0 0", "OFFSET 9 9 9"),
    ):
        other = write(files[0].parent, "other", head=head)
        import_bvh([*files, other], output, metres_per_unit=0.01, overwrite=True)


def test_names_and_outputs(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "more").mkdir()
    twin = write(tmp_path / "more", "clip 00")
    with pytest.raises(ValueError, match=f"{re.escape(str(twin))}: expected files of different names, got"):
        import_bvh([*files, twin], tmp_path / "motion.h5", metres_per_unit=0.01)
    with pytest.raises(ValueError, match="ends in"):
        import_bvh(files, tmp_path / "motion.csv", metres_per_unit=0.01)
    (tmp_path / "motion.h5").touch()
    with pytest.raises(FileExistsError):
        import_bvh(files, tmp_path / "motion.h5", metres_per_unit=0.01)
    with pytest.raises(FileNotFoundError):
        import_bvh([tmp_path / "missing.bvh"], tmp_path / "new.h5", metres_per_unit=0.01, held_out=[])
    files[4].write_text(files[4].read_text().replace("Frames: 5", "Frames: 6"))
    with pytest.raises(ValueError, match="expected 6 frames, as it says, got 5; it has been cut"):
        import_bvh(files, tmp_path / "new.h5", metres_per_unit=0.01)
    assert not (tmp_path / "new.h5").exists()


def test_recordings(tmp_path: Path) -> None:
    if "MFK_DATA" not in os.environ:
        pytest.skip("MFK_DATA is not set")
    clips = ["cmu/cmu_02_01.bvh", "cmu/cmu_02_02.bvh", "cmu/cmu_01_01.bvh"]
    with tarfile.open(Path(os.environ["MFK_DATA"]) / "mocap" / "cmu_bvh30.tar.gz") as tar:
        for clip in clips:
            tar.extract(clip, tmp_path, filter="data")
    files = [tmp_path / clip for clip in clips]
    output = tmp_path / "motion.parquet"
    info = import_bvh(files[:2], output, metres_per_unit=0.01, held_out=["cmu_02_02"])
    rows = open_motion(output).read(0, clip_starts(info)[-1])
    # A person's height is 1 to 2 m, and the bones keep their lengths.
    assert 1.0 < float((rows.frames[..., 1].amax(1) - rows.frames[..., 1].amin(1)).median()) < 2.0
    parents = torch.tensor(info.skeleton.parents)[1:]
    lengths = (rows.frames[:, 1:, :3] - rows.frames[:, parents, :3]).norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:1].expand_as(lengths), atol=1e-5, rtol=0)
    with pytest.raises(
        ValueError, match=r"cmu_01_01.bvh: bone 'lfemur': expected OFFSET .*cmu_02_01.bvh has"
    ):
        import_bvh(files, tmp_path / "other.parquet", metres_per_unit=0.01, held_out=[])
