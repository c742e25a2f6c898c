"""What a model of stick figures is judged by, and how it is written down."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from sticks import Made, clips

from mfk.data.stick import ACTIONS
from mfk.tasks.stick_measure import ActionRow, NextFrames, by_action, next_frame_errors, predictions
from mfk.tasks.stick_net import next_frames
from mfk.tasks.stick_report import print_table, table, write_report

WALK, WAVE = ACTIONS.index("walk"), ACTIONS.index("wave")


def test_errors_by_hand() -> None:
    made = Made(off=0.01)
    (clip,) = clips(1, 20)
    found = next_frame_errors(made.nets, made.params, made.state, [clip], 30)
    assert all(x.shape == (1, 28) for x in found)
    assert found.valid[0].tolist() == [True] * 18 + [False] * 10
    x = clip.motion.double()
    same, straight = (x[2:] - x[1:-1]).square().mean(-1), (x[2:] - 2 * x[1:-1] + x[:-2]).square().mean(-1)
    torch.testing.assert_close(found.persistence[0, :18], same)
    torch.testing.assert_close(found.velocity[0, :18], straight, rtol=1e-3, atol=1e-10)
    assert clip.actions is not None and clip.embedding is not None
    assert torch.equal(found.action[0, :18], clip.actions[2:]) and bool((found.action[0, 18:] == -1).all())
    net, buffers = made.params["net"], made.state["buffers"]["net"]
    out = next_frames(
        made.nets,
        net,
        buffers,
        made.scale,
        clip.motion[None, :-1],
        clip.embedding[None],
        clip.actions[None, :-1],
    )
    torch.testing.assert_close(
        found.model[0, :18],
        (out.pose[0, 1:] - clip.motion[2:]).double().square().mean(-1),
        rtol=1e-3,
        atol=1e-9,
    )
    # Actions are recognised without words and without the actions before.
    alone = next_frames(made.nets, net, buffers, made.scale, clip.motion[None, :-1], None, None)
    assert torch.equal(found.guess[0, :18], alone.actions[0, 1:].argmax(-1))


def test_many_windows_come_in_parts() -> None:
    made = Made(off=0.01)
    all_of_them = clips(5, 90)
    found = next_frame_errors(made.nets, made.params, made.state, all_of_them, 12)
    parts = [next_frame_errors(made.nets, made.params, made.state, [clip], 12) for clip in all_of_them]
    assert len(found.model) == 45
    torch.testing.assert_close(found.model, torch.cat([part.model for part in parts]), rtol=1e-3, atol=1e-8)
    batch = made.batch()
    assert predictions(made.nets, made.params, made.state, batch).shape == (8, 11, 20)


def test_rows_by_hand() -> None:
    action = torch.tensor([[WALK, WALK, WAVE, -1], [WAVE, WALK, WALK, WALK]])
    guess = torch.tensor([[WALK, WAVE, WAVE, WALK], [WALK, WALK, WALK, WALK]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    error = torch.arange(8.0).double().view(2, 4)
    found = by_action(NextFrames(error, 2 * error, 3 * error, action, guess, valid))
    walk, wave = (0 + 1 + 5) / 3, (2 + 4) / 2
    assert found == [
        ActionRow("walk", 3, walk, 2 * walk, 3 * walk, pytest.approx(2 / 3)),
        ActionRow("wave", 2, wave, 2 * wave, 3 * wave, 0.5),
        ActionRow("all", 6, 15 / 6, 30 / 6, 45 / 6, pytest.approx(3 / 5)),
    ]
    bare = by_action(NextFrames(error, error, error, torch.full_like(action, -1), guess, valid))
    assert [(row.action, row.frames, row.accuracy) for row in bare] == [("all", 6, None)]


def test_the_report_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ActionRow("walk", 1200, 2e-3, 1e-3, 2.5e-4, 0.875),
        ActionRow("idle", 3, 0.0, 0.0, 1e-9, None),
        ActionRow("all", 1203, math.nan, 1e-3, 2.5e-4, 0.5),
    ]
    titles, shown = table(rows)
    assert all(len(row) == len(titles) for row in shown)
    assert shown[0][:2] == ["walk", "1,200"] and "0.250" in shown[0] and "87.5 %" in shown[0]
    assert shown[1][-2:] == ["-", "-"]
    written = write_report(tmp_path / "a" / "b", rows, {"data": "mine", "held-out clips": 7})
    assert [file.name for file in written] == ["report.json", "report.md"]

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    report = json.loads(written[0].read_text(encoding="utf-8"), parse_constant=refuse)
    assert report["facts"] == {"data": "mine", "held-out clips": 7}
    assert report["results"][0] == rows[0]._asdict() and report["results"][1]["accuracy"] is None
    text = written[1].read_text(encoding="utf-8")
    assert "- held-out clips: 7" in text and "| walk" in text
    print_table(rows, "What it can")
    printed = capsys.readouterr().out
    assert "What it can" in printed and "walk" in printed and "recognised" in printed
