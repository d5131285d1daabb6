"""Input CTs, and output masks on the same voxels."""

import pathlib
from typing import NamedTuple

import numpy as np

from usam_jax.data.preprocessing import MIN_SIZE
from usam_jax.io import dataset_json, dicom
from usam_jax.io.cohort import Cohort, describe_left_out, find_cohort
from usam_jax.io.dataset_json import CHANNEL
from usam_jax.io.dicom_seg import write_seg
from usam_jax.io.geometry import Geometry, from_slices
from usam_jax.io.nifti import (
    ENDINGS,
    header_warning,
    read_geometry,
    read_slices,
    write_uint8,
)
from usam_jax.io.volume_files import EXPECTED, volume_ending, volume_name
from usam_jax.predict.output_paths import PROBABILITY_STEP, class_list_path, nifti_path
from usam_jax.utils.errors import DataError, UsageError, require_unbroken
from usam_jax.utils.files import write_json

AIR_HU = -200.0  # Every CT has voxels below this value (air is -1000).


class Source(NamedTuple):
    """A CT as slices [n h w] in HU, with `series` None if `path` is a NIfTI file."""

    path: pathlib.Path
    hu: np.ndarray
    geometry: Geometry
    series: dicom.Series | None


def read_source(path: pathlib.Path, chosen: str | None = None) -> Source:
    """Read a volume file or a series of DICOM slices, `chosen` if a folder holds several.

    Raises DataError if it is neither, holds NaN or infinite values, or has slices of less than
    MIN_SIZE pixels.
    """
    if path.is_dir():
        series = dicom.read_series(path, chosen)
        source = Source(path, series.hu, series.geometry, series)
    else:
        source = Source(path, read_slices(path), read_geometry(path), None)
    count, height, width = source.hu.shape
    if not count or min(height, width) < MIN_SIZE:
        raise DataError(
            f"{path}: has {count} slices of {height} x {width} pixels, expected {MIN_SIZE} or more",
            "check the orientation in the header",
        )
    if source.hu.dtype.kind == "f" and not np.isfinite(source.hu).all():
        raise DataError(f"{path}: holds NaN or infinite values", "export it again")
    return source


class Labelling(NamedTuple):
    """What outputs say about labels: names, the checkpoint's step, the prompts in words.

    `checkpoint_step` is None without a checkpoint. `prompted` says whether a person took part.
    """

    classes: tuple[str, ...]
    checkpoint_step: int | None
    prompts: str
    prompted: bool


def find_warnings(source: Source) -> list[str]:
    """Return warnings about the header and the values of a volume."""
    notes = list(source.series.notes) if source.series else [header_warning(source.path)]
    return [x for x in (*notes, values_warning(source.hu)) if x]


def values_warning(hu: np.ndarray) -> str:
    """Return a warning if values do not look like HU, else ""."""
    low, high = float(hu.min()), float(hu.max())
    if low < AIR_HU < high:
        return ""
    return f"values from {low:g} to {high:g} do not look like HU (air is -1000); is it a CT?"


def find_inputs(path: pathlib.Path, out: pathlib.Path | None = None) -> Cohort:
    """Return the volumes at a path by the name of their mask: the one, or those in a folder.

    The folder `out` does not count. Raises DataError if there are none, if two would have the same
    mask, or if a folder holds both DICOM slices and other volumes.
    """
    if path.is_file():
        if not volume_ending(path):
            raise DataError(f"{path}: expected {EXPECTED}, or a folder")
        return Cohort({volume_name(path): path}, {}, [])
    if not path.is_dir():
        require_unbroken(path)
        raise DataError(f"{path}: does not exist, expected a volume or a folder")
    if dicom.is_series(path):
        return find_slices_alone(path, out)
    found = find_cohort(path, with_series=True, skipped=out)
    if not found.volumes:
        lines = "".join(f"\n{x}" for x in describe_left_out(found.left_out))
        raise DataError(f"{path}: holds no volumes ({EXPECTED}) and no DICOM slices{lines}")
    for one, other in found.twins:
        raise DataError(f"{one} and {other} would have the same mask", "rename one")
    return found._replace(volumes=name_cases(path, found.volumes))


