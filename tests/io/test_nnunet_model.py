"""Folders of trained nnU-Nets: what they say, and what is refused."""

import copy
import json

import nnunet_files
import numpy as np
import pytest

from usam_jax.io import nnunet_model
from usam_jax.utils.errors import WeightsError

NO_WEIGHTS = {"encoder.x": np.zeros(2, np.float32)}


def edited(**changes):
    """The plan with other entries, by dotted name."""
    plan = copy.deepcopy(nnunet_files.PLAN)
    for name, value in changes.items():
        *parts, last = name.split("__")
        section = plan
        for part in parts:
            section = section[part]
        section[last] = value
    return plan


def read(folder, **given):
    nnunet_files.write_model(folder, NO_WEIGHTS, **given)
    return nnunet_model.read_model(folder)


def test_read_model_takes_over_plan_and_labels(tmp_path):
    found = read(tmp_path)
    normalisation = {"grey_mean": 220 / 400, "grey_std": 40 / 400, "num_classes": 3}
    assert found.network == "nnunet"
    assert found.fields == nnunet_files.FIELDS | normalisation
    assert found.window == (-160.0, 240.0)
    assert found.classes == ("background", "rectum", "tumour")
    assert found.checkpoint == tmp_path / "fold_0" / "checkpoint_final.pth"
    text = "\n".join(found.notes)
    for part in ("fitted whole into 32x32", "flips of the axes (0, 1)", "postprocessing"):
        assert part in text
    assert "folds" not in text and "trainer" not in text


def test_read_model_follows_inheritance_and_pairs(tmp_path):
    strides = [[1, 1], [2, 2], [2, 2], [2, 1]]
    parent = edited(architecture__arch_kwargs__strides=strides)
    found = read(tmp_path, configurations={"2d": {"inherits_from": "old"}, "old": parent})
    assert found.fields["strides"] == (1, 2, 2, (2, 1))


def test_read_model_reads_residual_encoder_and_old_plans(tmp_path):
    plan = edited(architecture__network_class_name="a.ResidualEncoderUNet")
    kwargs = plan["architecture"]["arch_kwargs"]
    kwargs["n_blocks_per_stage"] = [1, 3, 4, 6]
    del kwargs["n_conv_per_stage"]
    found = read(tmp_path / "new", configurations={"2d": plan})
    assert (found.network, found.fields["depths"]) == ("nnunet_resenc", (1, 3, 4, 6))
    del plan["architecture"]
    plan |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "conv_kernel_sizes": kwargs["kernel_sizes"],
        "pool_op_kernel_sizes": kwargs["strides"],
        "n_conv_per_stage_encoder": [1, 1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1, 1],
    }
    old = read(tmp_path / "old", configurations={"2d": plan})
    assert (old.network, old.fields) == ("nnunet", read(tmp_path / "x").fields)


def test_read_model_chooses_and_names_folds(tmp_path):
    for fold in ("fold_1", "fold_all"):
        nnunet_files.write_checkpoint(tmp_path / fold / "checkpoint_final.pth", NO_WEIGHTS)
    found = read(tmp_path, trainer_name="nnUNetTrainerNoMirroring")
    assert found.checkpoint.parent.name == "fold_all"
    assert any("only fold_all of 3 folds" in x for x in found.notes)
    found = nnunet_model.read_model(tmp_path / "fold_0")
    assert found.checkpoint.parent.name == "fold_0"
    assert any("trainer nnUNetTrainerNoMirroring may have changed" in x for x in found.notes)


REGIONS = {"background": 0, "rectum": [1, 2], "tumour": 2}
PATCH_3D = edited(patch_size=[16, 32, 32])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {
                "configurations": {"3d_fullres": PATCH_3D},
                "init_args": {"configuration": "3d_fullres"},
            },
            r"configuration 3d_fullres, which is 3-D, expected a 2-D one.*nnUNetv2_train DATASET 2d",
        ),
        (
            {
                "configurations": {"3d_cascade_fullres": PATCH_3D},
                "init_args": {"configuration": "3d_cascade_fullres"},
            },
            "3d_cascade_fullres, which is a cascade, .*tools/score.py",
        ),
        (
            {"configurations": {"2d": edited(normalization_schemes=["ZScoreNormalization"])}},
            r"normalization_schemes \['ZScoreNormalization'\], expected one channel",
        ),
        (
            {"configurations": {"2d": edited(architecture__network_class_name="x.Primus")}},
            "the network x.Primus, expected PlainConvUNet or ResidualEncoderUNet",
        ),
        (
            {"configurations": {"2d": edited(architecture__arch_kwargs__dropout_op="Dropout2d")}},
            r"arch_kwargs \{'dropout_op': 'Dropout2d'\}, expected dropout_op None",
        ),
        (
            {"configurations": {"2d": edited(architecture__arch_kwargs__squeeze=True)}},
            r"arch_kwargs \{'squeeze': True\}, expected squeeze absent",
        ),
        ({"dataset": {"labels": REGIONS}}, r"the labels \['rectum'\] made of several numbers"),
        ({"dataset": {"classes": 3}}, r"is not as nnU-Net v2 writes it \(KeyError\('labels'\)\)"),
    ],
)
def test_read_model_refuses_with_what_is_possible(given, message, tmp_path):
    with pytest.raises(WeightsError, match=f"(?s)^{tmp_path}: .*{message}"):
        read(tmp_path, **given)


def test_read_model_names_missing_and_damaged_files(tmp_path):
    with pytest.raises(WeightsError, match=r"got no checkpoint_final\.pth, expected a folder"):
        nnunet_model.read_model(tmp_path)
    read(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(WeightsError, match=r"dataset.json: cannot be read"):
        nnunet_model.read_model(tmp_path)
    (tmp_path / "plans.json").unlink()
    with pytest.raises(WeightsError, match=r"plans.json is not there"):
        nnunet_model.read_model(tmp_path)


def test_read_model_refuses_other_axes(tmp_path):
    read(tmp_path)
    plans = json.loads((tmp_path / "plans.json").read_text())
    plans["transpose_forward"] = [2, 0, 1]
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(WeightsError, match=r"got transpose_forward \[2, 0, 1\], .* axial"):
        nnunet_model.read_model(tmp_path)
