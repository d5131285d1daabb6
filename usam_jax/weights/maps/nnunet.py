"""The tensors of nnU-Net's 2-D networks under the names of a trained model's checkpoint."""

from usam_jax.weights.name_map import NameMap

PUBLISHED = NameMap(
    source="nnU-Net's plain 2-D network",
    rename=((r"^encoder\.stages\.(\d+)\.convs\.", r"encoder.stages.\1.0.convs."),),
    layout=((r"/transpconvs_\d+/kernel$", "conv_transpose"),),
    ignored=(
        (r"^decoder\.encoder\.", "the encoder's tensors again"),
        (r"\.all_modules\.", "tensors of the convolution and the norm again"),
    ),
    file_names=((r"^(module\.|_orig_mod\.)+", ""),),
)

MAPS = (PUBLISHED,)
