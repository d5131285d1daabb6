"""MedSAM: SAM's names, grey values in [0, 1], and the values that its code printed."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from conftest import model_config, phantom_config
from safetensors.numpy import save_file
from test_zoo import assert_probe, to_torch_layout

from usam_jax import models
from usam_jax.models import Prompts
from usam_jax.models.common.spec import InputSpec
from usam_jax.weights import load, name_map, recognise
from usam_jax.weights.maps import sam_s, usam


@pytest.mark.optimised
def test_box_of_medsam_gives_its_embedding_and_mask():
    """Of S with SAM's four masks, MedSAM uses the first one."""
    with np.load(recipe.GOLDEN / "medsam" / "medsam_256.npz") as file:
        golden = dict(file)
    config = model_config(name="sam_s", num_classes=4, image_size=256)
    whole = dataclasses.replace(
        sam_s.PUBLISHED, resized=usam.SAM.resized, unit_input=sam_s.PATCH_EMBED
    )
    tensors = {f"sam.{name}": x for name, x in recipe.state_dict("sam_vit_b").items()}
    variables, report = name_map.from_torch(tensors, whole, config)
    assert len(report.resized) == 9 and not report.fresh
    model = models.make_model(config)

    @jax.jit
    def run(variables, images, boxes):
        features = model.apply(variables, images, method="encode")
        prompts = Prompts(boxes_xyxy=boxes)
        return features.embedding, model.apply(variables, features, prompts, method="decode")

    grey = recipe.images(2, size=256)
    low, high = (f(grey, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    images = jnp.asarray((grey - low) / (high - low))
    embedding, logits = run(variables, images, jnp.asarray(golden["boxes"], jnp.float32))
    assert_probe(golden, "embedding", to_torch_layout(embedding), 1e-5)
    mask = to_torch_layout(logits)[:, :1]
    assert_probe(golden, "logits", mask, 1e-5)


def test_normalised_input_gives_first_layer_the_same_output():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(4, 4, 3, 5)), rng.normal(size=5)
    flat = {("a", "kernel"): kernel, ("a", "bias"): bias}
    grey = rng.random((4, 4))
    expected = np.einsum("hw,hwce->e", grey, kernel) + bias
    name_map.normalise_input(flat, "a", InputSpec(mean=0.25, std=0.5))
    found = np.einsum("hw,hwce->e", (grey - 0.25) / 0.5, flat["a", "kernel"]) + flat["a", "bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("network", ["usam", "sam_s", "samed"])
def test_name_of_the_file_tells_medsam_from_sam(network, tmp_path):
    config = phantom_config(network).model
    sam, medsam = (x for x in load.maps_of(network) if x.source in ("SAM", "MedSAM"))
    shapes = models.variable_shapes(config)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    tensors = name_map.to_torch(variables, sam, config)
    found = {}
    for name in ("sam_vit_b", "MedSAM_vit_b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        found[name], news = load.read_weights(tmp_path / f"{name}.safetensors", config)
        assert news.startswith("MedSAM," if "Med" in name else "SAM,")
    assert medsam.unit_input == ("" if network == "usam" else sam_s.PATCH_EMBED)
    a, b = (load.flatten(x) for x in found.values())
    changed = {name for name in a if not np.array_equal(a[name], b[name])}
    layer = {f"{medsam.unit_input}/{x}" for x in ("kernel", "bias")}
    assert changed == (layer if medsam.unit_input else set())


def test_name_version_names_the_one_that_fits(monkeypatch):
    versions = tuple({"variant": x} for x in ("small", "tiny"))  # quicker than SAM's
    spec = dataclasses.replace(models.get("sam_s"), versions=versions)
    monkeypatch.setattr(recognise.registry, "get", lambda name: spec)
    leaves = name_map.model_leaves(model_config(name="sam_s", variant="tiny"), sam_s.SAM)
    wanted = name_map.wanted_names(leaves, sam_s.SAM)
    tensors = {
        name: np.broadcast_to(np.float32(0), leaf.torch_shape)
        for leaf in leaves
        for name in leaf.names
        if name in wanted
    }
    given = model_config(name="sam_s", variant="small")
    assert recognise.name_version(tensors, pathlib.Path("sam.pth"), given) == (
        "got weights of SAM for config.model with {'variant': 'tiny'}, expected {'variant': "
        "'small'}. Give --config.model.variant=tiny"
    )
