"""Augmentation and prompts: correct for any draw, and the same for any number of workers."""

import pickle

import cv2
import numpy as np
import pytest
from conftest import assert_same_batches, phantom_config, take, write_care
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from usam_jax.data import loader, prompts
from usam_jax.data.augment import Augment, elastic_field, make_augment
from usam_jax.data.packed.prepare import prepare
from usam_jax.data.prompt_modes import main_mode
from usam_jax.utils.errors import UsageError

LABELS = hnp.arrays(np.uint8, (16, 16), elements=st.integers(0, 3))
SEEDS = st.integers(0, 2**32 - 1)
AUGMENTS = st.builds(
    Augment,
    published=st.booleans(),
    scale=st.sampled_from([0.0, 0.3]),
    elastic=st.sampled_from([0.0, 0.8]),
    intensity=st.sampled_from([0.0, 0.2]),
)
BLOB = np.zeros((224, 224), np.uint8)
cv2.ellipse(BLOB, (120, 90), (40, 25), 20, 0, 360, 1, -1)


@pytest.fixture
def packed(tmp_path, care_config):
    """Twelve packed slices in CARE's layout, and a config for batches of 4."""
    write_care(tmp_path / "care", num_train=12, num_test=1)
    config = care_config(tmp_path / "care", tmp_path / "packed")
    config.train.batch_size = 4
    return prepare(config.data), config


@settings(max_examples=100, deadline=None)
@given(LABELS, AUGMENTS, st.integers(1, 5), st.integers(0, 4), SEEDS, st.booleans())
def test_points_lie_on_their_class_after_augmentation(
    label, augment, per_class, negative, seed, fixed
):
    rng = np.random.default_rng(seed)
    _, turned = augment(label * 50, label, rng)
    rng = None if fixed else rng
    points, kinds = prompts.make_points(turned, 4, per_class, rng)
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
    points, kinds = prompts.make_background_points(turned, negative, rng)
    outside = points[kinds == prompts.BACKGROUND].astype(int)
    assert len(outside) == min(negative, (turned == 0).sum())
    assert not any(turned[y, x] for x, y in outside)
    assert len({(x, y) for x, y in outside}) == len(outside)


@settings(max_examples=60, deadline=None)
@given(LABELS, AUGMENTS, SEEDS)
def test_make_box_is_tight_around_all_foreground(label, augment, seed):
    _, label = augment(label, label, np.random.default_rng(seed))
    x0, y0, x1, y1 = prompts.make_box(label).astype(int)
    inside = label[y0 : y1 + 1, x0 : x1 + 1]
    assert np.count_nonzero(inside) == np.count_nonzero(label)
    if label.any():
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0, 30), SEEDS)
def test_jitter_box_stays_near_ordered_and_inside(label, pixels, seed):
    box = prompts.make_box(label)
    moved = prompts.jitter_box(box, pixels, label.shape, np.random.default_rng(seed))
    assert np.abs(moved - box).max() <= pixels + 1e-5  # float32's rounding
    assert (moved >= 0).all() and (moved <= 15).all()
    assert moved[0] <= moved[2] and moved[1] <= moved[3]


@settings(max_examples=60, deadline=None)
@given(LABELS, SEEDS)
def test_published_augment_moves_image_and_label_alike(label, seed):
    image, turned = Augment()(label * 50, label, np.random.default_rng(seed))
    np.testing.assert_array_equal(image, turned * 50)


@settings(max_examples=60, deadline=None)
@given(AUGMENTS, SEEDS)
def test_augment_moves_image_and_label_alike(augment, seed):
    augment = Augment(augment.published, scale=augment.scale, elastic=10 * augment.elastic)
    image, label = augment(BLOB * 200, BLOB, np.random.default_rng(seed))
    # Interpolation moves some pixels across the outline; a shift by one pixel moves over 100.
    assert np.count_nonzero((image > 100) != (label == 1)) <= 60
    assert set(np.unique(label)) <= {0, 1}


def test_augment_has_its_published_shares():
    label = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    kinds = {"same": 0, "right angle": 0, "rotated": 0}
    for seed in range(2000):
        image, _ = Augment()(label, label, np.random.default_rng(seed))
        if np.array_equal(image, label):
            kinds["same"] += 1
        elif np.array_equal(np.sort(image, axis=None), np.sort(label, axis=None)):
            kinds["right angle"] += 1
        else:
            kinds["rotated"] += 1
    # Three standard deviations of 2000 draws; a rotation by about 1 degree moves none of 32x32.
    assert abs(kinds["right angle"] / 2000 - 0.5) < 0.034
    assert abs(kinds["rotated"] / 2000 - 0.235) < 0.04


def test_augment_draws_published_flips_equally_often():
    label = np.arange(9, dtype=np.uint8).reshape(3, 3)
    published = [
        np.flip(np.rot90(label, turns), axis).tobytes() for turns in range(4) for axis in (0, 1)
    ]
    drawn = [
        image.tobytes()
        for image, _ in (Augment()(label, label, np.random.default_rng(i)) for i in range(2000))
    ]
    counts = [drawn.count(view) for view in sorted(set(published))]
    assert len(counts) == 4 and all(published.count(view) == 2 for view in published)
    assert max(abs(count / 2000 - 1 / 8) for count in counts) < 0.03  # four standard deviations


