"""Writes the folder of a trained nnU-Net without torch."""

import json
import pathlib
import zipfile
from typing import Any

import numpy as np
from opcodes import Raw, to_opcodes

PLAN = {
    "patch_size": [32, 32],
    "spacing": [0.8, 0.8],
    "normalization_schemes": ["CTNormalization"],
    "architecture": {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": 4,
            "features_per_stage": [4, 8, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": [[3, 3]] * 4,
            "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
            "n_conv_per_stage": [1, 1, 1, 1],
            "n_conv_per_stage_decoder": [1, 1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    },
}
FIELDS = {
    "features": (4, 8, 8, 8),
    "kernel_sizes": (3, 3, 3, 3),
    "strides": (1, 2, 2, 2),
    "depths": (1, 1, 1, 1),
    "decoder_depths": (1, 1, 1),
    "image_size": 32,
}
INTENSITIES = {"mean": 60.0, "std": 40.0, "percentile_00_5": -160.0, "percentile_99_5": 240.0}
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "rectum": 1, "tumour": 2},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}


def tensor(key: int, array: np.ndarray) -> Raw:
    """A tensor of torch that is the whole storage `key`."""
    size = to_opcodes(array.size)
    storage = b"(" + to_opcodes("storage") + b"ctorch\nFloatStorage\n" + to_opcodes(str(key))
    storage += to_opcodes("cuda:0") + size + b"tQ"
    strides = tuple(np.array(array.strides) // array.itemsize)
    sizes = (0, array.shape, tuple(int(x) for x in strides))
    parts = storage + b"".join(map(to_opcodes, sizes))
    return Raw(b"ctorch._utils\n_rebuild_tensor_v2\n(" + parts + b"\x89}tR")


def write_checkpoint(path: pathlib.Path, tensors: dict[str, np.ndarray], **settings: Any) -> None:
    """Write `checkpoint_final.pth`, with each tensor under all the names that nnU-Net gives it."""
    weights, storages = {}, {}
    for key, (name, array) in enumerate(tensors.items()):
        one = tensor(key, array)
        weights |= {name: one, name.replace(".conv.", ".all_modules.0."): one}
        if name.startswith("encoder."):
            weights[f"decoder.{name}"] = one
        storages[f"data/{key}"] = array.astype("<f4").tobytes()
    device = Raw(b"ctorch\ndevice\n" + to_opcodes(("cuda", 0)) + b"R")
    content = {
        "network_weights": weights,
        "current_epoch": 1000,
        "_best_ema": np.float64(0.75),
        "logging": {"lrs": [0.01]},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
        "init_args": {"configuration": "2d", "fold": 0, "device": device},
        **settings,
    }
    pickled = b"\x80\x02" + to_opcodes(content) + b"."
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", **storages}.items():
            archive.writestr(f"checkpoint_final/{name}", data)


def write_model(
    folder: pathlib.Path,
    tensors: dict[str, np.ndarray],
    configurations: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Write a trained model with one fold."""
    plans = {
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "configurations": configurations or {"2d": PLAN},
    }
    write_checkpoint(folder / "fold_0" / "checkpoint_final.pth", tensors, **settings)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset or DATASET))
