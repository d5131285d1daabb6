"""FocalNet-T of ImageNet in Focal-UNet's encoder, from each of its sources."""

import json

import jax
import numpy as np
import pytest
import recipe
from conftest import model_config
from safetensors.numpy import save_file

from usam_jax.models import make_config
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import load, name_map
from usam_jax.weights.maps import focal_unet

FOLDER = recipe.GOLDEN / "focal_unet"
TINY = recipe.read_manifest(FOLDER / "focalnet_tiny_lrf_manifest.json")
# A network of FocalNet-T's names with small arrays.
SMALL = {"name": "focal_unet", "width": 4, "image_size": 32}


@pytest.fixture(scope="module")
def config():
    return model_config(**SMALL)


@pytest.fixture(scope="module")
def tensors(config) -> dict[str, np.ndarray]:
    """Return tensors with FocalNet-T's names: those that are read, and the others."""
    leaves = name_map.model_leaves(config, focal_unet.FOCALNET_TINY)
    read = [leaf for leaf in leaves if not name_map.is_fresh(leaf, focal_unet.FOCALNET_TINY)]
    shapes = {x: leaf.torch_shape for leaf in read for x in leaf.names}
    return {name: recipe.normal(name, shapes.get(name, (1,))) for name in TINY}


HUB = {
    "patch_embed.proj.": "focalnet.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "focalnet.embeddings.norm.",
    "layers.": "focalnet.encoder.stages.",
    "norm.": "focalnet.layernorm.",
    "head.": "classifier.",
    ".blocks.": ".layers.",
    ".downsample.proj.": ".downsample.projection.",
    ".modulation.f.": ".modulation.projection_in.",
    ".modulation.h.": ".modulation.projection_context.",
    ".modulation.proj.": ".modulation.projection_out.",
}


def to_hub(name: str) -> str:
    for old, new in HUB.items():
        if old.startswith(".") or name.startswith(old):
            name = name.replace(old, new, 1)
    return name


def test_focalnet_tiny_fills_what_the_published_loader_fills():
    maps = focal_unet.PUBLISHED, focal_unet.FOCALNET_TINY
    leaves = (name_map.model_leaves(make_config("focal_unet"), x) for x in maps)
    loaded, fresh = {}, {"patch_expand.norm.weight", "patch_expand.norm.bias"}  # not in ours
    for ours, theirs in zip(*leaves, strict=True):
        if name_map.is_fresh(theirs, focal_unet.FOCALNET_TINY):
            fresh.add(ours.names[0])
        else:
            loaded[ours.names[0]] = theirs.names[0]
            assert theirs.torch_shape == TINY[theirs.names[0]]
    expected = json.loads((FOLDER / "from_focalnet_tiny_lrf.json").read_text())
    assert loaded == expected["loaded"]
    assert fresh == set(expected["fresh"])
    left = TINY.keys() - set(loaded.values())
    assert left == set(expected["unused"])
    assert all(name_map.first_match(x, focal_unet.FOCALNET_TINY.ignored) for x in left)


def test_focalnet_tiny_is_the_same_from_every_source(config, tensors, tmp_path):
    files = {
        "FocalNet-T (": tensors,
        "FocalNet-T on the Hugging Face hub": {to_hub(k): x for k, x in tensors.items()},
    }
    found = []
    for source, file in files.items():
        save_file(file, tmp_path / "x.safetensors")
        variables, news = load.read_weights(tmp_path / "x.safetensors", config)
        assert source in news
        found.append(variables)
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert set(found[0]["params"]["layers_0"]) == {"blocks_0", "blocks_1", "downsample"}


def test_focalnet_of_fewer_levels_does_not_fit(config, tensors):
    short = {name: x for name, x in tensors.items() if ".focal_layers.2." not in name}
    with pytest.raises(WeightsError, match=r"(?s)FocalNet-T \(focalnet_tiny_lrf.*focal_layers\.2"):
        name_map.from_torch(short, focal_unet.FOCALNET_TINY, config)
