"""From files to batches: packing, splits, augmentation, prompts, and faulty files."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import (
    ROOT,
    assert_same_batches,
    config_maker,
    phantom_config,
    take,
    write_care,
)

from usam_jax.data import loader, splits
from usam_jax.data.datasets import care as care_reader
from usam_jax.data.packed import build, prepare
from usam_jax.data.packed import format as packed_format
from usam_jax.data.prompt_modes import main_mode
from usam_jax.utils import parallel
from usam_jax.utils.errors import DataError, UsageError


@pytest.fixture(scope="module")
def care_source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source") / "CARE"
    write_care(root, num_train=12, num_test=3)
    return root


@pytest.fixture
def care(tmp_path, care_source, care_config):
    """A small data set in CARE's layout, and its config."""
    root = tmp_path / "CARE data Ä"  # a space and an umlaut, as in people's folders
    shutil.copytree(care_source, root)
    return root, care_config(root, tmp_path / "packed")


def slice_file(root, name="1", split="train"):
    return root / split / f"{split}_npz" / f"{name}.npz"


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_pack_clips_real_slices_instead_of_wrapping(care_samples, care_config, tmp_path):
    config = care_config(care_samples, tmp_path)
    config.data.clahe_limit = 0.0
    packed = prepare.prepare(config.data)
    reference = config_maker("care_reference")(care_samples, tmp_path)
    published = prepare.prepare(reference.data)
    assert [x["name"] for x in packed.slices("train")] == ["1002", "4120", "5657"]
    for i, found in enumerate(packed.slices("train")):
        with np.load(care_samples / "train" / "train_npz" / f"{found['name']}.npz") as file:
            image, label = file["image"], file["label"]
        expected = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        np.testing.assert_array_equal(packed.images("train")[i], expected)
        np.testing.assert_array_equal(packed.labels("train")[i], label)
        wrapped = published.images("train")[i]
        np.testing.assert_array_equal(wrapped, (image * 255).astype(np.int64).astype(np.uint8))
        differs = wrapped != expected
        np.testing.assert_array_equal(
            differs,
            (image < -1 / 255) | (image >= 256 / 255) | (differs & ((image < 0) | (image > 1))),
        )
        assert (
            0.01 < differs.mean() < 0.03
        )  # the share of pixels that the published code turns white


def test_prepare_packs_again_only_what_changed(care, monkeypatch):
    root, config = care
    config.data.clahe_limit = 0.0
    read = []
    original = care_reader.load_care_slice
    monkeypatch.setattr(
        care_reader, "load_care_slice", lambda p, k: read.append(p.stem) or original(p, k)
    )
    first = prepare.prepare(config.data)
    assert len(read) == 15
    prepare.prepare(config.data)
    assert len(read) == 15
    before = np.array(first.images("train"))
    rewrite(slice_file(root, "1"), image=np.zeros((224, 224)))
    second = prepare.prepare(config.data)
    assert read[15:] == ["1"]
    np.testing.assert_array_equal(second.images("train")[0], np.zeros_like(before[0]))
    np.testing.assert_array_equal(second.images("train")[1:], before[1:])
    config.data.clahe_limit = 2.5
    third = prepare.prepare(config.data)
    assert len(read) == 16 + 15
    # Other settings have a folder of their own: a run with the first settings keeps its data.
    assert third.folder != second.folder
    np.testing.assert_array_equal(second.images("train")[1:], before[1:])


