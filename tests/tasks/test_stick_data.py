"""The data of stick figures: which file is meant, what is held out, windows, and what cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sticks import TEXT, clips

from mfk.data.stick import ENVIRONMENTS, StickClip, stick_physics
from mfk.data.stick_files import write_stick
from mfk.data.stick_generate import generate_stick
from mfk.data.text_hash import embed_text
from mfk.tasks import stick_data
from mfk.tasks.stick_data import StickDataConfig, open_stick, path_of, single_actors, windows_of

SHORT = StickDataConfig(clips=10, frames=50)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(stick_data.VARIABLE, raising=False)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[list[StickClip]], StickDataConfig]:
    """A configuration of a file that holds the clips."""

    def write(made: list[StickClip]) -> StickDataConfig:
        write_stick(tmp_path / "clips.pt", made)
        return StickDataConfig(data=tmp_path / "clips.pt", frames=50)

    return write


def names(found: list[StickClip]) -> list[str | None]:
    return [(clip.meta or {})["clip"] for clip in found]


def named(count: int = 10, **more: Any) -> list[StickClip]:
    return [clip._replace(meta={"clip": f"s{i}"}) for i, clip in enumerate(clips(count, **more))]


def test_which_file_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c, d, e = (tmp_path / f"{name}.pt" for name in "abcde")
    for file in (a, b, c, d, e):
        file.touch()
    monkeypatch.setenv("TRAIN_DATA_PATH", str(e))
    every = StickDataConfig(data=a, train_data=b, curated_pretrain_data=c, curated_sft_data=d)
    for stage, own in (("train", b), ("pretrain", c), ("sft", d)):
        config = replace(every, stage=stage)  # pyright: ignore[reportArgumentType]
        assert path_of(config) == a and path_of(replace(config, data=None)) == own
    assert path_of(StickDataConfig()) == e
    monkeypatch.setenv("TRAIN_DATA_PATH", "")
    assert path_of(StickDataConfig()) is None
    with pytest.raises(ValueError, match=r"curated_sft_data: .*d\.pt needs --stage sft"):
        path_of(StickDataConfig(curated_sft_data=d))
    a.unlink()
    monkeypatch.setenv("TRAIN_DATA_PATH", str(a))
    with pytest.raises(FileNotFoundError, match=r"the variable TRAIN_DATA_PATH: .*a\.pt: there is no such"):
        path_of(StickDataConfig())
    with pytest.raises(ValueError, match=rf"^train_data: {tmp_path}: expected a file, got a folder"):
        path_of(StickDataConfig(train_data=tmp_path))
    # The variable is for training from scratch: a stage names its own file.
    monkeypatch.setenv("TRAIN_DATA_PATH", str(e))
    for stage in ("pretrain", "sft"):
        with pytest.raises(ValueError, match=f"stage: {stage} needs curated_{stage}_data, or --data"):
            path_of(StickDataConfig(stage=stage))
    with pytest.raises(ValueError, match="stage: expected train, pretrain or sft, got 'tune'"):
        path_of(StickDataConfig(stage="tune"))  # pyright: ignore[reportArgumentType]


def test_the_variable_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stick(tmp_path / "a.pt", named())
    monkeypatch.setenv("TRAIN_DATA_PATH", str(tmp_path / "a.pt"))
    data = open_stick(StickDataConfig(frames=50), 0, TEXT, False)
    assert data.name == str(tmp_path / "a.pt")
    assert stick_data.data_record(StickDataConfig()).startswith(f"{tmp_path / 'a.pt'}: ")
    monkeypatch.delenv("TRAIN_DATA_PATH")
    assert stick_data.data_record(StickDataConfig()) == "generated\n"


def test_generated_clips_are_those_of_the_generator() -> None:
    data = open_stick(SHORT, 5, TEXT, False)
    made = generate_stick(10, seed=5, transitions=SHORT.transitions, augment=True)
    parts = [*data.openings, *data.validation, *data.test]
    assert (len(data.openings), len(data.validation), len(data.test)) == (8, 1, 1)
    numbers = [(clip.meta or {})["number"] for clip in parts]
    assert sorted(numbers) == list(range(10))
    for number, clip in zip(numbers, parts, strict=True):
        assert torch.equal(clip.motion, made[number].motion)
        assert clip.embedding is not None
        assert torch.equal(clip.embedding, embed_text([clip.description], "hash", TEXT)[0])
    again, other = open_stick(SHORT, 5, TEXT, False), open_stick(SHORT, 6, TEXT, False)
    assert all(torch.equal(data.training[name], again.training[name]) for name in data.training)
    assert not torch.equal(data.training["motion"][:5], other.training["motion"][:5])
    assert (data.width, data.name) == (20, "10 generated clips")
    assert open_stick(replace(SHORT, figure=48), 0, TEXT, False).width == 48


def test_windows_by_hand() -> None:
    (clip,) = clips(1, frames=100)
    part = clip._replace(motion=clip.motion[:30], actions=None, physics=None, camera=None)
    windows = windows_of([clip, part], 45, False, "test")
    # 99 steps at 44 a window make 3, which begin at 0, 55 / 2 and 55.
    assert windows["motion"].shape == (4, 45, 20) and windows["text"].shape == (4, TEXT)
    assert windows.keys() == {"motion", "valid", "actions", "physics", "text", "environment"}
    assert clip.actions is not None and clip.physics is not None
    for row, start in enumerate((0, 28, 55)):
        assert torch.equal(windows["motion"][row], clip.motion[start : start + 45])
        assert torch.equal(windows["actions"][row], clip.actions[start : start + 45])
        assert torch.equal(windows["physics"][row], clip.physics[start : start + 45])
    assert torch.equal(windows["motion"][3, :30], clip.motion[:30])
    assert not windows["motion"][3, 30:].any() and bool((windows["actions"][3] == -1).all())
    assert windows["valid"].sum(1).tolist() == [45, 45, 45, 30]
    assert bool(windows["valid"][3, :30].all())
    assert torch.equal(windows["physics"][3, :30], stick_physics(clip.motion[:30]))
    assert windows["environment"].tolist() == [ENVIRONMENTS.index(str(clip.environment_type))] * 4
    assert stick_data.environment_of(clip._replace(environment_type="under water")) == -1
    assert stick_data.environment_of(clip._replace(environment_type=None)) == -1
    # One of just a window's length is one window.
    assert len(windows_of([clip], 100, True, "test")["camera"]) == 1


def test_every_frame_is_in_a_window() -> None:
    for length in (50, 51, 90, 99):
        (clip,) = clips(1, frames=length)
        windows = windows_of([clip], 50, False, "test")
        assert bool(windows["valid"].all())
        found = {tuple(frame) for frame in windows["motion"].flatten(0, 1).tolist()}
        assert found == {tuple(frame) for frame in clip.motion.tolist()}


def test_several_actors_are_clips_of_their_own() -> None:
    made = generate_stick(2, seed=0, frames=60, actors=3)
    alone = made[1].motion.clone()
    alone[:, 1:] = 0  # as files say that there is nobody
    both = single_actors([made[0], made[1]._replace(motion=alone), *clips(1, frames=60)])
    assert [tuple(clip.motion.shape) for clip in both] == [(60, 20)] * 5
    first = made[0]
    assert first.actions is not None and first.physics is not None
    for k in range(3):
        assert torch.equal(both[k].motion, first.motion[:, k])
        assert torch.equal(torch.as_tensor(both[k].actions), first.actions[:, k])
        assert torch.equal(torch.as_tensor(both[k].physics), first.physics[:, k])
        assert both[k].description == first.description
    with pytest.raises(ValueError, match="data: expected at least one clip with an actor"):
        single_actors([made[0]._replace(motion=torch.zeros_like(first.motion))])


def test_actors_of_a_clip_stay_on_one_side(save: Callable[..., StickDataConfig]) -> None:
    made = [
        c._replace(meta={"clip": f"s{i}"})
        for i, c in enumerate(generate_stick(10, seed=0, frames=60, actors=2))
    ]
    data = open_stick(replace(save(made), test_share=0.2, validation_share=0.2), 0, TEXT, False)
    sides = [set(names(part)) for part in (data.openings, data.validation, data.test)]
    assert [len(part) for part in (data.openings, data.validation, data.test)] == [12, 4, 4]
    assert [len(side) for side in sides] == [6, 2, 2] and len(set.union(*sides)) == 10


def test_what_is_held_out(save: Callable[..., StickDataConfig]) -> None:
    config = replace(save(named()), held_out=("s2", "s7"))
    data = open_stick(config, 0, TEXT, False)
    assert names(data.test) == ["s2", "s7"]
    parts = [*names(data.openings), *names(data.validation)]
    assert sorted(str(name) for name in parts) == [f"s{i}" for i in (0, 1, 3, 4, 5, 6, 8, 9)]
    by_seed = [names(open_stick(replace(config, held_out=()), seed, TEXT, False).test) for seed in range(4)]
    assert len({tuple(map(str, found)) for found in by_seed}) > 1
    with pytest.raises(ValueError, match=r"held_out: .*clips\.pt has no clip named 'nobody'"):
        open_stick(replace(config, held_out=("s2", "nobody")), 0, TEXT, False)
    with pytest.raises(ValueError, match=r"held_out: .* would have no effect"):
        open_stick(replace(SHORT, held_out=("s2",)), 0, TEXT, False)


def test_embeddings_of_a_file_are_kept(save: Callable[..., StickDataConfig]) -> None:
    own = torch.arange(float(TEXT))
    made = [clip._replace(embedding=own) for clip in named()]
    data = open_stick(save(made), 0, TEXT, False)
    assert bool((data.training["text"] == own).all())


def test_embeddings_of_another_width_are_told(save: Callable[..., StickDataConfig]) -> None:
    made = named()
    made[3] = made[3]._replace(embedding=torch.ones(7))
    message = rf"clips\.pt: clip 3: embedding: expected {TEXT} numbers \(embedding_dim\), got \(7,\)"
    with pytest.raises(ValueError, match=message):
        open_stick(save(made), 0, TEXT, False)


def test_texts_without_words_are_told(save: Callable[..., StickDataConfig]) -> None:
    made = [clip._replace(embedding=None) for clip in named()]
    made[4] = made[4]._replace(description="a")
    with pytest.raises(ValueError, match=r"clips\.pt: clip 4: description: .*expected words"):
        open_stick(save(made), 0, TEXT, False)


def test_clips_that_cannot_be_used_are_told(save: Callable[..., StickDataConfig], tmp_path: Path) -> None:
    mixed = [*named(5), *named(5, width=48)]
    with pytest.raises(ValueError, match=r"clips\.pt: expected clips of one width, got 20 and 48"):
        open_stick(save(mixed), 0, TEXT, False)
    with pytest.raises(ValueError, match=r"clips\.pt: 2 clips leave none for training"):
        open_stick(save(named(2)), 0, TEXT, False)
    no_camera = [c._replace(camera=None) if i == 6 else c for i, c in enumerate(named())]
    with pytest.raises(ValueError, match=r"clips\.pt: clip 6: condition_camera, but it has no camera"):
        open_stick(save(no_camera), 0, TEXT, True)
    short = named()
    short[8] = short[8]._replace(motion=short[8].motion[:2], actions=None, physics=None, camera=None)
    with pytest.raises(ValueError, match=r"clips\.pt: clip 8: expected at least 3 frames, got 2"):
        open_stick(save(short), 0, TEXT, False)
    with pytest.raises(FileNotFoundError, match=r"none\.pt: there is no such file"):
        open_stick(StickDataConfig(data=tmp_path / "none.pt"), 0, TEXT, False)
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"broken\.pt"):
        open_stick(StickDataConfig(data=tmp_path / "broken.pt"), 0, TEXT, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_share": 0.0}, "validation_share: expected a share between 0 and 1"),
        ({"test_share": 1.0}, "test_share: expected a share between 0 and 1"),
        ({"test_share": math.nan}, "test_share: expected a share between 0 and 1"),
        (
            {"test_share": 0.5, "validation_share": 0.5},
            "10 generated clips: 10 clips leave none for training",
        ),
        ({"frames": 2}, "frames: expected 3 to 10000, got 2"),
        ({"clips": 0}, "clips: expected at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_stick(replace(SHORT, **change), 0, TEXT, False)


@pytest.mark.parametrize("change", [{"figure": 48}, {"transitions": 0.1}, {"augment": False}])
def test_settings_without_effect_are_named(
    change: dict[str, Any], save: Callable[..., StickDataConfig]
) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(change))}: .* would have no effect"):
        open_stick(replace(save(named()), **change), 0, TEXT, False)


def test_a_preset_may_say_how_many_clips_to_generate(save: Callable[..., StickDataConfig]) -> None:
    data = open_stick(replace(save(named()), clips=60), 0, TEXT, False)
    assert sum(map(len, (data.openings, data.validation, data.test))) == 10


def test_the_deviations_of_physics_are_those_of_frames_that_count() -> None:
    windows = windows_of(clips(3), 40, False, "test")
    windows["valid"][0, 10:] = False
    windows["physics"][0, 10:] = 1e9
    scale = stick_data.measure_scale(windows)
    kept = windows["physics"][windows["valid"]]
    pairs = [kept[:, 2 * k : 2 * k + 2].square().mean().sqrt() for k in range(3)]
    torch.testing.assert_close(scale["physics"], torch.stack([x for x in pairs for _ in range(2)]))
    assert scale["pose"].shape == (20,)


def test_validation_in_batches_is_all_of_it() -> None:
    data = open_stick(replace(SHORT, clips=60, frames=30), 0, TEXT, False)
    batches = stick_data.held_out_batches(data.validation, 30, False, data.name)
    whole = windows_of(data.validation, 30, False, "test")
    assert [len(batch["motion"]) for batch in batches] == [32, 22]
    for name, x in whole.items():
        assert torch.equal(torch.cat([batch[name] for batch in batches]), x)
