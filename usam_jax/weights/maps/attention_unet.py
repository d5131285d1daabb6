"""Attention U-Net's tensors under the names of the published code."""

import dataclasses

from usam_jax.weights.maps import unet

GATE_RENAME = (
    (r"^gate(\d)\.signal\.", r"Att\1.W_g."),
    (r"^gate(\d)\.skip\.", r"Att\1.W_x."),
    (r"^gate(\d)\.mask\.", r"Att\1.psi."),
    (r"^(Att\d\.\w+)\.conv\.", r"\1.0."),
    (r"^(Att\d\.\w+)\.norm\.", r"\1.1."),
)

PUBLISHED = dataclasses.replace(
    unet.PUBLISHED,
    source="the published Attention U-Net",
    rename=(*GATE_RENAME, *unet.PUBLISHED.rename),
)

MAPS = (PUBLISHED,)
