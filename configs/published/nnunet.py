"""nnU-Net's plain 2-D network, trained by nnU-Net's recipe.

    python -m usam_jax.main --config=configs/published/nnunet.py

Loss, optimizer and batch size are nnU-Net's. Data, augmentation and sampling are this package's: an
epoch is a pass over the training slices instead of 250 drawn batches, the learning rate falls with
each step instead of each epoch, and the best epoch is chosen on held-out slices.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "nnunet") -> ConfigDict:
    """Return the config of nnU-Net's plain 2-D network."""
    config = care.get_config(model)
    config.optimizer.name = "sgd"
    config.optimizer.learning_rates.all = 0.01
    config.optimizer.momentum = 0.99
    config.optimizer.weight_decay = 3e-5
    config.optimizer.clip_norm = 12.0
    config.train.ce_weight = 1.0
    config.train.dice_weight = 1.0
    config.train.dice = "foreground"
    config.train.num_epochs = 1000
    # nnU-Net plans 65 for 224x224 and a data set of CARE's size; 64 can be shared by devices.
    config.train.batch_size = 64
    return config
