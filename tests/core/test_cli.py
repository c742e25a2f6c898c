"""mfk.core.cli: preset < file < flags, the spellings of flags, resuming, help and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mfk.core import cli, config


@dataclass(frozen=True)
class Net:
    """The network."""

    width: int = 64
    """Neurons of a hidden layer."""
    act: Literal["silu", "gelu"] = "silu"
    """Activation."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    lr: float = 1e-3
    """Peak learning rate."""
    epochs: int | None = None
    """Passes over the data; steps decide where it is None."""
    data: Path | None = None
    """Recorded poses; None draws them."""
    sigma: float = 0.1
    """Spread of the reference joints [rad]."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moments."""
    out: Path | None = None
    """Folder of this run."""
    resume: str | None = None
    """Folder of the run to go on with."""
    dry_run: bool = False
    """Print the config and stop."""
    net: Net = Net()

    def __post_init__(self) -> None:
        if self.sigma < 0:
            raise ValueError(f"sigma: expected at least 0 rad, got {self.sigma}")


@dataclass(frozen=True)
class Solve:
    """Solve one pose."""

    checkpoint: Path
    """Folder of a run."""
    pose: tuple[float, float, float, float, float, float, float]
    """x y z [m], qw qx qy qz."""


@dataclass(frozen=True)
class Evaluate:
    checkpoint: Path
    data: Path | None = None


DEFAULT, QUICK = Run(), Run(lr=0.25, sigma=0.3, net=Net(width=8))
PRESETS = {"default": ("Five minutes on two cores.", DEFAULT), "quick": ("Three quarters of one.", QUICK)}
COMMANDS = {"solve": ("Joints for one pose.", Solve), "evaluate": ("The table again.", Evaluate)}


def parse(*words: str, root: Path | None = None) -> Any:
    return cli.parse(PRESETS, COMMANDS, prog="panda.py", description="Panda IK.", root=root, argv=words)


def refuse(capsys: pytest.CaptureFixture[str], *words: str, root: Path | None = None) -> str:
    """The message of a command line that must end with exit code 2; one screen at most."""
    with pytest.raises(SystemExit) as caught:
        parse(*words, root=root)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and 0 < len(err.splitlines()) <= 24
    return " ".join(err.replace("│", " ").split())


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my.yaml"
    path.write_text("lr: 0.5\nepochs: 3\nnet:\n  act: gelu\n")
    return str(path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", DEFAULT),
        ("default", DEFAULT),
        ("quick", QUICK),
        ("--lr 1e-4", replace(DEFAULT, lr=1e-4)),
        ("--lr=1e-4", replace(DEFAULT, lr=1e-4)),
        ("quick --lr 1e-4", replace(QUICK, lr=1e-4)),
        ("--config FILE", replace(DEFAULT, lr=0.5, epochs=3, net=Net(64, "gelu"))),
        ("quick --config FILE", replace(QUICK, lr=0.5, epochs=3, net=Net(8, "gelu"))),
        ("quick --config=FILE", replace(QUICK, lr=0.5, epochs=3, net=Net(8, "gelu"))),
        ("--config FILE --lr 1e-4", replace(DEFAULT, lr=1e-4, epochs=3, net=Net(64, "gelu"))),
        ("--lr 1e-4 --config FILE", replace(DEFAULT, lr=1e-4, epochs=3, net=Net(64, "gelu"))),
        ("quick --config FILE --lr 0.25", replace(QUICK, epochs=3, net=Net(8, "gelu"))),
        ("quick --config FILE --epochs None", replace(QUICK, lr=0.5, net=Net(8, "gelu"))),
        ("quick --width 3 --act gelu", replace(QUICK, net=Net(3, "gelu"))),
        ("--betas -1 -2e-3", replace(DEFAULT, betas=(-1.0, -2e-3))),
        ("--dry-run", replace(DEFAULT, dry_run=True)),
        ("--no-dry-run", DEFAULT),
        ("quick --dry-run --lr 2", replace(QUICK, dry_run=True, lr=2.0)),
        ("--out quick", replace(DEFAULT, out=Path("quick"))),
        ("--learning-rate 2", replace(DEFAULT, lr=2.0)),
        ("--learning-rate=2", replace(DEFAULT, lr=2.0)),
        ("--learning_rate 2", replace(DEFAULT, lr=2.0)),
        ("quick --output-dir a --data-path b", replace(QUICK, out=Path("a"), data=Path("b"))),
        ("--output-dir=a --data-path=b --num-epochs=4", Run(out=Path("a"), data=Path("b"), epochs=4)),
        ("--num-epochs 4", replace(DEFAULT, epochs=4)),
        ("--dry_run", replace(DEFAULT, dry_run=True)),
        ("solve --checkpoint D --pose 0.3 0 0.5 0 1 0 0", Solve(Path("D"), (0.3, 0, 0.5, 0, 1, 0, 0))),
        (
            "solve --pose -0.3 .1 -1e-3 0 -1 0 0 --checkpoint D",
            Solve(Path("D"), (-0.3, 0.1, -1e-3, 0, -1, 0, 0)),
        ),
        ("evaluate --checkpoint D --data-path E", Evaluate(Path("D"), Path("E"))),
    ],
)
def test_words_give_this_config(words: str, expected: Any, file: str) -> None:
    assert parse(*words.replace("FILE", file).split()) == expected


