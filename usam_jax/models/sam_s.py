"""S, the paper's first design: SAM with a class-wise decoder and without the U."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec
from usam_jax.models.usam import SPEC as USAM
from usam_jax.models.usam import USam, find_variant


def s_config() -> ConfigDict:
    config = ConfigDict()
    config.variant = (
        "vit_b"  # vit_b, vit_l, vit_h; small (the demo) and tiny (tests) have no weights
    )
    config.remat = False  # recompute the transformer's activations in the backward pass
    return config


def build(config: ConfigDict) -> USam:
    return USam(
        variant=find_variant(config),
        num_classes=config.num_classes,
        image_size=config.image_size,
        num_mask_tokens=config.num_classes,
        num_skips=None,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )


SPEC = ModelSpec(
    config=s_config,
    build=build,
    param_groups=USAM.param_groups[1:],
    image_size=USAM.image_size,
    promptable=True,
    paper=USAM.paper,
    code=USAM.code,
    pretrained=USAM.pretrained,
    small=USAM.small,
)
