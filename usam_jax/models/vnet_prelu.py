"""V-Net in 2-D with PReLU, as in the paper, a slope for each channel."""

import dataclasses
import functools

from usam_jax.models import vnet

SPEC = dataclasses.replace(vnet.SPEC, build=functools.partial(vnet.build, prelu=True))
