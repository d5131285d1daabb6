"""Each network's published recipe: a config that training accepts."""

import pytest
from conftest import ROOT

from usam_jax.training import checks
from usam_jax.utils import config_file
from usam_jax.utils.mesh import make_mesh

RECIPES = sorted(path.stem for path in (ROOT / "configs/published").glob("*.py"))


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipe_is_valid(name, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main"])
    config = config_file.ConfigFileParser().parse(f"published/{name}")
    assert config.model.name == name
    checks.check(config, make_mesh(1))
