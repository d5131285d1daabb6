"""A lab's own trained 2-D nnU-Net v2, to evaluate, predict with or train on.

    CONFIG=configs/nnunet_trained.py:nnUNet_results/Dataset001_NAME/TRAINER__PLANS__2d
    python -m tools.import_weights --config=$CONFIG WORKDIR
    python -m usam_jax.main --config=$CONFIG --mode=eval --workdir=WORKDIR \
        --config.data.root=nnUNet_raw/Dataset001_NAME
    python -m usam_jax.predict --checkpoint=WORKDIR -i CT.nii.gz -o MASK.nii.gz

Network, patch size, normalisation and labels are those of plans.json, dataset.json and
checkpoint_final.pth. What cannot be taken over is printed. Append /fold_N to choose a fold. With
--workdir of a new folder and without --mode=eval, training starts from these weights.
"""

import pathlib

from ml_collections import ConfigDict

from configs.published import nnunet
from usam_jax.io import nnunet_model
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError


def get_config(folder: str = "") -> ConfigDict:
    """Return the config of the trained nnU-Net in a folder, as published in all other respects."""
    if not folder:
        raise UsageError(
            "--config=configs/nnunet_trained.py: got no folder, expected :FOLDER after it, the "
            "folder TRAINER__PLANS__2d in nnUNet_results"
        )
    found = nnunet_model.read_model(pathlib.Path(folder))
    for note in found.notes:
        console.info(f"note: {note}")
    config = nnunet.get_config(found.network)
    config.init_from = str(found.checkpoint)
    config.model.update(found.fields)
    low, high = found.window
    config.data.kind = "nnunet"
    config.data.root = "data/nnunet"  # holds dataset.json imagesTr labelsTr [imagesTs labelsTs]
    config.data.classes = found.classes
    config.data.window_level = (low + high) / 2
    config.data.window_width = high - low
    config.data.clahe_limit = 0.0  # nnU-Net does not equalise contrast
    config.data.train_on_empty = True
    return config
