"""A trained nnU-Net v2 on disk: `plans.json`, `dataset.json` and a checkpoint for each fold."""

import dataclasses
import json
import pathlib
from typing import Any

from usam_jax.io import torch_checkpoint
from usam_jax.utils.errors import WeightsError

PLANS, DATASET, CHECKPOINT = "plans.json", "dataset.json", "checkpoint_final.pth"
# The last part of the class: its module has changed over time. None of these names is imported.
NETWORKS = {"PlainConvUNet": "nnunet", "ResidualEncoderUNet": "nnunet_resenc"}
# What the networks here are made of, by keyword of nnU-Net's class.
EXPECTED = {
    "conv_op": ("Conv2d",),
    "conv_bias": (True,),
    "norm_op": ("InstanceNorm2d",),
    "norm_op_kwargs": ({"eps": 1e-5, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("LeakyReLU",),
    "nonlin_kwargs": ({"inplace": True}, {}, None),
    "nonlin_first": (False,),
}
SIZES = ("n_stages", "features_per_stage", "kernel_sizes", "strides")
DEPTHS = ("n_conv_per_stage", "n_blocks_per_stage")


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a trained 2-D nnU-Net hands over, and in `notes` what it does not.

    `fields` are those of `config.model`. Intensities in HU between `window` become grey values from
    0 to 1.
    """

    network: str
    fields: dict[str, Any]
    window: tuple[float, float]
    classes: tuple[str, ...]
    checkpoint: pathlib.Path
    notes: list[str]


def read_model(folder: pathlib.Path) -> TrainedModel:
    """Read a folder `TRAINER__PLANS__2d`, or a `fold_N` in it.

    Without a fold it is fold_all or else the first one. Raises WeightsError if the folder does not
    hold a trained 2-D nnU-Net, or one that this package cannot represent.
    """
    checkpoint = find_checkpoint(folder)
    root = checkpoint.parent.parent
    plans, dataset = read_json(root / PLANS), read_json(root / DATASET)
    settings = torch_checkpoint.load_settings(checkpoint)
    try:
        return describe(plans, dataset, settings, checkpoint)
    except WeightsError as error:
        raise WeightsError(f"{root}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise WeightsError(
            f"{root}: {PLANS} or {DATASET} is not as nnU-Net v2 writes it ({error!r}). Copy both "
            "from the folder in nnUNet_results."
        ) from error


def find_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """Return the checkpoint of a fold, or of the first fold in a folder."""
    found = [folder / CHECKPOINT, *sorted(folder.glob(f"fold_*/{CHECKPOINT}"))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise WeightsError(
            f"{folder}: got no {CHECKPOINT}, expected a folder TRAINER__PLANS__2d of "
            "nnUNet_results, with fold_0 to fold_4 or fold_all, or one of these folds"
        )
    whole = [path for path in found if path.parent.name == "fold_all"]
    return (whole or found)[0]


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file. Raises WeightsError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is not there; copy it from nnUNet_results") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}), expected nnU-Net's JSON") from error


def describe(
    plans: dict[str, Any],
    dataset: dict[str, Any],
    settings: dict[str, Any],
    checkpoint: pathlib.Path,
) -> TrainedModel:
    """Return what `plans` and `dataset` say. Raises WeightsError for what cannot be taken over."""
    name = settings["init_args"]["configuration"]
    plan = find_configuration(plans, name)
    require_2d(name, plan)
    if list(plans.get("transpose_forward", [0, 1, 2])) != [0, 1, 2]:
        raise WeightsError(
            f"got transpose_forward {plans['transpose_forward']}, expected [0, 1, 2]: the network "
            "was trained on other than axial slices, which are the only ones here"
        )
    network, fields = read_architecture(plan)
    schemes = plan["normalization_schemes"]
    if schemes != ["CTNormalization"]:
        raise WeightsError(
            f"got normalization_schemes {schemes}, expected one channel with CTNormalization: this "
            "package reads CT in HU. Train nnU-Net with the channel CT"
        )
    values = plans["foreground_intensity_properties_per_channel"]["0"]
    low, high = float(values["percentile_00_5"]), float(values["percentile_99_5"])
    if not (low < high and values["std"] > 0):
        raise WeightsError(
            f"got percentiles {low} to {high} and std {values['std']}, expected a range of HU"
        )
    fields["grey_mean"] = (values["mean"] - low) / (high - low)
    fields["grey_std"] = values["std"] / (high - low)
    fields["image_size"] = max(plan["patch_size"])
    classes = read_classes(dataset)
    fields["num_classes"] = len(classes)
    notes = find_notes(plan, settings, checkpoint)
    return TrainedModel(network, fields, (low, high), classes, checkpoint, notes)


def find_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration of the plans, laid over the one that it inherits from."""
    plan = plans["configurations"][name]
    parent = plan.get("inherits_from")
    return find_configuration(plans, parent) | plan if parent else plan


def require_2d(name: str, plan: dict[str, Any]) -> None:
    """Raise WeightsError for a 3-D configuration or a cascade."""
    if plan.get("previous_stage") or "cascade" in name or len(plan["patch_size"]) != 2:
        kind = "a cascade" if plan.get("previous_stage") or "cascade" in name else "3-D"
        raise WeightsError(
            f"got the configuration {name}, which is {kind}, expected a 2-D one: the networks here "
            "take slices. Train nnU-Net's configuration 2d (nnUNetv2_train DATASET 2d FOLD), or "
            "predict with nnU-Net and score its masks with tools/score.py"
        )


def read_architecture(plan: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the network and the fields of `config.model` that nnU-Net's class was built with."""
    if "architecture" not in plan:
        return read_old_architecture(plan)
    architecture = plan["architecture"]
    network = find_network(architecture["network_class_name"])
    given = dict(architecture["arch_kwargs"])
    sizes = {key: given.pop(key) for key in SIZES}
    depths = given.pop(DEPTHS[0], None) or given.pop(DEPTHS[1])
    decoder_depths = given.pop("n_conv_per_stage_decoder")
    odd = {key: x for key, x in given.items() if not is_expected(key, x)}
    if odd:
        raise WeightsError(f"got arch_kwargs {odd}, expected {list_expected(odd)}")
    return network, make_fields(
        sizes["features_per_stage"],
        sizes["kernel_sizes"],
        sizes["strides"],
        depths,
        decoder_depths,
    )


def read_old_architecture(plan: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return `read_architecture` of plans from before 2024, which imply most of it."""
    kernels = plan["conv_kernel_sizes"]
    base, most = plan["UNet_base_num_features"], plan["unet_max_num_features"]
    return find_network(plan["UNet_class_name"]), make_fields(
        [min(base * 2**i, most) for i in range(len(kernels))],
        kernels,
        plan["pool_op_kernel_sizes"],
        plan["n_conv_per_stage_encoder"],
        plan["n_conv_per_stage_decoder"],
    )


def find_network(class_name: str) -> str:
    """Return the network here of a class of nnU-Net, by the last part of its dotted name."""
    last = class_name.rpartition(".")[2]
    if last not in NETWORKS:
        raise WeightsError(f"got the network {class_name}, expected {' or '.join(NETWORKS)}")
    return NETWORKS[last]


def is_expected(key: str, value: Any) -> bool:
    """Return whether a keyword of the class is one of EXPECTED, with dotted names shortened."""
    last = value.rpartition(".")[2] if isinstance(value, str) else value
    return last in EXPECTED.get(key, ())


def list_expected(keys: dict[str, Any]) -> str:
    """Return what EXPECTED has for some keywords, for a message."""
    return ", ".join(f"{key} {EXPECTED[key][0] if key in EXPECTED else 'absent'}" for key in keys)


def make_fields(
    features: Any, kernels: Any, strides: Any, depths: Any, decoder_depths: Any
) -> dict[str, Any]:
    """Return the sizes as tuples, with a number instead of a pair of equal ones."""
    stages = len(kernels)
    depths = [depths] * stages if isinstance(depths, int) else depths
    if isinstance(decoder_depths, int):
        decoder_depths = [decoder_depths] * (stages - 1)
    return {
        "features": tuple(features),
        "kernel_sizes": tuple(x[0] if x[0] == x[1] else tuple(x) for x in kernels),
        "strides": tuple(x[0] if x[0] == x[1] else tuple(x) for x in strides),
        "depths": tuple(depths),
        "decoder_depths": tuple(decoder_depths),
    }


def read_classes(dataset: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the outputs in order. Raises WeightsError for regions."""
    labels = {name: x for name, x in dataset["labels"].items() if name != "ignore"}
    regions = [name for name, value in labels.items() if not isinstance(value, int)]
    if regions:
        raise WeightsError(
            f"got the labels {regions} made of several numbers, expected one number for each: a "
            "model of regions has a sigmoid for each. Train nnU-Net with a class for each label"
        )
    if sorted(labels.values()) != list(range(len(labels))):
        raise WeightsError(f"got the labels {labels}, expected the numbers 0, 1, 2, ...")
    return tuple(sorted(labels, key=lambda name: labels[name]))


def find_notes(
    plan: dict[str, Any], settings: dict[str, Any], checkpoint: pathlib.Path
) -> list[str]:
    """Return a sentence for each part of nnU-Net's inference that is different here."""
    size = max(plan["patch_size"])
    others = [x for x in checkpoint.parent.parent.glob("fold_*") if x != checkpoint.parent]
    trainer, axes = settings["trainer_name"], settings["inference_allowed_mirroring_axes"]
    notes = [
        (
            f"slices are turned upright and fitted whole into {size}x{size} square pixels; nnU-Net "
            f"takes them as stored, resamples them to {plan['spacing']} mm and slides a window of "
            f"{plan['patch_size']} over them"
        ),
        (
            "grey values are rounded to 1/255 of the window of intensities, and what a slice does "
            "not cover has the lowest one; nnU-Net keeps floats and pads with the mean"
        ),
    ]
    if axes is not None:
        notes.append(
            f"nnU-Net averages over flips of the axes {tuple(axes)}; usam_jax.predict --tta=flip "
            "averages over left and right, and evaluation over none"
        )
    if others:
        notes.append(
            f"only {checkpoint.parent.name} of {len(others) + 1} folds is used; nnU-Net can average "
            "their logits"
        )
    if trainer != "nnUNetTrainer":
        notes.append(
            f"the trainer {trainer} may have changed the network or its input; nnUNetTrainer is "
            "expected"
        )
    notes.append("postprocessing is not applied; usam_jax.predict --keep_largest is similar")
    return notes
