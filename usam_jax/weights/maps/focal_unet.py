"""Focal-UNet's tensors, and those of ImageNet's FocalNet-T, which go into its encoder."""

import dataclasses

from usam_jax.weights.maps.swin_unet import MLP
from usam_jax.weights.name_map import NameMap

PUBLISHED = NameMap(
    source="the published Focal-UNet",
    rename=(MLP, (r"\.focal_layers\.(\d)\.", r".focal_layers.\1.0.")),
    layout=((r"^params/(layers_up_\d/(upsample/)?|patch_expand/)proj/kernel$", "conv_transpose"),),
    ignored=((r"^patch_expand\.norm\.", "the last upsampling does not normalise"),),
)

FOCALNET_TINY = dataclasses.replace(
    PUBLISHED,
    source="ImageNet's FocalNet-T (focalnet_tiny_lrf.pth)",
    ignored=(
        (r"^layers\.2\.blocks\.[45]\.", "Focal-UNet has four of the third stage's six blocks"),
        (r"^head\.", "it tells ImageNet's classes apart"),
    ),
    fresh=(
        (
            r"^params/(concat_back_dim_\d|layers_up_\d|norm_up|patch_expand|output)/",
            "FocalNet-T has no decoder",
        ),
        (r"^params/layers_[013]/blocks_[23]/", "FocalNet-T has two blocks in these stages"),
    ),
)

# The Hugging Face hub's names (microsoft/focalnet-tiny-lrf) to Microsoft's, in this order.
HUB_NAMES = (
    (r"^focalnet\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^focalnet\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^focalnet\.encoder\.stages\.(\d)\.layers\.", r"layers.\1.blocks."),
    (r"^focalnet\.encoder\.stages\.(\d)\.downsample\.projection\.", r"layers.\1.downsample.proj."),
    (r"^focalnet\.encoder\.stages\.(\d)\.downsample\.", r"layers.\1.downsample."),
    (r"^focalnet\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.modulation\.projection_in\.", ".modulation.f."),
    (r"\.modulation\.projection_context\.", ".modulation.h."),
    (r"\.modulation\.projection_out\.", ".modulation.proj."),
)
HUB = dataclasses.replace(
    FOCALNET_TINY,
    source="ImageNet's FocalNet-T on the Hugging Face hub",
    file_names=HUB_NAMES,
)

MAPS = (PUBLISHED, FOCALNET_TINY, HUB)
