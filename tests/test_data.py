"""From files to batches: packing, splits, augmentation, prompts, and what is wrong with files."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from conftest import phantom_config, write_care
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from usam_jax.data import augment, pipeline, prepare, prompts, sources
from usam_jax.errors import DataError, UsageError

LABELS = hnp.arrays(np.uint8, (16, 16), elements=st.integers(0, 3))


@pytest.fixture
def care(tmp_path, care_config):
    """A small data set in CARE's layout, and its config."""
    root = tmp_path / "CARE data Ä"  # a space and an umlaut, as in people's folders
    write_care(root, num_train=12, num_test=3)
    return root, care_config(root, tmp_path / "packed")


def slice_file(root, name="1", split="train"):
    return root / split / f"{split}_npz" / f"{name}.npz"


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {**file, **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_real_slices_are_clipped_and_not_wrapped(care_samples, care_config, tmp_path):
    config = care_config(care_samples, tmp_path)
    config.data.clahe_limit = 0.0
    packed = prepare.prepare(config.data)
    assert [x["name"] for x in packed.slices("train")] == ["1002", "4120", "5657"]
    for i, found in enumerate(packed.slices("train")):
        with np.load(care_samples / "train" / "train_npz" / f"{found['name']}.npz") as file:
            image, label = file["image"], file["label"]
        expected = (np.clip(image, 0, 1).astype(np.float32) * 255).astype(np.uint8)
        np.testing.assert_array_equal(packed.images("train")[i], expected)
        np.testing.assert_array_equal(packed.labels("train")[i], label)
        wrapped = prepare.pack_image(image.astype(np.float32), 224, "wrap", None)
        differs = wrapped != expected
        np.testing.assert_array_equal(
            differs,
            (image < -1 / 255) | (image >= 256 / 255) | (differs & ((image < 0) | (image > 1))),
        )
        assert 0.01 < differs.mean() < 0.03  # the share that the published code turns white


def test_packing_is_done_once_and_again_when_a_source_or_setting_changes(care, monkeypatch):
    root, config = care
    config.data.clahe_limit = 0.0
    packs = []
    original = prepare.pack
    monkeypatch.setattr(prepare, "pack", lambda *a: packs.append(1) or original(*a))
    first = prepare.prepare(config.data)
    prepare.prepare(config.data)
    assert len(packs) == 1
    before = np.array(first.images("train"))
    rewrite(slice_file(root, "1"), image=np.zeros((224, 224)))
    second = prepare.prepare(config.data)
    assert len(packs) == 2
    np.testing.assert_array_equal(second.images("train")[0], np.zeros_like(before[0]))
    np.testing.assert_array_equal(second.images("train")[1:], before[1:])
    config.data.clahe_limit = 2.5
    prepare.prepare(config.data)
    assert len(packs) == 3


def test_packing_goes_on_where_it_was_stopped(care, monkeypatch):
    _, config = care
    monkeypatch.setattr(prepare, "SAVE_EVERY", 2)
    read = []
    original = sources.load_care_slice

    def load(path, num_classes):
        read.append(path.stem)
        if len(read) == 6:
            raise KeyboardInterrupt
        return original(path, num_classes)

    monkeypatch.setattr(sources, "load_care_slice", load)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config.data)
    folder = pathlib.Path(config.data.packed_dir) / prepare.packed_name(config.data)
    assert not (folder / "manifest.json").exists()
    assert not list(folder.glob("*.npy"))
    packed = prepare.prepare(config.data)
    assert read[6:] == [str(i) for i in range(5, 13)] + ["1", "2", "3"]
    monkeypatch.setattr(sources, "load_care_slice", original)
    shutil.rmtree(folder)
    whole = prepare.prepare(config.data)
    for split in ("train", "test"):
        np.testing.assert_array_equal(packed.images(split), whole.images(split))


def test_the_csv_says_which_slices_there_are_and_may_be_missing(care):
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
    ],
)
def test_a_faulty_slice_is_named_with_what_is_wrong(care, changes, message):
    root, config = care
    rewrite(slice_file(root, "7"), **changes)
    with pytest.raises(DataError, match=rf"7\.npz: {message}"):
        prepare.prepare(config.data)


