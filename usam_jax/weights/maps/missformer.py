"""MISSFormer's tensors under the names of the published code."""

from usam_jax.weights.name_map import NameMap

PUBLISHED = NameMap(
    source="the published MISSFormer",
    rename=(
        (r"\.dwconv\.", ".dwconv.dwconv."),
        (r"\.layer_former\.", ".layer_former_"),
        (r"^last_layer\.", "decoder_0.last_layer."),
        (r"^decoder\.3\.", "decoder_3.layer_up."),
        (r"^decoder\.", "decoder_"),
    ),
    ignored=(
        (r"^decoder_3\.(concat_linear|layer_former_\d)\.", "the deepest scale has no skip"),
        (r"\.(mlp|mixffn\d)\.norm[23]\.", "an MLP normalises once"),
    ),
)

MAPS = (PUBLISHED,)