def test_the_documents_spellings_are_known() -> None:
    spellings = {
        "--lr": "learning-rate",
        "--resume": "resume-from",
        "--out": "output-dir",
        "--data": "data-path",
        "--epochs": "num-epochs max-epochs",
        "--accumulate": "grad-accum-steps accumulate-grad-batches",
        "--clip": "gradient-clip grad-clip max-grad-norm",
        "--log-every": "log-every-n-steps log-interval",
        "--validate-every": "val-every-n-steps",
        "--validate-every-epochs": "val-every-n-epochs",
        "--checkpoint-every": "checkpoint-every-n-steps",
        "--checkpoint-every-epochs": "save-every-n-epochs save-interval",
        "--patience": "early-stopping-patience",
        "--min-delta": "early-stopping-min-delta",
        "--seed": "random-seed",
        "--frame": "tip",
        "--width": "d-model",
        "--heads": "nhead",
        "--layers": "num-layers",
    }
    flags = {f"--{other}": flag for flag, others in spellings.items() for other in others.split()}
    assert flags == cli.ALIASES


def test_a_field_of_its_own_keeps_its_flag() -> None:
    @dataclass(frozen=True)
    class Other:
        learning_rate: float = 1.0

    words = ["--learning-rate", "2"]
    assert cli.parse({"default": ("", Other())}, prog="x", description="", argv=words) == Other(2.0)


