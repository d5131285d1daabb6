"""ResUNet++, trained by the recipe of the repository that it is compared with.

    python -m usam_jax.main --config=configs/published/resunet_pp.py

That recipe is for roads in aerial images: cross entropy plus Dice, Adam, 75 epochs. Its learning rate
falls to a tenth every 20 epochs, here with each step to zero. The paper's authors train 256x256
slices by Dice alone with Nadam, 1e-4, in batches of 8.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "resunet_pp") -> ConfigDict:
    """Return the config of ResUNet++."""
    config = care.get_config(model)
    config.optimizer.learning_rates.all = 1e-3
    config.optimizer.weight_decay = 0.0
    config.train.ce_weight = 1.0
    config.train.dice_weight = 1.0
    config.train.num_epochs = 75
    config.train.batch_size = 16
    return config
