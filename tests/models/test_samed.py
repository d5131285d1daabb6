"""SAMed: LoRA, its own loss, its checkpoints and its sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from safetensors.numpy import save_file
from test_zoo import golden_state_dict, read_golden, small_config

from configs.published import samed as samed_recipe
from usam_jax import convert, models
from usam_jax.models.common.spec import split_params
from usam_jax.training import losses
from usam_jax.training.step import sown
from usam_jax.utils.errors import WeightsError
from usam_jax.weights import load, maps, name_map


def count(params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("variant", "num_classes", "expected", "trained"),
    [
        ("vit_b", 3, 90_696_207, 4_071_695),
        ("vit_b", 17, 92_660_701, 6_036_189),
        ("vit_h", 3, 636_549_647, 4_579_599),
        ("vit_h", 17, 638_514_141, 6_544_093),
    ],
)
def test_parameter_counts_equal_the_published_ones(variant, num_classes, expected, trained):
    config = models.make_config("samed")
    config.update({"variant": variant, "num_classes": num_classes})
    params = models.variable_shapes(config)["params"]
    assert count(params) == expected
    # Published SAMed also hands parameters to its optimizer that never have a gradient.
    idle = count(params["unread"]) + 5 * 256
    assert count(split_params(params, models.get("samed"))[0]) + idle == trained


def test_names_of_vit_h_equal_the_published_ones():
    config = models.make_config("samed")
    config.variant = "vit_h"
    leaves = name_map.model_leaves(config, maps.maps_of("samed")[0])
    found = {name: leaf.torch_shape for leaf in leaves for name in leaf.names}
    assert found == recipe.read_manifest(recipe.GOLDEN / "samed/vit_h_manifest.json")


def test_labels_at_quarter_size_equal_the_published_rows():
    golden = read_golden("samed")[0]
    rows = losses.GRIDS[models.get("samed").label_grid](224, 56)
    np.testing.assert_array_equal(rows, golden["low_res_index"])


@pytest.mark.optimised
def test_published_loss_at_quarter_size_equals_sameds():
    golden, source, manifest = read_golden("samed")
    config, spec = models.make_config("samed"), models.get("samed")
    variables = convert.from_published(golden_state_dict(manifest, source), config)
    settings = samed_recipe.get_config().train

    @jax.jit
    def loss_of(variables, images, labels):
        logits, state = models.make_model(config).apply(variables, images, mutable=["aux_logits"])
        outputs = {"logits": logits, **sown(state["aux_logits"])}
        loss_fn = losses.make_loss(settings)
        return losses.weighted_loss(outputs, labels, spec.loss_weights, loss_fn, spec.label_grid)[0]

    labels = jnp.asarray(recipe.masks(2, 3, "step0"), jnp.int32)
    found = loss_of(variables, jnp.asarray(recipe.images(2, "step0")), labels)
    np.testing.assert_allclose(found, golden["low_res_losses"][0, 0], rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def samed():
    """A small SAMed whose LoRA is not zero: config and variables."""
    config = small_config("samed")
    shapes = models.variable_shapes(config)
    rng = np.random.default_rng(0)
    return config, jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype("f4"), shapes)


def test_lora_equals_raised_rows_of_qkv_in_the_baseline(samed):
    config, variables = samed
    baseline = small_config("sam_s")
    tensors = {}
    for name, tensor in load.to_published(variables, config).items():
        if not re.search(r"linear_|mask_downscaling|iou_prediction_head", name):
            tensors[name.replace("qkv.qkv", "qkv")] = tensor
    published = load.to_published(variables, config)
    for name in [x for x in published if "linear_a" in x]:
        lora = published[name.replace("linear_a", "linear_b")] @ published[name]
        weight = tensors[re.sub(r"\.linear_a.*", ".weight", name)]
        rows = slice(len(lora)) if name.endswith("q.weight") else slice(-len(lora), None)
        weight[rows] += lora
    merged = convert.from_published(tensors, baseline)
    images = jnp.asarray(recipe.images(2, size=config.image_size))
    found, expected = (
        jax.jit(models.make_model(x).apply)(v, images)
        for x, v in ((config, variables), (baseline, merged))
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.std(expected))


def test_trained_checkpoint_reads_back_over_sams(samed, tmp_path):
    config, variables = samed
    trained = maps.maps_of("samed")[3]
    tensors = name_map.to_torch(variables, trained, config)
    assert {"w_a_000", "w_b_003", "mask_decoder.mask_tokens.weight"} <= tensors.keys()
    assert "prompt_encoder.mask_downscaling.6.bias" in tensors
    assert not any(name.startswith("image_encoder") for name in tensors)
    np.testing.assert_array_equal(
        tensors["w_b_003"],
        variables["params"]["image_encoder"]["blocks_1"]["attn"]["qkv"]["linear_b_v"]["kernel"].T,
    )
    save_file(tensors, tmp_path / "epoch_159.safetensors")
    found, news = load.read_weights(tmp_path / "epoch_159.safetensors", config)
    assert news.startswith("a trained SAMed")
    loaded, whole = load.flatten(found), load.flatten(variables)
    assert len(loaded) == len(whole) - sum(
        "image_encoder" in x and "linear_" not in x for x in whole
    )
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, whole[name])


def test_checkpoint_of_samed_s_is_refused(samed):
    config, variables = samed
    trained = maps.maps_of("samed")[3]
    tensors = name_map.to_torch(variables, trained, config)
    tensors["sa_a_000"] = tensors["w_a_000"]
    with pytest.raises(WeightsError, match=r"with sa_a_000, LoRA of the decoder \(SAMed_s\)"):
        name_map.from_torch(tensors, trained, config)


def test_sam_gives_samed_all_but_what_has_classes():
    shapes = recipe.manifest("sam_vit_b").items()
    sam = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes}
    params, report = convert.from_sam(sam, models.make_config("samed"))
    assert "mask_decoder.output_upscaling.0.weight" in report.loaded
    assert "prompt_encoder.mask_downscaling.0.weight" in report.loaded
    assert len(report.resized) == 9 and len(report.left) == 30 + 1
    assert "mask_tokens" not in params["mask_decoder"]
    lora = [name for name in report.fresh if "linear_" in name]
    assert len(lora) == 48
