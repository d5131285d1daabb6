"""V-Net's tensors in 3-D under the names of the published code."""

import dataclasses

from usam_jax.weights.maps import vnet

PUBLISHED = dataclasses.replace(vnet.PUBLISHED, source="the published V-Net in 3-D")

MAPS = (PUBLISHED,)