def test_every_faulty_slice_is_named_at_once_and_the_good_ones_are_kept(care):
    root, config = care
    for name in ("3", "9"):
        path = slice_file(root, name)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"(?s)2 cases.*3\.npz: not a readable.*9\.npz: not a") as e:
        prepare.prepare(config.data)
    assert e.value.exit_code == 3
    for name in ("3", "9"):
        shutil.copy(slice_file(root, "1"), slice_file(root, name))
    assert len(prepare.prepare(config.data).slices("train")) == 12


def test_an_npz_with_a_pickle_inside_is_refused_and_not_run(care, tmp_path):
    root, config = care

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    np.savez(slice_file(root, "5"), image=np.array([Harm()], object), label=np.zeros((224, 224)))
    with pytest.raises(DataError, match=r"5\.npz: not a readable"):
        prepare.prepare(config.data)
    assert not (tmp_path / "harm").exists()


def test_labels_above_the_last_class_count_as_it(care):
    root, config = care
    rewrite(slice_file(root, "1"), label=np.full((224, 224), 5.0))
    assert np.unique(prepare.prepare(config.data).labels("train")[0]) == [2]


def test_an_absent_data_set_says_how_to_get_it(care):
    root, config = care
    config.data.root = str(root / "nowhere")
    with pytest.raises(
        DataError, match=r"(?s)nowhere.*authors on request.*phantom\.py needs no data"
    ):
        prepare.prepare(config.data)


def test_an_empty_split_and_a_name_without_file_are_errors(care):
    root, config = care
    (root / "train" / "train_bbox.csv").write_text("name,bbox\n1,x\n99,x\n")
    with pytest.raises(DataError, match=r"(?s)train_bbox\.csv: 1 of 2 names.*99"):
        prepare.prepare(config.data)
    for path in (root / "test" / "test_npz").glob("*.npz"):
        path.unlink()
    for split in ("train", "test"):
        (root / split / f"{split}_bbox.csv").unlink()
    with pytest.raises(DataError, match="test_npz holds no slices"):
        prepare.prepare(config.data)


