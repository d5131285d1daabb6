"""The training loop: step, sharding, loss, checkpoints, records and pooled metrics."""

import dataclasses
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, finish_run, phantom_config
from rich.console import Console

from usam_jax.data import loader, splits
from usam_jax.data.packed import prepare
from usam_jax.evaluation import checks, evaluate, pixel_counts
from usam_jax.training import loop, losses, optimizer, run_record
from usam_jax.training.metric_writer import MetricWriter
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, UsageError, UserError, WeightsError
from usam_jax.utils.files import write_json
from usam_jax.utils.mesh import check_batch_size, make_mesh, shard_batch
from usam_jax.weights import run_checkpoint


@pytest.fixture(scope="module")
def packed_phantoms(tmp_path_factory):
    """The small config and its packed phantoms."""
    folder = tmp_path_factory.mktemp("packed")
    config = phantom_config(**{"data.packed_dir": str(folder)})
    return config, prepare.prepare(config.data)


def run_steps(config, packed, num_devices: int, count: int):
    mesh = make_mesh(num_devices)
    iterator, steps = loader.train_batches(packed, np.arange(24), config)
    training = loop.make_training(config, steps, mesh)
    state, train_step = training.start_fn(), training.train_step
    before = jax.tree.map(np.array, state.variables())
    rows = []
    for _ in range(count):
        state, values = train_step(state, shard_batch(next(iterator), mesh))
        rows.append([float(values[f"train/{name}"]) for name in ("loss", "ce", "dice")])
    return np.array(rows), before, state, train_step


NUM_STEPS = 5


@pytest.fixture(scope="module")
def one_device_run(packed_phantoms):
    return run_steps(*packed_phantoms, 1, NUM_STEPS)


def changed(config, **changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): x for k, x in changes.items()})
    return config


def bytes_per_device(state) -> int:
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))


def test_eight_devices_give_the_losses_of_one(packed_phantoms, one_device_run):
    config, packed = packed_phantoms
    alike, _, state, _ = run_steps(config, packed, 8, NUM_STEPS)
    split, _, split_state, step = run_steps(changed(config, train__fsdp=True), packed, 8, NUM_STEPS)
    # Only the order of sums differs: BatchNorm and Dice are computed over the whole batch.
    np.testing.assert_allclose(alike, one_device_run[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(split, one_device_run[0], rtol=0, atol=1e-5)
    assert bytes_per_device(split_state) < bytes_per_device(state) / 4
    assert step._cache_size() == 1


@pytest.mark.faults  # takes minutes, since each process compiles for itself
def test_two_processes_give_the_losses_of_one_device(packed_phantoms, one_device_run):
    config, _ = packed_phantoms
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    script = [sys.executable, str(ROOT / "tests" / "run_process.py"), coordinator, "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [*script, str(i), config.data.packed_dir, str(NUM_STEPS)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    for text in printed:
        found = json.loads(text.splitlines()[-1])
        assert found["devices"] == 8
        np.testing.assert_allclose(found["losses"], one_device_run[0], rtol=0, atol=1e-5)


def test_grad_accumulation_equals_per_device_statistics(packed_phantoms):
    config, packed = packed_phantoms
    devices = changed(config, train__statistics="device")
    parts = changed(config, train__grad_accum_steps=2)
    a, *_ = run_steps(devices, packed, 2, 3)
    b, *_ = run_steps(parts, packed, 1, 3)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_train_step_skips_update_if_loss_is_not_finite(packed_phantoms, one_device_run, tmp_path):
    config, packed = packed_phantoms
    config = changed(config, train__ema_decay=0.75, model__remat=True)
    mesh = make_mesh(1)
    iterator, steps = loader.train_batches(packed, np.arange(24), config)
    training = loop.make_training(config, steps, mesh)
    state = training.start_fn()
    begun = jax.tree.map(np.array, {x: getattr(state, x) for x in ("params", "batch_stats")})
    state, values = training.train_step(state, shard_batch(next(iterator), mesh))
    # Recomputed activations may be fused with other operations and rounded differently.
    np.testing.assert_allclose(values["train/loss"], one_device_run[0][0, 0], rtol=0, atol=1e-5)
    good = jax.tree.map(np.array, state)
    done = {"params": good.params, "batch_stats": good.batch_stats}
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, begun, done)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), good.ema, expected)
    evaluated = {name: state.variables()[name] for name in done}
    assert jax.tree.all(jax.tree.map(np.array_equal, evaluated, good.ema))
    write_json(tmp_path / "config.json", json.loads(config.to_json_best_effort()))
    with run_checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, state, 0.5)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = run_checkpoint.load_variables(tmp_path, config.model, 1, device)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, state.variables()))
    batch = next(iterator)
    state, values = training.train_step(
        state, shard_batch({**batch, "points_xy": batch["points_xy"] * np.float32(np.nan)}, mesh)
    )
    assert not np.isfinite(values["train/loss"]) and int(values["train/skipped"]) == 1
    for name in ("params", "batch_stats", "opt_state", "ema"):
        same = jax.tree.map(np.array_equal, getattr(state, name), getattr(good, name))
        assert jax.tree.all(same), name
    assert (int(state.step), int(state.num_skipped), int(state.last_skipped)) == (2, 1, 2)
    assert training.train_step._cache_size() == 1


