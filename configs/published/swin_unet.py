"""Swin-Unet, trained by its recipe.

    python -m usam_jax.main --config=configs/published/swin_unet.py

Needs weights/swin_tiny_patch4_window7_224.pth (Swin-T of ImageNet, Microsoft's release v1.0.0), from
which encoder and decoder start. Loss and augmentation are those of configs/care.py. For another
batch size, the authors scale the learning rate by batch / 24. They keep the epoch with the lowest
loss on the training slices; here the best epoch is chosen on held-out slices.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "swin_unet") -> ConfigDict:
    """Return the config of Swin-Unet."""
    config = care.get_config(model)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rates.all = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 150
    config.train.batch_size = 24
    return config
