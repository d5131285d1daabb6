"""V-Net in 2-D with PReLU, trained by the recipe of the published code.

python -m usam_jax.main --config=configs/published/vnet_prelu.py
"""

from ml_collections import ConfigDict

from configs.published import vnet


def get_config(model: str = "vnet_prelu") -> ConfigDict:
    """Return the config of V-Net in 2-D with PReLU."""
    return vnet.get_config(model)