def test_train_step_compiles_once(one_device_run):
    assert one_device_run[3]._cache_size() == 1


def test_train_step_updates_all_but_the_prompt_encoder(one_device_run):
    _, before, state, _ = one_device_run
    after = jax.tree.map(np.array, state.variables())
    same = jax.tree.map(np.array_equal, before, after)
    assert jax.tree.all(same["constants"])
    assert jax.tree.all(same["params"]["prompt_encoder"])
    for part in ("backbone", "image_encoder", "mask_decoder"):
        assert not any(jax.tree.leaves(same["params"][part])), part
    assert not any(jax.tree.leaves(same["batch_stats"]))
    assert int(state.step) == NUM_STEPS


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("sam_s", {"prompts.kind": "none"}),
        ("usam", {"model.dtype": "bfloat16", "prompts.kind": "points_box"}),
        ("unet", {"optimizer.name": "sgd", "optimizer.learning_rates.all": 0.1}),
    ],
)
def test_train_step_lowers_loss_in_other_setups(packed_phantoms, network, changes):
    given, packed = packed_phantoms
    config = phantom_config(network, **changes)
    config.data = given.data
    config.data.augment, config.train.batch_size = False, 24
    config.optimizer.warmup = True
    rows, _, state, _ = run_steps(config, packed, 1, 4)
    assert rows[-1, 0] < rows[0, 0]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}


