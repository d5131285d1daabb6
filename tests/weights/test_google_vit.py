"""Google's R50+ViT-B_16.npz in TransUNet's encoder."""

import math
import re

import numpy as np
import pytest
import recipe
from conftest import model_config

from usam_jax.models import make_config
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import load, name_map
from usam_jax.weights.maps import transunet
from usam_jax.weights.maps.transunet import GOOGLE, PUBLISHED

FOLDER = recipe.GOLDEN / "transunet"
SHAPES = recipe.read_manifest(FOLDER / "google_manifest.json")
POSITIONS = "Transformer/posembed_input/pos_embedding"
SMALL = {
    "name": "transunet",
    "root_width": 32,
    "units": (2, 1, 1),
    "width": 8,
    "depth": 2,
    "num_heads": 2,
    "decoder_widths": (4, 4, 4, 4, 4),
    "image_size": 32,
}


def draw(name: str) -> np.ndarray:
    """A tensor of the file from which the golden values come."""
    return recipe.normal(f"R50+ViT-B_16/{name}", SHAPES[name])


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "google.npz") as file:
        return dict(file)


def test_google_names_are_those_that_the_published_loader_reads(golden):
    leaves = [name_map.model_leaves(make_config("transunet"), x) for x in (PUBLISHED, GOOGLE)]
    pairs = [(a.names[0], b) for a, b in zip(*leaves, strict=True)]
    read = {name: leaf for name, leaf in pairs if not name_map.is_fresh(leaf, GOOGLE)}
    assert read.keys() == set(golden["loaded"])
    assert {name for name, _ in pairs} - read.keys() == set(golden["not_loaded"])
    assert {leaf.names[0] for leaf in read.values()} == SHAPES.keys()


# Of equal layers and units, one each: the whole file has 98 million numbers.
SOME = r"(^(layer_0|root|block\d/unit[12]|encoder_norm)/|^embeddings/patch)"


def test_google_tensors_become_the_published_ones(golden):
    for kind in name_map.model_leaves(make_config("transunet"), PUBLISHED):
        if not re.search(SOME, "/".join(kind.path[1:])):
            continue
        leaf = name_map.make_leaf(kind.path, kind.shape, GOOGLE)
        name = leaf.names[0]
        array = leaf.from_torch([GOOGLE.read(name, draw(name))])
        summary, samples = recipe.probe(f"to/{kind.names[0]}", kind.to_torch(array)[0], 8)
        row = golden[f"to/{kind.names[0]}"]
        np.testing.assert_array_equal(samples, row[3:], err_msg=name)
        np.testing.assert_allclose(summary[1:], row[1:3], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [224, 256, 320])
def test_positions_are_resized_as_published(size, golden):
    grid = size // 16
    found = transunet.resize_positions(draw(POSITIONS), (1, grid**2, 768))
    assert found.shape == tuple(golden[f"position_embeddings_{size}/shape"])
    samples = found.ravel()[golden[f"position_embeddings_{size}/index"]]
    expected = golden[f"position_embeddings_{size}/value"]
    np.testing.assert_allclose(samples, expected, rtol=0, atol=1e-6)


def fabricate(config, tokens: int) -> dict[str, np.ndarray]:
    """A file of Google's names and axes of the size of `config`, with a table of `tokens` rows."""
    heads = config.num_heads
    arrays = {"cls": np.zeros((1, 1, 8), np.float32), "head/kernel": np.zeros((8, 5), np.float32)}
    for leaf in name_map.model_leaves(config, GOOGLE):
        if name_map.is_fresh(leaf, GOOGLE):
            continue
        name, shape = leaf.names[0], leaf.shape
        if re.search(r"/(query|key|value)/", name):
            shape = (*shape[:-1], heads, shape[-1] // heads)
        elif name.endswith("/out/kernel"):
            shape = (heads, shape[0] // heads, shape[1])
        elif "gn" in name:
            shape = (1, 1, 1, *shape)
        arrays[name] = recipe.normal(name, shape)
    arrays[POSITIONS] = recipe.normal(POSITIONS, (1, tokens, config.width))
    return arrays


def test_google_file_is_read_as_it_is(tmp_path):
    config = model_config(**SMALL)
    path = tmp_path / "R50+ViT-B_16.npz"
    arrays = fabricate(config, tokens=1 + 9)
    np.savez(path, **arrays)
    variables, news = load.read_weights(path, config)
    assert "Google's R50+ViT-B_16.npz" in news and "(1, 10, 8) -> (1, 4, 8)" in news
    params = variables["params"]
    assert not {"conv_more", "blocks_0", "segmentation_head"} & params.keys()
    layer = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    found = params["layer_1"]["attn"]
    np.testing.assert_array_equal(
        found["query"]["kernel"], arrays[f"{layer}/query/kernel"].reshape(8, 8)
    )
    np.testing.assert_array_equal(
        found["out"]["kernel"], arrays[f"{layer}/out/kernel"].reshape(8, 8)
    )
    kernel = params["block1"]["unit2"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["block1/unit2/conv2/kernel"])
    corners = arrays[POSITIONS][0, [1, 3, 7, 9]]
    np.testing.assert_allclose(params["embeddings"]["position_embeddings"][0], corners, atol=1e-7)


def test_google_file_that_does_not_fit_is_named(tmp_path):
    config, path = model_config(**SMALL), tmp_path / "ViT.npz"
    np.savez(path, **fabricate(config, tokens=1 + 8))
    with pytest.raises(WeightsError, match=r"pos_embedding: got 8 positions .*square"):
        load.read_weights(path, config)
    wider = fabricate(model_config(**SMALL | {"width": 16}), tokens=5)
    np.savez(path, **wider)
    with pytest.raises(
        WeightsError, match=r"(?s)not those of Google's R50.*npz.*width = 8.*got \(.*16"
    ):
        load.read_weights(path, config)
    plain = {name: x for name, x in wider.items() if name.startswith("Transformer/")}
    np.savez(path, **plain)  # a ViT without a ResNet
    with pytest.raises(WeightsError, match=r"not those of Google's R50.*\n50 missing:\n  block1/u"):
        load.read_weights(path, config)


def test_merge_axes_keeps_arrays_of_other_axes():
    for shape in ((), (0,), (2, 3)):
        array = np.zeros(shape)
        assert transunet.merge_axes("a/query/kernel", array) is array
    merged = transunet.merge_axes("a/query/kernel", np.zeros((0, 2, 3)))
    assert merged.shape == (0, 6) and math.prod(merged.shape) == 0
