"""Phantoms as NIfTI files in nnU-Net's raw layout."""

import itertools
import pathlib
from typing import Any

import numpy as np

from usam_jax.data.phantoms.anatomy import VERSIONS, Phantom, make_patient
from usam_jax.io import nifti
from usam_jax.utils import console
from usam_jax.utils.errors import DataError, UsageError, UserError, list_some
from usam_jax.utils.files import read_json, write_json
from usam_jax.utils.outputs import Output, check_outputs
from usam_jax.utils.parallel import ordered_map

FILE_AXES = ("LPS", "LPS", "RAS", "RAS", "LAS", "LAS", "PIR", "ASL")  # common ones repeated
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
ENDING = ".nii.gz"


def write_nnunet(
    folder: pathlib.Path,
    num_train: int,
    num_test: int,
    size: int = 256,
    num_slices: int | None = None,
    seed: int = 0,
    anatomy: str = "single",
) -> None:
    """Write `num_train` + `num_test` patients as a raw data set of nnU-Net v2.

    Patients are numbered consecutively. Images are int16 HU and labels uint8, both [size size
    num_slices] before the file's axes are permuted; by default `num_slices` is each patient's own.
    Axes, origin and tilt differ by patient. `anatomy` is as in `make_patient`. After an interruption, complete patients are kept.
    Raises UsageError if the folder holds other files, and DataError if it cannot be written.
    """
    numbers = range(num_train + num_test)
    texts = [describe(seed, number, size, num_slices, anatomy) for number in numbers]
    paths = [patient_paths(folder, x, "Tr" if x < num_train else "Ts") for x in numbers]

    def write(number: int) -> None:
        made = make_patient(seed, number, size, num_slices, anatomy)
        affine, axes = draw_grid(made, seed, number)
        hu = np.rint(made.image).astype(np.int16)
        for path, slices in zip(paths[number], (hu, made.labels), strict=True):
            nifti.write_slices(path, slices, affine, axes, texts[number])

    output = Output(folder / "dataset.json", "a description", "Give another folder.", is_own)
    check_outputs([output], {})
    try:
        make_folders(folder, list(itertools.chain(*paths)))
        # A file gets its name when it is complete, so its header is all there is to compare.
        todo = [
            x for x in numbers if any(nifti.header_description(y) != texts[x] for y in paths[x])
        ]
        if todo:
            (folder / "dataset.json").unlink(missing_ok=True)
        with console.Progress(
            "phantoms", len(numbers), "patients", len(numbers) - len(todo)
        ) as bar:
            for _ in ordered_map(write, todo):
                bar.advance()
        write_json(folder / "dataset.json", description(num_train))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error})") from error


def patient_paths(
    folder: pathlib.Path, number: int, part: str
) -> tuple[pathlib.Path, pathlib.Path]:
    """The paths of a patient's image and labels."""
    name = f"phantom_{number:04d}"
    return (
        folder / f"images{part}" / f"{name}_0000{ENDING}",
        folder / f"labels{part}" / f"{name}{ENDING}",
    )


def make_folders(folder: pathlib.Path, paths: list[pathlib.Path]) -> None:
    """Make the folders of `paths`. Raises UsageError if the layout's folders hold other files."""
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    found = {path for name in FOLDERS for path in (folder / name).glob("[!.]*")}
    others = sorted(str(path) for path in found - set(paths))
    if others:
        raise UsageError(
            f"{folder}: {len(others)} files do not belong to the requested phantoms:\n"
            f"{list_some(others)}\nRemove them or give another folder."
        )


def is_own(path: pathlib.Path) -> bool:
    """Whether a `dataset.json` is that of phantoms, of any number."""
    try:
        content = read_json(path)
    except UserError:
        return False
    return content == description(0) | {"numTraining": content.get("numTraining")}


def describe(seed: int, number: int, size: int, num_slices: int | None, anatomy: str) -> bytes:
    """The arguments of a file, for its header, so that files of other arguments are not kept."""
    name = "phantom" if anatomy == "single" else anatomy
    return f"{name} v{VERSIONS[anatomy]} {seed} {number} {size} {num_slices or 'own'}".encode()


def draw_grid(made: Phantom, seed: int, number: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Draw the affine float64[4 4] of a patient's slices, and the voxel axes of their files."""
    # Not the anatomy's random stream, which starts from [seed, number].
    rng = np.random.default_rng([seed, number, 1])
    affine = draw_affine(rng, made)
    return affine, tuple(FILE_AXES[rng.integers(len(FILE_AXES))])


def draw_affine(rng: np.random.Generator, made: Phantom) -> np.ndarray:
    """An affine float64[4 4] from (column, row, slice) to RAS mm, tilted for one in four."""
    depth, height, width = made.spacing_mm
    tilt, turn = np.deg2rad(rng.uniform(-8, 8, 2)) * (rng.random() < 0.25)
    a, b = np.cos(turn), np.sin(turn)
    c, d = np.cos(tilt), np.sin(tilt)
    rotation = np.array([[1, 0, 0], [0, c, -d], [0, d, c]]) @ np.array(
        [[a, -b, 0], [b, a, 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-width, -height, depth])
    middle = affine[:3, :3] @ (np.array(made.image.shape[::-1]) / 2)
    affine[:3, 3] = rng.uniform((-20, -40, -900), (20, 40, 900)) - middle
    return affine


def description(num_train: int) -> dict[str, Any]:
    """The content of nnU-Net's `dataset.json`."""
    return {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "normal rectum": 1, "tumour": 2},
        "numTraining": num_train,
        "file_ending": ENDING,
    }
