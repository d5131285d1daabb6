"""nnU-Net's residual-encoder 2-D network, trained by nnU-Net's recipe.

    python -m usam_jax.main --config=configs/published/nnunet_resenc.py

The presets M, L and XL have the same network; they plan batches of 66, 185 and 272.
"""

from ml_collections import ConfigDict

from configs.published import nnunet


def get_config(model: str = "nnunet_resenc") -> ConfigDict:
    """Return the config of nnU-Net's residual-encoder 2-D network."""
    return nnunet.get_config(model)
