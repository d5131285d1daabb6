"""DICOM series give the same volume as NIfTI, and SEGs have the frames of their series."""

import contextlib
import itertools
import shutil
import warnings

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import change, write_series
from nibabel import eulerangles
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from usam_jax.io import dicom, dicom_files, dicom_seg, nifti
from usam_jax.io.geometry import Geometry, distance_mm, to_slices
from usam_jax.utils.errors import DataError

SHAPE, SPACING = (7, 6, 5), (0.9, 1.5, 3.0)
CLASSES = ("background", "normal rectum", "腫瘍")
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations((0, 1, 2))
    for flips in itertools.product((1, -1), repeat=3)
]


def make_stored(dtype=np.int16) -> np.ndarray:
    """Voxels int[i j k], all different."""
    return np.random.default_rng(0).permutation(4096)[: np.prod(SHAPE)].reshape(SHAPE).astype(dtype)


def make_affine() -> np.ndarray:
    """The affine of axial CT: columns to the left, rows to the back, slices to the head."""
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (120.0, 80.5, -300.25)
    return affine


def reorient(orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a volume oblique to the body, with other voxel axes."""
    affine = make_affine()
    affine[:3, :3] = eulerangles.euler2mat(np.deg2rad(12), 0, np.deg2rad(-8)) @ affine[:3, :3]
    image = nibabel.Nifti1Image(make_stored(), affine).as_reoriented(orientation)
    return np.asarray(image.dataobj), image.affine


def slices_affine(geometry: Geometry) -> np.ndarray:
    """From (column, row, slice) to RAS mm."""
    affine = np.array(geometry.affine)
    return affine @ inv_ornt_aff(to_slices(affine), geometry.file_shape)


def test_read_series_matches_nifti_in_all_orientations(tmp_path):
    axes = set()
    for i, orientation in enumerate(ORIENTATIONS):
        stored, affine = reorient(orientation)
        write_series(tmp_path / str(i), stored, affine, 1, -1024)
        series = dicom.read_series(tmp_path / str(i))
        path = tmp_path / "ct.nii"
        nibabel.save(nibabel.Nifti1Image(stored - 1024, affine), path)
        geometry = nifti.read_geometry(path)
        np.testing.assert_array_equal(series.hu, nifti.read_slices(path))
        assert series.geometry.shape == geometry.shape == (5, 6, 7)
        assert series.geometry.file_shape == geometry.file_shape
        np.testing.assert_allclose(series.geometry.spacing_mm, geometry.spacing_mm, atol=1e-4)
        found, expected = slices_affine(series.geometry), slices_affine(geometry)
        assert distance_mm(found, expected, (7, 6, 5)) < 1e-4
        # Files run along the normal: if the volume's third axis does too, the grids are the same.
        if np.linalg.det(affine) > 0:
            np.testing.assert_allclose(series.geometry.affine, geometry.affine, atol=1e-4)
            assert series.geometry.file_axes == geometry.file_axes
        axes.add(series.geometry.file_axes)
    assert len(axes) == 24  # all right-handed ones


@pytest.mark.parametrize("orientation", [0, 5, 12, 30])  # head first, feet first, coronal, sagittal
def test_read_series_positions_match_simpleitk(tmp_path, orientation):
    stored, affine = reorient(ORIENTATIONS[orientation])
    write_series(tmp_path, stored, affine, 0.5, -100)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    series = dicom.read_series(tmp_path)
    from_lps = np.linalg.inv(slices_affine(series.geometry)) @ np.diag([-1, -1, 1, 1])
    for index in itertools.product(*(range(n) for n in image.GetSize())):
        place = from_lps @ [*image.TransformIndexToPhysicalPoint(index), 1]
        column, row, slice_ = np.rint(place[:3]).astype(int)
        np.testing.assert_allclose(place[:3], [column, row, slice_], atol=1e-4)
        assert series.hu[slice_, row, column] == image.GetPixel(index)


def test_read_series_scales_each_slice_by_its_own_tags(tmp_path):
    paths = write_series(tmp_path, make_stored(np.uint16), make_affine())
    for k, path in enumerate(paths):
        change(path, RescaleSlope=0.5 * (k + 1), RescaleIntercept=-100.5 * k)
    expected = [
        make_stored()[:, :, k].T * np.float32(0.5 * (k + 1)) - np.float32(100.5 * k)
        for k in range(5)
    ]
    series = dicom.read_series(tmp_path)
    assert series.hu.dtype == np.float32 and series.files == tuple(paths) and not series.notes
    np.testing.assert_array_equal(series.hu, expected)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_read_series_decodes_lossless_compression(tmp_path, syntax, dtype):
    low = np.iinfo(dtype).min // 8
    stored = np.random.default_rng(0).integers(low, low + 4096, (48, 40, 2)).astype(dtype)
    write_series(tmp_path, stored, make_affine(), syntax=syntax)
    assert pydicom.dcmread(min(tmp_path.iterdir())).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(dicom.read_series(tmp_path).hu, stored.transpose(2, 1, 0))


def test_read_series_notes_files_that_are_not_slices(tmp_path):
    assert not dicom.is_series(tmp_path) and not dicom.is_series(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / ".DS_Store").write_bytes(bytes(200))
    (tmp_path / "below").mkdir()
    assert not dicom.is_series(tmp_path)
    scouts = write_series(tmp_path, make_stored()[:, :, :1], make_affine(), series="scout")
    change(scouts[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert dicom.is_series(tmp_path)
    with pytest.raises(
        DataError, match=r"2 left out as not a DICOM slice: .*; .*1 left out as localiser"
    ):
        dicom.read_series(tmp_path)
    paths = write_series(tmp_path, make_stored(), make_affine())
    index = pydicom.dcmread(paths[0], stop_before_pixels=True)
    index.DirectoryRecordSequence = []
    index.save_as(tmp_path / "DICOMDIR")
    series = dicom.read_series(tmp_path)
    assert len(series.files) == 5
    assert series.notes == (
        f"{tmp_path}: 3 left out as not a DICOM slice: .DS_Store, notes.txt, DICOMDIR",
        f"{tmp_path}: 1 left out as localiser: scout_001.dcm",
    )


def test_single_slice_uses_its_slice_thickness(tmp_path):
    (path,) = write_series(tmp_path, make_stored()[:, :, :1], make_affine(), SliceThickness=2.5)
    geometry = dicom.read_series(tmp_path).geometry
    assert geometry.shape == (1, 6, 7) and geometry.spacing_mm == (2.5, 1.5, 0.9)
    for value in (None, 0):
        change(path, SliceThickness=value or "")
        with pytest.raises(DataError, match=r"series_001\.dcm: SliceThickness is .*, expected 1"):
            dicom.read_series(tmp_path)


POSITION = "ImagePositionPatient"


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Modality": "MR"}, "Modality is MR, expected CT; give a CT series"),
        ({"NumberOfFrames": 40}, "NumberOfFrames is 40, expected 1; export multi-frame files as"),
        ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation is RGB, expected MONO"),
        ({"RescaleType": "Z_EFF"}, "RescaleType is Z_EFF, expected HU"),
        ({"Rows": 42, "Columns": 1}, r"Rows is 42, but 6 in series_00.*same series"),
        ({"PixelSpacing": [1.5, 0.8]}, r"PixelSpacing is \[1\.5, 0\.8\], but \[1\.5, 0\.9\] in"),
        ({"PixelSpacing": [0, 1]}, r"PixelSpacing is \[0\.0, 1\.0\], expected 2 numbers above 0"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "ImageOrientationPatient is .*, but"),
        ({POSITION: [1, 2]}, r"ImagePositionPatient is \[1\.0, 2\.0\], expected 3 numbers"),
        ({"RescaleSlope": 0}, "RescaleSlope is 0, expected another value"),
        ({"FrameOfReferenceUID": "1.2.3"}, r"FrameOfReferenceUID is .*1\.2\.3"),
        ({"RescaleSlope": None}, "RescaleSlope is missing, expected 1 number"),
        ({"RescaleIntercept": ""}, "RescaleIntercept is None, expected 1 number"),
        ({POSITION: None}, "ImagePositionPatient is missing, expected 3 numbers"),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation is None, expected MONO"),
        ({"BitsAllocated": None}, r"the pixels cannot be read \(.*'Bits Allocated'"),
    ],
)
def test_read_series_names_file_and_faulty_tag(tmp_path, tags, message):
    path = write_series(tmp_path, make_stored(), make_affine())[3]
    change(path, **tags)
    if (
        "Rows" in tags
        or "ImageOrientationPatient" in tags
        or "FrameOfReferenceUID" in tags
        or tags.get("PixelSpacing") == [1.5, 0.8]
    ):
        path.rename(tmp_path / "z.dcm")  # the other files are compared with the first
        path = tmp_path / "z.dcm"
    with pytest.raises(DataError, match=message) as caught:
        dicom.read_series(tmp_path)
    assert str(path) in str(caught.value)


def test_read_series_names_truncated_dcm_file(tmp_path):
    paths = write_series(tmp_path, make_stored(), make_affine())
    paths[-1].write_bytes(paths[-1].read_bytes()[:60])
    with pytest.raises(DataError, match="is not a DICOM file") as caught:
        dicom.read_series(tmp_path)
    assert str(paths[-1]) in str(caught.value)


def test_read_series_rejects_invalid_orientation(tmp_path):
    for axes in ([1, 0, 0, 0.1, 1, 0], [0] * 6):
        write_series(tmp_path, make_stored(), make_affine(), ImageOrientationPatient=axes)
        with pytest.raises(DataError, match=r"ImageOrientationPatient is .*, expected two unit"):
            dicom.read_series(tmp_path)


def test_read_series_names_missing_and_duplicate_slices(tmp_path):
    paths = write_series(tmp_path, make_stored(), make_affine())
    copy = shutil.copy(paths[2], tmp_path / "copy.dcm")
    with pytest.raises(DataError, match=r"lies at the same place as (copy|series)_?.*294\.25"):
        dicom.read_series(tmp_path)
    copy.unlink()
    paths[2].unlink()
    message = rf"{paths[1].name} at .*-297\.25\] and {paths[3].name} at .*-291\.25\] are 6 mm apart"
    with pytest.raises(DataError, match=message + ", expected 3 mm"):
        dicom.read_series(tmp_path)
    paths[1].unlink()
    paths[0].unlink()
    assert dicom.read_series(tmp_path).geometry.spacing_mm[0] == 3


def test_read_series_accepts_rounded_positions(tmp_path):
    affine = make_affine()
    affine[2, 2] = 0.625
    paths = write_series(tmp_path, make_stored(), affine)
    for path in paths:
        position = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[round(float(x), 1) for x in position])
    spacing = dicom.read_series(tmp_path).geometry.spacing_mm[0]
    np.testing.assert_allclose(spacing, 0.625, atol=0.1 / 4)  # both ends are off by up to 0.05


def test_read_series_rejects_sheared_slices(tmp_path):
    affine = make_affine()
    affine[1, 2] = np.tan(np.deg2rad(5)) * SPACING[2]  # the table moves along the body
    write_series(tmp_path, make_stored(), affine)
    with pytest.raises(DataError, match=r"lies 1\.05 mm off the normal through .*tilted"):
        dicom.read_series(tmp_path)


def test_read_series_lists_several_series(tmp_path):
    write_series(tmp_path, make_stored(), make_affine(), series="arterial")
    write_series(tmp_path, make_stored()[:, :, :2], make_affine(), series="venous")
    lines = (
        r'holds 2 series, expected one:\n  1\.2.*: CT "arterial", 5 files\n  1\.2.*"venous", 2 f'
    )
    with pytest.raises(DataError, match=lines):
        dicom.read_series(tmp_path)


@pytest.mark.parametrize("chosen", ["venous", "5", "1.2.3.4"])
def test_read_series_takes_the_chosen_series(tmp_path, chosen):
    write_series(tmp_path, make_stored(), make_affine(), series="arterial", SeriesNumber=4)
    tags = {"SeriesNumber": 5, "SeriesInstanceUID": "1.2.3.4"}
    write_series(tmp_path, make_stored()[:, :, :2], make_affine(), series="venous", **tags)
    assert dicom.read_series(tmp_path, chosen).geometry.shape[0] == 2
    with pytest.raises(DataError, match=r"holds 2 series, expected one that is late:\n"):
        dicom.read_series(tmp_path, "late")


@pytest.mark.parametrize("with_meta", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_read_series_reads_files_without_preamble(tmp_path, implicit, with_meta):
    paths = write_series(tmp_path, make_stored(), make_affine())
    whole = dicom.read_series(tmp_path).hu
    for path in paths[2:]:  # the last three, which would be a shorter volume without notice
        header = pydicom.dcmread(path)
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        header.file_meta.TransferSyntaxUID = syntax
        header.preamble = None
        header.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        start = path.read_bytes()
        if not with_meta:  # group 2, with its length in its first element
            length = int.from_bytes(start[8:12], "little") + 12
            path.write_bytes(start[length:] if start[:2] == b"\2\0" else start)
    assert not any(x.read_bytes()[128:132] == b"DICM" for x in paths[2:])
    np.testing.assert_array_equal(dicom.read_series(tmp_path).hu, whole)


def test_read_series_ignores_macos_files_and_resampled_tilt(tmp_path):
    paths = write_series(tmp_path, make_stored(), make_affine(), GantryDetectorTilt="-12.5")
    (tmp_path / f"._{paths[0].name}").write_bytes(b"\0\5\26\7" + bytes(150))
    series = dicom.read_series(tmp_path)
    assert len(series.files) == 5 and not series.notes
    (tmp_path / "copy.dcm").symlink_to(tmp_path / "gone.dcm")
    with pytest.raises(DataError, match=r"copy\.dcm: is a broken link to .*gone\.dcm"):
        dicom.read_series(tmp_path)


def test_read_series_is_quiet_about_character_sets(tmp_path):
    for path in write_series(tmp_path, make_stored(), make_affine()):
        odd = path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 999")
        path.write_bytes(odd)
    with warnings.catch_warnings():
        dicom_files.quiet_pydicom()
        assert dicom.read_series(tmp_path).geometry.shape[0] == 5


def test_read_series_names_folder_without_slices(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: holds no file; expected the slices"):
        dicom.read_series(tmp_path)
    with pytest.raises(DataError, match="nothing: cannot be read"):
        dicom.read_series(tmp_path / "nothing")


def test_read_series_names_missing_decoder(tmp_path, monkeypatch):
    stored = np.zeros((32, 32, 2), np.int16)
    paths = write_series(tmp_path, stored, make_affine(), syntax=JPEG2000Lossless)
    decoder = pydicom.pixels.get_decoder(JPEG2000Lossless)
    needs = {"pylibjpeg": ("pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0")}
    with monkeypatch.context() as without:
        without.setattr(decoder, "_available", {})
        without.setattr(decoder, "_unavailable", needs)
        message = r"no decoder for its .*\.4\.90 \(JPEG 2000 .*pip install .*pylibjpeg-openjpeg"
        with pytest.raises(DataError, match=message):
            dicom.read_series(tmp_path)
    header = pydicom.dcmread(paths[0])
    header.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    header.save_as(paths[0])
    with pytest.raises(DataError, match=r"\(MPEG2 .*; export it uncompressed"):
        dicom.read_series(tmp_path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
def test_read_series_names_damaged_file(tmp_path, syntax):
    (path,) = write_series(tmp_path, make_stored()[:, :, :1], make_affine(), syntax=syntax)
    whole, hu = path.read_bytes(), dicom.read_series(tmp_path).hu
    for size in range(0, len(whole), 13):
        path.write_bytes(whole[:size])
        try:
            np.testing.assert_array_equal(dicom.read_series(tmp_path).hu, hu)
            assert size > len(whole) - 8  # only the end mark is cut off, which holds nothing
        except DataError as error:
            assert str(tmp_path) in str(error)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(132, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):  # the bytes may not matter
            dicom.read_series(tmp_path)


def make_labels(*classes: int) -> np.ndarray:
    """Asymmetric labels uint8[n h w] of some of the classes."""
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[1:3, 2:4, 1:4] = 1
    labels[2:4, 3:6, 3:7] = 2
    return labels * np.isin(labels, classes)


def read_seg(path, series) -> tuple[highdicom.seg.Segmentation, np.ndarray]:
    """A SEG, and its labels [n h w] placed by the source file that each frame names."""
    seg = highdicom.seg.segread(path)
    sources = [pydicom.dcmread(x, stop_before_pixels=True).SOPInstanceUID for x in series.files]
    frames = seg.get_pixels_by_source_instance(
        sources, combine_segments=True, assert_missing_frames_are_empty=True
    )
    transform = to_slices(np.array(series.geometry.affine))
    return seg, apply_orientation(frames.transpose(2, 1, 0), transform).transpose(2, 1, 0)


@pytest.mark.parametrize("orientation", range(0, 48, 7))
@pytest.mark.parametrize("present", [(1, 2), (2,), ()])
def test_write_seg_refers_to_the_frames_of_its_series(tmp_path, caplog, orientation, present):
    paths = write_series(tmp_path / "ct", *reorient(ORIENTATIONS[orientation]))
    series = dicom.read_series(tmp_path / "ct")
    labels = make_labels(*present)
    dicom_seg.write_seg(tmp_path / "seg.dcm", labels, series, CLASSES, prompted=False)
    seg, found = read_seg(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(found, labels)
    assert [x.SegmentLabel for x in seg.SegmentSequence] == ["normal rectum", "腫瘍"]
    assert {x.name for x in tmp_path.iterdir()} == {"ct", "seg.dcm"}
    assert not caplog.records
    # Each frame has the position of the file that it names.
    source_of = {x.SOPInstanceUID: x for x in map(pydicom.dcmread, paths)}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        name = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert position == source_of[name].ImagePositionPatient
    shared, source = seg.SharedFunctionalGroupsSequence[0], source_of[name]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert orientation == source.ImageOrientationPatient
    # Viewers make a volume from these tags, not from the source files.
    measures = shared.PixelMeasuresSequence[0]
    assert measures.PixelSpacing == source.PixelSpacing
    step = np.linalg.norm(np.array(series.geometry.affine)[:3, 2])
    assert abs(measures.SpacingBetweenSlices - step) < 1e-6
    named = seg.ReferencedSeriesSequence[0]
    assert named.SeriesInstanceUID == source.SeriesInstanceUID
    assert {x.ReferencedSOPInstanceUID for x in named.ReferencedInstanceSequence} == set(source_of)


@pytest.mark.parametrize(("prompted", "kind"), [(False, "AUTOMATIC"), (True, "SEMIAUTOMATIC")])
def test_write_seg_records_patient_and_algorithm(tmp_path, prompted, kind):
    paths = write_series(tmp_path / "ct", make_stored(), make_affine())
    series = dicom.read_series(tmp_path / "ct")
    dicom_seg.write_seg(tmp_path / "seg.dcm", make_labels(1), series, CLASSES, prompted, "my model")
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(paths[0])
    same = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate")
    for keyword in (*same, "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        assert seg[keyword].value == source[keyword].value, keyword
    assert seg.PatientName == "Müller^Ärne"
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID and seg.Modality == "SEG"
    for segment in seg.SegmentSequence:
        assert segment.SegmentAlgorithmType == kind and segment.SegmentAlgorithmName == "my model"
    (tmp_path / "seg.dcm").rename(tmp_path / "ct" / "seg.dcm")
    with pytest.raises(DataError, match=r'holds 2 series(.|\n)*: SEG "my model segmentation", 1'):
        dicom.read_series(tmp_path / "ct")


def test_write_seg_needs_only_a_frame_of_reference(tmp_path):
    paths = write_series(tmp_path / "ct", make_stored(), make_affine())
    for path in paths:
        change(path, **dict.fromkeys((*dicom_seg.MAY_BE_EMPTY, "SliceThickness")))
        # Many files have a wrong distance, and orientations that differ in the last digit.
        change(path, SpacingBetweenSlices=1, ImageOrientationPatient=[1, 0, 0, 0, 1, 1e-6])
    change(paths[2], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    series = dicom.read_series(tmp_path / "ct")
    dicom_seg.write_seg(tmp_path / "seg.dcm", make_labels(1, 2), series, CLASSES, prompted=False)
    seg, found = read_seg(tmp_path / "seg.dcm", series)
    np.testing.assert_array_equal(found, make_labels(1, 2))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == measures.SliceThickness == 3
    for path in paths:
        change(path, FrameOfReferenceUID=None)
    with pytest.raises(DataError, match=r"a DICOM-SEG \(FrameOfReferenceUID \(0020,0052\) is miss"):
        dicom_seg.write_seg(tmp_path / "seg.dcm", found, series, CLASSES, prompted=False)


INVALID = {
    "StudyDate": "00000000",
    "StudyTime": "10:15:00",
    "PatientSex": "Male",
    "PatientBirthDate": "20201332",
    "PatientAge": "58",
    "PatientID": "p" * 70,
    "StudyDescription": "d" * 70,
}


def test_check_seg_names_and_empties_invalid_tags(tmp_path):
    paths = write_series(tmp_path / "ct", make_stored(), make_affine())
    with contextlib.ExitStack() as stack:
        settings = pydicom.config.settings
        stack.callback(
            setattr, settings, "writing_validation_mode", settings._writing_validation_mode
        )
        settings.writing_validation_mode = pydicom.config.IGNORE
        for path in paths:
            change(path, **INVALID)
    series = dicom.read_series(tmp_path / "ct")
    warnings = dicom_seg.check_seg(series, CLASSES)
    for keyword, value in INVALID.items():
        assert any(f"{keyword} (" in x and value[:64] in x for x in warnings), keyword
    assert len(warnings) == len(INVALID)
    dicom_seg.write_seg(tmp_path / "seg.dcm", make_labels(1), series, CLASSES, prompted=False)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [seg.get(x) or "" for x in INVALID] == [""] * len(INVALID)
    assert seg.PatientName == "Müller^Ärne"


@pytest.mark.parametrize("keyword", dicom_seg.REQUIRED)
def test_check_seg_names_a_missing_required_tag(tmp_path, keyword):
    paths = write_series(tmp_path / "ct", make_stored(), make_affine())
    series = dicom.read_series(tmp_path / "ct")
    for path in paths:
        change(path, **{keyword: None})
    with pytest.raises(DataError, match=rf"{keyword} \(.*\) is missing\); .* write NIfTI"):
        dicom_seg.check_seg(series, CLASSES)


def test_check_seg_names_the_file_for_any_library_error(tmp_path, monkeypatch):
    write_series(tmp_path / "ct", make_stored(), make_affine())
    series = dicom.read_series(tmp_path / "ct")
    for name in ("", "a\\b", "x" * 90):
        with pytest.raises(DataError, match="classes: got"):
            dicom_seg.check_seg(series, ("background", name))
    monkeypatch.setattr(highdicom.seg, "Segmentation", lambda *_a, **_k: {}["no such key"])
    with pytest.raises(DataError, match=r"series_\d+.dcm: cannot be the source .*no such key"):
        dicom_seg.check_seg(series, CLASSES)


def test_read_series_lists_files_that_may_be_slices(tmp_path):
    paths = write_series(tmp_path, make_stored(), make_affine())
    for name in ("IM9", "zeros", "slice.dcm.gz", "notes.txt", "IM1.jpg", "mask.nii"):
        (tmp_path / name).write_bytes(bytes(200 if name == "zeros" else 0))
    series = dicom.read_series(tmp_path)
    assert {x.name for x in series.unknown} == {"IM9", "zeros", "slice.dcm.gz"}
    assert series.uid == pydicom.dcmread(paths[0]).SeriesInstanceUID
    paths[2].write_bytes(paths[2].read_bytes()[:200])  # its header ends before the UID
    for chosen in (None, "series"):
        with pytest.raises(DataError, match=rf"{paths[2].name}: has no SeriesInstanceUID, unlike"):
            dicom.read_series(tmp_path, chosen)
