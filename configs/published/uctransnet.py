"""UCTransNet, trained by its recipe for several classes.

    python -m usam_jax.main --config=configs/published/uctransnet.py

It starts from scratch, as the paper's joint training. The authors' code trains one class, by half
Dice and half cross entropy of a sigmoid, weights equal here; it repeats a cosine from 1e-3 down to
1e-4 every 10 epochs, where here the rate falls once, to 0. They stop after 50 epochs without a better
validation Dice, after 2000 at the latest; here training has a fixed length.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "uctransnet") -> ConfigDict:
    """Return the config of UCTransNet."""
    config = care.get_config(model)
    config.optimizer.name = "adamw"  # Adam, as nothing decays
    config.optimizer.learning_rates.all = 1e-3
    config.optimizer.weight_decay = 0.0
    config.train.ce_weight = 0.5
    config.train.dice_weight = 0.5
    config.train.num_epochs = 200
    config.train.batch_size = 24  # on CARE; 4 on the authors' data
    return config
