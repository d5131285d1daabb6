"""The measurement of networks: its rows, its batches, and networks that fail."""

import inspect
import subprocess

import jax
import pytest
from conftest import ROOT, phantom_config

from benchmarks import __main__ as command
from benchmarks import networks, training
from usam_jax import models
from usam_jax.models.common.spec import group_of
from usam_jax.training import loop
from usam_jax.utils.mesh import make_mesh

TOY = str(ROOT / "tests" / "toy_network.py")


def test_dry_run_of_a_network_has_every_row(monkeypatch):
    monkeypatch.setattr(training, "product_limit", lambda _: lambda _took: 1e12)
    rows = {what: (value, unit) for what, value, unit in networks.measure_network(TOY, dry=True)}
    found = {what: unit for what, (_, unit) in rows.items()}
    expected = {}
    for about in ("evaluating toy_network", "training toy_network"):
        name = f"{about}, 32x32, batch 4"
        expected |= {
            name: "slices/s",
            f"the same, of a matrix product: {name}": "",
            f"temporary memory of {name}": "GB",
            f"total memory of {name}": "GB",
        }
    assert found == expected | {"compiling for training toy_network, 32x32, batch 4": "s"}
    name = "training toy_network, 32x32, batch 4"
    assert rows[f"total memory of {name}"] > rows[f"temporary memory of {name}"]
    assert all(value > 0 for value, _ in rows.values())


@pytest.mark.parametrize("name", ["unet", "usam", "vnet3d"])
def test_batch_of_a_network_has_what_its_step_takes(name):
    config = networks.make_config(name, dry=True)
    batch = training.make_batch(config)
    size = config.model.image_size
    assert batch["image"].shape == ((1, 16, size, size) if name == "vnet3d" else (4, size, size))
    assert ("points_xy" in batch) == (name == "usam")
    step = loop.make_training(config, 100, make_mesh(1))
    state, values = jax.eval_shape(step.train_step, step.target, batch)
    assert values["train/loss"].shape == () and state.step.shape == ()


def test_batch_of_an_interactive_network_has_what_its_step_takes():
    interactive = {"model.interactive": True, "prompts.kind": "interactive", "prompts.rounds": 1}
    config = phantom_config("sam_s", **interactive)
    step = loop.make_training(config, 100, make_mesh(1))
    batch = training.make_batch(config)
    assert jax.eval_shape(step.train_step, step.target, batch)[1]["train/loss"].shape == ()


def test_work_of_a_step_of_windows_is_that_of_a_slice():
    config = networks.make_config("vnet3d", dry=True)
    step, forward = networks.count_step(config), networks.forward_flop(config.model)
    assert 2.5 < step / forward < 3.1


def test_failing_network_does_not_lose_the_rows_of_others(monkeypatch, capsys):
    called = []

    def run(arguments, **_):
        called.append(arguments[4:])
        return subprocess.CompletedProcess(arguments, 137 if "vnet" in arguments else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert command.measure_networks(["unet", "vnet", TOY], True, pytest.fail) == 4
    assert called == [[x, "--dry"] for x in ("unet", "vnet", TOY)]
    err = capsys.readouterr().err
    assert "network 2 of 3: vnet" in err and "network 3 of 3: toy_network" in err
    assert "error: 1 of 3 networks failed: vnet (exit code 137)." in err
    with pytest.raises(SystemExit) as stopped:
        monkeypatch.setattr("sys.argv", ["benchmarks", "networks", "unet", "nope"])
        command.main()
    assert stopped.value.code == 2 and "got 'nope', expected one of" in capsys.readouterr().err


def test_samed_whole_trains_the_encoder_without_lora():
    config = models.make_config(str(ROOT / "benchmarks" / "samed_whole.py"))
    config.update(models.get("samed").small)
    spec, params = models.get(config.name), models.variable_shapes(config)["params"]
    paths = [
        "/".join(x.key for x in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for path in paths:
        lora, encoder = "linear_" in path, path.startswith("image_encoder/")
        group = (
            None if lora else "image_encoder" if encoder else group_of(path, models.get("samed"))
        )
        assert group_of(path, spec) == group, path


@pytest.mark.parametrize("given", [["volume_clicks", "runs/x"], ["rounds"], ["cost"]])
def test_command_gives_a_benchmark_what_it_takes(given, monkeypatch):
    called = []
    monkeypatch.setattr(command, "measure", lambda name, _fail, *rest: called.append([name, *rest]))
    monkeypatch.setattr("sys.argv", ["benchmarks", *given])
    assert command.main() == 0 and called == [given]
    inspect.signature(command.BENCHMARKS[given[0]].load()).bind(*given[1:])
