"""U-SAM-B on a raw data set of nnU-Net: CT volumes and the classes in dataset.json.

    python -m usam_jax.main --config=configs/nnunet.py --config.data.root=nnUNet_raw/Dataset001_NAME

The test set is imagesTs labelsTs; without these folders give --config.eval.split=val. Run
`python -m tools.prepare DATA_SET --check` first to find faults of the data set.
"""

from ml_collections import ConfigDict

from configs import care


def get_config(model: str = "usam") -> ConfigDict:
    config = care.get_config(model)
    config.model.num_classes = 0  # the number of labels in dataset.json
    config.data.kind = "nnunet"
    config.data.root = "data/nnunet"  # with dataset.json imagesTr labelsTr [imagesTs labelsTs]
    config.data.classes = ()  # from dataset.json
    return config
