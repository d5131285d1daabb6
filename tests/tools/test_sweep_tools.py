"""The commands that sweep over networks: names, resuming, failing runs and one real run."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT
from network_results import CLASSES, PATIENTS, make_run, make_shown

from tools import ablation, click_ablation, compare_networks
from usam_jax.evaluation import published_results, sweep
from usam_jax.evaluation.network_run import shown_path
from usam_jax.models import Prompts
from usam_jax.models.common import registry
from usam_jax.models.sam.interactive import Interactive
from usam_jax.utils import cli
from usam_jax.utils.workdir import Workdir

TINY = {
    "model.image_size": "32",
    "data.anatomy": "single",
    "data.phantom_seed": "1",
    "data.num_patients": "(3,2)",
    "data.slices_per_patient": "8",
    "data.val_fraction": "0.3",
    "train.num_epochs": "1",
    "train.log_every_steps": "1",
    "eval.batch_size": "8",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a tool on tiny phantoms and returns its exit code."""

    def run_command(*arguments: str, tool=compare_networks) -> int:
        fields = TINY | {"data.packed_dir": str(tmp_path / "packed")}
        overrides = [f"--config.{x}={y}" for x, y in fields.items()]
        argv = ["x", f"--config={ROOT / 'configs/phantom.py'}", *overrides, *arguments]
        argv.append(f"--workdir={tmp_path / 'runs'}")
        monkeypatch.setattr("sys.argv", argv)
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            return cli.run(tool.main, argv)

    return run_command


@pytest.fixture
def fast(monkeypatch):
    """Runs that train nothing, the list of their names, and the errors to raise by name."""
    called: list[str] = []
    errors: dict[str, BaseException] = {}

    def run_network(config, folder):
        name = f"{folder.parent.name}, {folder.name}"
        called.append(name)
        if name in errors:
            raise errors[name]
        shift = 1 + config.seed + (config.model.name == "unet")
        result, made = make_run(Workdir(folder).evaluations / "test_none", shift, PATIENTS)
        np.savez(shown_path(folder), **make_shown(32, ["s"]))
        assert made.summary.is_file() and tuple(config.data.classes) == CLASSES
        return result

    monkeypatch.setattr(compare_networks, "run_network", run_network)
    return called, errors


def test_stopped_comparison_resumes_in_the_middle(run, fast, tmp_path, capsys):
    called, errors = fast
    errors["unet, seed_1"] = KeyboardInterrupt()
    two = ("--networks=unet,usam@none", "--seeds=0,1")
    assert run(*two) == 130
    assert called == ["unet, seed_0", "usam@none, seed_0", "unet, seed_1"]
    assert not (tmp_path / "runs/networks.md").exists()
    errors.clear()
    called.clear()
    assert run(*two) == 0
    assert called == ["unet, seed_1", "usam@none, seed_1"]
    printed = capsys.readouterr()
    assert "run 3 of 4: unet, seed 1; about" in printed.err
    assert "| unet | none (automatic) |" in printed.out
    for name in compare_networks.OUTPUTS:
        assert (tmp_path / "runs" / name).stat().st_size > 500, name
    table = json.loads((tmp_path / "runs/networks.json").read_text())
    assert [x["name"] for x in table["rows"]] == ["unet", "usam@none"]
    assert table["rows"][0]["against"]["difference"] < 0 and table["shown"] == ["s"]
    assert run("--networks=unet", "--seeds=0") == 0  # a part of the sweep


def test_failing_network_ends_only_its_runs(run, fast, tmp_path, capsys):
    called, errors = fast
    errors["unet, seed_0"] = errors["unet, seed_1"] = RuntimeError("no memory")
    assert run("--networks=unet,usam@none", "--seeds=0,1") == 4
    assert len(called) == 4
    printed = capsys.readouterr()
    assert "2 of 4 runs failed:\n  unet, seed 0: RuntimeError: no memory" in printed.err
    assert "| usam@none |" in printed.out and "| unet |" not in printed.out
    assert "no memory" in (tmp_path / "runs/unet/seed_0.log").read_text()


