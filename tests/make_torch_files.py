"""Writes the files in tests/torch_files with torch: `python tests/make_torch_files.py`.

The files were made with torch 2.13, numpy 2.4 and safetensors 0.8. The tests do not need torch:
they compute the expected values from the same formula in numpy.
"""

import argparse
import collections
import math
import pathlib
from typing import Any

import numpy as np
import safetensors.torch
import torch

FOLDER = pathlib.Path(__file__).parent / "torch_files"
DTYPES = ["float64", "float32", "float16", "bfloat16"]
DTYPES += ["int64", "int32", "int16", "int8", "uint8", "bool"]


def make_values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """0, 1, 2, ... modulo 100, plus 0.5 if `dtype` has fractions."""
    ramp = torch.arange(math.prod(shape)) % 100
    half = 0.5 if dtype.is_floating_point else 0
    return (ramp + half).to(dtype).reshape(shape)


def make_dtypes() -> dict[str, torch.Tensor]:
    return {name: make_values(3, 5, dtype=getattr(torch, name)) for name in DTYPES}


def make_views() -> dict[str, torch.Tensor]:
    base = make_values(6, 8)
    flags = make_values(4, 6, dtype=torch.bool)
    return {
        "whole": base,
        "transposed": base.T,
        "sliced": base[1:5:2, 2:7:3],
        "row": base[3],
        "permuted": make_values(2, 3, 4).permute(2, 0, 1),
        "expanded": make_values(3, 1).expand(3, 4),
        "flags": flags.T[1::2],
        "scalar": make_values(),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "empty_slice": base[6:],
        "half": make_values(4, 4, dtype=torch.bfloat16).T,
    }


def make_training() -> dict[str, Any]:
    """A checkpoint as torchvision's training scripts write it, with entries of other scripts."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedulers = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 5]),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
    ]
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    for scheduler in schedulers:
        scheduler.step()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(make_values(*tensor.shape, dtype=tensor.dtype))
    args = argparse.Namespace(
        data=pathlib.PurePosixPath("/data/care"),
        device=torch.device("cuda", 0),
        dtype=torch.bfloat16,
        size=torch.Size((1, 224, 224)),
        lr=1e-4,
        resume=None,
        classes={"rectum", "tumour"},
        frozen=frozenset({1, 2}),
        token=b"\x00\xff",
        large=1 << 70,
        version=torch.__version__,
    )
    return {
        "model": collections.OrderedDict(
            (f"module.{name}", tensor) for name, tensor in model.state_dict().items()
        ),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedulers[0].state_dict(),
        "other_schedulers": [scheduler.state_dict() for scheduler in schedulers[1:]],
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
        "epoch": 7,
        "args": args,
        "best_dice": np.float64(0.75),
        "losses": np.arange(3.0),
        "history": collections.defaultdict(list, {"train/loss": [0.5, 0.25]}),
        "counts": collections.Counter({(0, 1): 2}),
        "rng": torch.zeros(16, dtype=torch.uint8),
    }


def make_parameters() -> dict[str, torch.nn.Parameter]:
    return {
        "weight": torch.nn.Parameter(make_values(3, 4)),
        "bias": torch.nn.Parameter(make_values(3)),
    }


def make_nnunet() -> dict[str, Any]:
    """A checkpoint with the entries and types of nnU-Net's, names of one tensor included."""
    weight, bias = make_values(3, 2), make_values(3)
    names = ("conv", "all_modules.0", "decoder.encoder.conv")
    weights = [(f"{name}.weight", weight) for name in names]
    weights += [(f"{name}.bias", bias) for name in names]
    return {
        "network_weights": collections.OrderedDict(weights),
        "optimizer_state": {"state": {0: {"momentum_buffer": make_values(3, 2)}}},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float32(0.5), np.float64(0.75)], "lrs": [0.01]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 1000,
        "init_args": {
            "plans": {"configurations": {"2d": {"patch_size": [224, 224]}}},
            "configuration": "2d",
            "fold": 0,
            "device": torch.device("cuda", 0),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    contents = {
        "dtypes": make_dtypes(),
        "views": make_views(),
        "training": make_training(),
        "parameters": make_parameters(),
        "nnunet": make_nnunet(),
    }
    for name, content in contents.items():
        torch.save(content, FOLDER / f"{name}_zip.pt")
        torch.save(content, FOLDER / f"{name}_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save(contents["training"], FOLDER / "training_zip_protocol4.pt", pickle_protocol=4)
    torch.save(
        contents["training"],
        FOLDER / "training_legacy_protocol4.pt",
        pickle_protocol=4,
        _use_new_zipfile_serialization=False,
    )
    safetensors.torch.save_file(
        {**contents["dtypes"], "scalar": make_values(), "empty": torch.zeros(0, 3)},
        FOLDER / "dtypes.safetensors",
    )


if __name__ == "__main__":
    main()
