"""Pixels of a slice: the window, and resampling into the model's square and back."""

import numpy as np
import pytest

from usam_jax.data import pixels


def test_fit_square_averages_if_pixels_grow():
    image = np.zeros((64, 64), np.uint8)
    image[::4, ::4] = 160
    np.testing.assert_array_equal(pixels.fit_square(image, 16, (1.0, 1.0), labels=False), 10)


def test_window_hu_is_linear_and_clips():
    hu = np.array([-1000, -160, -60, 40, 240, 3000], np.int16)
    np.testing.assert_allclose(
        pixels.window_hu(hu, 40.0, 400.0), [0, 0, 0.25, 0.5, 1, 1], atol=1e-7
    )


def test_fit_square_keeps_proportions_and_alignment():
    image = np.zeros((100, 50), np.uint8)
    image[20:40, 10:20] = 200
    fitted = pixels.fit_square(image, 64, (1.0, 2.0), labels=False)  # square in mm
    assert fitted.shape == (64, 64)
    rows, columns = np.nonzero(fitted > 100)
    np.testing.assert_allclose([rows.mean(), columns.mean()], [18.7, 18.7], atol=0.6)
    wide = pixels.fit_square(image, 64, (1.0, 1.0), labels=False)
    assert not wide[:, :16].any() and not wide[:, 48:].any()
    label = pixels.fit_square((image > 0).astype(np.uint8), 64, (1.0, 1.0), labels=True)
    assert (label.astype(bool) != (wide > 100)).mean() < 0.01


@pytest.mark.parametrize(("shape", "pixel_mm"), [((50, 80), (1.3, 0.7)), ((90, 40), (0.8, 1.1))])
def test_unfit_square_restores_label_positions(shape, pixel_mm):
    labels = np.zeros(shape, np.uint8)
    h, w = shape
    labels[h // 8 : h // 3, w // 2 : w - w // 6] = 1
    labels[h - h // 5 : h - 3, 4 : w // 4] = 2
    fitted = pixels.fit_square(labels, 128, pixel_mm, labels=True)
    back = pixels.unfit_square(fitted, shape, pixel_mm)
    assert back.shape == shape
    for c in (1, 2):
        there, here = (np.argwhere(x == c) for x in (labels, back))
        np.testing.assert_allclose(there.mean(0), here.mean(0), atol=0.3)
        assert len(here) == pytest.approx(len(there), rel=0.05)
