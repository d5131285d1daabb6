"""SAMed's tensors: the whole model's, its own checkpoint's, and SAM's, from which it starts."""

import dataclasses
import re

from usam_jax.weights.maps import sam_s, usam
from usam_jax.weights.name_map import NameMap

UNREAD = (
    (r"^unread\.mask_downscaling_(\d)_", r"prompt_encoder.mask_downscaling.\1."),
    (r"^unread\.iou_prediction_head_(\d)_", r"mask_decoder.iou_prediction_head.layers.\1."),
)
RENAME = (*usam.SAM_RENAME, *UNREAD)
LORA = r"/qkv/linear_[ab]_[qv]/"


def number_lora(match: re.Match[str]) -> str:
    """Return the name in SAMed's checkpoint of a matrix: entry 2i is q of block i, 2i + 1 its v."""
    block, letter, part = match.groups()
    return f"w_{letter}_{2 * int(block) + (part == 'v'):03d}"


PUBLISHED = NameMap(
    source="a whole SAMed",
    rename=(*RENAME, (r"^", "sam.")),
    layout=usam.SAM_LAYOUT,
    stacked=usam.STACKED,
)

TRAINED = NameMap(
    source="a trained SAMed",
    rename=(
        *RENAME,
        (r"^image_encoder\.blocks\.(\d+)\.attn\.qkv\.linear_([ab])_([qv])\.weight$", number_lora),
    ),
    layout=usam.SAM_LAYOUT,
    stacked=usam.STACKED,
    fresh=((rf"^params/image_encoder/(?!.*{LORA})", "it is in SAM's checkpoint"),),
    refused=(
        (
            r"^sa_a_000$",
            "LoRA of the decoder (SAMed_s), expected a SAMed or SAMed_h without it",
        ),
    ),
)

FRESH = r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|iou_prediction_head)"
SAM = NameMap(
    source="SAM",
    rename=(*RENAME, (r"(attn\.qkv)\.qkv\.", r"\1.")),
    layout=usam.SAM_LAYOUT,
    stacked=usam.STACKED,
    ignored=((FRESH, usam.FRESH),),
    fresh=(
        (LORA, "SAM has no LoRA"),
        (r"/(mask_tokens|output_hypernetworks_mlps/.*|unread/iou_.*)$", usam.FRESH),
    ),
    resized=usam.SAM.resized,
)
HUB = dataclasses.replace(SAM, source=sam_s.HUB.source, file_names=usam.HUB_NAMES)

MEDSAM = dataclasses.replace(
    SAM, source="MedSAM", file=usam.MEDSAM_FILE, unit_input=sam_s.PATCH_EMBED
)

MAPS = (PUBLISHED, SAM, HUB, TRAINED, MEDSAM)
