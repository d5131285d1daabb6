"""Names with a prefix, non-finite values, shards, and weights of other networks."""

import json
import pathlib

import numpy as np
import pytest
import recipe
from conftest import model_config
from flax import traverse_util
from safetensors.numpy import save_file

from tools import convert as convert_tool
from usam_jax import convert, torch_file
from usam_jax.models import variable_shapes
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import fit, load, recognise
from usam_jax.weights.maps import maps_of


@pytest.fixture(scope="module")
def unet_config():
    return model_config(name="unet")


@pytest.fixture(scope="module")
def unet():
    """The tensors of a published U-Net, which are quick to read."""
    shapes = recipe.read_manifest(recipe.GOLDEN / "unet" / "manifest.json").items()
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes}


def prefixed(tensors: dict, prefix: str) -> dict:
    return {f"{prefix}{name}": x for name, x in tensors.items()}


def same(a, b) -> bool:
    a, b = (traverse_util.flatten_dict(x, sep="/") for x in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[x], b[x]) for x in a)


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "module._orig_mod.", "any.thing."])
def test_from_published_strips_a_shared_prefix(unet, unet_config, prefix):
    found = convert.from_published(prefixed(unet, prefix), unet_config)
    assert same(found, convert.from_published(unet, unet_config))


def test_read_weights_says_which_prefix_it_strips(unet, unet_config, tmp_path):
    save_file(prefixed(unet, "model."), tmp_path / "x.safetensors")
    _, news = load.read_weights(tmp_path / "x.safetensors", unet_config)
    assert news == "the published U-Net without the prefix model., complete"


@pytest.mark.parametrize("prefix", ["", "sam.", "model.sam."])
def test_find_fit_recognises_sam_in_a_wrapper(prefix):
    shapes = recipe.manifest("sam_vit_b").items()
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes}
    config = model_config()
    found = fit.find_fit(prefixed(tensors, prefix), load.maps_of("usam"), config)
    assert (found.name_map.source, found.prefix) == ("SAM", prefix)
    assert found.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("bare", [False, True])
def test_find_fit_keeps_the_prefix_of_published_usam(prefix, bare):
    shapes = recipe.manifest("usam_care").items()
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes}
    if bare:
        tensors = {name.removeprefix("sam."): x for name, x in tensors.items()}
    found = fit.find_fit(prefixed(tensors, prefix), load.maps_of("usam"), model_config())
    assert (found.name_map.source, found.prefix) == ("a published U-SAM", prefix)


def test_unknown_names_give_a_short_error_with_their_prefix(unet, unet_config):
    strange = {f"encoder.part.x{i}.y": x for i, x in enumerate(unet.values())}
    with pytest.raises(WeightsError) as caught:
        convert.from_published(strange, unet_config)
    text = str(caught.value)
    assert (
        f"got {len(unet)} tensors with the prefix encoder.part., such as encoder.part.x0.y" in text
    )
    assert "the published U-Net" in text and len(text) < 600 and "config.model" not in text


def test_prefix_of_some_unknown_names_is_not_that_of_all(unet, unet_config):
    strange = {f"encoder.x{i}.y" if i else "head.y": x for i, x in enumerate(unet.values())}
    with pytest.raises(WeightsError, match=rf"got {len(unet)} tensors, such as head\.y, encoder"):
        convert.from_published(strange, unet_config)


def test_tensors_outside_the_prefix_are_unknown(unet, unet_config):
    tensors = prefixed(unet, "model.") | {"criterion.weight": np.zeros(2, np.float32)}
    with pytest.raises(WeightsError, match=r"1 unknown:\n  criterion.weight"):
        convert.from_published(tensors, unet_config)


