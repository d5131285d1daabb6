"""S, the paper's baseline: SAM with a class-wise decoder and without the U-shaped encoder."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec
from usam_jax.models.usam import SPEC as USAM
from usam_jax.models.usam import USam, find_variant


def s_config() -> ConfigDict:
    """Return the fields of `config.model` that S has of its own."""
    config = ConfigDict()
    # vit_b, vit_l or vit_h; small (demo) and tiny (tests) have no published weights.
    config.variant = "vit_b"
    config.remat = False  # recompute the transformer's activations in the backward pass
    config.interactive = False  # clicks with a class; needs config.prompts.kind = "interactive"
    return config


def build(config: ConfigDict) -> USam:
    """Return the module of `config.model`. Raises UsageError if the variant does not exist."""
    return USam(
        variant=find_variant(config),
        num_classes=config.num_classes,
        image_size=config.image_size,
        num_mask_tokens=config.num_classes,
        num_skips=None,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        interactive=config.interactive,
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
    versions=USAM.versions,
    small=USAM.small,
)
