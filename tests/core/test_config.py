"""mfk.core.config: exact round trips, and an error that names file and key for everything else."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfk.core import config


@dataclass(frozen=True)
class Net:
    width: int = 64
    act: Literal["silu", "gelu"] = "silu"
    rates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    lr: float = 1e-3
    batch_size: int = 64
    name: str = "panda"
    amp: bool = False
    out: Path | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weights: dict[str, float] = field(default_factory=dict)
    limit: int | float | None = None
    net: Net = Net(width=128)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Needs:
    lr: float
    net: Net | None = None


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(max_size=30)  # without lone surrogates, which no UTF-8 file can hold
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).map(Path)
nets = st.builds(
    Net,
    width=st.integers(),
    act=st.sampled_from(["silu", "gelu"]),
    rates=st.lists(finite, max_size=3).map(tuple),
)
runs = st.builds(
    Run,
    lr=finite,
    batch_size=st.integers(min_value=1),
    name=text,
    amp=st.booleans(),
    out=st.none() | paths,
    betas=st.tuples(finite, finite),
    weights=st.dictionaries(text, finite, max_size=3),
    limit=st.none() | st.integers() | finite,
    net=nets,
)


@settings(max_examples=150)
@given(runs)
def test_a_saved_config_is_read_back_exactly(tmp_path_factory: Any, run: Run) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip.yaml"
    config.save_yaml(run, path)
    again = config.load_yaml(Run, path)
    # repr tells 1 from 1.0, 0.0 from -0.0 and one float from the next.
    assert repr(again) == repr(run)
    assert repr(config.from_dict(Run, config.to_dict(run))) == repr(run)


@pytest.mark.parametrize(
    "word", ["no", "1e-4", "1", "0x1f", "null", "~", "", ".inf", "2024-01-01", "1:30", "1\n", "<<", "\x85 "]
)
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, word: str) -> None:
    path = tmp_path / "run.yaml"
    config.save_yaml(Run(name=word, weights={word: 1.0}), path)
    assert config.load_yaml(Run, path) == Run(name=word, weights={word: 1.0})


@pytest.mark.parametrize(
    ("written", "value"),
    # Values by the YAML 1.2.2 specification, section 10.3.2; PyYAML alone reads several of them otherwise.
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e3", -1500.0),
        ("3", 3.0),
        ("0x10", 16.0),
    ],
)
def test_floats_are_read_by_yaml_1_2(tmp_path: Path, written: str, value: float) -> None:
    lr = config.load_yaml(Run, write(tmp_path, f"lr: {written}\n")).lr
    assert type(lr) is float and lr == value


@pytest.mark.parametrize(
    ("written", "value"), [("010", 10), ("0o10", 8), ("0x1F", 31), ("+7", 7), ("-7", -7)]
)
def test_ints_are_read_by_yaml_1_2(tmp_path: Path, written: str, value: int) -> None:
    assert config.load_yaml(Net, write(tmp_path, f"width: {written}\n")).width == value


@pytest.mark.parametrize("written", ["no", "yes", "on", "2024-01-01", "1:30", "1_000", "0b11"])
def test_words_of_yaml_1_1_are_text(tmp_path: Path, written: str) -> None:
    assert config.load_yaml(Run, write(tmp_path, f"name: {written}\n")).name == written


def test_missing_keys_come_from_the_base_or_else_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 0.5\nnet:\n  act: gelu\n")
    assert config.load_yaml(Run, path) == Run(lr=0.5, net=Net(width=128, act="gelu"))
    base = Run(batch_size=7, net=Net(width=5, rates=(1.0,)))
    assert config.load_yaml(Run, path, base=base) == Run(0.5, 7, net=Net(5, "gelu", (1.0,)))
    assert config.load_yaml(Needs, write(tmp_path, "{}"), base=Needs(2.0)) == Needs(2.0)
    assert config.load_yaml(Needs, write(tmp_path, "lr: 1\nnet: {width: 2}")) == Needs(1.0, Net(2))


def test_an_int_stands_for_a_float_only_if_it_is_one() -> None:
    assert type(config.from_dict(Run, {"lr": 2**53}).lr) is float
    with pytest.raises(
        ValueError, match="lr: expected float, got an integer that no float equals: 9007199254740993"
    ):
        config.from_dict(Run, {"lr": 2**53 + 1})
    with pytest.raises(ValueError, match="lr: expected float, got an integer that no float equals"):
        config.from_dict(Run, {"lr": 10**400})


WRONG = [
    ("lrr: 1", "unknown key 'lrr'; did you mean 'lr'?"),
    ("batch-size: 1", "unknown key 'batch-size'; did you mean 'batch_size'?"),
    ("width: 3", "unknown key 'width'; did you mean 'net.width'?"),
    ("zzz: 1", "unknown key 'zzz'; expected one of lr, batch_size, name"),
    ("net: {wdth: 3}", "net: unknown key 'wdth'; did you mean 'width'?"),
    ("net: 3", "net: expected keys and values (the fields of Net), got 3 (int)"),
    ("net: [1]", "net: expected keys and values"),
    ("net:", "net: expected keys and values"),
    ("net: {width: 3.0}", "net.width: expected int, got 3.0 (float)"),
    ("net: {width: true}", "net.width: expected int, got True (bool)"),
    ("net: {width: '3'}", "net.width: expected int, got '3' (str)"),
    ("net: {act: relu}", "net.act: expected one of 'silu', 'gelu', got 'relu' (str)"),
    ("net: {rates: 1.0}", "net.rates: expected a list of float, got 1.0 (float)"),
    ("net: {rates: [1.0, a]}", "net.rates.1: expected float, got 'a' (str)"),
    ("lr: true", "lr: expected float, got True (bool)"),
    ("lr: fast", "lr: expected float, got 'fast' (str)"),
    ("lr:", "lr: expected float, got nothing (null)"),
    ("lr: .nan", "lr: expected a finite float, got nan"),
    ("lr: -.inf", "lr: expected a finite float, got -inf"),
    ("lr: 1e999", "lr: expected a finite float, got inf"),
    ("amp: 1", "amp: expected bool (true or false), got 1 (int)"),
    ("amp: no", "amp: expected bool (true or false), got 'no' (str)"),
    ("name: 3", "name: expected str, got 3 (int)"),
    ("out: 3", "out: expected path or null, got 3 (int)"),
    ("limit: many", "limit: expected int or float or null, got 'many' (str)"),
    ("betas: [0.9]", "betas: expected a list of 2 (float, float), got 1: [0.9]"),
    ("betas: [0.9, 1, 2]", "betas: expected a list of 2 (float, float), got 3"),
    ("betas: 0.9", "betas: expected a list of 2"),
    ("weights: [1]", "weights: expected keys with values float, got [1] (list)"),
    ("weights: {a: b}", "weights.a: expected float, got 'b' (str)"),
    ("batch_size: 0", "batch_size: expected at least 1, got 0"),
    ("lr: 1\nlr: 2", "line 2, column 1: the key 'lr' is given twice"),
    ("net: {width: 1, width: 1}", "line 1, column 17: the key 'width' is given twice"),
    ("1: 2", "line 1, column 1: expected text as a key; put it in quotes"),
    ("? [a]\n: 1", "expected text as a key"),
    ("net: &n {width: 1}", "line 1, column 6: anchors, aliases and tags are not accepted"),
    ("lr: *n", "anchors, aliases and tags are not accepted"),
    ("lr: !!python/object/apply:os.getcwd []", "anchors, aliases and tags are not accepted"),
    ("lr: !!float 1", "anchors, aliases and tags are not accepted"),
    ("<<: {lr: 1}", "unknown key '<<'"),
    ("- 1", "expected keys and values (the fields of Run), got [1] (list)"),
    ("lr", "expected keys and values (the fields of Run), got 'lr' (str)"),
    ("", "the file is empty"),
    ("# nothing\n", "the file is empty"),
    ("---\nlr: 1\n---\nlr: 2\n", "line 3, column 1:"),
    ("net:\n\twidth: 3", "line 2, column 1: found character '\\t'"),
    ("betas: [0.9,", "line 1, column 13:"),
    ("net: {width", "line 1, column"),
    ("net:\n  wid", "net: expected keys and values (the fields of Net), got 'wid' (str)"),
    ("name: 'a", "found unexpected end of stream"),
    ("lr: 1: 2", "line 1, column 6: mapping values are not allowed here"),
    ("name: a\x07", "special characters are not allowed"),
    (b"name: \xff", "expected text in UTF-8, got byte 0xff"),
    ("net: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ("batch_size: " + "9" * 5000, "at most 400 digits"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[str(text)[:20] for text, _ in WRONG])
def test_every_mistake_names_the_file_and_the_culprit(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        config.load_yaml(Run, path, base=Run())
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_missing_key_without_default_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.yaml: missing key 'lr', which has no default: float"):
        config.load_yaml(Needs, write(tmp_path, "net: null\n"))
    # Behind an Optional, the nested dataclass still says what is wrong inside.
    with pytest.raises(ValueError, match=r"net\.width: expected int, got 'x'"):
        config.load_yaml(Needs, write(tmp_path, "lr: 1\nnet: {width: x}"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.yaml: there is no such config file"):
        config.load_yaml(Run, tmp_path / "no.yaml")
    with pytest.raises(ValueError, match=f"{tmp_path}: expected a YAML file, got a folder"):
        config.load_yaml(Run, tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert config.load_yaml(Run, write(tmp_path, b"\xef\xbb\xbflr: 2.0\n")).lr == 2.0


def test_what_python_put_wrongly_into_a_config_is_refused_on_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 1.0\n")
    careless: Any = Run
    for run, message in [
        (Run(lr=math.nan), "Run: lr: expected a finite float, got nan"),
        (careless(name=3), "Run: name: expected str, got 3"),
        (careless(betas=[0.9, 0.9]), r"Run: betas: \[0.9, 0.9\] \(list\) would be read back as \(0.9, 0.9\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            config.save_yaml(run, path)
    assert path.read_text() == "lr: 1.0\n"


def test_saving_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "lr: 1.0\n")

    def fail(*_: object) -> None:
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk"):
            config.save_yaml(Run(), path)
    assert path.read_text() == "lr: 1.0\n"
    assert os.listdir(tmp_path) == ["run.yaml"]
    config.save_yaml(Run(), path)
    assert os.listdir(tmp_path) == ["run.yaml"]
    plain = tmp_path / "plain"
    plain.touch()  # the mode is any new file's, not a private temporary file's
    assert path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(FileNotFoundError):
        config.save_yaml(Run(), tmp_path / "none" / "run.yaml")


def test_the_text_is_readable() -> None:
    assert config.to_yaml(Run(out=Path("a/b"))) == (
        "lr: 0.001\nbatch_size: 64\nname: panda\namp: false\nout: a/b\nbetas: [0.9, 0.999]\nweights: {}\n"
        "limit: null\nnet:\n  width: 128\n  act: silu\n  rates: []\n"
    )


def test_a_programmers_mistake_is_a_type_error() -> None:
    other: Any = Net()
    with pytest.raises(TypeError, match="cls: expected a dataclass"):
        config.from_dict(int, {})
    with pytest.raises(TypeError, match="config: expected an instance of a dataclass"):
        config.to_dict(Run)
    with pytest.raises(TypeError, match="base: expected an instance of Run"):
        config.from_dict(Run, {}, base=other)
    strange = dataclasses.make_dataclass("strange", [("x", set[int])])
    with pytest.raises(TypeError, match=r"x: a config cannot hold the annotation set\[int\]"):
        config.from_dict(strange, {"x": [1]})


def test_nested_settings_by_dotted_key() -> None:
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert config.flatten(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
