"""U-SAM-B on WORD: 16 abdominal organs, from the original NIfTI volumes.

    python -m tools.prepare data/WORD --check
    python -m usam_jax.main --config=configs/word.py

The paper reports a mean Dice of 85.44 with 3 points per class from the ground truth, and 84.83
without prompts (--config.prompts.kind=none). WORD's validation split chooses the best epoch.
"""

from ml_collections import ConfigDict

from configs import care

CLASSES = (
    "background",
    "liver",
    "spleen",
    "left kidney",
    "right kidney",
    "stomach",
    "gallbladder",
    "oesophagus",
    "pancreas",
    "duodenum",
    "colon",
    "intestine",
    "adrenal",
    "rectum",
    "bladder",
    "left femur head",
    "right femur head",
)


def get_config(model: str = "usam") -> ConfigDict:
    """Return the config of a network, named as in configs/care.py."""
    config = care.get_config(model)
    config.model.num_classes = len(CLASSES)
    config.data.kind = "word"  # or word_npy: npy_imgs and npy_gts, as in the published code
    config.data.root = "data/WORD"  # holds imagesTr labelsTr imagesVal labelsVal imagesTs labelsTs
    config.data.classes = CLASSES
    return config
