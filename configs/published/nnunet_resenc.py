"""nnU-Net's residual-encoder 2-D network, trained by nnU-Net's recipe.

    python -m usam_jax.main --config=configs/published/nnunet_resenc.py

The batch size is that of the preset M; L takes 185 and XL 272, with the same network.
"""

from ml_collections import ConfigDict

from configs.published import nnunet


def get_config(model: str = "nnunet_resenc") -> ConfigDict:
    """Return the config of nnU-Net's residual-encoder 2-D network."""
    config = nnunet.get_config(model)
    config.train.batch_size = 66
    return config
