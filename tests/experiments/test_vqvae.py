"""experiments/vqvae.py as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import family_tables
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import vqvae as script
import vqvae_runs
import yaml

from mfk import train
from mfk.core import tree
from mfk.data import open_families
from mfk.tasks.vqvae import forward
from mfk.tasks.vqvae_preparation import prepare, restore

TINY = [
    "--data", "table.npz", "--group-embedding-dim", "8", "--group-hidden-dim", "8", "--decoder-dim", "8",
    "--partial-dim", "8", "--epochs", "3", "--warmup-epochs", "0", "--batch-size", "18", "--threads", "1",
    "--validate-every-epochs", "1", "--schedule", "constant", "--dead-code-reset-interval", "1",
    "--dead-code-threshold", "60", "--decay", "0.5", "--log-every", "1", "--seed", "3",
]  # fmt: skip
DOCUMENTED = """
dataset_path: table.npz
families: {alpha: {encoder_params: {hidden_dims: [6], output_dim: 4}}, waves: {encoder: TemporalCNNEncoder,
  encoder_params: {channels: [4], kernel_size: 3, output_dim: 4}}}
model: {group_embedding_dim: 8, group_hidden_dim: 8, levels: [{latent_dim: 3, num_tokens: 6}]}
training: {batch_size: 18, num_epochs: 3, checkpoint_dir: made, use_torch_compile: false,
  val_every_n_epochs: 1, topo_samples: 18}
logging: {eval_interval: null}
"""


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vqvae.py", *words])
    try:
        script.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def figures(folder: Path) -> list[dict[str, float]]:
    """A run's history without what depends on the clock."""
    clock = ("time", "train/samples_per_second")
    return [{k: x for k, x in r.items() if k not in clock} for r in train.read_history(folder)]


def everything(folder: Path) -> list[torch.Tensor]:
    """Parameters and carried state of a run's last checkpoint."""
    made = vqvae_runs.trained(folder)
    last = train.find(folder).step
    whole = train.load_params(folder, made.params, last), train.load_state(folder, made.state, last)
    return tree.leaves(whole)


