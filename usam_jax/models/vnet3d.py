"""V-Net in 3-D with ELU, for windows of slices whose sides are multiples of 16."""

import dataclasses
import functools

from ml_collections import ConfigDict

from usam_jax.models import vnet
from usam_jax.models.common.spec import multiple_of


def vnet3d_config() -> ConfigDict:
    """Return the fields of V-Net, and the depth of a window."""
    config = vnet.vnet_config()
    config.slices = 32
    return config


SPEC = dataclasses.replace(
    vnet.SPEC,
    config=vnet3d_config,
    build=functools.partial(vnet.build, dims=3),
    slices=multiple_of(2 ** len(vnet.DOWN_UNITS)),
    dims=3,
    small={"width": 4, "slices": 16},
)
