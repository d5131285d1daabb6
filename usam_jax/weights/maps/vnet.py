"""V-Net's tensors under the names of the published code."""

from usam_jax.weights.name_map import COUNTER, NameMap

PUBLISHED = NameMap(
    source="the published V-Net with ELU",
    rename=(
        (r"^(down|up)(\d)\.", lambda match: f"{match[1]}_tr{16 << int(match[2])}."),
        (r"^stem\.", "in_tr."),
        (r"^head\.point\.", "out_tr.conv2."),
        (r"^head\.unit\.", "out_tr."),
        (r"\.(down|up)\.conv\.", r".\1_conv."),
        (r"^((?:down|up)_tr\d+)\.act\.", r"\1.relu2."),
        (r"\.(?:down|up)\.(norm|act)\.", r".\1."),
        (r"\.unit\.", ".ops."),
        (r"\.conv\.", ".conv1."),
        (r"\.norm\.", ".bn1."),
        (r"\.act\.", ".relu1."),
        (r"\.slope$", ".weight"),
    ),
    layout=((r"/up\d/up/conv/kernel$", "conv_transpose"),),
    ignored=(COUNTER,),
)

MAPS = (PUBLISHED,)
