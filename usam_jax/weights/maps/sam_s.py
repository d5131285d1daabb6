"""S's tensors: its published names, and SAM's, of which it takes the patch embedding too."""

import dataclasses

from usam_jax.weights.maps import usam
from usam_jax.weights.name_map import NameMap

PUBLISHED = NameMap(
    source="a published S",
    rename=(*usam.SAM_RENAME, (r"^", "sam.")),
    layout=usam.SAM_LAYOUT,
    stacked=usam.STACKED,
    ignored=usam.UNUSED,
    fresh=(usam.EXTENSION,),
    file_names=(usam.BARE,),
)
SAM = dataclasses.replace(
    usam.SAM,
    ignored=tuple(rule for rule in usam.SAM.ignored if rule != usam.PATCH_EMBED),
)
HUB = dataclasses.replace(SAM, source=usam.HUB.source, file_names=usam.HUB_NAMES)

# MedSAM's patch embedding takes grey in [0, 1].
PATCH_EMBED = "params/image_encoder/patch_embed/proj"
MEDSAM = dataclasses.replace(SAM, source="MedSAM", file=usam.MEDSAM_FILE, unit_input=PATCH_EMBED)

MAPS = (PUBLISHED, SAM, HUB, MEDSAM)
