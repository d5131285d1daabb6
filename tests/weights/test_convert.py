"""Checkpoints of other programs: names, layouts, and errors that list every problem."""

import json

import numpy as np
import pytest
import recipe
from conftest import model_config
from flax import traverse_util
from safetensors.numpy import save_file

from tools import convert as convert_tool
from usam_jax import convert
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import load, name_map
from usam_jax.weights.maps import usam


@pytest.fixture(scope="module")
def sam():
    return recipe.state_dict("sam_vit_b")


def test_leaf_from_torch_inverts_to_torch():
    for leaf in name_map.model_leaves(model_config(variant="tiny", image_size=112), usam.PUBLISHED):
        array = np.arange(np.prod(leaf.shape), dtype=np.float32).reshape(leaf.shape)
        tensors = leaf.to_torch(array)
        assert {t.shape for t in tensors} == {leaf.torch_shape}
        np.testing.assert_array_equal(leaf.from_torch(tensors), array)


def test_hub_names_map_to_sams_names():
    hub = json.loads((recipe.USAM / "hugging_face_manifest.json").read_text())
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in hub.items()}
    renamed = {name_map.rename(name, usam.HUB_NAMES): x.shape for name, x in arrays.items()}
    assert renamed == recipe.manifest("sam_vit_b")
    # Of two equal matrices a saved file has one, under either name.
    for name in [name for name in hub if "positional_embedding" in name]:
        one = {other: array for other, array in arrays.items() if other != name}
        assert {name_map.rename(other, usam.HUB_NAMES) for other in one} == renamed.keys()


def test_from_sam_lists_all_faulty_tensors_at_once(sam):
    faulty = dict(sam)
    del faulty["image_encoder.neck.0.weight"]
    del faulty["prompt_encoder.no_mask_embed.weight"]
    faulty["image_encoder.adapter.weight"] = np.zeros(3, np.float32)
    faulty["image_encoder.blocks.3.norm1.bias"] = np.zeros(1024, np.float32)
    with pytest.raises(WeightsError) as caught:
        convert.from_sam(faulty, model_config())
    for text in (
        "2 missing",
        "image_encoder.neck.0.weight",
        "prompt_encoder.no_mask_embed.weight",
        "1 unknown",
        "image_encoder.adapter.weight",
        "1 misshapen",
        "image_encoder.blocks.3.norm1.bias: got (1024,), expected (768,)",
    ):
        assert text in str(caught.value)


def test_from_usam_names_tensor_of_other_classes():
    shapes = recipe.manifest("usam_word").items()
    word = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes}
    with pytest.raises(WeightsError, match=r"final_output.3.weight: got \(17, 32, 1, 1\)"):
        convert.from_usam(word, model_config(num_classes=3))


def test_from_sam_gives_baseline_s_the_patch_embedding(sam):
    params, report = convert.from_sam(sam, model_config(name="sam_s"))
    kernel = params["image_encoder"]["patch_embed"]["proj"]["kernel"]
    expected = sam["image_encoder.patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    assert "image_encoder.patch_embed.proj.weight" in report.loaded


def test_from_sam_report_counts_loaded_resized_and_left(sam):
    _, report = convert.from_sam(sam, model_config())
    text = str(report)
    assert "loaded 265 tensors, 9 of them resized" in text
    assert "image_encoder.pos_embed: (1, 64, 64, 768) -> (1, 14, 14, 768)" in text
    assert len(report.left) + len(report.loaded) == len(sam)


def test_converted_file_gives_the_same_initial_weights(sam, tmp_path):
    config = model_config()
    save_file(sam, tmp_path / "sam.safetensors")
    convert_tool.convert(tmp_path / "sam.safetensors", tmp_path / "ours.safetensors", config)
    direct, _ = load.read_weights(tmp_path / "sam.safetensors", config)
    again, news = load.read_weights(tmp_path / "ours.safetensors", config)
    assert "this package" in news
    a, b = (traverse_util.flatten_dict(x) for x in (direct, again))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


def test_read_weights_names_file_of_another_size(tmp_path):
    config = model_config(variant="tiny", image_size=112)
    arrays = {
        "/".join(x.path): np.zeros(x.shape, np.float32)
        for x in name_map.model_leaves(config, usam.PUBLISHED)
    }
    save_file(arrays, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)tiny.safetensors: .*misshapen") as e:
        load.read_weights(tmp_path / "tiny.safetensors", model_config())
    assert "params/image_encoder/pos_embed: got (1, 7, 7, 96)" in str(e.value)


def test_read_weights_names_both_networks(tmp_path):
    shapes = recipe.read_manifest(recipe.GOLDEN / "unet" / "manifest.json").items()
    save_file({x: np.zeros(shape, np.float32) for x, shape in shapes}, tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=r"got weights of the published U-Net, expected ones of the network usam"
    ):
        load.read_weights(tmp_path / "x.safetensors", model_config())