@pytest.mark.parametrize("stop_at", ["a slice", "the manifest"])
def test_prepare_resumes_after_an_interruption(care, monkeypatch, stop_at):
    _, config = care
    monkeypatch.setattr(build, "SAVE_EVERY_SLICES", 2)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 1)
    read = []
    original = care_reader.load_care_slice

    def load(path, num_classes):
        read.append(path.stem)
        if len(read) == 6 and stop_at == "a slice":
            raise KeyboardInterrupt
        return original(path, num_classes)

    def stop(path, content):
        if path.name == "manifest.json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(care_reader, "load_care_slice", load)
    write = build.write_json
    if stop_at == "the manifest":
        monkeypatch.setattr(build, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config.data)
    assert not list(pathlib.Path(config.data.packed_dir).glob("*/manifest.json"))
    monkeypatch.setattr(build, "write_json", write)
    count = len(read)
    packed = prepare.prepare(config.data)
    assert len(read) - count == (11 if stop_at == "a slice" else 0)
    shutil.rmtree(packed.folder)
    again = np.array(prepare.prepare(config.data).images("train"))
    shutil.rmtree(packed.folder)
    whole = prepare.prepare(config.data)
    np.testing.assert_array_equal(again, whole.images("train"))
    assert whole.images("test").max() > 0


def test_prepare_rewrites_incomplete_arrays(care, monkeypatch):
    _, config = care
    whole = prepare.prepare(config.data)
    expected = np.array(whole.images("test"))
    arrays = whole.folder / whole.manifest["arrays"]
    progress = json.loads((arrays / "progress.json").read_text())
    (arrays / "progress.json").write_text(
        json.dumps(progress | {"splits": progress["splits"] | {"test": {}}})
    )
    (arrays / "test_images.npy").write_bytes(b"")
    (whole.folder / "manifest.json").unlink()
    np.testing.assert_array_equal(prepare.prepare(config.data).images("test"), expected)


def test_prepare_packs_once_in_concurrent_processes(care):
    _, config = care
    code = (
        "import sys; from usam_jax.data.packed import prepare; "
        "from configs import care; c = care.get_config(); c.data.root, c.data.packed_dir = "
        "sys.argv[1:]; print(prepare.prepare(c.data).images('train').sum())"
    )
    arguments = [sys.executable, "-c", code, config.data.root, config.data.packed_dir]
    started = [
        subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    sums = [process.communicate()[0] for process in started]
    assert sums[0] == sums[1] == f"{prepare.prepare(config.data).images('train').sum()}\n"


def test_care_table_selects_slices_and_is_optional(care):
    root, config = care
    table = root / "train" / "train_bbox.csv"
    table.write_text('name,bbox\n3,"[0, 0, 1, 1]"\n11,"[0, 0, 1, 1]"\n2.npz,"[0, 0, 1, 1]"\n')
    packed = prepare.prepare(config.data)
    assert [x["name"] for x in packed.slices("train")] == ["2", "3", "11"]
    table.unlink()
    packed = prepare.prepare(config.data)
    assert [x["name"] for x in packed.slices("train")] == [str(i) for i in range(1, 13)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"lacks \['label'\], found the keys \['image'\]"),
        (
            {"image": np.zeros((224, 200))},
            r"image has the shape \(224, 200\), expected \(224, 224\)",
        ),
        ({"image": np.full((224, 224), np.nan)}, "image holds NaN"),
        ({"label": np.full((224, 224), 7.5)}, "label holds 7.5 in 50176 pixels"),
        ({"label": np.full((224, 224), -1)}, "label holds -1"),
        ({"label": np.full((224, 224), "x")}, "label has the type"),
        (None, "not a readable .npz"),
    ],
)
def test_prepare_names_faulty_slice_and_problem(care, tmp_path, changes, message):
    root, config = care
    if changes is None:
        np.save(tmp_path / "x.npy", np.zeros(3))
        shutil.copy(tmp_path / "x.npy", slice_file(root, "7"))
    else:
        rewrite(slice_file(root, "7"), **changes)
    with pytest.raises(DataError, match=rf"7\.npz: {message}"):
        prepare.prepare(config.data)


def test_prepare_names_all_faulty_slices_and_keeps_others(care, monkeypatch):
    root, config = care
    for name in ("3", "9"):
        path = slice_file(root, name)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"(?s)2 cases.*3\.npz: not a readable.*9\.npz: not a") as e:
        prepare.prepare(config.data)
    assert e.value.exit_code == 3
    for name in ("3", "9"):
        shutil.copy(slice_file(root, "1"), slice_file(root, name))
    read = []
    original = care_reader.load_care_slice
    monkeypatch.setattr(
        care_reader, "load_care_slice", lambda p, k: read.append(p.stem) or original(p, k)
    )
    assert len(prepare.prepare(config.data).slices("train")) == 12
    assert sorted(read) == ["3", "9"]


