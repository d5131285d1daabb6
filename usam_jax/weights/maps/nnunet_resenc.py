"""The tensors of nnU-Net's residual-encoder network under the names of a checkpoint."""

import dataclasses

from usam_jax.weights.maps import nnunet

PUBLISHED = dataclasses.replace(
    nnunet.PUBLISHED, source="nnU-Net's residual-encoder 2-D network", rename=()
)

MAPS = (PUBLISHED,)
