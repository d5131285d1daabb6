"""Runs of earlier versions: upgrading their config and reading their checkpoints."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import phantom_config, save_run
from flax import traverse_util

from usam_jax import models
from usam_jax.training import optimizer, step
from usam_jax.utils.errors import UserError, WeightsError
from usam_jax.utils.files import write_json
from usam_jax.utils.mesh import make_mesh
from usam_jax.weights import run_checkpoint, saved_config

OLD_NAMES = {
    new: (section, old)
    for section, names in saved_config.RENAMED.items()
    for old, new in names.items()
}


def old_config(config) -> dict:
    """A config as version 1 saved it."""
    saved = saved_config.to_json(config)
    saved.pop("schema_version")
    for new, (section, old) in OLD_NAMES.items():
        saved[section][old] = saved[section].pop(new)
    for version in saved_config.ADDED:
        remove_added(saved, version)
    for name in ("name", "momentum", "nesterov"):
        saved["optimizer"].pop(name)
    return saved


def remove_added(saved: dict, version: int) -> None:
    """Remove the fields that a version added."""
    for section, fields in saved_config.ADDED[version].items():
        for name in fields:
            saved[section].pop(name)


def test_upgrade_renames_the_fields_of_version_1():
    config = phantom_config()
    saved = old_config(config)
    assert saved["model"]["arch"] == "usam" and saved["eval"]["tolerance"] == [2.0]
    before = copy.deepcopy(saved)
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []
    assert saved == before


def test_upgrade_of_version_2_names_the_anatomy_of_phantoms():
    config = phantom_config()
    saved = saved_config.to_json(config) | {"schema_version": 2}
    saved["data"].pop("anatomy")
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []


def test_upgrade_turns_baseline_of_version_1_into_a_network():
    config = phantom_config("sam_s")
    saved = old_config(config)
    saved["model"] |= {"arch": "sam", "num_skips": 4, "num_mask_tokens": 0}
    saved["optimizer"]["learning_rates"]["backbone"] = 1e-3
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []


@pytest.mark.parametrize("version", list(saved_config.ADDED))
def test_upgrade_adds_the_fields_of_each_version(version):
    config = phantom_config()
    saved = saved_config.to_json(config) | {"schema_version": version - 1}
    for added_in in (x for x in saved_config.ADDED if x >= version):
        remove_added(saved, added_in)
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []


@pytest.mark.parametrize("network", ["usam", "sam_s"])
def test_upgrade_of_versions_5_and_6_keeps_what_the_run_computes(network):
    config = phantom_config(network)
    saved = saved_config.to_json(config) | {"schema_version": 6}
    saved["model"]["click_gain"] = 96.0
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []
    saved["schema_version"] = 5
    saved["model"].pop("deep_supervision", None)
    saved["model"].pop("click_gain")
    assert saved_config.differences(config, saved_config.upgrade(saved)) == []


@pytest.mark.parametrize("version", [3, 6])
def test_interactive_runs_with_tokens_of_classes_are_refused(version):
    config = phantom_config(**{"model.interactive": True})
    saved = saved_config.to_json(config) | {"schema_version": version}
    with pytest.raises(UserError, match=f"an interactive network of schema_version {version}"):
        saved_config.upgrade(saved)


def test_upgrade_keeps_todays_config():
    saved = saved_config.to_json(phantom_config())
    assert saved_config.upgrade(saved) == {k: v for k, v in saved.items() if k != "schema_version"}


def test_upgrade_names_unknown_version():
    with pytest.raises(UserError, match=r"got schema_version 8, expected at most 7"):
        saved_config.upgrade({"schema_version": 8})


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(models.init_variables(phantom_config().model, jax.random.key(0)))


def test_restore_reads_state_of_version_1(variables, tmp_path):
    """Version 1 had an optimizer group for the frozen prompt encoder, and one label per part."""
    config, mesh = phantom_config(), make_mesh(1)
    spec = models.get("usam")
    factor_fn = optimizer.polynomial_decay(9)
    tx = optimizer.make_optimizer(config.optimizer, factor_fn, spec)
    target = step.placed_state(tx, jax.eval_shape(lambda: variables), mesh, config.train, spec)

    rates = config.optimizer.learning_rates
    groups = {x: optax.adamw(lambda i: 1e-3 * factor_fn(i)) for x in rates}
    groups["prompt_encoder"] = optax.set_to_zero()
    params = jax.tree.map(jnp.asarray, variables["params"])
    old = optax.partition(groups, {part: part for part in params})
    ones = jax.tree.map(jnp.ones_like, params)
    opt_state = jax.jit(lambda p: old.update(ones, old.init(p), p)[1])(params)
    state = step.create_state(tx, variables, target, config.train, spec)
    with run_checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state.replace(opt_state=opt_state), 0.5)
        checkpoints.wait()
        restored = checkpoints.restore_latest(target)
    found = jax.tree.leaves(restored.opt_state)
    expected = [x for x in jax.tree.leaves(opt_state)]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_best_step_names_both_networks(variables, tmp_path):
    config = phantom_config()
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    write_json(tmp_path / "config.json", saved_config.to_json(config))
    other = phantom_config("unet").model
    with pytest.raises(WeightsError, match=r"of the network usam, expected one of unet"):
        run_checkpoint.best_step(tmp_path, other)


def test_differences_name_unknown_fields():
    config = phantom_config()
    saved = saved_config.upgrade(saved_config.to_json(config))
    saved["train"]["added_later"] = 3
    del saved["train"]["ema_decay"]
    assert saved_config.differences(config, saved) == [
        "config.train.added_later: an unknown field of the saved config (3)",
        "config.train.ema_decay: got 0.0, but the saved config has no such field",
    ]


def test_load_variables_names_arrays_with_nan(variables, tmp_path):
    config = phantom_config()
    flat = traverse_util.flatten_dict(variables, sep="/")
    name = next(x for x in flat if x.startswith("params/"))
    flat[name] = np.full_like(flat[name], np.nan)
    save_run(tmp_path, config, traverse_util.unflatten_dict(flat, sep="/"))
    with pytest.raises(WeightsError, match=rf"checkpoints/1: got 1 arrays with NaN .*\n  {name}: "):
        run_checkpoint.load_best(tmp_path, config.model)
