"""TransUNet's tensors, and Google's of R50+ViT-B_16, from which its encoder starts."""

import math
import re

import numpy as np

from usam_jax.models.common.upsample import end_point_matrix
from usam_jax.utils.errors import WeightsError
from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published TransUNet",
    rename=(
        (r"^root\.", "embeddings.hybrid_model.root."),
        (r"^block(\d)\.", r"embeddings.hybrid_model.body.block\1."),
        (r"^(layer|encoder_norm)\.", r"encoder.\1."),
        (r"^(embeddings|encoder)\.", r"transformer.\1."),
        (r"\.ffn\.lin(\d)\.", r".ffn.fc\1."),
        (r"^(conv_more|blocks)\.", r"decoder.\1."),
        (r"^(decoder\..*)\.conv\.", r"\1.0."),
        (r"^(decoder\..*)\.norm\.", r"\1.1."),
        (r"^segmentation_head\.", "segmentation_head.0."),
    ),
    ignored=(COUNTER,),
)


def merge_axes(name: str, array: np.ndarray) -> np.ndarray:
    """Join an attention's axes of heads and channels, and drop a GroupNorm's axes of size 1."""
    if array.ndim == 3 and re.search(r"/(query|key|value)/kernel$", name):
        return array.reshape(array.shape[0], math.prod(array.shape[1:]))
    if array.ndim == 3 and name.endswith("/out/kernel"):
        return array.reshape(math.prod(array.shape[:2]), array.shape[2])
    if re.search(r"/(query|key|value)/bias$|gn\w+/(scale|bias)$", name):
        return array.ravel()
    return array


def resize_positions(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Drop the class token of a table [1 n d] and resize the others, with the corners aligned.

    Raises WeightsError if they are not those of a square.
    """
    tokens = table[0, 1:]
    if tokens.shape == shape[1:]:
        return tokens[None]
    before, after = math.isqrt(len(tokens)), math.isqrt(shape[1])
    if before == 0 or before**2 != len(tokens):
        raise WeightsError(
            f"Transformer/posembed_input/pos_embedding: got {len(tokens)} positions after the first, "
            "expected a square number"
        )
    grid = tokens.reshape(before, before, -1)
    weights = end_point_matrix(before, after)
    return np.einsum("ih,jw,hwd->ijd", weights, weights, grid).reshape(shape)


GOOGLE = NameMap(
    source="Google's R50+ViT-B_16.npz",
    rename=(
        (r"(norm|gn\w*)\.weight$", r"\1.scale"),
        (r"\.weight$", ".kernel"),
        (r"^root\.", "root_"),
        (r"^root_(conv|gn)", r"\1_root"),
        (r"\.downsample\.", ".conv_proj."),
        (r"^embeddings\.patch_embeddings\.", "embedding."),
        (r"^embeddings\.position_embeddings$", "Transformer.posembed_input.pos_embedding"),
        (r"^encoder_norm\.", "Transformer.encoder_norm."),
        (r"^layer\.(\d+)\.", r"Transformer.encoderblock_\1."),
        (r"\.attention_norm\.", ".LayerNorm_0."),
        (r"\.ffn_norm\.", ".LayerNorm_2."),
        (r"\.attn\.", ".MultiHeadDotProductAttention_1."),
        (r"\.ffn\.lin1\.", ".MlpBlock_3.Dense_0."),
        (r"\.ffn\.lin2\.", ".MlpBlock_3.Dense_1."),
        (r"\.", "/"),
    ),
    layout=((r".", "as_is"),),
    ignored=((r"^(cls$|pre_logits/|head/)", "it tells ImageNet's classes apart"),),
    fresh=(
        (r"^batch_stats/|^params/(conv_more|blocks_\d|segmentation_head)/", "ViT has no decoder"),
    ),
    read=merge_axes,
    resized=r"/position_embeddings$",
    resize=resize_positions,
)

MAPS = (PUBLISHED, GOOGLE)
