"""R2U-Net, trained by the recipe of the published code.

    python -m usam_jax.main --config=configs/published/r2unet.py

The published script draws its learning rate (5e-7 to 5e-4), its epochs (100, 150, 200 or 250) and
the start of a linear decay to zero at random; here they are fixed at about the means, and the rate
falls from the first step on. Adam's first decay rate is 0.9 instead of 0.5, and the cross entropy is
that of a softmax over the classes, not of one sigmoid. The number of recurrent steps is the paper's;
the script's default is --config.model.steps=3.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "r2unet") -> ConfigDict:
    """Return the config of R2U-Net."""
    config = care.get_config(model)
    config.optimizer.learning_rates.all = 2.5e-4
    config.optimizer.weight_decay = 0.0
    config.optimizer.decay_power = 1.0
    config.train.ce_weight = 1.0
    config.train.dice_weight = 0.0
    config.train.num_epochs = 175
    config.train.batch_size = 1
    return config