def find_slices_alone(folder: pathlib.Path, out: pathlib.Path | None) -> Cohort:
    """The series of a folder that itself holds slices, without what lies in folders below.

    Raises DataError if the folder holds other volumes, too.
    """
    below = find_cohort(folder, with_series=True, skipped=out)
    left_out = {x: reason for x, reason in below.left_out.items() if x.parent != folder}
    for path in below.volumes.values():
        if path.parent == folder and not path.is_dir():
            raise DataError(
                f"{folder}: holds DICOM slices and {path.name}", "give one of them at a time"
            )
        left_out[path] = f"lies below the slices of {folder}; give it by itself"
    return Cohort({folder.resolve().name: folder}, left_out, [])


def name_cases(folder: pathlib.Path, volumes: dict[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    """The volumes by case: in a data set of nnU-Net, NAME_0000 is channel 0 of the case NAME.

    Raises DataError if two volumes are one case.
    """
    if not any((x / dataset_json.NAME).is_file() for x in (folder, folder.resolve().parent)):
        return volumes
    cases: dict[str, pathlib.Path] = {}
    for name, path in volumes.items():
        case = name.removesuffix(CHANNEL)
        if case in cases:
            raise DataError(f"{path} and {cases[case]} would have the same mask", "rename one")
        cases[case] = path
    return cases


def write_mask(path: pathlib.Path, source: Source, labels: np.ndarray) -> None:
    """Write labels uint8[n h w] on the source's own voxels, axes and affine, with its header."""
    affine = source.geometry.affine
    write_uint8(path, from_slices(labels, affine), affine, template_of(source))


def write_labels(mask: pathlib.Path, source: Source, labels: np.ndarray, about: Labelling) -> None:
    """Write the mask, for NIfTI after a JSON file with the names of its classes.

    Raises DataError if it cannot be written as a DICOM-SEG; it is then kept as NIfTI.
    """
    if mask.suffix == ".dcm" and source.series:
        try:
            write_seg(mask, labels, source.series, about.classes, about.prompted)
        except (DataError, OSError) as error:
            kept = nifti_path(mask)
            write_labels(kept, source, labels, about)
            raise DataError(f"{mask}: {error}. The mask is kept as {kept}") from error
        return
    content = {
        "labels": {name: i for i, name in enumerate(about.classes)},
        "source": source.path.name,
        "checkpoint_step": about.checkpoint_step,
        "prompts": about.prompts,
    }
    write_json(class_list_path(mask), content)
    write_mask(mask, source, labels)


def write_probabilities(path: pathlib.Path, source: Source, values: np.ndarray) -> None:
    """Write probabilities uint8[k n h w] (255: 1.0) as a NIfTI file with the classes last."""
    affine = source.geometry.affine
    volumes = np.stack([from_slices(x, affine) for x in values], axis=-1)
    write_uint8(path, volumes, affine, template_of(source), slope=PROBABILITY_STEP)


def template_of(source: Source) -> pathlib.Path | None:
    """Return the NIfTI file whose header the outputs get, or None for DICOM."""
    return None if source.series else source.path


def require_output(path: pathlib.Path, several: bool) -> None:
    """Raise UsageError if `path` is not a suitable output.

    It must be a folder for `several` volumes, and a .nii.gz, .nii or .dcm file for one.
    """
    if several and (path.is_file() or path.name.endswith((*ENDINGS, ".dcm"))):
        raise UsageError(f"-o: got {path}, expected a folder for the masks of several volumes")
    if not several and path.is_dir():
        raise UsageError(f"-o: got the folder {path}, expected a file for one volume")
    is_named = path.name.endswith((*ENDINGS, ".dcm")) and not path.name.startswith(".")
    if not several and not is_named:
        raise UsageError(f"-o: got {path}, expected NAME.nii.gz, NAME.nii or NAME.dcm (DICOM-SEG)")


def require_elsewhere(out: pathlib.Path, source: pathlib.Path) -> None:
    """Raise UsageError if masks would lie in the folder of their CTs or among their slices."""
    is_file = out.name.endswith((*ENDINGS, ".dcm"))
    folder = (out.parent if is_file else out).resolve()
    if source.is_dir() and folder == source.resolve():
        raise UsageError(
            f"-o: got the folder of the input, {source}, expected another, since the masks would "
            "count as volumes next time"
        )
