import numpy as np
import pytest
from scipy import ndimage

from usam_jax.data.phantom import Phantom, make_patient

NUM_PATIENTS = 40


@pytest.fixture(scope="module")
def population() -> list[Phantom]:
    return [make_patient(0, patient, size=96) for patient in range(NUM_PATIENTS)]


def _area_mm2(phantom: Phantom, label: int) -> float:
    return float((phantom.labels == label).sum() * np.prod(phantom.spacing_mm[1:]))


def test_same_arguments_give_the_same_bytes():
    first, second = (make_patient(3, 5, size=64, num_slices=10) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.spacing_mm == second.spacing_mm


@pytest.mark.parametrize(("seed", "patient"), [(0, 1), (1, 0)])
def test_another_patient_or_seed_gives_another_anatomy(seed, patient):
    one, two = make_patient(0, 0, size=64), make_patient(seed, patient, size=64)
    assert not np.array_equal(one.labels, two.labels)
    assert np.abs(one.image - two.image).mean() > 30  # HU; noise alone gives at most 23


def test_volumes_have_the_promised_shape_type_and_labels():
    phantom = make_patient(0, 2)
    assert phantom.image.shape == phantom.labels.shape == (24, 128, 128)
    assert phantom.image.dtype == np.float32
    assert phantom.labels.dtype == np.uint8
    assert set(np.unique(phantom.labels)) == {0, 1, 2}
    assert phantom.spacing_mm[0] == pytest.approx(5)
    assert 2.5 < phantom.spacing_mm[1] == phantom.spacing_mm[2] < 3.1


def test_image_has_air_outside_bone_fat_and_soft_tissue_inside(population):
    for image, _, _ in population:
        assert np.isfinite(image).all()
        assert image.min() > -1200 and image.max() < 1300
        assert image[:, :3, :3].mean() == pytest.approx(-1000, abs=10)  # 10: noise of 648 pixels
        assert ((image > -150) & (image < -50)).mean() > 0.05
        assert ((image > 0) & (image < 120)).mean() > 0.05
        assert (image > 300).mean() > 0.005


def test_tumour_is_one_piece_that_grows_on_the_rectum(population):
    cube = np.ones((3, 3, 3))
    for _, labels, _ in population:
        tumour, rectum = labels == 2, labels == 1
        if tumour.any():
            assert (ndimage.binary_dilation(tumour, cube) & rectum).any()
            assert ndimage.label(tumour, cube)[1] == 1


def test_tumour_is_brighter_than_the_rest_of_the_rectum_but_not_than_all_else(population):
    for image, labels, _ in population:
        if (labels == 2).any():
            tissue = image > -50  # HU; leaves gas out
            tumour = np.median(image[(labels == 2) & tissue])
            assert tumour > np.median(image[(labels == 1) & tissue])
            assert (image[labels == 0] > tumour).sum() > (labels == 2).sum()


def test_population_has_every_kind_of_slice_and_some_patients_without_tumour(population):
    normal = np.array([(labels == 1).any((1, 2)) for _, labels, _ in population])
    tumour = np.array([(labels == 2).any((1, 2)) for _, labels, _ in population])
    assert 0.05 <= 1 - tumour.any(1).mean() <= 0.35  # 0.15 on average
    for kind in (normal & tumour, tumour & ~normal, normal & ~tumour, ~normal & ~tumour):
        assert kind.any()


@pytest.mark.parametrize("patient", [2, 3, 4])
def test_anatomy_in_mm_does_not_depend_on_the_number_of_pixels(patient):
    coarse, fine = (make_patient(0, patient, size=size, num_slices=12) for size in (96, 192))
    assert coarse.spacing_mm[1] == pytest.approx(2 * fine.spacing_mm[1])
    for label in (1, 2):
        # A pixel of 3.8 mm is a tenth of a rectum's width; its errors cancel around the outline.
        assert _area_mm2(coarse, label) == pytest.approx(_area_mm2(fine, label), rel=0.1)
