"""U-SAM's tensors: its own published checkpoint, and SAM's under its two sets of names."""

import dataclasses

from usam_jax.weights.name_map import COUNTER, NameMap

EMBEDDINGS = (
    r"(iou_token|mask_tokens|point_embeddings\.\d|not_a_point_embed|no_mask_embed)$",
    r"\1.weight",
)
TOKEN_MLPS = (r"output_hypernetworks_mlps\.", r"output_hypernetworks_mlps.{}.")
SAM_RENAME = (EMBEDDINGS, TOKEN_MLPS)
SAM_LAYOUT = ((r"/(up|output_upscaling_[03])/kernel$", "conv_transpose"),)
STACKED = r"/output_hypernetworks_mlps/"

# Parts of the checkpoints that touch no output.
UNUSED = (
    (r"iou_prediction_head", "predicts mask quality, which nothing here uses"),
    (r"lowres_output", "an output of the published code that nothing uses"),
    (r"mask_downscaling", "embeds mask prompts, which U-SAM does not take"),
    COUNTER,
)
PATCH_EMBED = (r"image_encoder\.patch_embed", "the convolutional encoder takes its place")
# A published file may lack the prefix of what is SAM's.
BARE = (r"^(?!sam\.|backbone\.)", "sam.")
FRESH = "started afresh, for other classes than SAM's"
EXTENSION = (r"^params/extension/", "the interactive extension starts from zero")
COARSE = (r"^params/mask_decoder/coarse_head/", "deep supervision is of training alone")

PUBLISHED = NameMap(
    source="a published U-SAM",
    rename=(*SAM_RENAME, (r"^(?!backbone\.)", "sam.")),
    layout=SAM_LAYOUT,
    stacked=STACKED,
    ignored=(*UNUSED, PATCH_EMBED),
    fresh=(EXTENSION, COARSE),
    file_names=(BARE,),
)

SAM = NameMap(
    source="SAM",
    rename=SAM_RENAME,
    layout=SAM_LAYOUT,
    stacked=STACKED,
    ignored=(
        (r"mask_decoder\.(mask_tokens|output_hypernetworks_mlps|output_upscaling)", FRESH),
        *UNUSED,
        PATCH_EMBED,
    ),
    fresh=(
        EXTENSION,
        (r"^batch_stats/|^params/backbone/", "SAM has no convolutional encoder"),
        (r"^params/mask_decoder/(?!transformer/|iou_token)", FRESH),
    ),
    resized=r"image_encoder/(pos_embed|blocks_\d+/attn/rel_pos_[hw])$",
)

# The Hugging Face hub's names (facebook/sam-vit-base) to SAM's own, in this order. The matrix of the
# Fourier features has two names there, of which a file may hold either or both.
HUB_NAMES = (
    (r"^shared_image_embedding\.", "prompt_encoder.shared_embedding."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^image_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^image_encoder\.layers\.", "image_encoder.blocks."),
    (r"^image_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^image_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^image_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^image_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.layers.1."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_in\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
HUB = dataclasses.replace(SAM, source="SAM on the Hugging Face hub", file_names=HUB_NAMES)

# MedSAM is SAM trained on, with the same names and shapes: only the file's name can tell.
MEDSAM_FILE = "medsam"
MEDSAM = dataclasses.replace(SAM, source="MedSAM", file=MEDSAM_FILE)

MAPS = (PUBLISHED, SAM, HUB, MEDSAM)
