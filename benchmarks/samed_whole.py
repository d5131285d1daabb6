"""SAMed with its whole image encoder trained, not LoRA alone: what SAMed is compared with.

The network, its initial output and its loss are those of SAMed; LoRA's product stays zero.
"""

import dataclasses

from usam_jax.models import samed

LORA, *OTHERS = samed.SPEC.param_groups
SPEC = dataclasses.replace(
    samed.SPEC,
    param_groups=((LORA[0], None), (r"image_encoder/.*", "image_encoder"), *OTHERS),
)
