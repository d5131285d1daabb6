"""The package's metadata, its console scripts, and configs found by name."""

import importlib
import tomllib

import conftest
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT
from ml_collections import config_flags

from usam_jax.utils import cli, config_file
from usam_jax.utils.errors import UsageError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_requirements(name: str) -> tuple[list[str], list[str]]:
    """The included files and the own requirements of a requirements file."""
    lines = (ROOT / name).read_text().splitlines()
    lines = [x.strip() for x in lines if x.strip() and not x.startswith("#")]
    included = [x.removeprefix("-r ") for x in lines if x.startswith("-r ")]
    return included, [x for x in lines if not x.startswith("-r ")]


@pytest.mark.parametrize(
    ("name", "included", "expected"),
    [
        ("requirements.txt", [], PROJECT["dependencies"]),
        (
            "requirements-dev.txt",
            ["requirements.txt"],
            PROJECT["optional-dependencies"]["dev"],
        ),
        (
            "requirements-parity.txt",
            ["requirements-dev.txt"],
            PROJECT["optional-dependencies"]["parity"],
        ),
        (
            "requirements-viewer.txt",
            ["requirements.txt"],
            PROJECT["optional-dependencies"]["viewer"],
        ),
        (
            "requirements-browser.txt",
            ["requirements-dev.txt"],
            PROJECT["optional-dependencies"]["browser"],
        ),
    ],
)
def test_requirements_follow_from_pyproject(name, included, expected):
    assert read_requirements(name) == (included, expected)


@pytest.mark.parametrize("target", PROJECT["scripts"].values(), ids=list(PROJECT["scripts"]))
def test_console_script_targets_are_callable(target):
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    "script", [x for x in PROJECT["scripts"].items() if x[1].startswith("usam_jax.scripts:")]
)
def test_console_scripts_run_their_tool(script, monkeypatch, capsys):
    name, target = script
    tool = importlib.import_module(f"tools.{name.removeprefix('usam-').replace('-', '_')}")
    module, _, function = target.partition(":")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    assert getattr(importlib.import_module(module), function)() == 0
    assert tool.__doc__.splitlines()[0] in capsys.readouterr().out


def load_config(monkeypatch, *arguments: str):
    """The config that a command line gives, parsed with a new set of flags."""
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values["config"].parser = config_file.ConfigFileParser()
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    values(["program", *arguments])
    return holder.value


@pytest.mark.parametrize(
    "given", ["phantom", "configs/phantom.py", str(ROOT / "configs/phantom.py")]
)
def test_config_is_found_by_name_and_path(given, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(monkeypatch, f"--config={given}", "--config.train.batch_size=3")
    assert config.data.kind == "phantom" and config.train.batch_size == 3


def test_config_name_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(monkeypatch, "--config=word").data.kind == "word"


def test_config_of_the_user_imports_bundled_configs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from configs import care\n\ndef get_config(network):\n    config = care.get_config()\n"
        "    config.model.name = network\n    return config\n"
    )
    config = load_config(monkeypatch, f"--config={tmp_path / 'mine.py'}:sam")
    assert config.model.name == "sam"


@pytest.mark.parametrize("given", ["cares", "configs/cares.py", "care/word"])
def test_missing_config_lists_the_names(given, monkeypatch):
    names = "care, care_reference, nnunet, nnunet_trained, phantom, published/.*, word"
    with pytest.raises(UsageError, match=f"--config: got {given}, expected .* one of {names}"):
        load_config(monkeypatch, f"--config={given}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("care", ("care", "")),
        ("care:unet", ("care", "unet")),
        ("configs/published/nnunet.py", ("published_nnunet", "")),
        ("/some/configs/care.py:u.net", ("care", "u.net")),
    ],
)
def test_config_name_and_network(given, expected):
    assert config_file.name_and_network(given) == expected


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (
            "--config.model.arch=sam",
            "--config.model.arch: the field was renamed, expected --config.model.name",
        ),
        ("--config.train.shard_state", "expected --config.train.fsdp"),
        ("--noconfig.train.shard_state", "expected --config.train.fsdp"),
        (
            "--config.model.depth=3",
            "--config.model.depth: no such field, expected one of .*variant",
        ),
        ("--config.depth=3", "--config.depth: no such field, expected one of .*init_from"),
        (
            "--config.optimizer.learning_rates.all=3",
            "--config.optimizer.learning_rates.all: no such field, expected one of .*backbone",
        ),
    ],
)
def test_override_of_a_missing_field_names_the_field(argument, expected, monkeypatch):
    with pytest.raises(UsageError, match=expected):
        load_config(monkeypatch, "--config=care", argument)


def test_override_of_a_renamed_field_exits_with_2(monkeypatch, capsys):
    arguments = ["program", "--config=care", "--config.eval.noise=(1.0,)"]
    monkeypatch.setattr("sys.argv", arguments)
    with flagsaver.flagsaver():
        assert cli.run(lambda *_: None, arguments) == 2
    assert "expected --config.eval.prompt_jitter_px" in capsys.readouterr().err


@pytest.mark.parametrize("name", conftest.SLOW_FILES)
def test_slow_files_exist(name):
    assert (ROOT / "tests" / name).is_file()
