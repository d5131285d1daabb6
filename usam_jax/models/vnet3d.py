"""V-Net in 3-D with ELU, for volumes whose sides are multiples of 16.

Training and prediction do not read volumes yet.
"""

import dataclasses

from usam_jax.models import vnet

SPEC = dataclasses.replace(vnet.SPEC, dims=3)
