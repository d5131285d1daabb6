"""R2U-Net's tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published R2U-Net",
    rename=(
        (r"^down(\d)\.", r"RRCNN\1."),
        (r"^merge(\d)\.", r"Up_RRCNN\1."),
        (r"^up(\d)\.conv\.", r"Up\1.up.1."),
        (r"^up(\d)\.norm\.", r"Up\1.up.2."),
        (r"^head\.", "Conv_1x1."),
        (r"\.point\.", ".Conv_1x1."),
        (r"\.recurrent\.(\d)\.unit\.conv\.", r".RCNN.\1.conv.0."),
        (r"\.recurrent\.(\d)\.unit\.norm\.", r".RCNN.\1.conv.1."),
    ),
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