def test_network_that_cannot_be_traced_only_fails_its_runs(run, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(
        (ROOT / "tests" / "toy_network.py").read_text().replace('name="stem")', 'nam="stem")')
    )
    assert run(f"--networks={tmp_path / 'bad.py'}", "--seeds=0") == 4
    err = capsys.readouterr().err
    assert "bad.py: cannot be traced (TypeError" in err and "1 of 1 runs failed:" in err
    assert not (tmp_path / "runs/networks.md").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--networks=unet,nope"], "--networks: got nope, expected some of .*unet, usam"),
        (["--networks=unet,unet"], "--networks: got unet, unet, expected each network once"),
        (["--networks=usam@clicks"], "got usam@clicks, expected the prompts none, box or pointsN"),
        (["--networks=unet@points3"], "unet@points3: config.prompts.kind: got 'points', expected"),
        (["--networks=unet", "--against=usam@none"], "--against: got usam@none, expected one of"),
        (["--networks=unet", "--seeds=0,0"], "--seeds: got .*, expected different integers"),
        (["--networks=unet", "--seeds=0,a"], r"--seeds: got \['0', 'a'\], expected"),
        (["--networks=unet", "--config.model.width=3"], "width: no such field"),
    ],
)
def test_wrong_networks_are_named_before_any_run(arguments, expected, run, fast, tmp_path, capsys):
    assert run(*arguments) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert fast[0] == [] and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["care", "word", "phantom"])
def test_networks_of_the_papers_tables_exist(kind):
    rows = published_results.compared_networks(kind)
    assert len(rows) == {"care": 12, "word": 13, "phantom": 14}[kind]
    assert {network for network, _ in rows} <= set(registry.names())


