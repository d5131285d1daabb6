"""The step, its sharding, the optimiser and the figures of an evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import phantom_config

from usam_jax import checkpoint, evaluate, logs, losses, metrics, optim, train
from usam_jax.data import pipeline, prepare
from usam_jax.errors import UsageError, WeightsError
from usam_jax.sharding import check_batch_size, make_mesh, put_batch


@pytest.fixture(scope="module")
def packed_phantoms(tmp_path_factory):
    """The small config and its packed phantoms."""
    folder = tmp_path_factory.mktemp("packed")
    config = phantom_config(**{"data.packed_dir": str(folder)})
    return config, prepare.prepare(config.data)


def run_steps(config, packed, num_devices: int, count: int):
    mesh = make_mesh(num_devices)
    iterator, steps = pipeline.train_batches(packed, np.arange(24), config)
    _, state, train_step = train.make_training(config, steps, mesh)
    before = jax.tree.map(np.array, state.variables)
    rows = []
    for _ in range(count):
        state, values = train_step(state, put_batch(next(iterator), mesh))
        rows.append([float(values[f"train/{name}"]) for name in ("loss", "ce", "dice")])
    return np.array(rows), before, state, train_step


@pytest.fixture(scope="module")
def one_device_run(packed_phantoms):
    return run_steps(*packed_phantoms, 1, 3)


def test_one_and_eight_devices_give_the_same_losses(packed_phantoms, one_device_run):
    losses_8, *_ = run_steps(*packed_phantoms, 8, 3)
    # Sums over the batch are taken in another order; BatchNorm and Dice still see all of it.
    np.testing.assert_allclose(losses_8, one_device_run[0], rtol=0, atol=1e-5)


def test_the_step_is_compiled_once(one_device_run):
    assert one_device_run[3]._cache_size() == 1


def test_all_but_the_prompt_encoder_is_trained(one_device_run):
    _, before, state, _ = one_device_run
    after = jax.tree.map(np.array, state.variables)
    same = jax.tree.map(np.array_equal, before, after)
    assert jax.tree.all(same["constants"])
    assert jax.tree.all(same["params"]["prompt_encoder"])
    for part in ("backbone", "image_encoder", "mask_decoder"):
        assert not any(jax.tree.leaves(same["params"][part])), part
    assert not any(jax.tree.leaves(same["batch_stats"]))
    assert int(state.step) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"model.arch": "sam"},
        {"model.num_skips": 0, "prompts.kind": "none"},
        {"model.dtype": "bfloat16", "prompts.kind": "points_box", "optimizer.warmup": True},
    ],
)
def test_variants_train(packed_phantoms, changes):
    config, packed = packed_phantoms
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({**changes, "data.augment": False, "train.batch_size": 24})
    rows, _, state, _ = run_steps(config, packed, 1, 4)
    assert rows[-1, 0] < rows[0, 0]
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}


def test_learning_rates_decay_as_published():
    factor_fn = optim.polynomial_decay(100)
    np.testing.assert_allclose(factor_fn(0), 1.0)
    np.testing.assert_allclose(factor_fn(50), 0.5**0.9, rtol=1e-6)
    assert float(factor_fn(100)) == float(factor_fn(150)) == 0.0
    warm = optim.polynomial_decay(100, warmup_steps=10)
    np.testing.assert_allclose(warm(5), 0.5, rtol=1e-6)
    np.testing.assert_allclose(warm(60), 0.5**0.9, rtol=1e-6)


def test_a_part_without_a_learning_rate_is_an_error():
    config = phantom_config().optimizer
    params = {part: {} for part in ("backbone", "image_encoder", "mask_decoder", "new_part")}
    with pytest.raises(UsageError, match="new_part"):
        optim.make_optimizer(config, optim.polynomial_decay(1), params)


def test_loss_is_its_formula_written_in_numpy():
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


def test_pooled_scores_equal_a_count_over_all_slices_and_leave_padding_out():
    rng = np.random.default_rng(1)
    labels, predicted = rng.integers(0, 4, (2, 7, 6, 6))
    labels[labels == 3] = 0
    predicted[predicted == 3] = 0
    valid = np.array([True] * 5 + [False] * 2)
    counts = metrics.count_pixels(
        jnp.asarray(predicted, jnp.int32), jnp.asarray(labels, jnp.int32), jnp.asarray(valid), 4
    )
    scores = metrics.pooled_scores(np.asarray(counts), ("background", "a", "b", "c"))
    for c, name in ((1, "a"), (2, "b")):
        p, y = predicted[:5] == c, labels[:5] == c
        assert scores.dice[name] == 2 * (p & y).sum() / (p.sum() + y.sum())
        assert scores.iou[name] == (p & y).sum() / (p | y).sum()
    assert scores.dice["c"] is None  # neither there nor predicted: no figure, and not in the mean
    assert scores.mean_dice == (scores.dice["a"] + scores.dice["b"]) / 2


@pytest.mark.parametrize("num_devices", [1, 8])
def test_evaluation_counts_every_slice_once_with_one_compilation(
    packed_phantoms, one_device_run, num_devices
):
    config, packed = packed_phantoms
    _, _, state, _ = one_device_run
    mesh = make_mesh(num_devices)
    model = train.make_model(config.model)
    variables = jax.tree.map(np.asarray, state.variables)
    eval_step = evaluate.make_eval_step(model, mesh)
    rows = np.arange(3, 16)  # 13 slices: no multiple of the batch of 8
    done = evaluate.run_evaluation(
        eval_step, variables, packed, "train", rows, config, mesh, frozenset({4, 15})
    )
    assert done.counts.shape == (13, 3, 3)
    assert eval_step._cache_size() == 1
    labels = packed.labels("train")[rows]
    for c in range(3):
        np.testing.assert_array_equal(done.counts[:, c, [0, 2]].sum(1), (labels == c).sum((1, 2)))
    assert set(done.predictions) == {4, 15}
    truth = packed.labels("train")[15]
    for c in range(3):
        expected = ((done.predictions[15] == c) & (truth == c)).sum()
        assert done.counts[12, c, 0] == expected


def test_a_batch_must_split_over_the_devices():
    with pytest.raises(UsageError, match=r"config.train.batch_size: found 6, .* multiple of the 8"):
        check_batch_size(6, make_mesh(8), "config.train.batch_size")


def test_contradicting_settings_are_named():
    config = phantom_config()
    config.model.num_classes = 4
    with pytest.raises(UsageError, match=r"config.model.num_classes: found 4"):
        train.check_config(config, make_mesh(1))
    config = phantom_config(**{"eval.select_on": "train"})
    with pytest.raises(UsageError, match=r"config.eval.select_on"):
        train.check_config(config, make_mesh(1))
    config = phantom_config(**{"train.num_epochs": 0})
    with pytest.raises(UsageError, match=r"config.train.num_epochs: found 0"):
        train.check_config(config, make_mesh(1))


def test_metrics_of_a_broken_run_are_dropped_past_its_checkpoint(tmp_path):
    writer = logs.MetricWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1.0 / step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    writer = logs.MetricWriter(tmp_path, 2)
    writer.write(3, {"train/loss": 0.5, "val/dice/tumour": None})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line[:10] for line in lines] == ['{"step": 1', '{"step": 2', '{"step": 3']
    assert lines[2].endswith('"train/loss": 0.5, "val/dice/tumour": null}')


def test_a_workdir_keeps_to_its_config(tmp_path):
    config = phantom_config()
    checkpoint.claim_workdir(tmp_path, config)
    checkpoint.claim_workdir(tmp_path, phantom_config())
    other = phantom_config(**{"train.batch_size": 4, "prompts.kind": "none"})
    with pytest.raises(UsageError) as caught:
        checkpoint.claim_workdir(tmp_path, other)
    assert "config.train.batch_size: given 4, found 8" in str(caught.value)
    assert "config.prompts.kind: given 'none', found 'points'" in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = phantom_config()
    with pytest.raises(WeightsError, match="is no run"):
        checkpoint.check_run(tmp_path, config.model)
    checkpoint.claim_workdir(tmp_path, config)
    with pytest.raises(WeightsError, match="no finished checkpoint"):
        checkpoint.check_run(tmp_path, config.model)
    with pytest.raises(WeightsError, match=r"config.model.size: given 'vit_b', found 'tiny'"):
        checkpoint.check_run(tmp_path, phantom_config(**{"model.size": "vit_b"}).model)


def test_the_best_and_the_last_two_checkpoints_stay(packed_phantoms, one_device_run, tmp_path):
    config, packed = packed_phantoms
    _, _, state, _ = one_device_run
    iterator, _ = pipeline.train_batches(packed, np.arange(24), config)
    saved = checkpoint.Checkpoints(tmp_path)
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.1), (5, 0.3)):
        saved.save(step, dataclasses.replace(state, step=jnp.int32(step)), iterator, score)
    saved.close()
    reopened = checkpoint.Checkpoints(tmp_path)
    assert reopened.best_step == 2
    assert reopened.latest_step == 5
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 4, 5]
    target = checkpoint.abstract_arrays(state, jax.sharding.SingleDeviceSharding(jax.devices()[3]))
    restored = reopened.restore(2, target, iterator)
    assert int(restored.step) == 2
    same = jax.tree.map(np.array_equal, restored.params, state.params)
    assert jax.tree.all(same)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = train.make_model(config.model)
    variables = checkpoint.load_variables(tmp_path, model, 2, device)
    assert variables.keys() == {"params", "batch_stats", "constants"}
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, state.variables))
