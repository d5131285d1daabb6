"""MultiResUNet, trained by its authors' recipe.

    python -m usam_jax.main --config=configs/published/multires_unet.py

Cross entropy and Adam with a constant learning rate, for 10 epochs, as in the authors' Keras demo
for skin lesions. Their cross entropy is that of one sigmoid; here it is that of a softmax over the
classes.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "multires_unet") -> ConfigDict:
    """Return the config of MultiResUNet."""
    config = care.get_config(model)
    config.data.augment = False
    config.optimizer.learning_rates.all = 1e-3
    config.optimizer.weight_decay = 0.0
    config.optimizer.decay_power = 0.0
    config.train.ce_weight = 1.0
    config.train.dice_weight = 0.0
    config.train.num_epochs = 10
    config.train.batch_size = 10
    return config
