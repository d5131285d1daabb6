import numpy as np
import pytest
from scipy import ndimage

from usam_jax.data.phantom import Phantom, make_patient

NUM_PATIENTS = 30


@pytest.fixture(scope="module")
def population() -> list[Phantom]:
    return [make_patient(0, patient, size=96) for patient in range(NUM_PATIENTS)]


def _tumour_ml(phantom: Phantom) -> float:
    return float((phantom.labels == 2).sum() * np.prod(phantom.spacing_mm) / 1000)


def _wall_mm(phantom: Phantom) -> float:
    """From the gas in a rectum to its outside, where no tumour is; NaN where there is little gas."""
    found = []
    for image, labels in zip(phantom.image, phantom.labels, strict=True):
        gas = ndimage.binary_opening((image < -430) & (labels == 1))
        if gas.sum() > 40 and not (labels == 2).any():
            rim = gas & ~ndimage.binary_erosion(gas)
            depth = ndimage.distance_transform_edt(labels > 0)[rim]
            # The rim's other half is the level surface of what lies behind the gas.
            found += (np.sort(depth)[: len(depth) // 2] - 1).tolist()
    return float(np.median(found)) * phantom.spacing_mm[1] if found else np.nan


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
    assert np.abs(one.image - two.image).mean() > 30  # HU; noise alone gives at most 20


def test_volumes_have_the_promised_shape_type_and_labels():
    phantom = make_patient(0, 2)
    assert phantom.image.shape == phantom.labels.shape == (24, 128, 128)
    assert phantom.image.dtype == np.float32
    assert phantom.labels.dtype == np.uint8
    assert set(np.unique(phantom.labels)) == {0, 1, 2}
    assert phantom.spacing_mm[0] == pytest.approx(5)
    assert 2.5 < phantom.spacing_mm[1] == phantom.spacing_mm[2] < 3.3


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


def test_tumours_are_of_all_sizes(population):
    sizes = np.sort([x for x in map(_tumour_ml, population) if x])
    assert 0.1 < sizes[0] < 2 and 60 < sizes[-1] < 130
    assert 8 < np.median(sizes) < 45


def test_walls_are_3_to_8_mm_thick(population):
    gas = [((x.image < -430) & (x.labels == 1)).sum() / len(x.image) for x in population]
    clear = np.argsort(gas)[-9:].tolist()  # gas shows where the wall begins
    walls = np.array([_wall_mm(make_patient(0, i, size=320, num_slices=3)) for i in clear])
    walls = walls[np.isfinite(walls)]
    assert len(walls) >= 5
    assert walls.min() > 2.3 and walls.max() < 8.7  # a pixel is up to 1.3 mm
    assert np.ptp(walls) > 2


def test_patients_are_scanned_with_their_own_spacing():
    scans = [make_patient(0, i, size=32, num_slices=None) for i in range(20)]
    assert {x.spacing_mm[0] for x in scans} == {2, 3, 4, 5}
    assert all(len(x.image) * x.spacing_mm[0] == 120 for x in scans)
    fields = [x.spacing_mm[1] * 32 for x in scans]
    assert 330 <= min(fields) < 345 and 400 < max(fields) <= 420
    bodies = [float((x.image > -500).mean()) * f**2 for x, f in zip(scans, fields, strict=True)]
    assert max(bodies) > 1.5 * min(bodies)


@pytest.mark.parametrize("patient", [2, 3, 4])
def test_anatomy_in_mm_does_not_depend_on_the_number_of_pixels(patient):
    coarse, fine = (make_patient(0, patient, size=size, num_slices=12) for size in (96, 192))
    assert coarse.spacing_mm[1] == pytest.approx(2 * fine.spacing_mm[1])
    for label in (1, 2):
        # A pixel of 3.8 mm is a tenth of a rectum's width; its errors cancel around the outline.
        assert _area_mm2(coarse, label) == pytest.approx(_area_mm2(fine, label), rel=0.1)
