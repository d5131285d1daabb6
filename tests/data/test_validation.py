"""What `tools/prepare.py` finds in a data set, packs and draws."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from conftest import ROOT, write_care

from usam_jax.data import contact_sheet, loader, splits, validation
from usam_jax.data.datasets import registry
from usam_jax.data.datasets.registry import find_left_out
from usam_jax.data.packed import format as packed_format
from usam_jax.data.packed import prepare
from usam_jax.utils.errors import DataError, UsageError


def run(*arguments, wrap=()) -> subprocess.CompletedProcess:
    command = [*wrap, sys.executable, "-m", "tools.prepare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def files(root, part, number) -> tuple[pathlib.Path, pathlib.Path]:
    """The paths of image and label number `number` in the folders of `part`."""
    return tuple(sorted((root / f"{x}{part}").iterdir())[number] for x in ("images", "labels"))


def rewrite(path, change_fn):
    volume = nibabel.load(path)
    voxels, affine = change_fn(np.asarray(volume.dataobj), volume.affine.copy())
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def find(config) -> list[tuple[str, str, str]]:
    findings, _ = validation.check(config.data)
    assert all(x.fix for x in findings)
    return [(x.severity, x.kind, x.where.split("/")[0]) for x in findings]


def test_check_finds_nothing_in_a_sound_data_set(nnunet):
    _, config = nnunet
    assert find(config) == []


def shift(voxels, affine):
    affine[:3, 3] += 3
    return voxels, affine


@pytest.mark.parametrize(
    ("which", "change_fn", "expected"),
    [
        ("label", shift, ("error", "unusable", "train")),
        ("label", lambda x, a: (x[:-1], a), ("error", "unusable", "train")),
        ("label", lambda x, a: ((x * 2).astype(np.uint8), a), ("error", "unusable", "train")),
        ("label", lambda x, a: (x * np.float32(0.5), a), ("error", "unusable", "train")),
        ("label", lambda x, a: (np.zeros_like(x), a), ("warning", "empty", "train")),
        ("image", lambda x, a: (x * np.float32(np.nan), a), ("error", "unusable", "train")),
        ("image", lambda x, a: (x[..., None].repeat(2, -1), a), ("error", "unusable", "train")),
        ("image", lambda x, a: (x + np.int16(1024), a), ("warning", "intensity", "train")),
    ],
)
def test_check_finds_each_fault_with_its_case(nnunet, which, change_fn, expected):
    root, config = nnunet
    image, label = files(root, "Tr", 1)
    rewrite(image if which == "image" else label, change_fn)
    name = label.name.removesuffix(".nii.gz")
    findings, _ = validation.check(config.data)
    assert [(x.severity, x.kind, x.where) for x in findings] == [(*expected[:2], f"train/{name}")]
    assert findings[0].fix


def test_check_warns_of_contradicting_header(nnunet):
    root, config = nnunet
    for path in files(root, "Tr", 0):
        volume = nibabel.load(path)
        moved = volume.affine.copy()
        moved[:3, 3] += 20
        volume.set_sform(volume.affine, 1)
        volume.set_qform(moved, 1)
        data = nibabel.Nifti1Image(np.asarray(volume.dataobj), None, volume.header)
        nibabel.save(data, path)
    assert find(config) == [("warning", "header", "train")]


def test_check_warns_of_header_without_orientation(nnunet):
    root, config = nnunet
    for path in files(root, "Tr", 0):
        volume = nibabel.load(path)
        volume.set_sform(None, 0)
        volume.set_qform(None, 0)
        nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj), None, volume.header), path)
    assert find(config) == [("warning", "header", "train")]


def test_prepare_does_not_copy_damaged_arrays(nnunet):
    root, config = nnunet
    data = prepare.prepare(config.data)
    expected = np.array(data.labels("train"))
    labels = np.load(data.path("train", "labels"), mmap_mode="r+")
    labels[8, 20, 20] ^= 1
    labels.flush()
    path = files(root, "Ts", 0)[0]
    changed = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(changed.dataobj) + 1, changed.affine), path)
    again = prepare.prepare(config.data)
    np.testing.assert_array_equal(again.labels("train"), expected)


def test_contact_sheet_marks_the_patients_right(nnunet):
    root, config = nnunet
    for path in files(root, "Tr", 0):
        volume = nibabel.load(path)
        x = nibabel.affines.apply_affine(
            volume.affine, np.moveaxis(np.indices(volume.shape), 0, -1)
        )
        right = x[..., 0] > np.median(x[..., 0])  # RAS+: x grows to the patient's right
        values = np.asarray(volume.dataobj)
        values = np.where(right, 1, 0) if "labels" in str(path) else np.where(right, 200, -900)
        nibabel.save(
            nibabel.Nifti1Image(values.astype(volume.get_data_dtype()), volume.affine), path
        )
    cases = {"train": registry.list_cases(config.data)["train"][:1]}
    settings = prepare.packing_settings(config.data)
    tiles = contact_sheet.pick_tiles(cases, settings)
    assert len(tiles) > 1
    for tile in tiles:
        columns = np.nonzero(tile.label)[1]
        assert columns.mean() < 24
        assert tile.image[:, :20].mean() > tile.image[:, 28:].mean()
    assert contact_sheet.SIDES["R"][0] < 0.5 < contact_sheet.SIDES["L"][0]


def test_check_reports_duplicates_within_and_across_splits(nnunet):
    root, config = nnunet
    for number, part in ((1, "Tr"), (0, "Ts")):
        for old, new in zip(files(root, "Tr", 0), files(root, part, number), strict=True):
            shutil.copy(old, new)
    assert find(config) == [("error", "duplicate", "test"), ("warning", "duplicate", "train")]


def test_shared_patient_is_reported_and_rejected(nnunet):
    root, config = nnunet
    names = [x.name.removesuffix(".nii.gz") for x in sorted(root.glob("labels*/*"))]
    rows = [f"{name},patient {i % 5}" for i, name in enumerate(names)]
    (root / "patients.csv").write_text("name,patient\n" + "\n".join(rows))
    assert find(config) == [("error", "shared-patient", "patient patient 0")]
    with pytest.raises(DataError, match=r"patient 0 is in several splits: train/.*, test/"):
        prepare.prepare(config.data)


def test_patients_table_keeps_cases_together(nnunet):
    root, config = nnunet
    names = [x.name.removesuffix(".nii.gz") for x in sorted(root.glob("labels*/*"))]
    table = root / "patients.csv"
    table.write_text("name,patient\n" + "".join(f"{x},p{i // 2}\n" for i, x in enumerate(names)))
    data = prepare.prepare(config.data)
    assert [x["patient"] for x in data.cases("train")] == ["p0", "p0", "p1", "p1"]
    held = splits.split_subsets(data, config.data, "val")["val"].rows
    assert len({data.slices("train")[row]["patient"] for row in held}) == 1 and len(held) == 12
    table.write_text(f"name,patient\n{names[0]},p0\n")
    with pytest.raises(DataError, match=r"has no patient for 5 cases"):
        prepare.prepare(config.data)


def test_split_subsets_uses_held_out_cases_of_manifest(nnunet):
    _, config = nnunet
    data = prepare.prepare(config.data)
    config.data.num_folds = 2
    data = prepare.prepare(config.data)
    recorded = json.loads((data.folder / "manifest.json").read_text())["held_out"]
    assert list(recorded) == ["split_seed=0 val_fraction=0.3", "split_seed=0 num_folds=2"]
    folds = recorded["split_seed=0 num_folds=2"]
    names = [x["name"] for x in data.cases("train")]
    assert sorted(name for fold in folds for name in fold) == names
    data.manifest["held_out"]["split_seed=0 num_folds=2"] = [names[:1], names[1:]]
    assert len(splits.split_subsets(data, config.data, "val")["val"]) == 6


def test_check_finds_absent_files_and_wrong_count(nnunet):
    root, config = nnunet
    files(root, "Tr", 2)[0].unlink()
    files(root, "Ts", 0)[1].unlink()
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"numTraining": 9}))
    findings, _ = validation.check(config.data)
    problems = "\n".join(x.problem for x in findings)
    assert len(findings) == 3 and problems.count("is not there, which") == 2
    assert "says numTraining 9, found 4 cases" in problems
    with pytest.raises(DataError, match="3 faults of the data set"):
        prepare.prepare(config.data)


@pytest.mark.parametrize("number", ["4", 4.5, None])
def test_check_names_num_training_of_another_type(nnunet, number):
    root, config = nnunet
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"numTraining": number}))
    findings, _ = validation.check(config.data)
    assert [x.problem for x in findings] == [
        f"{path}: numTraining: got {number!r}, expected a whole number"
    ]


@pytest.mark.parametrize(
    ("rows", "fields", "expected"),
    [
        (["p", "p", "p", "p"], {}, "train holds 1 patient,"),
        (["p", "p", "q", "q"], {}, ""),
        (["p", "p", "q", "q"], {"num_folds": 3}, "train holds 2 patients,"),
        (["p", "p", "q", "q"], {"val_fraction": 0.9}, "train holds 2 patients,"),
    ],
)
def test_check_counts_patients_to_train_on(nnunet, rows, fields, expected):
    root, config = nnunet
    config.data.update(fields)
    names = [x.name.removesuffix(".nii.gz") for x in sorted(root.glob("labels*/*"))]
    table = zip(names, [*rows, "y", "z"], strict=True)
    (root / "patients.csv").write_text("name,patient\n" + "".join(f"{a},{b}\n" for a, b in table))
    findings, _ = validation.check(config.data)
    found = [(x.severity, x.kind, x.problem[: len(expected)]) for x in findings]
    assert found == ([("error", "too-few", expected)] if expected else [])
    assert validation.check(config.data, "test")[0] == []
    if expected:  # training says so too
        with pytest.raises(DataError, match="cannot be split into training and validation"):
            splits.split_subsets(prepare.prepare(config.data), config.data, "val")


def test_nnunet_uses_files_listed_in_dataset_json(nnunet):
    root, config = nnunet
    path = root / "dataset.json"
    image, label = files(root, "Tr", 0)
    listed = {
        "here": {"images": [f"imagesTr/{image.name}"], "label": f"labelsTr/{label.name}"},
        "gone": {"images": ["imagesTr/gone.nii.gz"], "label": "labelsTr/gone.nii.gz"},
    }
    changed = json.loads(path.read_text()) | {"dataset": listed, "numTraining": 2}
    path.write_text(json.dumps(changed))
    cases = registry.list_cases(config.data)["train"]
    assert [(x.name, x.num_slices) for x in cases] == [("gone", 0), ("here", 6)]
    findings, _ = validation.check(config.data)
    assert [x.where for x in findings if x.severity == "error"] == ["train/gone"]


def test_check_warns_of_absent_classes(tmp_path, word_config):
    for split in ("train", "test"):
        for kind in ("npy_imgs", "npy_gts"):
            folder = tmp_path / "WORD" / split / kind
            folder.mkdir(parents=True)
            for i in range(2):
                value = 10 * i + len(split)
                image = np.roll(np.arange(64 * 64), value).reshape(64, 64) % 256
                array = image if kind == "npy_imgs" else np.full((64, 64), value)
                np.save(folder / f"{split}_{i}.npy", array.astype(np.uint8))
    config = word_config(tmp_path / "WORD", tmp_path / "packed")
    config.data.kind = "word_npy"
    assert find(config) == [("warning", "absent-class", "")] * 14


def test_prepare_check_prints_json_and_exits_with_3(nnunet, tmp_path):
    root, _ = nnunet
    rewrite(files(root, "Tr", 1)[1], shift)
    rewrite(files(root, "Tr", 2)[1], lambda x, a: (np.zeros_like(x), a))
    done = run(root, "--check", "--json", f"--sheet={tmp_path / 'sheet.png'}")
    assert done.returncode == 3 and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert (found["num_errors"], found["num_warnings"]) == (1, 1)
    assert found["num_cases"] == {"train": 4, "test": 2}
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    text = run(root, "--check").stdout
    assert "error (unusable), 1:" in text and "what to do: resample" in text


def test_packed_data_set_is_used_from_any_folder(nnunet, tmp_path):
    root, config = nnunet
    target = tmp_path / "ein Ordner ß"
    done = run(
        root, target, "--check", "--config=configs/nnunet.py", "--config.model.image_size=48"
    )
    assert done.returncode == 0, done.stderr
    assert (target / "contact_sheet.png").is_file() and "data.kind=packed" in done.stdout
    expected = prepare.prepare(config.data)
    shutil.rmtree(root)
    config.data.kind, config.data.root = "packed", str(target)
    found = prepare.prepare(config.data)
    for split in ("train", "test"):
        np.testing.assert_array_equal(found.images(split), expected.images(split))
        np.testing.assert_array_equal(found.labels(split), expected.labels(split))
    (held_out,) = found.manifest["held_out"]["split_seed=0 val_fraction=0.1"]
    assert len(held_out) == 1
    assert "--config.model.image_size=48" in done.stdout  # in the command for training
    config.data.clahe_limit = 1.0
    with pytest.raises(
        UsageError, match=r"clahe_limit: got 1.0, expected 2.5 as it was packed with"
    ):
        prepare.prepare(config.data)
    images = np.load(found.path("train", "images"), mmap_mode="r+")
    images[8, 20, 20] ^= 1
    images.flush()
    done = run(target, "--check")
    assert done.returncode == 3
    assert f"the checksum of {found.cases('train')[1]['name']} (rows 6 to 11)" in done.stdout


def test_prepare_packs_all_again_for_changed_settings(nnunet, tmp_path):
    _, config = nnunet
    before = np.array(prepare.prepare(config.data, tmp_path / "here").images("train"))
    config.data.window_level = 0.0
    after = prepare.prepare(config.data, tmp_path / "here")
    assert all((a != b).any() for a, b in zip(before, after.images("train"), strict=True))
    assert len([x for x in (tmp_path / "here").iterdir() if x.is_dir()]) == 1


def test_prepare_leaves_foreign_folders_alone(nnunet, tmp_path):
    root, config = nnunet
    with pytest.raises(UsageError, match="something else than a packed data set"):
        prepare.prepare(config.data, root)
    assert files(root, "Tr", 0)[0].is_file()
    user = tmp_path / "user"
    (user / "sub").mkdir(parents=True)
    for lock, manifest, progress in (
        ("1", {}, {}),
        ("", {"mine": 1}, {}),
        ("", {}, {"settings": 1}),
    ):
        (user / "lock").write_text(lock)
        (user / "manifest.json").write_text(json.dumps(manifest))
        (user / "sub" / "progress.json").write_text(json.dumps(progress))
        before = {x: x.read_bytes() for x in user.rglob("*") if x.is_file()}
        with pytest.raises(UsageError, match="something else than a packed data set"):
            prepare.prepare(config.data, user)
        assert before == {x: x.read_bytes() for x in user.rglob("*") if x.is_file()}
    assert run(tmp_path / "nowhere", tmp_path / "new").returncode == 3
    assert run(root).returncode == 2
    assert run(root, "--check", "--sheet=x.jpg").returncode == 2


@pytest.mark.parametrize("name", ["", "imagesTr", "dataset.json", "labelsTs/phantom_0004.nii.gz"])
def test_prepare_names_unreadable_path(nnunet, name):
    root, _ = nnunet
    # Root may read everything unless it drops its capabilities.
    wrap = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    mode = (root / name).stat().st_mode
    (root / name).chmod(0o000)
    done = run(root, "--check", "--json", wrap=wrap)
    (root / name).chmod(mode)
    assert done.returncode == 3, done.stderr
    (found,) = json.loads(done.stdout)["findings"]
    assert name in found["problem"] and "Permission denied" in found["problem"]


def test_prepare_names_unwritable_folder(nnunet, tmp_path):
    root, _ = nnunet
    wrap = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    blocked = tmp_path / "blocked"
    blocked.mkdir(mode=0o555)
    done = run(root, blocked / "new", wrap=wrap)
    assert done.returncode == 3 and "cannot be written" in done.stderr


@pytest.mark.parametrize("num_workers", [0, 2])
def test_train_batches_name_file_of_corrupt_label(tmp_path, care_config, num_workers):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    write_care(tmp_path / "CARE", num_train=6, num_test=1)
    config = care_config(tmp_path / "CARE", tmp_path / "packed")
    config.data.num_workers, config.train.batch_size = num_workers, 3
    data = prepare.prepare(config.data)
    path = data.path("train", "labels")
    labels = np.load(path, mmap_mode="r+")
    labels[4, 100, 100] = 77
    labels.flush()
    iterator, _ = loader.train_batches(data, np.arange(6), config)
    with pytest.raises(DataError, match=r"train_labels\.npy: slice 4 holds the label 77") as error:
        for _ in range(4):
            next(iterator)
    iterator.close()
    assert "pack again" in str(error.value)


def test_map_array_names_truncated_file(tmp_path):
    path = tmp_path / "DEST" / "arrays" / "train_labels.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.zeros((6, 32, 32), np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"train_labels\.npy: not a readable .*delete .*/DEST and"):
        packed_format.map_array(path)


def test_prepare_lists_what_it_leaves_out(nnunet, tmp_path):
    root, _ = nnunet
    image = next((root / "imagesTr").iterdir())
    image.rename(image.with_name(image.name.upper().replace("PHANTOM", "phantom")))  # is read
    (root / "imagesTr" / "README.txt").write_text("")
    (root / "imagesTr" / "p9_0000.mha").write_text("")
    (root / "labelsTr" / "p9").mkdir()
    done = run(root, tmp_path / "packed", "--check", "--json")
    assert done.returncode == 4 and "2 files or folders were left out" in done.stderr
    findings = json.loads(done.stdout)["findings"]
    names = {x["where"].rsplit("/", 1)[-1] for x in findings if x["kind"] == "left-out"}
    assert names == {"p9_0000.mha", "p9"}
    assert (tmp_path / "packed" / "manifest.json").is_file()


def test_open_packed_names_a_manifest_that_lacks_fields(nnunet, tmp_path):
    _, config = nnunet
    packed = prepare.prepare(config.data, tmp_path / "here")
    (record, *_) = packed.manifest["splits"]["train"]
    for changes in (
        {"splits": []},
        {"arrays": 5},
        {"settings": {"version": packed_format.VERSION}},
        {"splits": {"train": [{k: x for k, x in record.items() if k != "crc32"}]}},
        {"splits": {"train": [record | {"values": {"low": 1}}]}},
    ):
        content = packed.manifest | changes
        (packed.folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"manifest\.json: damaged \(.*pack again"):
            packed_format.open_packed(packed.folder)


def test_find_left_out_names_a_split_of_word_without_labels(tmp_path, word_config):
    for name in ("imagesTr", "labelsTr", "imagesVal", "LabelsVal"):
        (tmp_path / name).mkdir()
    left_out = find_left_out(word_config(tmp_path, tmp_path / "packed").data)
    assert left_out == {tmp_path / "imagesVal": "has no labelsVal next to it"}