def test_one_preset_alone_is_enough() -> None:
    only = {"default": ("All there is.", DEFAULT)}
    for words in (["--lr", "2"], ["default", "--lr", "2"]):
        assert cli.parse(only, prog="x", description="", argv=words) == replace(DEFAULT, lr=2.0)
    assert cli.parse(only, prog="x", description="", argv=[]) == DEFAULT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Runs 001 and 002 of an experiment, 002 the newest."""
    for name, lr in (("001", 1.0), ("002", 2.0)):
        folder = tmp_path / "panda" / name
        folder.mkdir(parents=True)
        config.save_yaml(Run(lr=lr, sigma=0.7, net=Net(width=5)), folder / "config.yaml")
    (tmp_path / "panda" / "latest").symlink_to("002")
    return tmp_path / "panda"


def resumed(folder: Path, **changes: Any) -> Run:
    return replace(Run(sigma=0.7, net=Net(width=5), resume=str(folder), out=folder), **changes)


def test_resume_starts_from_the_runs_own_config(root: Path, file: str) -> None:
    one, two = root / "001", root / "002"
    for words in (["--resume", str(one)], [f"--resume-from={one}"], ["quick", "--resume-from", str(one)]):
        assert parse(*words, root=root) == resumed(one, lr=1.0)
    assert parse("--resume", str(one), "--out", str(one), root=root) == resumed(one, lr=1.0)
    for words in (["--resume"], ["quick", "--resume"], ["--resume", "auto"], ["--resume-from"]):
        assert parse(*words, root=root) == resumed(two, lr=2.0)
    assert parse("--resume", "--lr", "9", root=root) == resumed(two, lr=9.0)
    assert parse("--lr", "9", "--resume", root=root) == resumed(two, lr=9.0)
    assert parse("--resume", "--output-dir", str(one), root=root) == resumed(one, lr=1.0)
    assert parse("--out", str(one), "--resume", root=None) == resumed(one, lr=1.0)
    # run's own < file < flags
    layered = parse("--resume", "--config", file, "--epochs", "8", root=root)
    assert layered == resumed(two, lr=0.5, epochs=8, net=Net(5, "gelu"))


def test_resume_without_a_run_is_refused(
    capsys: pytest.CaptureFixture[str], root: Path, tmp_path: Path
) -> None:
    assert "--resume: nowhere is not the folder of a run" in refuse(capsys, "--resume", "nowhere")
    assert "it has no config.yaml" in refuse(capsys, "--resume", root=tmp_path)
    assert "expected the folder of a run, got none" in refuse(capsys, "--resume")
    message = refuse(capsys, "--resume", str(root / "001"), "--out", "other", root=root)
    assert "--out: a resumed run goes on in its own folder" in message and "got other" in message
    (root / "002" / "config.yaml").write_text("lr: 1.0\nlrr: 2.0\n")
    assert "config.yaml: unknown key 'lrr'; did you mean 'lr'?" in refuse(capsys, "--resume", root=root)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--lrr 3", ["Unrecognized options: --lrr", "--lr FLOAT"]),
        ("quick --lrr 3", ["--lrr", "--lr FLOAT"]),
        ("qick", ["qick", "default, quick, solve, evaluate"]),
        ("--lr fast", ["--lr", "could not convert string to float: 'fast'"]),
        ("--lr", ["Missing value for argument '--lr'"]),
        ("--width 3.0", ["--width", "3.0"]),
        ("--act relu", ["--act", "relu", "silu", "gelu"]),
        ("--betas 1", ["--betas"]),
        ("--config", ["Missing value for argument '--config'"]),
        ("--config none.yaml", ["error: none.yaml: there is no such config file"]),
        ("quick --config .", ["error: .: expected a YAML file, got a folder"]),
        ("--lr 1 quick", ["quick", "earlier"]),
        ("--lr nan", ["lr: expected a finite float, got nan"]),
        ("--sigma -1", ["sigma: expected at least 0 rad, got -1"]),
        ("solve --checkpoint D", ["--pose", "x y z [m]"]),
        ("solve --checkpoint D --pose 1 2 3", ["--pose"]),
        ("solve --checkpoint D --pose 1 2 3 nan 0 0 0", ["pose.3: expected a finite float, got nan"]),
        ("solve --checkpoint D --pose 1 2 3 1 0 0 0 --lr 3", ["--lr"]),
        ("--checkpoint D", ["--checkpoint"]),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_screen(
    words: str, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refuse(capsys, *words.split())
    for part in parts:
        assert part in message


def test_a_mistake_in_the_file_names_file_and_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    for text, part in [
        ("net: {width: 3.5}", "my.yaml: net.width: expected int, got 3.5 (float)"),
        ("lr 3", "my.yaml: expected keys and values"),
        ("sigma: -1", "my.yaml: sigma: expected at least 0 rad"),
        ("lr: [", "my.yaml: line 1, column"),
    ]:
        path.write_text(text)
        assert part in refuse(capsys, "--config", str(path))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--help"],
            [
                "Panda IK.",
                "--config FILE",
                "--lr FLOAT",
                "[rad]",
                "(default: 0.1)",
                "--dry-run, --no-dry-run",
                "--width INT",
            ]
            + [word for name, (text, _) in [*PRESETS.items(), *COMMANDS.items()] for word in (name, text)]
            + ["--learning-rate = --lr", "--data-path = --data", "--num-epochs = --epochs"],
        ),
        (
            ["quick", "-h"],
            ["Three quarters of one.", "(default: 0.25)", "(default: 0.3)", "[rad]", "--config FILE"],
        ),
        (["solve", "--help"], ["Joints for one pose.", "x y z [m]", "(required)"]),
    ],
)
def test_help_fits_two_screens_and_says_all(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert len(out.splitlines()) <= 50
    text = " ".join(out.replace("│", " ").split())
    for part in parts:
        assert part in text
    if words[0] == "solve":
        assert "--config" not in text and "--lr" not in text


def test_presets_that_make_no_command_line_are_a_type_error() -> None:
    @dataclass(frozen=True)
    class Config:
        config: int = 1

    @dataclass(frozen=True)
    class Clash:
        width: int = 1
        net: Net = Net()

    def build(presets: Any, commands: Any = None) -> Any:
        return cli.parse(presets, commands, prog="x", description="", argv=[])

    with pytest.raises(TypeError, match="expected one named 'default', got \\['quick'\\]"):
        build({"quick": PRESETS["quick"]})
    with pytest.raises(TypeError, match="'net': expected a config of Run, got Net"):
        build({**PRESETS, "net": ("", Net())})
    with pytest.raises(TypeError, match=r"commands: \['quick'\] name presets too"):
        build(PRESETS, {"quick": ("", Solve)})
    with pytest.raises(TypeError, match="--config is the file"):
        build({"default": ("", Config())})
    for presets, commands in ([{"default": ("", Clash())}, None], [PRESETS, {"clash": ("", Clash)}]):
        with pytest.raises(TypeError, match=r"Clash: width and net\.width would both be --width; rename one"):
            build(presets, commands)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, FileExistsError])
def test_main_shows_a_users_mistake_without_traceback(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def program() -> None:
        raise error("out: the folder runs/001 already holds a run")

    with pytest.raises(SystemExit) as caught:
        cli.main(program)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: out: the folder runs/001 already holds a run\n"


def test_main_lets_a_bug_and_a_result_through() -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(bug)
    seen = []
    cli.main(lambda: seen.append(1))
    assert seen == [1]


PROGRAM = '''
from __future__ import annotations
from dataclasses import dataclass
from mfk.core import cli, config

@dataclass(frozen=True)
class Run:
    lr: float = 1e-3
    """Peak learning rate."""

def program() -> None:
    run = cli.parse({"default": ("All.", Run()), "quick": ("Less.", Run(0.5))}, prog="x.py", description="X.")
    print(config.to_yaml(run), end="")

if __name__ == "__main__":
    cli.main(program)
'''


def test_a_script_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *words], env=env, capture_output=True, text=True, timeout=100
        )

    good, bad = run("quick", "--lr", "1e-4"), run("--config", "none.yaml")
    assert (good.returncode, good.stdout, good.stderr) == (0, "lr: 0.0001\n", "")
    assert (bad.returncode, bad.stdout, bad.stderr) == (
        2,
        "",
        "error: none.yaml: there is no such config file\n",
    )


def test_importing_the_config_layer_loads_neither_yaml_nor_tyro() -> None:
    heavy = "('yaml', 'tyro', 'rich')"
    code = f"import sys, mfk.core.cli, mfk.core.config; sys.exit(any(m in sys.modules for m in {heavy}))"
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=100).returncode == 0
