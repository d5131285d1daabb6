"""UCTransNet's tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published UCTransNet",
    rename=(
        (r"^backbone\.", ""),
        (r"^mtc\.(embeddings|reconstruct)\.", r"mtc.\1_"),
        (r"^mtc\.(layer|encoder_norm)", r"mtc.encoder.\1"),
        (r"\.(query\d|key|value)\.", r".\1.{}."),
        (r"\.lin(\d)\.", r".fc\1."),
        (r"\.mlp_([xg])\.", r".mlp_\1.1."),
    ),
    stacked=r"/channel_attn/(query\d|key|value)/",
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
