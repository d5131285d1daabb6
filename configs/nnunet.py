"""U-SAM-B on a raw data set of nnU-Net: CT volumes, with the classes that it names itself.

    python -m usam_jax.main --config=configs/nnunet.py --config.data.root=nnUNet_raw/Dataset001_NAME

The data set's test volumes (imagesTs labelsTs) are the test, where there are any; without them give
--config.eval.split=val. `python -m tools.prepare DATA_SET --check` tells beforehand what is wrong.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "usam") -> ConfigDict:
    config = care.get_config(model)
    config.model.num_classes = 0  # as many as dataset.json names
    config.data.kind = "nnunet"
    config.data.root = "data/nnunet"  # holds dataset.json imagesTr labelsTr [imagesTs labelsTs]
    config.data.classes = ()  # from dataset.json
    return config
