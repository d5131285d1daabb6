"""MultiResUNet's tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published MultiResUNet",
    rename=(
        (r"^(upsample\d)\.up\.", r"\1."),
        (r"\.conv\.(\w+)$", r".conv1.\1"),
        (r"\.norm\.(\w+)$", r".batchnorm.\1"),
    ),
    layout=((r"/upsample\d/up/kernel$", "conv_transpose"),),
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
