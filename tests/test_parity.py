"""The image encoder compared with an independent one in PyTorch (`make parity`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import model_config

from usam_jax import convert
from usam_jax.io import torch_checkpoint
from usam_jax.models import make_model
from usam_jax.models.common.spec import GREY_MEAN, GREY_STD

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=[224, 320])
def sam_model(request):
    """SAM ViT-B of the transformers library with random weights.

    224 pixels give 14x14 tokens, which is one window; 320 give 20x20, whose windows need padding.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    vision = transformers.SamVisionConfig(image_size=request.param)
    model = transformers.SamModel(transformers.SamConfig(vision_config=vision)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Tables that start as zeros would hide errors; the factor keeps activations near 1.
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_image_encoder_equals_transformers(sam_model, form, tmp_path):
    import torch

    size = sam_model.config.vision_config.image_size
    if form == "pth":
        path = tmp_path / "sam.pth"
        torch.save(sam_model.state_dict(), path)
    else:
        path = tmp_path / "model.safetensors"  # the file has one name of each tied tensor
        sam_model.save_pretrained(tmp_path)
    config = model_config(name="sam_s", image_size=size)
    params, report = convert.from_sam(torch_checkpoint.load(path), config)
    assert not report.resized

    grey = np.random.default_rng(0).random((1, size, size), np.float32)
    normal = np.repeat((grey[:, None] - GREY_MEAN) / GREY_STD, 3, axis=1).astype(np.float32)
    with torch.no_grad():
        expected = sam_model.vision_encoder(torch.from_numpy(normal)).last_hidden_state.numpy()
    encode = jax.jit(lambda v, x: make_model(config).apply(v, x, method="encode").embedding)
    found = encode({"params": params}, jnp.asarray(grey))
    # LayerNorm ends the encoder, so values are of order 1. Twelve float32 blocks err by about 1e-5.
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), rtol=0, atol=2e-4)
