"""Windows of consecutive slices: which slices they hold, and batches of them."""

import numpy as np
import pytest
from absl import flags
from conftest import phantom_config, take

from usam_jax.data import loader
from usam_jax.data.augment import Augment
from usam_jax.data.packed import prepare
from usam_jax.data.prompt_modes import main_mode
from usam_jax.data.windows import Windows, training_rows
from usam_jax.utils.errors import UsageError

# Cases of 5, 2 and 8 slices.
COUNTS = np.array([5, 2, 8])
FIRST = np.array([0, 5, 7])


def make(size: int) -> Windows:
    return Windows(size, FIRST.repeat(COUNTS), COUNTS.repeat(COUNTS))


def test_window_around_repeats_the_edges_of_the_case():
    assert make(3).around(8).tolist() == [7, 8, 9]
    assert make(3).around(0).tolist() == [0, 0, 1]
    assert make(5).around(6).tolist() == [5, 5, 6, 6, 6]
    assert make(1).around(4).tolist() == [4]


def test_cover_counts_each_slice_once_and_in_order():
    rows, counted = make(4).cover(np.arange(15))
    assert rows.tolist() == [
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [5, 6, 6, 6],  # a case with fewer slices than the window
        [7, 8, 9, 10],
        [11, 12, 13, 14],
    ]
    assert rows[counted].tolist() == list(range(15))
    some = np.array([4, 6, 12])
    rows, counted = make(4).cover(some)
    assert rows[:, 0].tolist() == [1, 5, 11] and rows[counted].tolist() == some.tolist()


def test_drawn_window_stays_in_its_case():
    rng, windows = np.random.default_rng(0), make(4)
    starts = {int(windows.drawn(7, rng)[0][0]) for _ in range(50)}
    assert starts == {7, 8, 9}
    rows, inside = windows.drawn(5, rng)
    assert rows.tolist() == [5, 6, 6, 6] and inside.tolist() == [True, True, False, False]


def small_config(tmp_path, slices: int, **fields):
    config = phantom_config("unet", **{"data.packed_dir": str(tmp_path), **fields})
    config.model.slices = slices
    config.train.batch_size = config.eval.batch_size = 4
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("packed")


def test_neighbours_get_the_augmentation_of_the_middle_slice(folder):
    fields = {
        "data.augment_scale": 0.2,
        "data.augment_elastic": 1.0,
        "data.augment_intensity": 0.2,
        "data.random_clahe": True,
    }
    config = small_config(folder, 1, **fields)
    packed = prepare.prepare(config.data)
    alone = take(loader.train_batches(packed, np.arange(24), config)[0], 6)
    config.model.slices = 3
    stacked = take(loader.train_batches(packed, np.arange(24), config)[0], 6)
    augment = Augment(True, True, 0.2, 1.0, 0.2)
    for one, three in zip(alone, stacked, strict=True):
        assert three["image"].shape == (4, 32, 32, 3)
        np.testing.assert_array_equal(three["image"][..., 1], one["image"])
        np.testing.assert_array_equal(three["label"], one["label"])
        for i, row in enumerate(three["index"].tolist()):
            rng = np.random.Generator(np.random.Philox(key=0, counter=[0, 0, 0, row]))
            below = packed.images("train")[max(row - 1, row // 8 * 8)]
            expected = augment.draw(32, rng).image(np.array(below))
            np.testing.assert_array_equal(three["image"][i, ..., 0], expected)


def test_windows_have_one_augmentation_and_ignore_padding(folder):
    config = small_config(folder, 16)
    packed = prepare.prepare(config.data)
    with pytest.raises(UsageError, match=r"config.model.slices: got 16, expected at most 8, the s"):
        training_rows(packed, "train", np.arange(24), 16, 3)
    rows = training_rows(packed, "train", np.arange(3, 24), 4, 3)
    assert rows.tolist() == [0, 4, 8, 12, 16, 20]
    config.model.slices = 12
    config.train.batch_size = 3
    batches = loader.train_batches(packed, np.array([0, 8, 16]), config, dims=3)[0]
    for batch in take(batches, 4):
        assert batch["image"].shape == batch["label"].shape == (3, 12, 32, 32)
        assert (batch["label"][:, 8:] == loader.IGNORED).all()
        assert (batch["label"][:, :8] != loader.IGNORED).all()
        np.testing.assert_array_equal(batch["image"][:, 7:], batch["image"][:, [7] * 5])
        for i, index in enumerate(batch["index"]):
            assert index.tolist() == [*range(index[0], index[0] + 8), *[index[7]] * 4]
            views = same_views(packed.labels("train")[index[:8]], batch["label"][i, :8])
            assert views, index


def same_views(labels: np.ndarray, augmented: np.ndarray) -> bool:
    """Whether one turn and flip, or one rotation by degrees, explains all slices."""
    turned = [np.rot90(labels, k, (1, 2)) for k in range(4)]
    exact = [y for x in turned for y in (x, x[:, :, ::-1], x[:, ::-1])]
    areas = (labels > 0).sum((1, 2)), (augmented > 0).sum((1, 2))
    rotated = np.allclose(*areas, atol=12)
    return any(np.array_equal(x, augmented) for x in exact) or rotated


@pytest.mark.parametrize(("dims", "slices"), [(2, 3), (3, 4)])
def test_windows_are_the_same_with_workers(folder, dims, slices):
    flags.FLAGS.mark_as_parsed()
    config = small_config(folder, slices)
    packed = prepare.prepare(config.data)
    rows = training_rows(packed, "train", np.arange(24), slices, dims)
    expected = take(loader.train_batches(packed, rows, config, dims=dims)[0], 3)
    config.data.num_workers = 2
    found, _ = loader.train_batches(packed, rows, config, 1, dims=dims)
    for one, other in zip(expected[1:], take(found, 2), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    found.close()


def test_eval_windows_mark_the_slices_that_count(folder):
    config = small_config(folder, 5)
    packed, rows = prepare.prepare(config.data), np.arange(16)
    mode = main_mode(config)
    batches, count = loader.eval_batches(packed, "test", rows, config, [mode], dims=3)
    (batch,) = list(batches)
    assert count == 1 and batch["image"].shape == (4, 5, 32, 32)
    assert batch["index"][batch["valid"]].tolist() == rows.tolist()
    found, valid = loader.eval_rows(packed, "test", rows, config, 3)
    np.testing.assert_array_equal(batch["index"], found)
    np.testing.assert_array_equal(batch["valid"], valid)
    np.testing.assert_array_equal(batch["image"][1, 4], packed.images("test")[7])