def test_validation_holds_out_whole_patients():
    slices = [{"patient": f"p{i // 5}"} for i in range(100)]
    packed = prepare.Packed(pathlib.Path("x"), {"splits": {"train": slices, "test": slices}})
    config = phantom_config().data
    rows = pipeline.split_rows(packed, config, "val")
    patients = {part: {i // 5 for i in rows[part]} for part in ("train", "val")}
    assert len(patients["val"]) == 6
    assert not patients["train"] & patients["val"]
    assert len(rows["train"]) + len(rows["val"]) == 100


def test_validation_is_a_contiguous_block_where_patients_are_unknown(care):
    _, config = care
    config.data.val_fraction = 0.25
    packed = prepare.prepare(config.data)
    rows = pipeline.split_rows(packed, config.data, "val")
    assert rows["val"].tolist() == [9, 10, 11]
    assert rows["train"].tolist() == list(range(9))
    assert not len(pipeline.split_rows(packed, config.data, "test")["val"])


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same_batches(a, b):
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def test_batches_come_again_from_the_seed_and_differ_between_epochs(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    rows = np.arange(12)
    iterator, steps = pipeline.train_batches(packed, rows, config)
    assert steps == 3
    first = take(iterator, 6)
    again, _ = pipeline.train_batches(packed, rows, config)
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


def test_two_worker_processes_give_the_same_batches_as_none(care):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    alone, _ = pipeline.train_batches(packed, np.arange(12), config)
    config.data.num_workers = 2
    helped, _ = pipeline.train_batches(packed, np.arange(12), config)
    assert_same_batches(take(alone, 6), take(helped, 6))


def test_iterator_goes_on_from_its_saved_state(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    iterator, _ = pipeline.train_batches(packed, np.arange(12), config)
    take(iterator, 2)
    state = iterator.get_state()
    expected = take(iterator, 3)
    other, _ = pipeline.train_batches(packed, np.arange(12), config)
    other.set_state(state)
    assert_same_batches(expected, take(other, 3))


def test_processes_share_an_epoch_without_overlap(care):
    _, config = care
    config.train.batch_size = 4
    packed = prepare.prepare(config.data)
    seen = []
    for process in range(2):
        iterator, steps = pipeline.train_batches(packed, np.arange(12), config, process, 2)
        assert steps == 3
        seen += [int(i) for batch in take(iterator, 3) for i in batch["index"]]
    assert sorted(seen) == list(range(12))


def test_evaluation_batches_have_one_shape_and_mark_what_does_not_count(care):
    _, config = care
    config.eval.batch_size = 5
    packed = prepare.prepare(config.data)
    iterator, num_batches = pipeline.eval_batches(packed, "train", np.arange(12), config)
    batches = list(iterator)
    assert len(batches) == num_batches == 3
    assert {x["image"].shape for x in batches} == {(5, 224, 224)}
    assert np.concatenate([x["valid"] for x in batches]).tolist() == [True] * 12 + [False] * 3
    assert np.concatenate([x["index"] for x in batches])[:12].tolist() == list(range(12))


def test_a_batch_larger_than_the_training_part_is_refused(care):
    _, config = care
    config.train.batch_size = 16
    with pytest.raises(UsageError, match="found 16, but there are only 12 slices"):
        pipeline.train_batches(prepare.prepare(config.data), np.arange(12), config)


def test_random_limits_are_drawn_in_training_and_fixed_in_evaluation(care):
    _, config = care
    fixed = np.array(prepare.prepare(config.data).images("train"))
    config.data.random_clahe = True
    packed = prepare.prepare(config.data)
    assert not np.array_equal(packed.images("train"), fixed)
    config.eval.batch_size = 12
    iterator, _ = pipeline.eval_batches(packed, "train", np.arange(12), config)
    np.testing.assert_array_equal(next(iterator)["image"], fixed)
    config.data.augment = False
    config.train.batch_size = 12
    iterator, _ = pipeline.train_batches(packed, np.arange(12), config)
    a, b = take(iterator, 2)
    assert not np.array_equal(
        a["image"][np.argsort(a["index"])], b["image"][np.argsort(b["index"])]
    )


@settings(max_examples=60, deadline=None)
@given(LABELS, st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_points_lie_on_their_class_after_augmentation(label, per_class, seed, fixed):
    rng = np.random.default_rng(seed)
    image, turned = augment.augment(label * 50, label, rng)
    np.testing.assert_array_equal(image, turned * 50)  # both moved alike
    points, kinds = prompts.make_points(turned, 4, per_class, None if fixed else rng)
    assert points.shape == (3 * per_class, 2)
    present = [c for c in (1, 2, 3) if (turned == c).any()]
    for c in (1, 2, 3):
        rows = slice((c - 1) * per_class, c * per_class)
        given_points = points[rows][kinds[rows] == prompts.FOREGROUND].astype(int)
        stands_for = (
            c if c in present else next((p for p in present if p > c), present[0] if present else 0)
        )
        assert len(given_points) == min(per_class, (turned == stands_for).sum() if present else 0)
        assert {int(turned[y, x]) for x, y in given_points} <= {stands_for}
        assert len({(x, y) for x, y in given_points}) == len(given_points)


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_a_box_is_the_smallest_that_holds_all_foreground(label):
    x0, y0, x1, y1 = prompts.make_box(label).astype(int)
    inside = label[y0 : y1 + 1, x0 : x1 + 1]
    assert np.count_nonzero(inside) == np.count_nonzero(label)
    if label.any():
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_augmentation_takes_its_published_shares():
    label = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    kinds = {"same": 0, "right angle": 0, "rotated": 0}
    for seed in range(2000):
        image, _ = augment.augment(label, label, np.random.default_rng(seed))
        if np.array_equal(image, label):
            kinds["same"] += 1
        elif np.array_equal(np.sort(image, axis=None), np.sort(label, axis=None)):
            kinds["right angle"] += 1
        else:
            kinds["rotated"] += 1
    # Three deviations of 2000 draws; a rotation of about a degree moves no pixel of so few.
    assert abs(kinds["right angle"] / 2000 - 0.5) < 0.034
    assert abs(kinds["rotated"] / 2000 - 0.235) < 0.04


def test_manifest_is_json_that_tells_every_slice(care):
    _, config = care
    packed = prepare.prepare(config.data)
    manifest = json.loads((packed.folder / "manifest.json").read_text())
    assert manifest["settings"]["clahe_limit"] == 2.5
    assert manifest["splits"]["test"][0] == {"name": "1", "case": "1", "patient": None, "index": 0}
    assert np.load(packed.folder / "train_images.npy", mmap_mode="r").dtype == np.uint8


def test_reference_config_switches_the_published_behaviour_on():
    from configs import care_reference

    config = care_reference.get_config()
    assert (config.data.intensity, config.data.random_clahe) == ("wrap", True)
    assert (config.prompts.order, config.eval.select_on) == ("rowcol", "test")
