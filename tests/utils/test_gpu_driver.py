"""A driver too old for JAX's plugin is named, however JAX fails."""

import jax
import pytest
from jax.errors import JaxRuntimeError

from configs import care
from usam_jax.utils import cli, gpu_driver, runtime
from usam_jax.utils.errors import UserError

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Sat Aug 19 01:15:15 UTC 2023\nGCC 12"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)"
NO_CUDA = RuntimeError("Unable to initialize backend 'cuda': CUDA driver version is insufficient")


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A function that loads a driver, with the plugin for CUDA 13 installed."""
    file = tmp_path / "version"
    monkeypatch.setattr(gpu_driver, "VERSION_FILE", file)
    monkeypatch.setattr(gpu_driver, "is_installed", lambda x: x == "jax-cuda13-plugin")
    return file.write_text


@pytest.fixture
def choose_platform():
    """A function that sets JAX_PLATFORMS for the test."""
    before = jax.config.values["jax_platforms"]
    yield lambda name: jax.config.update("jax_platforms", name)
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("text", [CLOSED, OPEN])
def test_problem_names_driver_and_plugin(driver, text):
    driver(text.format("535.104.05"))
    assert "got version 535, expected 580 or later for jax-cuda13-pl" in gpu_driver.problem()
    driver(text.format("580.65.06"))
    assert gpu_driver.problem() == ""


def test_no_driver_or_plugin_is_no_problem(driver, monkeypatch):
    assert gpu_driver.problem() == ""
    driver(OPEN.format("535.104.05"))
    monkeypatch.setattr(gpu_driver, "is_installed", lambda _: False)
    assert gpu_driver.problem() == ""


def test_start_devices_refuses_a_silent_cpu(driver, choose_platform):
    driver(OPEN.format("535.104.05"))
    choose_platform(None)
    with pytest.raises(UserError, match="got version 535"):
        runtime.start_devices()
    choose_platform("cpu")
    runtime.start_devices()


def run_failing(error, monkeypatch, capsys):
    """Exit code and message of a program that raises `error`."""

    def fail(*_):
        raise error

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return cli.run(fail, ["test"], needs_config=False), capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(("version", "text"), [("535.1", "got version 535"), ("580.1", "=cpu to")])
def test_run_explains_a_backend_that_fails(driver, version, text, monkeypatch, capsys):
    driver(CLOSED.format(version))
    code, printed = run_failing(NO_CUDA, monkeypatch, capsys)
    assert code == 1 and text in printed and "is insufficient" in printed


def test_run_names_settings_that_need_less_memory(monkeypatch, capsys):
    error = JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4294967296 bytes.")
    code, printed = run_failing(error, monkeypatch, capsys)
    flat = printed.replace(" ", "")
    assert code == 1 and "4294967296" in printed
    fields = ("model.remat", "model.dtype", "train.fsdp", "train.batch_size")
    for field in (*fields, "train.grad_accum_steps", "eval.batch_size"):
        section, name = field.split(".")
        assert f"config.{field}" in flat and name in care.get_config()[section]
