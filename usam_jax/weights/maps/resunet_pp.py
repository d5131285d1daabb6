"""ResUNet++'s tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published ResUNet++",
    rename=(
        (r"^(input_skip|output_layer)\.", r"\1.0."),
        (r"^input_layer\.unit\.conv\.", "input_layer.0."),
        (r"^input_layer\.unit\.norm\.", "input_layer.1."),
        (r"^input_layer\.conv\.", "input_layer.3."),
        (r"\.unit\.0\.norm\.", ".conv_block.0."),
        (r"\.unit\.0\.conv\.", ".conv_block.2."),
        (r"\.unit\.1\.norm\.", ".conv_block.3."),
        (r"\.unit\.1\.conv\.", ".conv_block.5."),
        (r"\.skip_conv\.", ".conv_skip.0."),
        (r"\.skip_norm\.", ".conv_skip.1."),
        (r"\.(aspp_block\d)\.conv\.", r".\1.0."),
        (r"\.(aspp_block\d)\.norm\.", r".\1.2."),
        (r"\.(conv_(?:encoder|decoder|attn))\.norm\.", r".\1.0."),
        (r"\.(conv_(?:encoder|decoder|attn))\.conv\.", r".\1.2."),
    ),
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
