"""Which config may use or resume the run of a workdir."""

import pytest
from conftest import finish_run, phantom_config

from usam_jax.utils.errors import UsageError, UserError
from usam_jax.weights import run_config


def test_check_config_rejects_changed_config_of_a_run(tmp_path):
    other = phantom_config(**{"train.batch_size": 4, "prompts.kind": "none"})
    (tmp_path / "config.json").write_text(phantom_config().to_json_best_effort())
    run_config.check_config(tmp_path, other)  # allowed, since no checkpoint exists yet
    finish_run(tmp_path, phantom_config())
    run_config.check_config(tmp_path, phantom_config())
    with pytest.raises(UsageError) as caught:
        run_config.check_config(tmp_path, other)
    assert "config.train.batch_size: got 4, expected 8" in str(caught.value)
    assert "config.prompts.kind: got 'none', expected 'points'" in str(caught.value)


def test_check_config_keeps_files_of_the_user(tmp_path):
    for name, content in (("config.json", '{"mine": 1}'), ("metrics.csv", "a,b"), ("run.json", "")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match=rf"is not a run, since its config\.json .*\n.*{name}"):
            run_config.check_config(folder, phantom_config())


def test_check_config_accepts_a_run_without_checkpoint(tmp_path):
    for name in ("data.json", "run.json", "metrics.jsonl"):  # as a kill leaves it
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(phantom_config().to_json_best_effort())
    run_config.check_config(tmp_path, phantom_config())


def test_check_config_names_a_workdir_that_is_not_utf_8(tmp_path):
    with pytest.raises(UsageError, match="expected a path in UTF-8"):
        run_config.check_config(tmp_path / "caf\udce9", phantom_config())


def test_check_config_names_damaged_config(tmp_path):
    finish_run(tmp_path, phantom_config())
    (tmp_path / "config.json").write_text('{"model"')
    with pytest.raises(UserError, match=r"config\.json: not JSON .*: damaged"):
        run_config.check_config(tmp_path, phantom_config())
