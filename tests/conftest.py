"""Shared by all tests: eight virtual devices, checked shapes, models that are built once."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import pytest
import recipe
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

checked = ["usam_jax.models", "usam_jax.losses", "usam_jax.metrics", "usam_jax.data"]
install_import_hook(checked, "beartype.beartype")

SHARED = pathlib.Path(__file__).parents[2] / "shared"


def model_config(**changes) -> ConfigDict:
    fields = {
        "arch": "usam",
        "size": "vit_b",
        "num_classes": 3,
        "image_size": 224,
        "num_skips": 4,
        "num_mask_tokens": 0,
        "dtype": "float32",
    }
    return ConfigDict(fields | changes)


@pytest.fixture(scope="session")
def care_samples() -> pathlib.Path:
    """Three real slices in CARE's layout, where they are at hand; they have no licence to ship."""
    folder = SHARED / "care_samples"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def care_variables():
    """Full-size variables (ViT-B, three classes) behind the golden figures."""
    from usam_jax import convert

    return convert.from_usam(recipe.state_dict("usam_care"), model_config())
