"""XLA's options reach the compiled step, and wrong ones are named."""

import jax
import pytest
from jax.errors import JaxRuntimeError

from configs import care
from usam_jax import models
from usam_jax.training import step
from usam_jax.training.compiler_options import parse
from usam_jax.utils import cli
from usam_jax.utils.errors import UsageError
from usam_jax.utils.mesh import make_mesh


def test_parse_reads_the_types_of_values():
    options = ("xla_a=true", "xla_b=100", "xla_c=O1", "xla_d=x=y")
    assert parse(options) == {"xla_a": True, "xla_b": 100, "xla_c": "O1", "xla_d": "x=y"}
    assert parse(()) is None


@pytest.mark.parametrize("option", ["xla_a", "xla_a=", "a=1", "--xla_a=1"])
def test_parse_names_what_is_no_option(option):
    with pytest.raises(UsageError, match=f"compiler_options: got '{option}'"):
        parse([option])


def test_make_train_step_passes_the_options(monkeypatch):
    train = care.get_config().train
    train.compiler_options = ("xla_a=1",)
    monkeypatch.setattr(step.jax, "jit", lambda _, **given: given)
    spec, mesh = models.get("usam"), make_mesh(1)
    given = step.make_train_step(None, spec, None, None, mesh, train, {}, 0)
    assert given["compiler_options"] == {"xla_a": 1}


def test_run_names_an_option_that_xla_does_not_take(monkeypatch, capsys):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    program = jax.jit(lambda x: x + 1, compiler_options={"xla_nonsense": 1})
    with pytest.raises(JaxRuntimeError):
        program(1.0)
    assert cli.run(lambda *_: program(1.0), ["test"], needs_config=False) == 1
    printed = capsys.readouterr().err
    assert "config.train.compiler_options" in printed and "xla_nonsense" in printed
