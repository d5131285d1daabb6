"""U-SAM-B on a raw nnU-Net data set: CT volumes, with the classes of dataset.json.

    python -m usam_jax.main --config=configs/nnunet.py --config.data.root=nnUNet_raw/Dataset001_NAME

The test set is in imagesTs and labelsTs. Without these folders, set --config.eval.split=val. Run
`python -m tools.prepare DATA_SET --check` first to find problems of the data set.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "usam") -> ConfigDict:
    """Return the config of a network, named as in configs/care.py."""
    config = care.get_config(model)
    config.model.num_classes = 0  # set to the number of labels in dataset.json
    config.data.kind = "nnunet"
    config.data.root = "data/nnunet"  # holds dataset.json imagesTr labelsTr [imagesTs labelsTs]
    config.data.classes = ()  # set from dataset.json
    return config
