"""SAMed (ViT-B), trained by its recipe.

    python -m usam_jax.main --config=configs/published/samed.py

The loss is taken at 1/4 size, as published. Data and augmentation are this package's, at 224x224;
SAMed enlarges slices to 512x512 (--config.model.image_size=512). The schedule is that of 200 epochs,
which SAMed stops after 160, with a warm-up of half an epoch instead of 250 steps. For SAMed_h, set
--config.model.variant=vit_h --config.init_from=weights/sam_vit_h_4b8939.pth
--config.optimizer.decay_power=7 --config.train.num_epochs=400.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "samed") -> ConfigDict:
    """Return the config of SAMed."""
    config = care.get_config(model)
    config.optimizer.warmup = True
    config.optimizer.weight_decay = 0.1
    for group in config.optimizer.learning_rates:
        config.optimizer.learning_rates[group] = 0.005
    config.train.ce_weight = 0.2
    config.train.dice_weight = 0.8
    config.train.num_epochs = 200
    config.train.batch_size = 24
    return config