def test_prepare_rejects_npz_with_pickle_unexecuted(care, tmp_path):
    root, config = care

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(slice_file(root, "5"), image=np.array([Harm()], object), label=np.zeros((224, 224)))
    with pytest.raises(DataError, match=r"5\.npz: not a readable"):
        prepare.prepare(config.data)
    assert not (tmp_path / "harm").exists()


def test_care_labels_above_last_class_are_clipped(care):
    root, config = care
    rewrite(slice_file(root, "1"), label=np.full((224, 224), 5.0))
    assert np.unique(prepare.prepare(config.data).labels("train")[0]) == [2]


def test_prepare_names_invalid_setting(care):
    _, config = care
    config.data.intensity = "clipped"
    with pytest.raises(UsageError, match=r"config.data.intensity: got 'clipped'"):
        prepare.prepare(config.data)


def test_prepare_says_where_to_get_absent_data(care):
    root, config = care
    config.data.root = str(root / "nowhere")
    with pytest.raises(
        DataError, match=r"(?s)nowhere.*authors on request.*phantom\.py needs no data"
    ):
        prepare.prepare(config.data)


def test_prepare_rejects_empty_split_and_missing_slice(care):
    root, config = care
    (root / "train" / "train_bbox.csv").write_text("name,bbox\n1,x\n99,x\n")
    with pytest.raises(DataError, match=r"1 faults.*\n.*99\.npz is not there, but .*train_bbox"):
        prepare.prepare(config.data)
    for path in (root / "test" / "test_npz").glob("*.npz"):
        path.unlink()
    for split in ("train", "test"):
        (root / split / f"{split}_bbox.csv").unlink()
    with pytest.raises(DataError, match="test_npz holds no slices"):
        prepare.prepare(config.data)


def fake_packed(patients):
    cases = [
        {"name": f"c{i}", "patient": p, "num_slices": 5, "foreground": [0, 1, 1, 1, 1]}
        for i, p in enumerate(patients)
    ]
    return packed_format.Packed(pathlib.Path("x"), {"splits": {"train": cases, "test": cases[:1]}})


