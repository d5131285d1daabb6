"""Phantoms: deterministic, anatomically plausible, and written in any axes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from scipy import ndimage

from usam_jax.data.phantoms import nifti_export
from usam_jax.data.phantoms.anatomy import Phantom, make_patient
from usam_jax.io import nifti
from usam_jax.utils.errors import DataError, UsageError

NUM_PATIENTS = 30


@pytest.fixture(scope="module")
def population() -> list[Phantom]:
    return [make_patient(0, patient, size=96) for patient in range(NUM_PATIENTS)]


def _tumour_ml(phantom: Phantom) -> float:
    return float((phantom.labels == 2).sum() * np.prod(phantom.spacing_mm) / 1000)


def _wall_mm(phantom: Phantom) -> float:
    """Wall thickness of a rectum on slices with gas and without tumour, or NaN without gas."""
    found = []
    for image, labels in zip(phantom.image, phantom.labels, strict=True):
        gas = ndimage.binary_opening((image < -430) & (labels == 1))
        if gas.sum() > 40 and not (labels == 2).any():
            rim = gas & ~ndimage.binary_erosion(gas)
            depth = ndimage.distance_transform_edt(labels > 0)[rim]
            # The other half of the rim is the surface of the fluid behind the gas.
            found += (np.sort(depth)[: len(depth) // 2] - 1).tolist()
    return float(np.median(found)) * phantom.spacing_mm[1] if found else np.nan


def _area_mm2(phantom: Phantom, label: int) -> float:
    return float((phantom.labels == label).sum() * np.prod(phantom.spacing_mm[1:]))


def test_make_patient_is_deterministic():
    first, second = (make_patient(3, 5, size=64, num_slices=10) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert first.labels.tobytes() == second.labels.tobytes()
    assert first.spacing_mm == second.spacing_mm


@pytest.mark.parametrize(("seed", "patient"), [(0, 1), (1, 0)])
def test_make_patient_varies_with_patient_and_seed(seed, patient):
    one, two = make_patient(0, 0, size=64), make_patient(seed, patient, size=64)
    assert not np.array_equal(one.labels, two.labels)
    assert np.abs(one.image - two.image).mean() > 30  # HU; noise alone contributes at most 20


def test_make_patient_has_documented_shape_and_dtype():
    phantom = make_patient(0, 2)
    assert phantom.image.shape == phantom.labels.shape == (24, 128, 128)
    assert phantom.image.dtype == np.float32
    assert phantom.labels.dtype == np.uint8
    assert set(np.unique(phantom.labels)) == {0, 1, 2}
    assert phantom.spacing_mm[0] == pytest.approx(5)
    assert 2.5 < phantom.spacing_mm[1] == phantom.spacing_mm[2] < 3.3


@pytest.mark.parametrize(
    ("seed", "patient", "pixels", "mean", "deviation"),
    [(0, 0, [215, 0], -647.6112, 474.4440), (1, 3, [244, 68], -522.2906, 508.5395)],
)
def test_single_phantoms_stay_as_they_are(seed, patient, pixels, mean, deviation):
    image, labels, _ = make_patient(seed, patient, size=64, num_slices=10)
    assert [int((labels == x).sum()) for x in (1, 2)] == pixels
    assert image.mean(dtype=float) == pytest.approx(mean, rel=1e-6)
    assert image.std(dtype=float) == pytest.approx(deviation, rel=1e-6)


def test_image_has_air_outside_and_all_tissues_inside(population):
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


def test_tumour_is_brighter_than_rectum_but_not_than_all(population):
    for image, labels, _ in population:
        if (labels == 2).any():
            tissue = image > -50  # HU; excludes gas
            tumour = np.median(image[(labels == 2) & tissue])
            assert tumour > np.median(image[(labels == 1) & tissue])
            assert (image[labels == 0] > tumour).sum() > (labels == 2).sum()


def test_population_has_every_kind_of_slice_and_patient(population):
    normal = np.array([(labels == 1).any((1, 2)) for _, labels, _ in population])
    tumour = np.array([(labels == 2).any((1, 2)) for _, labels, _ in population])
    assert 0.05 <= 1 - tumour.any(1).mean() <= 0.35  # 0.15 on average
    for kind in (normal & tumour, tumour & ~normal, normal & ~tumour, ~normal & ~tumour):
        assert kind.any()


def test_tumours_have_all_sizes(population):
    sizes = np.sort([x for x in map(_tumour_ml, population) if x])
    assert 0.1 < sizes[0] < 2 and 60 < sizes[-1] < 130
    assert 8 < np.median(sizes) < 45


def test_walls_are_3_to_8_mm_thick(population):
    gas = [((x.image < -430) & (x.labels == 1)).sum() / len(x.image) for x in population]
    clear = np.argsort(gas)[-9:].tolist()  # gas makes the inner side of the wall visible
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
def test_anatomy_in_mm_is_independent_of_resolution(patient):
    coarse, fine = (make_patient(0, patient, size=size, num_slices=12) for size in (96, 192))
    assert coarse.spacing_mm[1] == pytest.approx(2 * fine.spacing_mm[1])
    for label in (1, 2):
        # A pixel of 3.8 mm is a tenth of a rectum's width; its errors cancel around the outline.
        assert _area_mm2(coarse, label) == pytest.approx(_area_mm2(fine, label), rel=0.1)


def _write(root, num_train: int = 9, num_test: int = 3, seed: int = 0) -> None:
    nifti_export.write_nnunet(root, num_train, num_test, size=40, num_slices=5, seed=seed)


def _names(root) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_write_nnunet_round_trips_with_any_axes(tmp_path):
    _write(tmp_path)
    axes, tilted = set(), 0
    for number in range(12):
        image, label = nifti_export.patient_paths(tmp_path, number, "Tr" if number < 9 else "Ts")
        made = make_patient(0, number, size=40, num_slices=5)
        hu = nifti.read_slices(image)
        assert hu.dtype == np.int16
        np.testing.assert_array_equal(hu, np.rint(made.image))
        np.testing.assert_array_equal(nifti.read_labels(label, 3), made.labels)
        geometry = nifti.read_geometry(image)
        assert geometry == nifti.read_geometry(label)
        np.testing.assert_allclose(geometry.spacing_mm, made.spacing_mm, rtol=1e-5)
        axes.add(geometry.file_axes)
        tilted += np.count_nonzero(np.array(geometry.affine)[:3, :3]) > 3
    assert len(axes) >= 4
    assert 0 < tilted < 12
    description = json.loads((tmp_path / "dataset.json").read_text())
    assert description["numTraining"] == 9
    assert len(_names(tmp_path)) == 2 * 12 + 1


def test_write_nnunet_resumes_and_keeps_complete_patients(tmp_path, monkeypatch):
    _write(tmp_path / "whole")
    made = []

    def stop(seed, number, *arguments):
        if number == 10:
            raise KeyboardInterrupt
        return make_patient(seed, number, *arguments)

    def count(seed, number, *arguments):
        made.append(number)
        return make_patient(seed, number, *arguments)

    monkeypatch.setattr(nifti_export, "make_patient", stop)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path / "stopped")
    assert "dataset.json" not in _names(tmp_path / "stopped")
    nifti_export.patient_paths(tmp_path / "stopped", 1, "Tr")[1].write_bytes(b"half")
    monkeypatch.setattr(nifti_export, "make_patient", count)
    _write(tmp_path / "stopped")
    assert {1, 10} <= set(made) and 0 not in made
    assert _names(tmp_path / "stopped") == _names(tmp_path / "whole")
    made.clear()
    _write(tmp_path / "stopped")
    assert not made
    _write(tmp_path / "stopped", seed=1)
    assert len(made) == 12


def test_write_nnunet_replaces_phantoms_of_other_anatomy(tmp_path):
    for anatomy in ("single", "loops"):
        nifti_export.write_nnunet(tmp_path, 1, 0, size=32, num_slices=4, anatomy=anatomy)
        _, label = nifti_export.patient_paths(tmp_path, 0, "Tr")
        made = make_patient(0, 0, 32, 4, anatomy)
        np.testing.assert_array_equal(nifti.read_labels(label, 3), made.labels)


def test_write_nnunet_names_unsuitable_folder(tmp_path):
    _write(tmp_path, num_train=2, num_test=1)
    with pytest.raises(UsageError, match=r"(?s)2 files do not belong to .*phantom_0002.nii.gz"):
        _write(tmp_path, num_train=2, num_test=0)
    with pytest.raises(DataError, match="cannot be written"):
        _write(tmp_path / "dataset.json", num_train=1, num_test=0)


@pytest.mark.parametrize("content", ["[1]", "{", '{"labels": {}}'])
def test_write_nnunet_keeps_a_foreign_description(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UsageError, match="is not a description that this program wrote"):
        _write(tmp_path, num_train=1, num_test=0)
    assert _names(tmp_path) == ["dataset.json"]


def test_write_nnunet_keeps_files_of_the_user(tmp_path):
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="1 files do not belong to the requested phantoms"):
        _write(tmp_path, num_train=1, num_test=0)
    assert _names(tmp_path) == ["labelsTr/notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--num_train=1", "--num_test=0", "--size=16"], 0), (["--num_train=0"], 2), (["b"], 2)],
)
def test_make_phantoms_returns_its_exit_code(tmp_path, arguments, code):
    command = [sys.executable, "-m", "tools.make_phantoms", str(tmp_path / "a"), *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "a" / "dataset.json").is_file() == (code == 0)