def test_polynomial_decay_equals_the_published_schedule():
    factor_fn = optimizer.polynomial_decay(100)
    np.testing.assert_allclose(factor_fn(0), 1.0)
    np.testing.assert_allclose(factor_fn(50), 0.5**0.9, rtol=1e-6)
    assert float(factor_fn(100)) == float(factor_fn(150)) == 0.0
    warm = optimizer.polynomial_decay(100, warmup_steps=10)
    np.testing.assert_allclose(warm(5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(warm(60), 0.5**0.9, rtol=1e-6)


def test_segmentation_loss_equals_its_formula_in_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 5, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 5, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.eye(3)[labels]
    ce = -np.log((p * y).sum(-1)).mean()
    dice = np.mean(
        [
            1
            - (2 * (p[..., c] * y[..., c]).sum() + 1e-5)
            / ((p[..., c] ** 2).sum() + (y[..., c] ** 2).sum() + 1e-5)
            for c in range(3)
        ]
    )
    loss, parts = losses.segmentation_loss(jnp.asarray(logits), jnp.asarray(labels, jnp.int32))
    np.testing.assert_allclose(parts["ce"], ce, rtol=1e-5)
    np.testing.assert_allclose(parts["dice"], dice, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.4 * ce + 0.6 * dice, rtol=1e-5)


def test_pooled_scores_count_all_slices_without_padding():
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 4, (2, 7, 6, 6))
    labels[labels == 3] = 0
    predicted[predicted == 3] = 0
    valid = np.array([True] * 5 + [False] * 2)
    counts = pixel_counts.count_pixels(
        jnp.asarray(predicted, jnp.int32), jnp.asarray(labels, jnp.int32), jnp.asarray(valid), 4
    )
    scores = pixel_counts.pooled_scores(np.asarray(counts), ("background", "a", "b", "c"))
    for c, name in ((1, "a"), (2, "b")):
        p, y = predicted[:5] == c, labels[:5] == c
        assert scores.dice[name] == 2 * (p & y).sum() / (p.sum() + y.sum())
        assert scores.iou[name] == (p & y).sum() / (p | y).sum()
    assert scores.dice["c"] is None  # neither present nor predicted, so not in the mean
    assert scores.mean_dice == (scores.dice["a"] + scores.dice["b"]) / 2


def test_check_batch_size_rejects_indivisible_batch():
    with pytest.raises(UsageError, match=r"config.train.batch_size: got 6, .* multiple of the 8"):
        check_batch_size(6, make_mesh(8), "config.train.batch_size")


def test_check_all_names_invalid_field():
    config = phantom_config()
    config.model.num_classes = 4
    with pytest.raises(UsageError, match=r"config.model.num_classes: got 4"):
        checks.check_all(config, make_mesh(1))
    for field, value in (
        ("eval.select_on", "train"),
        ("eval.split", "validation"),
        ("train.num_epochs", 0),
        ("data.val_fraction", 1.5),
        ("prompts.kind", "clicks"),
    ):
        with pytest.raises(UsageError, match=rf"config.{field}: got {value!r}"):
            checks.check_all(phantom_config(**{field: value}), make_mesh(1))
    checks.check_all(phantom_config("vnet3d"), make_mesh(1))
    with pytest.raises(UsageError, match=r"config.model.slices: got 24, expected a positive mul"):
        checks.check_all(phantom_config("vnet3d", **{"model.slices": 24}), make_mesh(1))


def test_metric_writer_drops_rows_past_the_checkpoint(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # a process that was killed while writing
    with MetricWriter(tmp_path, 2) as writer:
        writer.write(3, {"train/loss": 0.5, "val/dice/tumour": None})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line[:10] for line in lines] == ['{"step": 1', '{"step": 2', '{"step": 3']
    assert lines[2].endswith('"train/loss": 0.5, "val/dice/tumour": null}')


def test_best_step_rejects_checkpoint_of_another_model(tmp_path):
    config = phantom_config()
    with pytest.raises(WeightsError, match="has no finished checkpoint"):
        run_checkpoint.best_step(tmp_path, config.model)
    finish_run(tmp_path, config)
    with pytest.raises(
        WeightsError, match=r"config.model.variant: got 'vit_b', expected 'smallest'"
    ):
        run_checkpoint.best_step(tmp_path, phantom_config(**{"model.variant": "vit_b"}).model)


def test_checkpoints_keeps_best_and_last_two(packed_phantoms, one_device_run, tmp_path):
    config, _ = packed_phantoms
    _, _, state, _ = one_device_run
    write_json(tmp_path / "config.json", json.loads(config.to_json_best_effort()))
    with run_checkpoint.Checkpoints(tmp_path) as saved:
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.1), (5, 0.3)):
            saved.save(step, dataclasses.replace(state, step=jnp.int32(step)), score)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]
    half_saved = tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp"
    half_saved.mkdir()
    reopened = run_checkpoint.Checkpoints(tmp_path, read_only=True)
    assert half_saved.exists()  # another process may be writing it
    assert reopened.best_step == 2
    assert reopened.latest_step == 5
    target = run_checkpoint.abstract_arrays(
        state, jax.sharding.SingleDeviceSharding(jax.devices()[3])
    )
    restored = reopened.restore(2, target)
    assert int(restored.step) == 2
    same = jax.tree.map(np.array_equal, restored.params, state.params)
    assert jax.tree.all(same)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    variables = run_checkpoint.load_variables(tmp_path, config.model, 2, device)
    assert variables.keys() == {"params", "batch_stats", "constants"}
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, state.variables()))
    for path in (tmp_path / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(WeightsError, match=r"checkpoints/2: a damaged checkpoint"):
        run_checkpoint.load_variables(tmp_path, config.model, 2, device)


def test_checkpoints_save_rejects_full_disk(one_device_run, tmp_path, monkeypatch):
    with run_checkpoint.Checkpoints(tmp_path) as saved:
        saved.save(1, one_device_run[2], 0.5)
        saved.wait()
        full = types.SimpleNamespace(free=10**6)
        monkeypatch.setattr(run_checkpoint.shutil, "disk_usage", lambda path: full)
        with pytest.raises(
            WeightsError, match=r"needs 0\.0. GB, but 0\.00 GB of the disk are free"
        ):
            saved.save(2, one_device_run[2], 0.6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_train_stops_at_a_loss_that_is_not_finite(packed_phantoms, tmp_path):
    config = phantom_config("unet")  # compiles faster
    config.data = packed_phantoms[0].data
    rates = {f"optimizer.learning_rates.{part}": 1e30 for part in config.optimizer.learning_rates}
    config.update_from_flattened_dict(rates)
    with pytest.raises(UserError, match=r"not finite at step \d+, on the slices phantom_"):
        loop.train(config, tmp_path, evaluate.make_evaluate_fn)
    assert not list(tmp_path.glob("checkpoints/*tmp*"))


def test_check_unseen_rejects_slices_that_were_trained_on(packed_phantoms, tmp_path):
    config, packed = packed_phantoms
    parts = splits.split_subsets(packed, config.data, "val")
    splits.write_record(tmp_path, packed, parts)
    for name, part in parts.items():
        splits.check_unseen(tmp_path, packed, part, name)
    data = config.data.copy_and_resolve_references()
    data.val_fraction = 0.5
    other = splits.split_subsets(packed, data, "val")["val"]
    with pytest.raises(DataError, match=r"was trained on 8 of the 16 slices of the split val"):
        splits.check_unseen(tmp_path, packed, other, "val")
    splits.check_record(tmp_path, packed)
    packed.manifest["fingerprint"], before = "other", packed.manifest["fingerprint"]
    with pytest.raises(DataError, match="the data set has changed since"):
        splits.check_record(tmp_path, packed)
    packed.manifest["fingerprint"] = before


def test_progress_nests_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=stream, force_terminal=True, width=120))
    with console.Progress("training", 2, "steps") as outer:
        outer.advance(note="loss 0.5", per_step=8)
        with console.Progress("evaluating", 1, "batches") as inner:
            inner.advance()
        console.info("epoch 1")
        outer.advance()
    text = stream.getvalue()
    assert "training" in text and "evaluating" in text and "2/2" in text and "loss 0.5" in text


def test_run_record_names_initial_weights(packed_phantoms, tmp_path):
    config, packed = packed_phantoms
    (tmp_path / "sam.pth").write_bytes(b"weights")
    config = changed(config, init_from=str(tmp_path / "sam.pth"))
    run_record.RunRecord(tmp_path, config, packed, 0)
    (start,) = json.loads((tmp_path / "run.json").read_text())["starts"]
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert start["init_from"] == [{"file": "sam.pth", "sha256": sha256}]