def test_augment_scale_grows_and_shrinks_within_limits():
    areas = [
        Augment(False, scale=0.2)(BLOB, BLOB, np.random.default_rng(i))[1].sum() / BLOB.sum()
        for i in range(50)
    ]
    assert 1 / 1.2**2 - 0.02 < min(areas) < 0.85 and 1.2 < max(areas) < 1.2**2 + 0.02


def test_elastic_field_of_maximal_strength_does_not_fold():
    config = phantom_config().data
    limit = 0.05 * config.image_size
    config.augment_elastic = limit
    make_augment(config)
    for seed in range(50):
        x, y = elastic_field(config.image_size, limit, np.random.default_rng(seed))
        (x_down, x_right), (y_down, y_right) = np.gradient(x), np.gradient(y)
        assert ((1 + x_right) * (1 + y_down) - x_down * y_right).min() > 0


def test_augment_intensity_leaves_labels_unchanged():
    image = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    views = [
        Augment(False, intensity=0.2)(image, image, np.random.default_rng(i)) for i in range(50)
    ]
    for view, label in views:
        np.testing.assert_array_equal(label, image)
        assert (np.diff(view[0].astype(int)) >= 0).all()
    middles = [int(view[0, 128]) for view, _ in views]
    assert 128 - 26 <= min(middles) < 108 and 148 < max(middles) <= 128 + 26


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data.augment_scale", -0.1),
        ("data.augment_elastic", 30.0),
        ("data.augment_intensity", 1.5),
        ("prompts.kind", "clicks"),
        ("prompts.order", "yx"),
        ("prompts.points_per_class", 0),
        ("prompts.negative_points", -1),
        ("prompts.box_jitter", -1.0),
    ],
)
def test_augment_and_prompts_name_invalid_field(field, value):
    config = phantom_config(**{field: value})
    with pytest.raises(UsageError, match=f"config.{field}: got {value!r}"):
        make_augment(config.data), prompts.make_add_prompts(config)


EVERYTHING = {
    "prompts.kind": "mixed",
    "prompts.negative_points": 2,
    "prompts.box_jitter": 5.0,
    "data.augment_scale": 0.2,
    "data.augment_elastic": 5.0,
    "data.augment_intensity": 0.2,
}


@pytest.mark.parametrize(("num_workers", "fields"), [(1, {}), (2, EVERYTHING)])
def test_train_batches_are_the_same_with_workers(packed, num_workers, fields):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    data, config = packed
    config.update_from_flattened_dict(fields)
    alone, _ = loader.train_batches(data, np.arange(12), config)
    config.data.num_workers = num_workers
    helped, _ = loader.train_batches(data, np.arange(12), config)
    assert_same_batches(take(alone, 7), take(helped, 7))


def by_slice(batches):
    return {
        int(row): {name: x[name][i] for name in x}
        for x in batches
        for i, row in enumerate(x["index"])
    }


def test_view_depends_on_seed_epoch_and_slice_only(packed):
    data, config = packed
    epochs = [
        by_slice(x)
        for x in np.array_split(take(loader.train_batches(data, np.arange(12), config)[0], 6), 2)
    ]
    config.train.batch_size = 6
    for process in range(2):
        part, steps = loader.train_batches(data, np.arange(12), config, 0, process, 2)
        for epoch in epochs:
            for row, view in by_slice(take(part, steps)).items():
                assert_same_batches([view], [epoch[row]])
    config.seed += 1
    other = by_slice(take(loader.train_batches(data, np.arange(12), config)[0], 2))
    for a, b in ((epochs[0], epochs[1]), (epochs[0], other)):
        assert sum(np.array_equal(a[i]["points_xy"], b[i]["points_xy"]) for i in range(12)) < 4


def test_mixed_prompts_draw_each_kind_and_evaluate_points(packed):
    data, config = packed
    config.update_from_flattened_dict({**EVERYTHING, "train.batch_size": 12})
    batches = take(loader.train_batches(data, np.arange(12), config)[0], 20)
    given = np.concatenate([x["prompts_given"] for x in batches])
    assert given.shape == (240, 9)
    assert (given[:, :1] == given[:, :-1]).all()  # all points or none
    counts = np.bincount(given[:, [0, -1]] @ [1, 2])
    assert counts.min() > 60 - 4 * 6.7  # of 240 draws; the standard deviation is 6.7
    assert {x["points_xy"].shape for x in batches} == {(12, 2 * 3 + 2, 2)}
    assert {x["boxes_xyxy"].shape for x in batches} == {(12, 4)}
    mixed = main_mode(config)
    config.prompts.kind = "points"
    label = data.labels("train")[3]
    assert_same_batches([mixed(label, 3, 8)], [main_mode(config)(label, 3, 8)])
    assert mixed.describe() == "3 points per class and 2 of the background from the ground truth"


def test_slices_pickle_without_their_arrays(packed):
    data, _ = packed
    slices = loader.open_slices(data, "train")
    assert len(pickle.dumps(slices)) < 1000
    again = pickle.loads(pickle.dumps(slices))
    np.testing.assert_array_equal(again.labels, slices.labels)
