"""V-Net's tensors, with PReLU's slopes, under the names of the published code."""

import dataclasses

from usam_jax.weights.maps import vnet

PUBLISHED = dataclasses.replace(vnet.PUBLISHED, source="the published V-Net with PReLU")

MAPS = (PUBLISHED,)