def same(a: Path, b: Path) -> bool:
    return all(torch.equal(x, y) for x, y in zip(everything(a), everything(b), strict=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a table, a run of it, and one with another seed."""
    folder = tmp_path_factory.mktemp("vqvae")
    family_tables.write_table(folder / "table.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(patch, *TINY, "--out", "run") == 0
        assert run(patch, *TINY, "--seed", "4", "--no-plots", "--out", "other") == 0
    yield folder


def test_what_a_run_leaves(made: Path) -> None:
    folder = made / "run"
    for name in ("categories.png", "codebooks.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert set(report["scores"]) == {"held out", "trained on"}
    assert report["scores"]["held out"]["rows"] == 6 and report["scores"]["trained on"]["rows"] == 54
    assert "| held out | 6 |" in (folder / "report.md").read_text(encoding="utf-8")
    history = json.loads((folder / "training_history.json").read_text(encoding="utf-8"))
    assert history["val/val_loss"]["step"] == [0, 3, 6, 9]
    assert {
        "val/mse",
        "val/perplexity",
        "val/topo_pre",
        "val/topo_post",
        "val/orthogonality",
    } <= history.keys()


def test_a_report_that_has_no_place_or_no_data(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    line = ["evaluate", "--checkpoint", "run", "--out"]
    assert run(monkeypatch, *line, "table.npz") == 2
    assert "error: --out: table.npz: expected a folder, got the file" in capsys.readouterr().err
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *line, "new") == 2 and not Path("new").exists()
    assert capsys.readouterr().err == "error: table.npz: there is no such file\n"


def test_the_documented_checkpoint(made: Path) -> None:
    folder = made / "run"
    best = torch.load(folder / "best_model.pt", weights_only=True)
    assert best.keys() == {
        "model_state_dict", "codebooks", "optimizer_state_dict", "group_indices", "normalization_stats",
        "feature_names", "config", "history", "val_loss", "metrics",
    }  # fmt: skip
    tokenizer = vqvae_runs.trained(folder)
    module_names = {*tokenizer.params["net"], *tokenizer.state["buffers"]}
    assert best["model_state_dict"].keys() == module_names
    names, stats = best["feature_names"], best["normalization_stats"]
    assert len(names) == 12 and names[-1] == "waves::waves_2"
    columns = sorted(i for own in best["group_indices"].values() for i in own)
    assert columns == list(range(27)) == list(range(len(stats["mean"])))
    settings = vqvae_runs.settings_of(folder)
    data = vqvae_runs.open_data(replace(settings, data=replace(settings.data, data=made / "table.npz")))
    assert np.array_equal(stats["mean"].numpy(), data.prepared.mean)
    with np.load(folder / "normalization_stats.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["mean"], data.prepared.mean)
        assert np.array_equal(arrays["std"], data.prepared.std) and arrays["feature_names"].tolist() == names
        for name, own in best["group_indices"].items():
            assert np.array_equal(arrays[f"{name}/mean"], data.prepared.mean[own])
    assert json.loads(best["config"])["train"]["seed"] == 3
    history = json.loads(best["history"])
    assert best["val_loss"] == pytest.approx(min(history["val/val_loss"]["value"]))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert best["metrics"] == report["scores"]["held out"]
    for j, (name, book) in enumerate(best["codebooks"].items()):
        g, level = tokenizer.nets.codebooks[j]
        assert name == f"{tokenizer.nets.categories[g]}/{level}"
        assert torch.equal(book["codes"], tokenizer.state["books"][str(j)].codes)


def test_one_seed_twice_is_one_run(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    assert run(monkeypatch, *TINY, "--no-plots", "--out", "again") == 0
    assert figures(made / "run") == figures(made / "again") != figures(made / "other")
    assert same(made / "run", made / "again")
    one, two = (json.loads((made / name / "report.json").read_text())["scores"] for name in ("run", "again"))
    assert one == two
    for name in ("tokenizer.json", "normalization_stats.npz"):
        assert (made / "run" / name).read_bytes() == (made / "again" / name).read_bytes()


def test_a_run_that_was_stopped_at_an_odd_step_ends_as_the_other(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Ctrl-C, in the middle of an epoch, between two resets."""
    monkeypatch.chdir(made)
    task_of = vqvae_runs.task_of

    def stopping(*args: Any) -> Any:
        task = task_of(*args)

        def draw(seed: int, step: int, *more: Any) -> Any:
            if step == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return task.draw(seed, step, *more)

        return task._replace(draw=draw)

    with monkeypatch.context() as patch:
        patch.setattr(script, "task_of", stopping)
        assert run(patch, *TINY, "--no-plots", "--out", "cut") == 130
    assert "python experiments/vqvae.py --resume cut" in capsys.readouterr().out
    assert train.find("cut").step == 5 and not Path("cut", "best_model.pt").exists()
    assert run(monkeypatch, "--resume-from", "cut") == 0
    assert same(made / "run", made / "cut")
    assert figures(made / "run") == figures(made / "cut")
    replaced = {r["step"]: r["train/replaced"] for r in figures(made / "cut") if "train/replaced" in r}
    assert [step for step, share in replaced.items() if share > 0] == [3, 6, 9]


def test_a_run_goes_on_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    family_tables.write_table(Path("table.npz"))
    Path("a.yaml").write_text(DOCUMENTED, encoding="utf-8")
    assert run(monkeypatch, "--config", "a.yaml", "--no-plots") == 0
    shown = capfd.readouterr().out
    assert "category_0: " in shown  # logging.verbose
    more = ["--resume-from", "made/best_model.pt", "--epochs", "5", "--batch-size", "9"]
    more += ["--learning-rate", "0.0005", "--verbose"]
    kept = {file: file.read_bytes() for file in Path("made").rglob("*") if file.is_file()}
    assert run(monkeypatch, *more, "--dry-run") == 0
    resolved = yaml.safe_load(capfd.readouterr().out)
    assert (resolved["train"]["epochs"], resolved["train"]["batch_size"]) == (5, 9)
    assert {file: file.read_bytes() for file in Path("made").rglob("*") if file.is_file()} == kept
    assert run(monkeypatch, *more) == 0
    out, err = capfd.readouterr()
    assert "category_0: " in out
    assert "train.lr (0.001 -> 0.0005)" in out + err and "batch_size (18 -> 9)" in out + err
    assert train.find("made").step == 5 * 6  # of 54 rows in batches of 9
    best = torch.load("made/best_model.pt", weights_only=True)
    assert json.loads(best["history"])["val/val_loss"]["step"][-1] == 30
    for words, error in (
        (["--topo-weight", "0.1"], "cannot change vqvae.topo_weight (0.3 -> 0.1)"),
        (["--decoder-dim", "9"], "cannot change net.decoder_dim"),
        (["--seed", "1"], "cannot change train.seed"),
        (["--out", "elsewhere"], "--out: a resumed run goes on in its own folder"),
    ):
        assert run(monkeypatch, "--resume-from", "made/best_model.pt", "--epochs", "6", *words) == 2
        assert error in capfd.readouterr().err
    # The data file must be that of the run's beginning.
    family_tables.write_table(Path("table.npz"), seed=1)
    assert run(monkeypatch, "--resume-from", "made", "--epochs", "6") == 2
    assert "--data: changed since the run began" in capfd.readouterr().err
    np.savez("table.npz", gamma=np.ones((60, 3)))
    assert run(monkeypatch, "--resume-from", "made", "--epochs", "6") == 2
    assert "--data: changed since the run began" in capfd.readouterr().err
    assert run(monkeypatch, "evaluate", "--checkpoint", "made/best_model.pt") == 2
    assert "changed since the run began" in capfd.readouterr().err


def test_categories_that_are_found_otherwise_stop_a_resumed_run(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    shutil.copytree("run", "moved")
    file = Path("moved/tokenizer.json")
    kept = json.loads(file.read_text())
    kept["assignment"] = kept["assignment"][::-1]
    file.write_text(json.dumps(kept))
    assert run(monkeypatch, "--resume", "moved", "--epochs", "4") == 2
    assert "tokenizer.json: the features or categories found now are others" in capfd.readouterr().err


def test_tokens_and_back(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """decode(encode(x)) is what the network's forward pass decodes, in the table's units."""
    monkeypatch.chdir(made)
    words = ["--checkpoint", "run", "--data", "table.npz", "--output", "tokens.parquet"]
    assert run(monkeypatch, "encode", *words) == 0
    assert "wrote tokens.parquet: 60 rows of" in capsys.readouterr().out
    assert run(monkeypatch, "decode", "--checkpoint", "run/best_model.pt", "--tokens", "tokens.parquet",
               "--output", "rows.h5") == 0  # fmt: skip
    tokenizer = vqvae_runs.trained(Path("run"))
    own = (tokenizer.nets, tokenizer.settings.vqvae, tokenizer.params, tokenizer.state)
    table = open_families("table.npz")
    parts = forward(*own, prepare(table, tokenizer.prepared))
    tokens = pq.read_table("tokens.parquet")
    assert np.array_equal(np.stack([c.to_numpy() for c in tokens.columns], 1), parts.indices.numpy())
    expected, found = restore(parts.decoded, tokenizer.prepared), open_families("rows.h5")
    assert list(found.families) == ["alpha", "beta", "waves"] and found.names == expected.names
    for name, values in expected.families.items():
        assert found.families[name].shape == table.families[name].shape
        assert np.array_equal(found.families[name], values)
    # Some rows; another file of the same families; the rest of the commands.
    assert run(monkeypatch, "encode", *words[:-1], "few.parquet", "--max-samples", "7") == 0
    assert pq.read_table("few.parquet").equals(tokens.slice(0, 7))
    assert run(monkeypatch, "evaluate", "--checkpoint", "run") == 0
    one, two = (json.loads(Path(f, "report.json").read_text()) for f in ("run", "run/evaluation"))
    assert one["scores"] == two["scores"] and one["codebooks"] == two["codebooks"]
    assert run(monkeypatch, "picture", "--checkpoint", "run", "--output", "books.png") == 0
    assert Path("books.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    # Tokens of another tokenizer, in form the same.
    decode = ["decode", "--tokens", "tokens.parquet", "--output", "no.h5", "--checkpoint"]
    assert run(monkeypatch, *decode, "other") == 2
    assert "tokens.parquet: expected tokens of this tokenizer" in capsys.readouterr().err
    assert not Path("no.h5").exists()


def test_an_extra_that_is_missing_is_named(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    for method, package, extra in (("umap", "umap", "umap"), ("tsne", "sklearn.manifold", "vqvae")):
        monkeypatch.setitem(sys.modules, package, None)
        assert (
            run(monkeypatch, "picture", "--checkpoint", "run", "--output", "no.png", "--method", method) == 2
        )
        assert f'pip install "mfk[{extra}]"' in capsys.readouterr().err
    assert not Path("no.png").exists()


def test_operators_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--realisations", "2", "--seed", "5"]
    assert run(monkeypatch, "generate", "--output", "a.h5", "--samples", "12", *words) == 0
    out, err = capfd.readouterr()
    assert "wrote a.h5: 12 operators" in out and "12/12 operators" in err
    table = open_families("a.h5", ["architecture"])
    assert table.families["architecture"].shape == (12, 21)
    assert run(monkeypatch, "generate", "--output", "a.h5", "--samples", "12", *words) == 2
    assert "a.h5" in capfd.readouterr().err
    # The default's table is made where it is not there, but not by a dry run.
    monkeypatch.setattr(vqvae_runs, "BASELINES", {"baseline_10k.h5": 40})
    assert run(monkeypatch, "--dry-run") == 2
    assert "a dry run makes nothing; make it by: vqvae.py generate" in capfd.readouterr().err
    assert run(monkeypatch, "--topo-samples", "2") == 2  # said before anything is made
    assert not Path("datasets").exists()
    assert run(monkeypatch, "--max-clusters", "1") == 2
    assert open_families("datasets/baseline_10k.h5").families["summary"].shape[0] == 40
    assert run(monkeypatch, "--topo-samples", "3", "--dry-run", "--verbose") == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert shown["data"]["data"] == "datasets/baseline_10k.h5" and shown["families"] == {}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--data", "none.npz"], "none.npz"),
        (["--data", "row.npz"], "row.npz: expected at least 8 rows, got 1"),
        (["--data", "empty.npz"], "empty.npz: alpha"),
        (["--data", "constant.npz"], "constant.npz: "),
        (["--data", "nan.npz"], "nan.npz: "),
        (["--data", "table.npz", "--config", "gamma.yaml"], "table.npz: there is no family 'gamma'"),
        (["--config", "codes.yaml"], "levels: category"),
        (["--config", "typo.yaml"], "typo.yaml: training: unknown key 'batchsize'"),
        (["--config", "ours.yaml"], "ours.yaml: vqvae: unknown key 'decy'"),
        (["--data", "table.npz", "--config", "mapping.yaml"], "beta::beta_0"),
        (["--members", "2"], "members: a tokenizer is one network"),
        (["--validation-share", "1.5"], "validation_share: expected a number between 0 and 1"),
        (["--topo-weight", "-1"], "topo_weight: expected a finite number >= 0"),
        (["--category-assignment", "manual"], "category_mapping: category_assignment manual needs it"),
        (["--no-use-ema"], "decay: no effect without use_ema; leave it at 0.99"),
        (["--out", "locked/run"], "locked"),
        (["--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["encode", "--checkpoint", "nowhere", "--data", "table.npz", "--output", "a.parquet"], "nowhere"),
        (["encode", "--checkpoint", "run", "--data", "table.npz", "--output", "a.csv"], "--output: expected"),
        (["encode", "--checkpoint", "run", "--data", "nan.npz", "--output", "a.parquet"], "nan.npz: "),
        (["encode", "--checkpoint", "run", "--data", "less.npz", "--output", "a.parquet"], "less.npz: "),
        (["encode", "--checkpoint", "run", "--data", "table.npz", "--output", "no/a.parquet"], "folder no"),
        (["encode", "--checkpoint", "run", "--data", "table.npz", "--output", "locked/a.parquet"], "locked"),
        (
            ["decode", "--checkpoint", "run", "--tokens", "table.npz", "--output", "a.h5"],
            "table.npz: the file is damaged",
        ),
        (["picture", "--checkpoint", "run", "--output", "locked/a.png"], "locked"),
        (["generate", "--output", "locked/a.h5", "--samples", "2"], "locked"),
        (["generate", "--output", "a.h5", "--samples", "0"], "samples"),
    ],
)
def test_mistakes(
    words: list[str],
    what: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line that names what is wrong, exit code 2, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    os.symlink(made / "run", "run")
    table = family_tables.arrays()
    np.savez("table.npz", **table)  # pyright: ignore[reportArgumentType]
    np.savez("row.npz", **{name: x[:1] for name, x in table.items()})  # pyright: ignore[reportArgumentType]
    np.savez("empty.npz", alpha=np.ones((60, 0), np.float32), beta=table["beta"])
    np.savez("constant.npz", alpha=np.ones((60, 3), np.float32))
    np.savez("less.npz", alpha=table["alpha"], beta=table["beta"][:, :3], waves=table["waves"])
    table["alpha"][2, 2] = np.nan
    np.savez("nan.npz", **table)  # pyright: ignore[reportArgumentType]
    for name, text in {
        "gamma": DOCUMENTED.replace("alpha:", "gamma:"),
        "codes": DOCUMENTED.replace("num_tokens: 6", "num_tokens: 55"),
        "typo": DOCUMENTED.replace("batch_size", "batchsize"),
        "ours": "vqvae: {decy: 0.9}",
        "mapping": "categories: {category_assignment: manual}\ncategory_mapping: {a: ['alpha::*']}",
    }.items():
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
    Path("locked").mkdir()
    if os.geteuid() == 0:  # whom no mode stops: a file in the folder's place does
        Path("locked").rmdir()
        Path("locked").write_text("")
    else:
        Path("locked").chmod(0o500)
    before = {*Path().iterdir()}
    more = [] if not words[0].startswith("--") or "--config" in words else TINY
    if "--data" in words and more:
        more = [w for w in more if w not in ("--data", "table.npz")]
    assert run(monkeypatch, *more, *words) == 2
    err = capsys.readouterr().err
    assert what in err and "Traceback" not in err, err
    assert {*Path().iterdir()} == before
