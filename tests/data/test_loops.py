"""Loops of bowel that look alike: only the label says which one is the rectum."""

import numpy as np
import pytest
from scipy import ndimage

from usam_jax.data.phantoms import anatomy, loops
from usam_jax.data.phantoms.anatomy import Phantom, make_patient
from usam_jax.data.phantoms.loops import LEFT, MIDDLE, RIGHT, choose_rectum

PLACES = (MIDDLE, RIGHT, LEFT)
PATIENTS = range(8)
ABOVE = 12  # of 24 slices: from here on, every loop of every patient has begun


def _make(patient: int, place: int) -> Phantom:
    """A patient whose rectum is at that place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anatomy, "choose_rectum", lambda *_: place)
        return make_patient(0, patient, size=80, anatomy="loops")


@pytest.fixture(scope="module")
def patients() -> list[tuple[Phantom, ...]]:
    """For each patient, the phantoms whose rectum is in the middle, right and left."""
    return [tuple(_make(patient, place) for place in PLACES) for patient in PATIENTS]


def _tissue(made: Phantom, label: int) -> np.ndarray:
    return made.image[(made.labels == label) & (made.image > -200)]  # HU; excludes gas


def test_loops_are_deterministic():
    first, second = (make_patient(3, 5, 48, 10, "loops") for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()


def test_picture_above_their_ends_does_not_show_the_rectum(patients):
    for middle, *others in patients:
        for other in others:
            np.testing.assert_array_equal(middle.image[ABOVE:], other.image[ABOVE:])
            assert not (middle.labels[ABOVE:].astype(bool) & other.labels[ABOVE:]).any()


@pytest.mark.parametrize("label", [1, 2])
def test_every_loop_has_the_same_intensities(patients, label):
    medians = [[np.median(_tissue(x, label)) for x in made] for made in patients if _all_have(made)]
    differences = np.array(medians) - np.mean(medians, axis=1, keepdims=True)
    assert len(medians) >= 4
    assert np.abs(differences.mean(axis=0)).max() < 6  # HU; noise alone is 15 to 30


def _all_have(made: tuple[Phantom, ...]) -> bool:
    return all((x.labels == label).sum() > 100 for x in made for label in (1, 2))


def test_thickenings_of_other_loops_are_not_labelled(patients):
    lookalikes = [
        ((x.labels[ABOVE:] == 2) & (middle.labels[ABOVE:] == 0)).sum()
        for middle, *others in patients
        for x in others
    ]
    assert np.mean(np.array(lookalikes) > 20) > 0.3


@pytest.mark.parametrize("patient", [0, 1, 4])
def test_tumour_is_hardly_brighter_than_the_wall(patient):
    made = make_patient(0, patient, 256, 6, "loops")
    pixel = made.spacing_mm[1]
    depth = np.stack([ndimage.distance_transform_edt(x, pixel) for x in made.labels > 0])
    wall = made.image[(made.labels == 1) & (depth > 1.2) & (depth < 3.2)]
    contrast = np.median(_tissue(made, 2)) - np.median(wall)
    assert 0 < contrast < 20  # HU; the fluid is 50 to 120 darker


def test_outlines_of_loops_are_visible(patients):
    flat = np.ones((1, 3, 3))
    for made in (x for found in patients for x in found):
        inside = made.labels > 0
        near = ndimage.binary_dilation(inside, flat, 2) & ~ndimage.binary_dilation(inside, flat)
        assert np.median(made.image[near]) < -70
        assert np.median(made.image[inside & (made.image > -200)]) > -30


def test_loops_have_every_kind_of_slice(patients):
    labels = np.concatenate([x.labels for made in patients for x in made])
    normal, tumour = ((labels == x).any((1, 2)) for x in (1, 2))
    for kind in (normal & tumour, tumour & ~normal, normal & ~tumour, ~normal & ~tumour):
        assert kind.any()
    assert 0.5 < normal.mean() < 0.95 and 0.15 < tumour.mean() < 0.6


def test_label_ends_where_the_loop_continues(monkeypatch):
    made = [make_patient(0, x, 48, 60, "loops") for x in range(4)]
    monkeypatch.setattr(loops, "LABEL_STARTS", (0, 0))
    monkeypatch.setattr(loops, "LABEL_ENDS", (0, 0))
    whole = [make_patient(0, x, 48, 60, "loops") for x in range(4)]
    hidden = 0
    for part, full in zip(made, whole, strict=True):
        np.testing.assert_array_equal(part.image, full.image)
        hidden += (full.labels.any((1, 2)) & ~part.labels.any((1, 2))).sum()
    assert 4 <= hidden <= 40  # of 240 slices of 2 mm


@pytest.mark.parametrize("seed", range(5))
def test_choose_rectum_has_its_share_in_few_patients(seed):
    for first in range(0, 60, 12):
        places = [choose_rectum(seed, first + x) for x in range(12)]
        assert 2 <= sum(x != MIDDLE for x in places) <= 4
        assert {RIGHT, LEFT} <= set(places)


def test_rectum_off_the_midline_lies_at_its_side(patients):
    def centre(made: Phantom) -> float:
        return float(np.argwhere(made.labels)[:, 2].mean()) * made.spacing_mm[2]

    for middle, right, left in patients:
        assert centre(right) + 20 < centre(middle) < centre(left) - 20  # mm


def test_loops_in_mm_are_independent_of_resolution():
    coarse, fine = (make_patient(0, 4, size, 12, "loops") for size in (96, 192))
    for label in (1, 2):
        areas = [(x.labels == label).sum() * x.spacing_mm[1] ** 2 for x in (coarse, fine)]
        assert areas[0] == pytest.approx(areas[1], rel=0.1)


def test_patient_geometry_is_that_of_the_loops():
    made = make_patient(0, 4, 32, 6, "loops")
    geometry = anatomy.patient_geometry(0, 4, 32, 6, "loops")
    assert geometry.shape == made.image.shape
    assert geometry.spacing_mm == made.spacing_mm
