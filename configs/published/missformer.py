"""MISSFormer, trained by its recipe.

    python -m usam_jax.main --config=configs/published/missformer.py

It starts from scratch. Augmentation is that of configs/care.py. The authors also draw noise, blur, contrast,
scale, shear and local deformation: data.augment_scale, augment_elastic and augment_intensity come
close. They keep the last epoch; here the best one is chosen on held-out slices.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "missformer") -> ConfigDict:
    """Return the config of MISSFormer."""
    config = care.get_config(model)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rates.all = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4
    config.train.num_epochs = 400
    config.train.batch_size = 24
    return config
