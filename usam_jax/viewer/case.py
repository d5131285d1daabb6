"""One opened volume: its CT, reference, session, autosave, and what saving writes."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from usam_jax.evaluation.case_metrics import Scoring, score_case
from usam_jax.io.dicom_seg import check_seg, is_own_seg
from usam_jax.io.nifti import read_labels, require_grid_of
from usam_jax.io.volume_files import volume_name
from usam_jax.predict import output
from usam_jax.predict.output import Labelling, Source
from usam_jax.predict.output_paths import (
    FIX,
    class_list_path,
    files_of,
    has_class_list,
    is_class_list,
    nifti_path,
)
from usam_jax.utils.errors import UsageError
from usam_jax.utils.files import write_json
from usam_jax.utils.outputs import Output, check_outputs, is_json_with
from usam_jax.viewer.autosave import Autosave
from usam_jax.viewer.points import points_file
from usam_jax.viewer.session import Session
from usam_jax.viewer.slice_state import NO_PROMPTS

FORMATS = ("nifti", "dicom-seg")
NSD_TOLERANCE_MM = 2.0
OBLIQUE_DEGREES = 10.0
is_points_file = is_json_with("space", "points", "boxes")


class Model(NamedTuple):
    """What is known of a checkpoint before it is loaded: `window` is (width, level)."""

    classes: tuple[str, ...]
    name: str
    step: int
    window: tuple[float, float]
    points_carry_class: bool


class Paths(NamedTuple):
    """The files of one case: the CT, the mask to write, and what else to read."""

    ct: pathlib.Path
    mask: pathlib.Path
    initial: pathlib.Path | None = None
    reference: pathlib.Path | None = None


def points_path(mask: pathlib.Path) -> pathlib.Path:
    """The points file that belongs to a mask."""
    return mask.with_name(f"{volume_name(mask)}_points.json")


def check_paths(paths: Paths, named: bool) -> None:
    """Raise UsageError if saving would replace an input or a file of the user.

    `named` says whether the user named the mask, which may then replace any file. The same mask in
    the other format may not.
    """
    is_dicom = paths.ct.is_dir()
    if paths.mask.suffix == ".dcm" and not is_dicom:
        raise UsageError(
            f"-o: got {paths.mask}, expected .nii or .nii.gz, since the CT is not DICOM"
        )
    mask = nifti_path(paths.mask) if paths.mask.suffix == ".dcm" else paths.mask

    def own(path: pathlib.Path) -> Callable[[pathlib.Path], bool] | None:
        if named and path == paths.mask:
            return None
        return is_own_seg if path.suffix == ".dcm" else has_class_list

    outputs = [
        Output(mask, "a mask", FIX, own(mask)),
        Output(class_list_path(mask), "a list of classes", FIX, is_class_list),
        Output(points_path(mask), "a points file", FIX, is_points_file),
    ]
    if is_dicom:
        seg = paths.mask.with_name(f"{volume_name(paths.mask)}.dcm")
        outputs.append(Output(seg, "a mask", FIX, own(seg)))
    read = dict.fromkeys(files_of([paths.ct]), "the CT")
    if paths.reference:
        read[paths.reference] = "the reference"
    if paths.initial and not named:
        read[paths.initial] = "the mask to start from"
    check_outputs(outputs, read)


class Case:
    """An opened volume.

    Raises DataError if a file cannot be used, and UsageError if the autosave belongs to another
    CT or is in use.
    """

    def __init__(
        self,
        paths: Paths,
        classes: Sequence[str],
        model: Model | None = None,
        series: str | None = None,
        fresh: bool = False,
    ) -> None:
        self.paths, self.classes, self.model = paths, tuple(classes), model
        self.source: Source = output.read_source(paths.ct, series)
        self.geometry = self.source.geometry
        self.reference = self.read_mask(paths.reference) if paths.reference else None
        initial = self.read_mask(paths.initial) if paths.initial else None
        self.warnings = output.find_warnings(self.source) + oblique_note(self.geometry.affine)
        identity = {
            "source": paths.ct.resolve().name,
            "shape": list(self.geometry.file_shape),
            "affine": [list(row) for row in self.geometry.affine],
            "classes": list(self.classes),
            "checkpoint": f"{model.name}, step {model.step}" if model else "",
        }
        self.autosave = Autosave(paths.mask, identity, fresh)
        try:
            shape = self.source.hu.shape
            ml = float(np.prod(self.geometry.spacing_mm)) / 1000
            self.session = Session(shape, self.classes, ml, self.autosave.journal)
            if initial is not None:
                self.session.set_all_automatic(initial)
            elif automatic := self.autosave.read_automatic(shape):
                self.session.set_all_automatic(*automatic)
        except BaseException:
            self.autosave.close()
            raise
        self.warnings += self.autosave.notes
        if initial is not None and model and not model.points_carry_class:
            self.warnings.append(
                "a click replaces the given mask of its slice: this model does not start from masks"
            )

    def read_mask(self, path: pathlib.Path) -> np.ndarray:
        """Read labels uint8[n h w] on the CT's voxels.

        Raises DataError if they lie on other voxels or hold a label without a class.
        """
        require_grid_of(self.geometry, self.paths.ct, path)
        return read_labels(path, len(self.classes), self.geometry.affine)

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel in mm."""
        _, height, width = self.geometry.spacing_mm
        return height, width

    @property
    def base(self) -> str:
        """What a slice shows that nobody has touched, in words."""
        if self.paths.initial:
            return "given mask"
        return "automatic" if self.model else "unchanged"

    def formats(self) -> list[str]:
        """The formats in which the mask can be saved, that of the mask's name first."""
        if self.source.series is None:
            return ["nifti"]
        return sorted(FORMATS, reverse=self.paths.mask.suffix != ".dcm")

    def output_path(self, format_name: str) -> pathlib.Path:
        """The file that saving in a format writes. Raises UsageError for a SEG without DICOM."""
        mask = self.paths.mask
        if format_name == "nifti":
            return nifti_path(mask) if mask.suffix == ".dcm" else mask
        if self.source.series is None:
            raise UsageError("format: got dicom-seg, expected nifti, since the CT is not DICOM")
        return mask.with_name(f"{volume_name(mask)}.dcm")

    def save(self, format_name: str) -> dict[str, Any]:
        """Write the mask, its classes and its prompts, and return path and seconds.

        Raises UserError or OSError if it cannot be written. The session keeps its state.
        """
        start = time.monotonic()
        path = self.output_path(format_name)
        session = self.session
        with session.lock:
            labels, slices = session.labels.copy(), dict(session.slices)
            revision = session.revision
            missing = int((~session.has_automatic).sum()) if self.model else 0
        if path.suffix == ".dcm" and self.source.series:
            check_seg(self.source.series, self.classes)
        prompts = {i: x.prompts for i, x in slices.items() if x.prompts != NO_PROMPTS}
        self.write_points(prompts)
        given = self.paths.initial
        predicted = any(x.predicted or x.propagated for x in slices.values())
        about = Labelling(
            self.classes,
            self.model.step if self.model and (predicted or not given) else None,
            describe_origin(slices, given) + self.autosave.describe_earlier(),
            bool(given) or predicted or any(x.edits for x in slices.values()),
        )
        output.write_labels(path, self.source, labels, about)
        session.mark_saved(revision)
        note = f"{missing} slices have no automatic mask yet" if missing else ""
        return {"path": str(path), "seconds": round(time.monotonic() - start, 3), "note": note}

    def write_points(self, prompts: dict[int, Any]) -> None:
        """Write the points file, or remove an earlier one if there are no prompts any more."""
        path = points_path(self.paths.mask)
        if prompts:
            named = bool(self.model and self.model.points_carry_class)
            write_json(path, points_file(prompts, self.geometry, self.classes, named))
        elif is_points_file(path):
            path.unlink()

    def compare(self) -> dict[str, Any]:
        """Compare the labels with the reference: metrics per class, Dice and errors per slice."""
        if self.reference is None:
            raise UsageError("comparison: got no reference, expected --reference=MASK")
        with self.session.lock:
            labels = self.session.labels.copy()
        tolerances = (NSD_TOLERANCE_MM,) * (len(self.classes) - 1)
        scoring = Scoring(self.classes, tolerances)
        scores = score_case(self.reference, labels, self.geometry.spacing_mm, scoring)
        names = ("Dice", "HD95", "volume", "reference_volume")
        rows: list[dict[str, Any]] = [{name: x[name] for name in names} for x in scores]
        for row in rows:
            if not (row["volume"] and row["reference_volume"]):
                row["HD95"] = None  # no distance between surfaces if there is only one
        pairs = zip(labels, self.reference, strict=True)
        wrong, dice, worst = zip(*(compare_slice(a, b) for a, b in pairs), strict=True)
        return {"classes": rows, "wrong": wrong, "dice": dice, "worst": worst}

    def close(self) -> str:
        """Keep the automatic mask and close the autosave. Returns what could not be written."""
        problem = ""
        try:
            self.keep_automatic()
        except OSError as error:  # it can be computed again
            problem = f"{self.autosave.folder}: the automatic mask cannot be written ({error})"
        return problem if self.autosave.close() else self.autosave.journal.problem

    def keep_automatic(self) -> None:
        """Write the automatic mask next to the output. Raises OSError if it cannot be written."""
        if self.model and not self.paths.initial and self.session.has_automatic.any():
            self.autosave.write_automatic(self.session.automatic, self.session.has_automatic)