def test_errors_show_the_first_missing_tensors_and_a_count(unet, unet_config):
    some = dict(list(unet.items())[: len(unet) // 2])
    with pytest.raises(
        WeightsError, match=r"\d+ missing:\n(  .*\n){10}  ... and \d+ more"
    ) as caught:
        convert.from_published(some, unet_config)
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_name_their_tensor(unet, unet_config, value):
    name = "Conv1.conv.0.weight"
    faulty = unet | {name: unet[name].astype(np.float64)}
    faulty[name].flat[:3] = value
    expected = rf"1 with NaN or infinite values:\n  {name}: 3 of {unet[name].size}"
    with pytest.raises(WeightsError, match=expected):
        convert.from_published(faulty, unet_config)


def test_convert_writes_no_file_with_nan(unet, unet_config, tmp_path):
    faulty = unet | {"Conv_1x1.bias": np.full_like(unet["Conv_1x1.bias"], np.nan)}
    save_file(faulty, tmp_path / "in.safetensors")
    with pytest.raises(
        WeightsError, match=r"in.safetensors: 1 with NaN .*\n  Conv_1x1.bias: 3 of 3"
    ):
        convert_tool.convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", unet_config)
    assert not (tmp_path / "out.safetensors").exists()


def test_own_arrays_that_are_not_finite_are_named(unet, unet_config, tmp_path):
    flat = load.flatten(convert.from_published(unet, unet_config))
    flat["params/head/bias"] = np.full_like(flat["params/head/bias"], np.inf)
    save_file(flat, tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=r"x.safetensors: 1 with NaN .*\n  params/head/bias: 3 of 3"
    ):
        load.read_weights(tmp_path / "x.safetensors", unet_config)


def test_shards_are_read_through_their_index(unet, unet_config, tmp_path):
    names = list(unet)
    files = {f"model-{i + 1:05d}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, some in files.items():
        save_file({x: unet[x] for x in some}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {x: f for f, some in files.items() for x in some}}))
    found, _ = load.read_weights(index, unet_config)
    assert same(found, convert.from_published(unet, unet_config))
    with pytest.raises(WeightsError, match=r"got shard 2 of 2, .*index.json"):
        load.read_weights(tmp_path / list(files)[1], unet_config)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "got no usable index"),
        ("[]", "got no usable index"),
        ('{"weight_map": {"x": 3}}', "expected names of files next to it"),
        ('{"weight_map": {"x": "../other.bin"}}', "expected names of files next to it"),
        ('{"weight_map": {"x": "gone.bin"}}', "gone.bin: No such file"),
        ('{"weight_map": {"y": "there.safetensors"}}', "its files lack tensors:\n  y"),
    ],
)
def test_index_of_shards_is_checked(tmp_path, text, problem):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "there.safetensors")
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(WeightsError, match=problem):
        torch_file.load(tmp_path / "m.index.json")


@pytest.mark.parametrize(("given", "wanted"), [("attention_unet", "unet"), ("vnet3d", "vnet")])
def test_own_arrays_of_another_network_name_both(given, wanted, tmp_path):
    shapes = traverse_util.flatten_dict(variable_shapes(model_config(name=given)), sep="/")
    arrays = {name: np.zeros(x.shape, np.float32) for name, x in shapes.items()}
    save_file(arrays, tmp_path / "x.safetensors")
    with pytest.raises(
        WeightsError, match=rf"network {given}, .* network {wanted}\. Give .*:{given}"
    ):
        load.read_weights(tmp_path / "x.safetensors", model_config(name=wanted))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("vnet3d", "vnet"), ("vnet3d", "vnet_prelu"), ("vnet", "vnet3d"), ("vnet_prelu", "vnet")],
)
def test_published_variants_with_the_same_names_are_told_apart(given, wanted, monkeypatch):
    names = ["vnet", "vnet3d", "vnet_prelu"]
    monkeypatch.setattr(recognise.registry, "names", lambda: names)
    leaves = recognise.default_leaves(given)[maps_of(given)[0].source]
    zero = np.zeros((), np.float32)
    file = {x: np.broadcast_to(zero, leaf.torch_shape) for leaf in leaves for x in leaf.names}
    monkeypatch.setattr(load.torch_checkpoint, "load", lambda _: file)
    source, fitting = (maps_of(x)[0].source for x in (given, wanted))
    with pytest.raises(
        WeightsError,
        match=rf"got weights of {source}, .* {wanted}: {fitting}\. Give one .*:{given}$",
    ):
        load.read_weights(pathlib.Path("v.pth"), model_config(name=wanted))
    narrow = model_config(name=given, width=8)  # another size of the same network
    with pytest.raises(WeightsError, match=rf"not those of {source} with .*width = 8"):
        load.read_weights(pathlib.Path("v.pth"), narrow)
