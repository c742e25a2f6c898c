"""Readers on files that are made wrong: a few of the inputs that benchmarks/fuzz.py has thousands of."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import fuzz
import fuzz_mutators
import pytest

INPUTS = {
    "urdf": 50,
    "checkpoint": 20,
    "irf zarr": 50,
    "config ik": 50,
    "config motion": 50,
    "ik network": 30,
}


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_ends_in_its_own_error_or_in_a_correct_result(name: str, tmp_path: Path) -> None:
    reader, folder = fuzz.READERS[name], tmp_path / "input"
    samples = fuzz.make_samples(reader, tmp_path)
    fuzz.check_valid(reader, samples, folder)
    found: list[str] = []

    def one(sample: fuzz_mutators.Sample) -> None:
        fuzz.put(folder, sample)
        found.append(fuzz.ended(reader, folder).wrong)

    fuzz.each_input(name, samples, INPUTS.get(name, 100), 12345, one)
    assert [wrong for wrong in found if wrong] == [] and len(found) >= INPUTS.get(name, 100)


def test_other_outcomes_are_found(tmp_path: Path) -> None:
    """An error without the file's name, one of another type, a warning, and a result that is not right."""

    def read(folder: Path) -> None:
        text = (folder / "a.json").read_text()
        if text == "name":
            raise ValueError(f"{folder}: is wrong")
        if text == "warning":
            import warnings

            warnings.warn("odd", stacklevel=1)
        elif text == "result":
            raise AssertionError
        elif text != "good":
            json.loads(text)

    reader = fuzz.Reader(lambda folder: [], read)
    for text, right in (("name", True), ("good", True), ("warning", False), ("result", False), ("{", False)):
        fuzz.put(tmp_path, {"a.json": text.encode()})
        assert (fuzz.ended(reader, tmp_path).wrong == "") == right, text


def test_what_is_put_into_a_folder_is_all_that_lies_there(tmp_path: Path) -> None:
    fuzz.put(tmp_path, {"a": b"1", "b/c": b"2", "d/e/f": b"3"})
    fuzz.put(tmp_path, {"b/x": b"4", "g": b"5"})
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"b/x", "g"} and (tmp_path / "g").read_bytes() == b"5"


def test_the_same_drawing_makes_the_same_inputs() -> None:
    samples = [{"a.json": b'{"x": [1, 2, {"y": null}]}', "b.bvh": b"1 2 3\n4 5 6\n"}]
    first, again = (list(fuzz_mutators.inputs(samples, (7, [1, "a"]), 0, 50)) for _ in range(2))
    other = list(fuzz_mutators.inputs(samples, (7, [1, "a"]), 50, 50))
    assert first == again != other
    assert sum(sample != samples[0] for sample in first) > 45
    seal = list(fuzz_mutators.inputs(samples, (7, [1]), 0, 5, lambda sample, random: {"z": b"!"}))
    assert seal == [{"z": b"!"}] * 5
    assert fuzz_mutators.change("a.json", b"no tree", [], 1, Random(0)) is not None
