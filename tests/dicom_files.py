"""CT series in DICOM, one file per slice, made from a known volume."""

import pathlib

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DS

STUDY, FRAME = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])


def write_series(
    folder: pathlib.Path,
    stored: np.ndarray,
    affine: np.ndarray,
    slope: float = 1.0,
    inter: float = 0.0,
    syntax: str = ExplicitVRLittleEndian,
    series: str = "series",
    **tags,
) -> list[pathlib.Path]:
    """Writes a volume int16 or uint16[i j k] of stored values and returns its files by k.

    `affine` maps voxels to RAS mm. File names and InstanceNumber are shuffled. `tags` replace those
    of every slice; None removes a tag.
    """
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(len(series)).permutation(stored.shape[2]) + 1
    paths = []
    for k, number in enumerate(numbers.tolist()):
        slice_ = make_slice(stored[:, :, k].T, affine, k, f"{series}{k}")
        slice_.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
        slice_.SeriesDescription, slice_.InstanceNumber = series, number
        slice_.RescaleSlope, slice_.RescaleIntercept = slope, inter
        for keyword, value in tags.items():
            setattr(slice_, keyword, value)
            if value is None:
                delattr(slice_, keyword)
        if syntax.is_compressed:
            slice_.compress(syntax, generate_instance_uid=False)
        paths.append(folder / f"{series}_{number:03d}.dcm")
        slice_.save_as(paths[-1], enforce_file_format=True)
    return paths


def make_slice(pixels: np.ndarray, affine: np.ndarray, k: int, name: str) -> pydicom.Dataset:
    """Slice k [rows columns] of a volume with this affine."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid(entropy_srcs=[name])
    header.StudyInstanceUID, header.FrameOfReferenceUID = STUDY, FRAME
    header.Modality, header.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.PatientName, header.PatientID = "Müller^Ärne", "p1"
    header.PatientBirthDate, header.PatientSex = "19500203", "M"
    header.StudyDate, header.StudyTime, header.StudyID = "20200101", "101500", "7"
    header.AccessionNumber, header.Manufacturer = "a1", "none"
    header.ImageOrientationPatient = [DS(x, auto_format=True) for x in axes[:, :2].T.ravel()]
    position = (lps @ [0, 0, k, 1])[:3]
    header.ImagePositionPatient = [DS(x, auto_format=True) for x in position]
    header.PixelSpacing = [DS(x, auto_format=True) for x in spacing[1::-1]]
    header.SliceThickness = DS(
        2 * spacing[2], auto_format=True
    )  # overlapping slices: not the spacing
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    return header


def change(path: pathlib.Path, **tags) -> None:
    """Replaces tags of a file, or removes those that are None."""
    header = pydicom.dcmread(path)
    for keyword, value in tags.items():
        setattr(header, keyword, value)
        if value is None:
            delattr(header, keyword)
    header.save_as(path)
