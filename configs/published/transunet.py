"""TransUNet (R50-ViT-B_16), trained by its recipe.

    python -m usam_jax.main --config=configs/published/transunet.py

Needs weights/R50+ViT-B_16.npz (Google, ImageNet-21k), from which the encoder starts. Augmentation
is that of configs/care.py; slices are resized as there, not by cubic splines. The authors keep the
last epoch; here the best one is chosen on held-out slices.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "transunet") -> ConfigDict:
    """Return the config of TransUNet."""
    config = care.get_config(model)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rates.all = 0.01
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.train.ce_weight = 0.5
    config.train.dice_weight = 0.5
    config.train.num_epochs = 150
    config.train.batch_size = 24
    return config
