"""Swin-Unet's tensors, and Swin-T's of ImageNet, which go into its encoder and its decoder."""

import dataclasses
import re

from usam_jax.weights.name_map import NameMap

MLP = (r"\.mlp\.lin(\d)\.", r".mlp.fc\1.")
COMPUTED = (r"\.(relative_position_index|attn_mask)$", "the network computes it")


def encoder_stage(match: re.Match[str]) -> str:
    """Return the stage of the encoder, of four, that fills a stage of the decoder."""
    return f"layers.{3 - int(match[1])}."


PUBLISHED = NameMap(
    source="the published Swin-Unet",
    rename=(MLP, (r"^", "swin_unet.")),
    ignored=(COMPUTED,),
)

SWIN_TINY = NameMap(
    source="ImageNet's Swin-T (swin_tiny_patch4_window7_224.pth)",
    rename=(MLP, (r"^layers_up\.(\d)\.", encoder_stage)),
    ignored=(
        (r"^layers\.2\.blocks\.[2-5]\.", "Swin-Unet has two of the third stage's six blocks"),
        (r"^head\.", "it tells ImageNet's classes apart"),
        COMPUTED,
    ),
    fresh=(
        (
            r"^params/(concat_back_dim_\d|layers_up_0|norm_up|up|output)/|/upsample/",
            "Swin-T has no decoder",
        ),
    ),
)

# timm since 1.0: a stage begins with the merging that ended the stage before it.
TIMM = dataclasses.replace(
    SWIN_TINY,
    source="ImageNet's Swin-T of timm",
    file_names=((r"^layers\.(\d)\.downsample\.", lambda x: f"layers.{int(x[1]) - 1}.downsample."),),
)

# The Hugging Face hub's names (microsoft/swin-tiny-patch4-window7-224) to Microsoft's, in this order.
HUB_NAMES = (
    (r"^swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^swin\.embeddings\.norm\.", "patch_embed.norm."),
    (r"^swin\.encoder\.", ""),
    (r"^swin\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.qkv.\1."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
HUB = dataclasses.replace(
    SWIN_TINY,
    source="ImageNet's Swin-T on the Hugging Face hub",
    rename=(*SWIN_TINY.rename, (r"\.attn\.qkv\.", ".attn.qkv.{}.")),
    joined=((r"/attn/qkv/", ("query", "key", "value")),),
    file_names=HUB_NAMES,
)

MAPS = (PUBLISHED, SWIN_TINY, TIMM, HUB)
