"""Swin-T of ImageNet in Swin-Unet's encoder and decoder, from each of its sources."""

import json
import re

import jax
import numpy as np
import pytest
import recipe
from conftest import model_config
from safetensors.numpy import save_file

from usam_jax.models import make_config
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import load, name_map
from usam_jax.weights.maps import swin_unet

FOLDER = recipe.GOLDEN / "swin_unet"
TINY = recipe.read_manifest(FOLDER / "swin_tiny_manifest.json")
# A network of Swin-T's names with small arrays.
SMALL = {"name": "swin_unet", "width": 8, "head_dim": 4, "window": 2, "image_size": 64}
THIRDS = ("query", "key", "value")


@pytest.fixture(scope="module")
def config():
    return model_config(**SMALL)


def fabricate(config) -> dict[str, np.ndarray]:
    """A file of Swin-T's names: the tensors that are read, of `config`'s size, and the others."""
    leaves = name_map.model_leaves(config, swin_unet.SWIN_TINY)
    fresh = {leaf.path for leaf in leaves if name_map.is_fresh(leaf, swin_unet.SWIN_TINY)}
    shapes = {x: leaf.torch_shape for leaf in leaves if leaf.path not in fresh for x in leaf.names}
    return {name: recipe.normal(name, shapes.get(name, (1,))) for name in TINY}


def to_timm(name: str) -> str:
    if ".downsample." in name:
        stage = int(name.split(".")[1])
        return name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
    return name.replace("head.", "head.fc.")


HUB = {
    "patch_embed.proj.": "swin.embeddings.patch_embeddings.projection.",
    "patch_embed.norm.": "swin.embeddings.norm.",
    "layers.": "swin.encoder.layers.",
    "norm.": "swin.layernorm.",
    "head.": "classifier.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".attn.relative": ".attention.self.relative",
    ".attn.proj.": ".attention.output.dense.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}


def to_hub(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in tensors.items():
        for old, new in HUB.items():
            if old.startswith(".") or name.startswith(old):
                name = name.replace(old, new, 1)
        if ".attn.qkv." in name and array.size > 1:
            for part, third in zip(THIRDS, np.split(array, 3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.self.{part}.")] = third
        elif ".attn.qkv." in name:
            renamed[name.replace(".attn.qkv.", ".attention.self.query.")] = array
        else:
            renamed[name] = array
    return renamed


def test_swin_tiny_fills_what_the_published_loader_fills():
    leaves = {
        kind: name_map.model_leaves(make_config("swin_unet"), getattr(swin_unet, kind))
        for kind in ("PUBLISHED", "SWIN_TINY")
    }
    loaded, fresh = {}, set()
    for ours, theirs in zip(*leaves.values(), strict=True):
        if name_map.is_fresh(theirs, swin_unet.SWIN_TINY):
            fresh.add(ours.names[0])
        else:
            loaded[ours.names[0]] = theirs.names[0]
            assert theirs.torch_shape == TINY[theirs.names[0]]
    expected = json.loads((FOLDER / "from_swin_tiny.json").read_text())
    assert loaded == expected["loaded"]
    assert fresh == set(expected["fresh"])
    computed = re.compile(swin_unet.COMPUTED[0])
    left = {x for x in TINY.keys() - set(loaded.values()) if not computed.search(x)}
    assert left == set(expected["unused"])
    assert all(name_map.first_match(x, swin_unet.SWIN_TINY.ignored) for x in left)


def test_swin_tiny_is_the_same_from_every_source(config, tmp_path):
    tensors = fabricate(config)
    files = {
        "Swin-T (": tensors,
        "Swin-T of timm": {to_timm(name): x for name, x in tensors.items()},
        "Swin-T on the Hugging Face hub": to_hub(tensors),
    }
    found = []
    for source, file in files.items():
        save_file(file, tmp_path / "x.safetensors")
        variables, news = load.read_weights(tmp_path / "x.safetensors", config)
        assert source in news
        found.append(variables)
    jax.tree.map(np.testing.assert_array_equal, *found[:2])
    jax.tree.map(np.testing.assert_array_equal, *found[1:])
    params = found[0]["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        params["layers_up_3"]["blocks_1"],
        params["layers_0"]["blocks_1"],
    )


def test_larger_swin_is_not_taken_for_swin_tiny(config, tmp_path):
    tensors = fabricate(config)
    deeper = tensors | {"layers.2.blocks.6.norm1.weight": np.zeros(1, np.float32)}
    save_file(deeper, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)not those of ImageNet's Swin-T .*1 unknown"):
        load.read_weights(tmp_path / "small.safetensors", config)
    save_file(tensors, tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)Swin-T \(swin_tiny.*width = 16.*got \(8,"):
        load.read_weights(tmp_path / "wider.safetensors", model_config(**SMALL | {"width": 16}))


def test_pretrained_file_of_another_network_names_both(config, tmp_path):
    tensors = {name: np.zeros(1, np.float32) for name in TINY}
    save_file(tensors, tmp_path / "swin.safetensors")
    message = r"got weights of ImageNet's Swin-T .*, expected ones of the network unet: the .*swin_"
    with pytest.raises(WeightsError, match=message):
        load.read_weights(tmp_path / "swin.safetensors", model_config(name="unet"))
    tensors = {name: np.zeros(1, np.float32) for name in recipe.manifest("sam_vit_b")}
    save_file(tensors, tmp_path / "sam.safetensors")
    message = r"got weights of SAM, expected .* swin_unet: .*Swin-T .*:sam_s or samed or usam"
    with pytest.raises(WeightsError, match=message):
        load.read_weights(tmp_path / "sam.safetensors", config)
