"""V-Net in 2-D, trained by the recipe of the published code.

    python -m usam_jax.main --config=configs/published/vnet.py

Adam with a constant learning rate and the paper's loss, Dice (`--dice` in the published script, whose
default is a class-weighted cross entropy). The paper itself trains volumes with SGD, momentum 0.99
and 1e-4, in batches of 2.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "vnet") -> ConfigDict:
    """Return the config of V-Net in 2-D."""
    config = care.get_config(model)
    config.data.augment = False
    config.optimizer.learning_rates.all = 1e-3
    config.optimizer.weight_decay = 1e-8
    config.optimizer.decay_power = 0.0
    config.train.ce_weight = 0.0
    config.train.dice_weight = 1.0
    config.train.num_epochs = 300
    config.train.batch_size = 10
    return config
