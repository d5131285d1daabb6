"""Focal-UNet, trained by its recipe but for the learning rate's restarts.

    python -m usam_jax.main --config=configs/published/focal_unet.py

Needs weights/focalnet_tiny_lrf.pth (FocalNet-T of ImageNet, Microsoft's release v1.0.0), from which
the encoder starts. Loss and augmentation are those of configs/care.py. The authors repeat a cosine
down to 0 with periods of 1, 2, 4, ..., 64 epochs, where here the rate falls once; their beta_2 is
0.99, here it is 0.999. For another batch size, they scale the learning rate by batch / 24. They keep
the last epoch; here the best one is chosen on held-out slices.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "focal_unet") -> ConfigDict:
    """Return the config of Focal-UNet."""
    config = care.get_config(model)
    config.optimizer.name = "adamw"
    config.optimizer.learning_rates.all = 1e-4
    config.optimizer.weight_decay = 0.01
    config.train.num_epochs = 127
    config.train.batch_size = 24
    return config
