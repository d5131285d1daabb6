"""Labels of a DICOM series as a DICOM segmentation (SEG)."""

import pathlib
from collections.abc import Sequence

import highdicom
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.valuerep import DS

import usam_jax
from usam_jax.io.dicom import Series, fault, read_header
from usam_jax.io.geometry import from_slices
from usam_jax.utils.files import atomic_write

# A SEG must have these tags, even if they are empty; anonymised exports often lack them.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


def write_seg(
    path: pathlib.Path,
    labels: np.ndarray,
    series: Series,
    classes: Sequence[str],
    prompted: bool,
    model_name: str = "usam_jax",
) -> None:
    """Write labels uint8[n h w] of `series.hu` as a SEG on the frames of the series.

    `classes` are the names by label, background first. A class without pixels becomes a segment
    without frames. If no class has pixels, each segment has all frames, empty, since a SEG must
    have some. Raises DataError if the headers cannot be the source of a SEG.
    """
    headers = [read_header(x) for x in series.files]
    step = float(np.linalg.norm(np.array(series.geometry.affine)[:3, 2]))
    for header in headers:
        for keyword in MAY_BE_EMPTY:
            header.setdefault(keyword, "")
        # highdicom copies these from the files, in which they may be missing, wrong or rounded.
        header.SliceThickness = header.get("SliceThickness") or DS(step, auto_format=True)
        header.SpacingBetweenSlices = DS(step, auto_format=True)
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    tissue = codes.SCT.Tissue  # true of all classes; the label distinguishes them
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model_name, family=codes.DCM.ArtificialIntelligence, version=usam_jax.__version__
    )
    how = "SEMIAUTOMATIC" if prompted else "AUTOMATIC"
    segments = [
        highdicom.seg.SegmentDescription(i, name, tissue, tissue, how, algorithm)
        for i, name in enumerate(classes[1:], 1)
    ]
    try:
        seg = highdicom.seg.Segmentation(
            headers,
            from_slices(labels, series.geometry.affine).transpose(2, 1, 0),
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
            omit_empty_frames=bool(labels.any()),
            series_description=f"{model_name} segmentation",
            specific_character_set="ISO_IR 192",  # class names may be in any script
        )
        with atomic_write(path) as temporary:
            seg.save_as(temporary)
    except (AttributeError, ValueError) as error:
        problem = f"cannot be the source of a DICOM-SEG ({error})"
        raise fault(headers[0], problem, "correct the header, or write NIfTI") from error
