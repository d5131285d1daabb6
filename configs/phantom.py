"""A small U-SAM, or other network, on generated pelvic CT phantoms, without data or weights.

    python -m usam_jax.main --config=configs/phantom.py

Minutes on two CPU cores; README.md states the Dice that it reaches.
"""

from ml_collections import ConfigDict

from configs import care
from usam_jax import models


def get_config(model: str = "usam") -> ConfigDict:
    """Return the config of a network, named as in configs/care.py."""
    spec = models.get(model)
    config = care.get_config(model)
    config.init_from = ""
    config.model.update(spec.small)
    if spec.at(config.model).image_size.accepts(112):
        config.model.image_size = 112
    config.data.kind = "phantom"
    config.data.root = ""
    config.data.clahe_limit = 0.0  # no contrast equalisation
    with config.unlocked():
        # loops: several loops of bowel look alike, and only a prompt can say which is the rectum.
        # single: one rectum, recognisable by its place.
        config.data.anatomy = "loops"
        # With 7, the rectum of 1 of 5 validation and 3 of 12 test patients is off the midline.
        config.data.phantom_seed = 7
        config.data.num_patients = (48, 12)  # in the training and test splits
        config.data.slices_per_patient = 24
    config.data.train_on_empty = True  # the test set has slices without foreground too
    if "deep_supervision" in config.model:
        config.model.deep_supervision = 0.3  # else the transformer learns next to nothing
    if "interactive" in config.model:
        # Clicks name their class, and each click improves the mask.
        config.model.interactive, config.prompts.kind = True, "interactive"
    elif spec.promptable:
        config.prompts.kind = "mixed"  # one short training serves all prompt modes
    for group in spec.groups:
        config.optimizer.learning_rates[group] = 1e-3
    config.train.num_epochs = 4  # with 3, some seeds miss many tumours
    config.train.batch_size = 8
    config.eval.every_epochs = 1
    return config