def compare_slice(
    labels: np.ndarray, reference: np.ndarray
) -> tuple[int, float | None, int | None]:
    """Return wrong pixels, the Dice of all foreground and the class of least Dice of a slice.

    Dice and class are None if there is no foreground.
    """
    wrong = labels != reference
    sizes = np.bincount(labels.ravel(), minlength=256) + np.bincount(
        reference.ravel(), minlength=256
    )
    both = np.bincount(labels[~wrong], minlength=256)
    found = np.flatnonzero(sizes[1:]) + 1
    if not found.size:
        return int(np.count_nonzero(wrong)), None, None
    worst = found[(both[found] / sizes[found]).argmin()]
    dice = 2 * both[1:].sum() / sizes[1:].sum()
    return int(np.count_nonzero(wrong)), float(dice), int(worst)


def describe_origin(slices: dict[int, Any], given: pathlib.Path | None) -> str:
    """Return in words where labels come from: a `given` mask, and slices prompted or edited."""
    found = {
        "prompted": [i for i, x in sorted(slices.items()) if x.prompts != NO_PROMPTS],
        "propagated to": [i for i, x in sorted(slices.items()) if x.propagated],
        "edited by hand": [i for i, x in sorted(slices.items()) if x.edits],
    }
    words = [f"{name} slices {numbers}" for name, numbers in found.items() if numbers]
    if given:
        words.insert(0, f"from the mask {given.name}")
    return "; ".join(words) or "none (automatic)"


def oblique_note(affine: Any) -> list[str]:
    """Return a note if the axes are so oblique that the letters at the edges are approximate."""
    directions = np.array(affine)[:3, :3]
    cosines = np.abs(directions / np.linalg.norm(directions, axis=0)).max(axis=0)
    degrees = float(np.degrees(np.arccos(min(1.0, cosines.min()))))
    if degrees <= OBLIQUE_DEGREES:
        return []
    return [f"the slices are {degrees:.0f} degrees oblique; the letters are approximate"]
