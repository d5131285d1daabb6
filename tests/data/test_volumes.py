"""Volumes to slices: the same for all file axes, with every fault named."""

import itertools
import json
import os
import shutil

import cv2
import nibabel
import numpy as np
import pytest
from conftest import REAL_DATA

from usam_jax.data import splits, validation, volumes
from usam_jax.data.packed import encode, prepare
from usam_jax.io import nifti
from usam_jax.utils.errors import DataError, UsageError

SPACING_LPS = (0.9, 1.5, 3.0)


def make_volume(seed: int = 0, shape: tuple[int, int, int] = (40, 36, 5)):
    """HU and labels [i j k] with the axes (L, P, S), asymmetric in each direction."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-200, 200, shape).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    labels[5:20, 8:16, 1:4] = 1
    labels[20:28, 8:30, 2:5] = 2
    return hu, labels


def affine_lps(oblique: bool = False) -> np.ndarray:
    affine = np.diag([-SPACING_LPS[0], -SPACING_LPS[1], SPACING_LPS[2], 1.0])
    affine[:3, 3] = (120.0, 80.0, -300.0)
    if oblique:
        a, b = np.deg2rad(12), np.deg2rad(-8)
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        affine[:3, :3] = tilt @ turn @ affine[:3, :3]
    return affine


def save(path, voxels, affine, orientation=None):
    image = nibabel.Nifti1Image(voxels, affine)
    if orientation is not None:
        image = image.as_reoriented(np.array(orientation))
    nibabel.save(image, path)


ORIENTATIONS = [
    list(zip(axes, flips, strict=True))
    for axes in itertools.permutations((0, 1, 2))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize("oblique", [False, True])
def test_pack_case_is_the_same_in_all_orientations(tmp_path, word_config, oblique):
    hu, labels = make_volume()
    config = word_config(tmp_path, tmp_path)
    config.data.classes = ("background", "a", "b")
    config.data.window_level, config.data.window_width = 0.0, 400.0
    settings = prepare.packing_settings(config.data) | {"image_size": 54, "clahe_limit": 0.0}
    image_path, label_path = tmp_path / "ct.nii", tmp_path / "label.nii"
    packed, axes = [], set()
    for orientation in ORIENTATIONS:
        save(image_path, hu, affine_lps(oblique), orientation)
        save(label_path, labels, affine_lps(oblique), orientation)
        case = volumes.volume_case("x", image_path, label_path, config.data)
        axes.add(case.geometry.file_axes)
        assert case.geometry.shape == (5, 36, 40)
        np.testing.assert_allclose(case.geometry.spacing_mm, (3.0, 1.5, 0.9), atol=1e-5)
        packed.append(encode.pack_case(case, settings))
    assert len(axes) == 48
    for images, classes in packed:
        np.testing.assert_array_equal(images, packed[0][0])
        np.testing.assert_array_equal(classes, packed[0][1])
    # 36 rows of 1.5 mm fill 54 pixels of 1 mm; 40 columns of 0.9 mm become 36, from 9 to 45.
    images, classes = packed[0]
    expected = np.zeros((5, 54, 54), np.uint8)
    nearest = (((np.arange(54) + 0.5) / 1.5).astype(int), ((np.arange(36) + 0.5) / 0.9).astype(int))
    expected[:, :, 9:45] = labels.transpose(2, 1, 0)[:, nearest[0]][:, :, nearest[1]]
    np.testing.assert_array_equal(classes, expected)
    grey = (hu.transpose(2, 1, 0) + 200) / 400 * 255
    whole = cv2.resize(grey[2], (36, 54), interpolation=cv2.INTER_LINEAR)
    assert np.abs(images[2, :, 9:45] - whole).max() <= 2  # rounded to grey levels twice
    assert not images[:, :, :9].any() and not images[:, :, 45:].any()


def test_nnunet_is_packed_by_patient_with_geometry(nnunet):
    _, config = nnunet
    packed = prepare.prepare(config.data)
    assert [x["name"] for x in packed.cases("train")] == [f"phantom_{i:04d}" for i in range(4)]
    assert packed.images("train").shape == (4 * 6, 48, 48)
    geometry = packed.cases("test")[0]["geometry"]
    assert geometry["shape"][0] == 6 and len(geometry["file_axes"]) == 3
    parts = splits.split_subsets(packed, config.data, "val")
    assert len(parts["val"]) == 12
    assert len(parts["test"]) == 12
    labels = packed.labels("train")
    assert all(labels[row].any() for row in parts["train"].rows)
    assert not all(labels[row].any() for row in parts["val"].rows)


def test_folds_hold_out_every_patient_once(nnunet):
    _, config = nnunet
    packed = prepare.prepare(config.data)
    config.data.num_folds = 4
    seen = []
    for fold in range(4):
        config.data.fold = fold
        held = splits.split_subsets(packed, config.data, "val")["val"].rows
        seen += held.tolist()
        assert len({packed.slices("train")[row]["patient"] for row in held}) == 1
    assert sorted(seen) == list(range(24))
    with pytest.raises(UsageError, match=r"num_folds: got 4, but .* on the test set"):
        splits.split_subsets(packed, config.data, "test")
    for field, value in (("fold", 4), ("num_folds", 1), ("val_fraction", 3.0)):
        other = config.data.copy_and_resolve_references()
        other[field] = value
        with pytest.raises(UsageError, match=rf"config.data.{field}: got {value}, expected"):
            prepare.prepare(other)


def test_prepare_knows_copies_with_other_times_by_content(nnunet, monkeypatch, tmp_path):
    root, config = nnunet
    packed = prepare.prepare(config.data)
    splits.write_record(tmp_path, packed, splits.split_subsets(packed, config.data, "val"))
    for number, path in enumerate(root.rglob("*.nii.gz")):
        os.utime(path, (number, number))
    monkeypatch.setattr("usam_jax.data.volumes.read_slices", None)  # nothing is packed again
    again = prepare.prepare(config.data)
    assert again.manifest["fingerprint"] == packed.manifest["fingerprint"]
    assert again.path("train", "images") == packed.path("train", "images")
    monkeypatch.setattr("usam_jax.data.packed.encode.checksum", None)
    monkeypatch.setattr("usam_jax.data.case.checksum", None)  # nor are contents compared again
    assert prepare.prepare(config.data).manifest == again.manifest
    monkeypatch.undo()
    copy = config.copy_and_resolve_references()
    copy.data.root = str(shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile))
    other = prepare.prepare(copy.data)
    assert other.folder != packed.folder
    splits.check_record(tmp_path, other)  # so a run resumes on the copy
    path = tmp_path / "copy" / "labelsTr" / "phantom_0001.nii.gz"
    content, times = bytearray(path.read_bytes()), path.stat()
    content[4] ^= 1  # the time that gzip stores: other bytes of the same size
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(DataError, match="the data set has changed"):
        splits.check_record(tmp_path, prepare.prepare(copy.data))


def test_prepare_reads_only_changed_volumes(nnunet, monkeypatch):
    root, config = nnunet
    before = np.array(prepare.prepare(config.data).images("train"))
    path = root / "imagesTr" / "phantom_0002_0000.nii.gz"
    old = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.full(old.shape, 40, np.int16), old.affine), path)
    read = []
    original = nifti.read_slices
    monkeypatch.setattr(
        "usam_jax.data.volumes.read_slices",
        lambda p: read.append(p.name) or original(p),
    )
    after = prepare.prepare(config.data).images("train")
    assert read == ["phantom_0002_0000.nii.gz"]
    changed = [i for i in range(24) if not np.array_equal(before[i], after[i])]
    assert changed == list(range(12, 18))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("shape", r"has the shape \(48, 48, 5\), but .* has \(48, 48, 6\)"),
        ("affine", "lies elsewhere in space"),
        ("4d", "has 4 dimensions"),
        ("rgb", "holds colours"),
        ("labels", r"holds the labels \[3\]"),
        ("fraction", r"holds the labels \[0.5\]"),
        ("nan", "holds NaN"),
        ("truncated", "cannot be read|not a readable"),
        ("text", "not a readable NIfTI"),
    ],
)
def test_prepare_names_faulty_volume_and_problem(nnunet, fault, message):
    root, config = nnunet
    image_path = root / "imagesTr" / "phantom_0001_0000.nii.gz"
    label_path = root / "labelsTr" / "phantom_0001.nii.gz"
    image, label = nibabel.load(image_path), nibabel.load(label_path)
    hu, classes = np.asarray(image.dataobj), np.asarray(label.dataobj)
    if fault == "shape":
        save(label_path, classes[..., :5], label.affine)
    elif fault == "affine":
        moved = label.affine.copy()
        moved[0, 3] += 10
        save(label_path, classes, moved)
    elif fault == "4d":
        save(image_path, np.stack([hu, hu], -1), image.affine)
    elif fault == "rgb":
        colours = np.zeros(hu.shape, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
        save(image_path, colours, image.affine)
    elif fault == "labels":
        save(label_path, np.where(classes == 1, 3, classes).astype(np.uint8), label.affine)
    elif fault == "fraction":
        save(label_path, np.where(classes == 1, 0.5, classes).astype(np.float32), label.affine)
    elif fault == "nan":
        save(image_path, np.full(hu.shape, np.nan, np.float32), image.affine)
    elif fault == "truncated":
        image_path.write_bytes(image_path.read_bytes()[:-2000])
    else:
        image_path.write_text("not a volume")
    with pytest.raises(DataError, match=message) as caught:
        prepare.prepare(config.data)
    assert "phantom_0001" in str(caught.value)


def test_prepare_names_unsuitable_dataset_json(nnunet):
    root, config = nnunet
    path = root / "dataset.json"
    description = json.loads(path.read_text())
    config.data.classes = ("background", "liver", "tumour")
    with pytest.raises(UsageError, match=r"config.data.classes: got .*configs/nnunet"):
        prepare.prepare(config.data)
    path.write_text(json.dumps({**description, "channel_names": {"0": "CT", "1": "PET"}}))
    with pytest.raises(DataError, match=r"has the channels .* expected one, CT"):
        prepare.prepare(config.data)
    for labels in ({"background": 0, "ignore": 1}, {"background": 0, "all": [1, 2]}):
        path.write_text(json.dumps({**description, "labels": labels}))
        with pytest.raises(DataError, match="one number for each and no ignore label"):
            prepare.prepare(config.data)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"dataset\.json: got no usable description"):
        prepare.prepare(config.data)
    path.unlink()
    with pytest.raises(DataError, match=r"dataset\.json is not there"):
        prepare.prepare(config.data)


def test_prepare_names_label_without_image(nnunet):
    root, config = nnunet
    (root / "imagesTr" / "phantom_0003_0000.nii.gz").unlink()
    with pytest.raises(
        DataError,
        match=r"phantom_0003_0000\.nii\.gz is not there, which .*labelsTr/phantom_0003\.nii\.gz",
    ):
        prepare.prepare(config.data)


def test_word_uses_its_own_validation_split(tmp_path, word_config):
    root = tmp_path / "WORD"
    hu, labels = make_volume()
    for split, count in (("Tr", 2), ("Val", 1), ("Ts", 1)):
        for kind, voxels in (("images", hu), ("labels", labels)):
            (root / f"{kind}{split}").mkdir(parents=True)
            for i in range(count):
                save(root / f"{kind}{split}" / f"{split}_{i:04d}.nii.gz", voxels, affine_lps())
    config = word_config(root, tmp_path / "packed")
    packed = prepare.prepare(config.data)
    parts = splits.split_subsets(packed, config.data, "val")
    assert {name: (x.split, len(x)) for name, x in parts.items()} == {
        "train": ("train", 8),  # one slice of five has no label
        "val": ("val", 5),
        "test": ("test", 5),
    }


def test_word_npy_reads_published_slices(tmp_path, word_config):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind, top in (("npy_imgs", 256), ("npy_gts", 17)):
            folder = tmp_path / "WORD" / split / kind
            folder.mkdir(parents=True)
            for i in range(3):
                np.save(folder / f"word_{i}.npy", rng.integers(0, top, (392, 392), np.uint8))
    config = word_config(tmp_path / "WORD", tmp_path / "packed")
    config.data.kind = "word_npy"
    packed = prepare.prepare(config.data)
    assert packed.images("train").shape == (3, 224, 224)
    np.save(
        tmp_path / "WORD" / "train" / "npy_gts" / "word_1.npy", np.full((392, 392), 40, np.uint8)
    )
    with pytest.raises(DataError, match=r"word_1\.npy: holds the label 40, expected 0 to 16"):
        prepare.prepare(config.data)


def test_word_checks_and_packs_real_volumes(tmp_path, word_config):
    """WORD's labels with painted intensities (its images may not be shared), and a real CT."""
    folders = REAL_DATA / "word_labels", REAL_DATA / "ct_samples"
    if not all(x.is_dir() for x in folders):
        pytest.skip(f"{folders} are not there")
    rng = np.random.default_rng(0)
    hu_of = rng.integers(-100, 250, 17).astype(np.int16)
    path = min(folders[0].glob("*.nii.gz"))
    label = nibabel.load(path)
    classes = np.asarray(label.dataobj)[..., 60:70].astype(np.uint8)
    painted = hu_of[classes] + rng.integers(-20, 21, classes.shape, np.int16)
    painted[:20] = -1000  # air
    real = [nibabel.load(folders[1] / f"cut_{x}.nii.gz") for x in ("ct", "seg")]
    organs = {5: 1, 1: 2, 3: 3, 2: 4, 6: 5, 4: 6, 15: 7, 7: 8, 19: 9, 20: 10, 18: 11, 8: 12, 9: 12}
    word_of = np.zeros(256, np.uint8)
    word_of[list(organs)] = list(organs.values())
    volume_of = {
        "Tr": (painted, classes, label.affine),
        "Val": (
            np.asarray(real[0].dataobj).astype(np.int16),
            word_of[np.asarray(real[1].dataobj).astype(int)],
            real[0].affine,
        ),
    }
    for split, (hu, organ, affine) in volume_of.items():
        for kind, voxels in (("images", hu), ("labels", organ)):
            (tmp_path / "WORD" / f"{kind}{split}").mkdir(parents=True)
            save(tmp_path / "WORD" / f"{kind}{split}" / f"{split}.nii.gz", voxels, affine)
    config = word_config(tmp_path / "WORD", tmp_path / "packed")
    findings, _ = validation.check(config.data)
    assert {x.kind for x in findings} == {"absent-class"}  # ten slices do not show all organs
    packed = prepare.prepare(config.data)
    assert [packed.labels(x).shape for x in ("train", "val")] == [(10, 224, 224), (30, 224, 224)]
    axes = [packed.cases(x)[0]["geometry"]["file_axes"] for x in ("train", "val")]
    assert axes == ["LPS", "RAS"]
    share = (packed.labels("train") > 0).mean() / (classes > 0).mean()
    assert abs(share - 1) < 0.02  # nearest-neighbour resampling keeps areas
    # The liver is on the patient's right, at the left of the picture; the spleen on the other side.
    columns = [np.nonzero(packed.labels("val") == c)[2].mean() for c in (1, 2)]
    assert columns[0] < 112 < columns[1]