def test_split_subsets_holds_out_whole_patients():
    packed = fake_packed([f"p{i // 2}" for i in range(20)])
    config = phantom_config().data
    parts = splits.split_subsets(packed, config, "val")
    patients = {part: {i // 10 for i in parts[part].rows} for part in ("train", "val")}
    assert len(patients["val"]) == 3
    assert not patients["train"] & patients["val"]
    assert len(parts["train"]) + len(parts["val"]) == 100
    config.train_on_empty = False
    trained = splits.split_subsets(packed, config, "val")["train"].rows
    assert len(trained) == 0.8 * len(parts["train"]) and (trained % 5 > 0).all()


def test_split_subsets_holds_out_block_if_patients_unknown(care):
    _, config = care
    config.data.val_fraction = 0.25
    packed = prepare.prepare(config.data)
    parts = splits.split_subsets(packed, config.data, "val")
    assert parts["val"].rows.tolist() == [9, 10, 11]
    assert parts["train"].rows.tolist() == list(range(9))
    assert not len(splits.split_subsets(packed, config.data, "test")["val"])


def test_train_batches_repeat_by_seed_and_vary_by_epoch(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    rows = np.arange(12)
    iterator, steps = loader.train_batches(packed, rows, config)
    assert steps == 3
    first = take(iterator, 6)
    again, _ = loader.train_batches(packed, rows, config)
    assert_same_batches(first, take(again, 6))
    epochs = [np.concatenate([x["index"] for x in first[i : i + 3]]) for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0].tolist() != epochs[1].tolist()
    drawn = [
        {
            int(i): p
            for x in first[e : e + 3]
            for i, p in zip(x["index"], x["points_xy"], strict=True)
        }
        for e in (0, 3)
    ]
    assert any(not np.array_equal(drawn[0][i], drawn[1][i]) for i in range(12))


def test_train_batches_resume_after_any_step(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    whole, _ = loader.train_batches(packed, np.arange(12), config)
    expected = take(whole, 7)
    rest, _ = loader.train_batches(packed, np.arange(12), config, 4)
    assert_same_batches(expected[4:], take(rest, 3))


def test_train_batches_are_shared_between_processes(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    rows = np.arange(11)
    alone, steps = loader.train_batches(packed, rows, config)
    assert steps == 2
    parts = [loader.train_batches(packed, rows, config, 0, i, 2)[0] for i in range(2)]
    for batch in take(alone, 5):
        shares = [next(x)["index"] for x in parts]
        assert sorted(np.concatenate(shares)) == sorted(batch["index"])


def eval_batches(packed, num_rows, config, *processes):
    rows, modes = np.arange(num_rows), [main_mode(config)]
    return loader.eval_batches(packed, "train", rows, config, modes, *processes)


def test_eval_batches_have_one_shape_and_mark_padding(care):
    _, config = care
    config.eval.batch_size = 5
    packed = prepare.prepare(config.data)
    iterator, num_batches = eval_batches(packed, 12, config)
    batches = list(iterator)
    assert len(batches) == num_batches == 3
    assert {x["image"].shape for x in batches} == {(5, 224, 224)}
    assert np.concatenate([x["valid"] for x in batches]).tolist() == [True] * 12 + [False] * 3
    assert np.concatenate([x["index"] for x in batches])[:12].tolist() == list(range(12))


def test_eval_batches_are_shared_in_order(care):
    _, config = care
    config.eval.batch_size = 4
    packed = prepare.prepare(config.data)
    shares = [list(eval_batches(packed, 10, config, process, 2)[0]) for process in range(2)]
    rows = [int(i) for pair in zip(*shares, strict=True) for part in pair for i in part["index"]]
    assert rows[:10] == list(range(10)) and len(rows) == 12


def test_points_can_be_ordered_as_row_and_column(care):
    _, config = care
    config.eval.batch_size = 12
    packed = prepare.prepare(config.data)
    (batch,), _ = eval_batches(packed, 12, config)
    config.prompts.order = "rowcol"
    (swapped,), _ = eval_batches(packed, 12, config)
    found, expected = swapped["prompts"]["points3_rowcol"], batch["prompts"]["points3"]
    np.testing.assert_array_equal(found["points_xy"], expected["points_xy"][..., ::-1])


def test_train_batches_reject_batch_above_split_size(care):
    _, config = care
    config.train.batch_size = 16
    with pytest.raises(UsageError, match="got 16, but there are only 12 slices"):
        loader.train_batches(prepare.prepare(config.data), np.arange(12), config)


def test_random_clahe_is_fixed_in_evaluation(care):
    _, config = care
    fixed = np.array(prepare.prepare(config.data).images("train"))
    config.data.random_clahe = True
    packed = prepare.prepare(config.data)
    assert not np.array_equal(packed.images("train"), fixed)
    config.eval.batch_size = 12
    iterator, _ = eval_batches(packed, 12, config)
    np.testing.assert_array_equal(next(iterator)["image"], fixed)
    config.data.augment = False
    config.train.batch_size = 12
    iterator, _ = loader.train_batches(packed, np.arange(12), config)
    a, b = take(iterator, 2)
    assert not np.array_equal(
        a["image"][np.argsort(a["index"])], b["image"][np.argsort(b["index"])]
    )


def test_manifest_records_every_case(care):
    _, config = care
    packed = prepare.prepare(config.data)
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["settings"]["clahe_limit"] == 2.5
    record = manifest["splits"]["test"][0]
    assert (record["name"], record["patient"], record["num_slices"]) == ("1", None, 1)
    assert record["crc32"][0] == zlib.crc32(packed.images("test")[0].tobytes())
    assert np.load(packed.folder / manifest["arrays"] / "train_images.npy").dtype == np.uint8