def test_foreign_outputs_are_kept(run, fast, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/networks.csv").write_text("mine")
    assert run("--networks=unet", "--seeds=0") == 2
    assert "networks.csv: exists and is not results" in capsys.readouterr().err
    assert (tmp_path / "runs/networks.csv").read_text() == "mine" and fast[0] == []


def test_real_run_reports_cost_and_shows_slices(run, tmp_path):
    shutil.copy(ROOT / "tests" / "toy_network.py", tmp_path / "toy.py")
    assert run(f"--networks={tmp_path / 'toy.py'}", "--seeds=0") == 0
    folder = tmp_path / "runs"
    (row,) = json.loads((folder / "networks.json").read_text())["rows"]
    result = json.loads((folder / "toy/seed_0.json").read_text())
    assert row["parameters"] == result["parameters"] == 80 + 584 + 16 + 27 + 27
    # stem, body and head on each pixel, side on a quarter of them
    assert row["flop"] == 2 * 32 * 32 * (9 * 8 + 9 * 8 * 8 + 8 * 3 + 8 * 3 / 4)
    assert row["predicted_per_second"] > 0 and row["trained_per_second"] > 0
    assert row["epochs"] == 1 and row["steps"] == 2 and "cores" in row["devices"][0]
    with np.load(folder / "toy/seed_0.npz") as shown:
        assert shown["predicted"].shape == shown["truth"].shape == (2, 32, 32)
        assert (shown["truth"] > 0).any((1, 2)).all()
    assert (folder / "same_slices.png").stat().st_size > 5_000


def test_ablation_resumes_and_reports_when_all_runs_are_done(run, tmp_path, monkeypatch, capsys):
    called, errors = [], {}

    def run_one(config, folder):
        called.append(f"{folder.parent.name}, {config.model.name}, {config.seed}")
        if folder.parent.name in errors:
            raise errors[folder.parent.name]
        values = {"rectum": 0.5, "tumour": 0.25 + config.seed / 4, "mean": 0.4}
        return {"dice": values, "iou": values}

    monkeypatch.setattr(ablation, "run_one", run_one)
    errors["S+U"] = ValueError("broken")
    assert run("--seeds=0,1", tool=ablation) == 4
    assert len(called) == 18 and called[0] == "S, sam_s, 0" and called[2] == "S+U+1_point, usam, 0"
    assert "2 of 18 runs failed:\n  S+U, seed 0: ValueError: broken" in capsys.readouterr().err
    assert not (tmp_path / "runs/ablation.md").exists()
    errors.clear()
    called.clear()
    assert run("--seeds=0,1", tool=ablation) == 0
    assert called == ["S+U, usam, 0", "S+U, usam, 1"]
    text = (tmp_path / "runs/ablation.md").read_text()
    assert "| S+U | 50.00 ± 0.00 | 50.00 ± 0.00 | 37.50 ± 17.68 |" in text
    assert text.count("\n") == 12
    assert (tmp_path / "runs/dice.png").stat().st_size > 5_000


def parts_that_are_cut() -> set[str]:
    """What an interactive extension with any weights withholds of a click and a prediction."""
    extension = Interactive(3, 8, 16, (4,), (1,), jnp.float32)
    prompts = Prompts(
        jnp.ones((1, 1, 2)), jnp.ones((1, 1), int), point_classes=jnp.ones((1, 1), int)
    )
    variables = jax.eval_shape(extension.init, jax.random.key(0), prompts)
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(0)
    any_weights = tree.unflatten([rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    hints = jax.jit(extension.apply)(any_weights, prompts)
    names = ("embedding", "maps", "logits")
    cut = {x for x in names if not any(y.any() for y in jax.tree.leaves(getattr(hints, x)))}
    predicted = dataclasses.replace(prompts, previous=jnp.ones((1, 16, 16, 3)))
    others = jax.jit(extension.apply)(any_weights, predicted)
    pairs = zip(jax.tree.leaves(hints), jax.tree.leaves(others), strict=True)
    return cut | ({"previous"} if all((x == y).all() for x, y in pairs) else set())


def test_click_ablation_resumes_and_reports(run, tmp_path, monkeypatch, capsys):
    called, cut_parts = [], {}

    def train_and_evaluate(config, folder):
        called.append(folder.parent.name)
        cut_parts[folder.parent.name] = parts_that_are_cut()
        if config.seed == 1 and called.count("whole") == 2 and called[-1] == "whole":
            raise ValueError("broken")
        assert config.model.interactive and config.eval.prompts == ("none",)
        dice = {"dice": {"mean": 0.6 + config.seed / 10}}
        clicks = {
            "adherence": 0.98,
            "cleared_by_negative": None,
            "dice": [0.1 * x for x in range(11)],
        }
        clicks["number_of_clicks"] = {"85": {"mean": 2.5}}
        return {
            "other_prompts": {"none": dice},
            "pooled": {"dice": {"mean": 0.9}},
            "clicks": clicks,
        }

    monkeypatch.setattr(sweep, "train_and_evaluate", train_and_evaluate)
    assert run("--seeds=0,1", tool=click_ablation) == 4
    assert called[:2] == ["whole", "without_mask_prompt"] and len(called) == 10
    assert not (tmp_path / "runs/clicks.md").exists()
    for variant, part in click_ablation.VARIANTS.items():
        assert cut_parts[variant.replace(" ", "_")] == ({part} if part else set()), variant
    called.clear()
    assert run("--seeds=0,1", tool=click_ablation) == 0
    assert called == ["whole"]
    text = (tmp_path / "runs/clicks.md").read_text()
    assert text.startswith(
        "| clicks | automatic | points | 1 click | 3 clicks | 5 clicks | 10 clicks |"
    )
    shares = "65.0 ± 7.1 | 90.0 ± 0.0 | 10.0 ± 0.0 | 30.0 ± 0.0 | 50.0 ± 0.0 | 100.0 ± 0.0"
    assert (
        f"| without click maps | {shares} | 2.5 ± 0.0 | 98.0 ± 0.0 | absent | 60.0 | 70.0 |" in text
    )
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("model.interactive=False", "got usam without clicks, expected interactive=True"),
        ("prompts.kind=points", "config.prompts.kind: got 'points', expected 'interactive'"),
        ("eval.max_clicks=5", "config.eval.max_clicks: got 5, expected 10 or more"),
    ],
)
def test_click_ablation_needs_clicks(run, flag, message, capsys):
    assert run(f"--config.{flag}", tool=click_ablation) == 2
    assert message in capsys.readouterr().err
