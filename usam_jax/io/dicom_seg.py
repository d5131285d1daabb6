"""Labels of a DICOM series as a DICOM segmentation (SEG)."""

import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence

import highdicom
import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.tag import Tag
from pydicom.uid import SegmentationStorage
from pydicom.valuerep import DA, DS, TM, validate_value

import usam_jax
from usam_jax.io.dicom import Series
from usam_jax.io.dicom_files import Header, fault, path_of, read_header
from usam_jax.io.geometry import from_slices
from usam_jax.utils.errors import DataError
from usam_jax.utils.files import atomic_write

# A SEG must have these tags, even if they are empty; anonymised exports often lack them.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
REQUIRED = (
    *("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("SOPInstanceUID", "SOPClassUID"),
)
# A SEG copies what the first file says of patient and study: these groups, and some of group 8.
COPIED_GROUPS = (0x0010, 0x0012, 0x0032, 0x0038)
COPIED = (
    *MAY_BE_EMPTY,
    *("ReferringPhysicianName", "StudyDescription", "PhysiciansOfRecord", "AdmissionID"),
    *("NameOfPhysiciansReadingStudy", "ConsultingPhysicianName", "AdmittingDiagnosesDescription"),
)
SEXES = ("", "M", "F", "O")
INSTEAD = "correct the header, or write NIfTI (-o MASK.nii.gz)"
MODEL_NAME = "usam_jax"


def check_seg(series: Series, classes: Sequence[str]) -> list[str]:
    """Make sure that labels of a series can be written as a SEG, before they are computed.

    Returns a warning for each invalid tag that the SEG will have empty. Raises DataError if the
    series lacks a required tag or cannot be the source of a SEG for another reason.
    """
    for name in classes[1:]:
        if not name or "\\" in name or not is_valid("LO", name):
            raise DataError(
                f"classes: got {name!r}, expected for a DICOM-SEG 1 to 64 characters and no \\",
                "write NIfTI (-o MASK.nii.gz)",
            )
    headers, warnings = read_source(series)
    frames = np.zeros((len(headers), headers[0].Rows, headers[0].Columns), np.uint8)
    frames[0, 0, 0] = 1  # a SEG of one frame
    with naming_source(headers[0]):
        seg = make_seg(frames, headers, classes, False, MODEL_NAME)
        seg.save_as(io.BytesIO())
    return warnings


def write_seg(
    path: pathlib.Path,
    labels: np.ndarray,
    series: Series,
    classes: Sequence[str],
    prompted: bool,
    model_name: str = MODEL_NAME,
) -> None:
    """Write labels uint8[n h w] of `series.hu` as a SEG on the frames of the series.

    `classes` are the names by label, background first. A class without pixels becomes a segment
    without frames. If no class has pixels, each segment has all frames, empty, since a SEG must
    have some. Raises DataError if the headers cannot be the source of a SEG.
    """
    headers, _ = read_source(series)
    frames = from_slices(labels, series.geometry.affine).transpose(2, 1, 0)
    with naming_source(headers[0]):
        seg = make_seg(frames, headers, classes, prompted, model_name)
        with atomic_write(path) as temporary:
            seg.save_as(temporary)


def is_own_seg(path: pathlib.Path) -> bool:
    """Whether a file is a SEG that this program wrote."""
    try:
        header = read_header(path)
    except DataError:
        return False
    is_seg = header.get("SOPClassUID") == SegmentationStorage
    return bool(is_seg and header.get("Manufacturer") == MODEL_NAME)


def read_source(series: Series) -> tuple[list[Header], list[str]]:
    """The headers of a series as a SEG needs them, and warnings about tags that were emptied.

    Raises DataError if a required tag is missing or invalid.
    """
    headers = [read_header(x) for x in series.files]
    step = float(np.linalg.norm(np.array(series.geometry.affine)[:3, 2]))
    for header in headers:
        require_tags(header)
        for keyword in MAY_BE_EMPTY:
            header.setdefault(keyword, "")
        # highdicom copies these from the files, in which they may be missing, wrong or rounded.
        header.SliceThickness = header.get("SliceThickness") or DS(step, auto_format=True)
        header.SpacingBetweenSlices = DS(step, auto_format=True)
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    return headers, empty_invalid(headers[0])


def require_tags(header: Header) -> None:
    """Raise DataError if a tag that a SEG cannot do without is missing or invalid."""
    for keyword in REQUIRED:
        value = str(header.get(keyword) or "")
        if not value or not is_valid("UI", value):
            found = f"is {value}" if value else "is missing"
            tag = f"{keyword} {Tag(keyword)}"
            raise fault(header, f"cannot be the source of a DICOM-SEG ({tag} {found})", INSTEAD)


def empty_invalid(header: Header) -> list[str]:
    """Empty the optional tags of patient and study that are invalid, and return a warning each."""
    warnings = []
    for element in list(header):
        copied = element.tag.group in COPIED_GROUPS or element.keyword in COPIED
        if not copied or element_is_valid(element):
            continue
        found = "invalid" if element.VR == "SQ" else str(element.value)[:64]
        warnings.append(
            f"{path_of(header).name}: {element.keyword or element.name} {element.tag} is {found!r}, "
            "which DICOM does not allow; the DICOM-SEG has it empty"
        )
        if element.keyword in MAY_BE_EMPTY:
            element.value = ""
        else:
            del header[element.tag]
    return warnings


def element_is_valid(element: pydicom.DataElement) -> bool:
    """Whether the values of an element, and of the elements in it, may be written."""
    if element.VR == "SQ":
        return all(element_is_valid(x) for item in element.value for x in item)
    if element.keyword == "PatientSex" and element.value not in (None, *SEXES):
        return False
    values = element.value if element.VM > 1 else [element.value]
    return all(is_valid(element.VR, x) for x in values)


def is_valid(vr: str, value: object) -> bool:
    """Whether a value is allowed by its value representation (VR)."""
    if isinstance(value, bytes) or value is None:
        return True
    try:
        text = str(value)
        text.encode()
        validate_value(vr, text, pydicom.config.RAISE)
        {"DA": DA, "TM": TM}.get(vr, str)(text)
    except (ValueError, TypeError):
        return False
    return True


def make_seg(
    frames: np.ndarray,
    headers: list[Header],
    classes: Sequence[str],
    prompted: bool,
    model_name: str,
) -> highdicom.seg.Segmentation:
    """The SEG of labels uint8[n rows columns] on the frames of `headers`."""
    tissue = codes.SCT.Tissue  # true of all classes; the label distinguishes them
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model_name, family=codes.DCM.ArtificialIntelligence, version=usam_jax.__version__
    )
    how = "SEMIAUTOMATIC" if prompted else "AUTOMATIC"
    segments = [
        highdicom.seg.SegmentDescription(i, name, tissue, tissue, how, algorithm)
        for i, name in enumerate(classes[1:], 1)
    ]
    return highdicom.seg.Segmentation(
        headers,
        frames,
        "BINARY",
        segments,
        series_instance_uid=highdicom.UID(),
        series_number=1000,  # above the numbers that scanners assign
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=model_name,
        manufacturer_model_name=model_name,
        software_versions=usam_jax.__version__,
        device_serial_number="none",
        omit_empty_frames=bool(frames.any()),
        series_description=f"{model_name} segmentation",
        specific_character_set="ISO_IR 192",  # class names may be in any script
    )


@contextlib.contextmanager
def naming_source(header: Header) -> Iterator[None]:
    """Turn any exception while a SEG is made into a DataError, as highdicom raises many types."""
    try:
        yield
    except (DataError, OSError):
        raise
    except Exception as error:
        raise fault(header, f"cannot be the source of a DICOM-SEG ({error})", INSTEAD) from error
