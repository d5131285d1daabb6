"""U-Net's tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published U-Net",
    rename=(
        (r"^down(\d)\.", r"Conv\1."),
        (r"^up(\d)\.conv\.", r"Up\1.up.1."),
        (r"^up(\d)\.norm\.", r"Up\1.up.2."),
        (r"^merge(\d)\.", r"Up_conv\1."),
        (r"^head\.", "Conv_1x1."),
        (r"\.unit\.0\.conv\.", ".conv.0."),
        (r"\.unit\.0\.norm\.", ".conv.1."),
        (r"\.unit\.1\.conv\.", ".conv.3."),
        (r"\.unit\.1\.norm\.", ".conv.4."),
    ),
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
