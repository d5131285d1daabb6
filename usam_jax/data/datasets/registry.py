"""The data set that a config names, as the cases of each split."""

import contextlib
import csv
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

from ml_collections import ConfigDict

from usam_jax.data.case import Case, Cases, Slices
from usam_jax.data.datasets import care, volume_sets
from usam_jax.data.packed.format import open_packed, packed_cases
from usam_jax.data.phantoms import anatomy
from usam_jax.io.nifti import window_hu
from usam_jax.utils.errors import DataError, UsageError, list_some

KINDS = ("care", "word", "word_npy", "nnunet", "phantom", "packed")
PATIENTS = "patients.csv"


def list_cases(config: ConfigDict) -> Cases:
    """The cases of the splits train, val (where the data set has one) and test.

    `ROOT/patients.csv` (columns name and patient), where there is one, tells whose they are.
    Raises DataError where the data set is absent, and UsageError where its kind does not exist.
    """
    with naming_unreadable():
        return with_patients(find_cases(config), pathlib.Path(config.root) / PATIENTS)


@contextlib.contextmanager
def naming_unreadable() -> Iterator[None]:
    """Raises DataError, naming the file or folder, for one that may not be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror})", "give yourself permission"
        ) from error


def find_cases(config: ConfigDict) -> Cases:
    root, num_classes = pathlib.Path(config.root), len(config.classes)
    match config.kind:
        case "care":
            return {x: care.care_cases(root, x, num_classes) for x in ("train", "test")}
        case "word":
            return volume_sets.word_cases(root, config)
        case "word_npy":
            return volume_sets.npy_cases(root, num_classes)
        case "nnunet":
            return volume_sets.nnunet_cases(root, config)
        case "phantom":
            return phantom_cases(config)
        case "packed":
            return packed_cases(root)
    raise UsageError(f"config.data.kind: found {config.kind!r}, expected one of {', '.join(KINDS)}")


def detect_kind(root: pathlib.Path) -> str:
    """The kind of the data set in a folder, by what lies there. Raises DataError for none."""
    signs = {
        "packed": "manifest.json",
        "nnunet": "dataset.json",
        "word": "imagesVal",
        "word_npy": "train/npy_imgs",
        "care": "train/train_npz",
    }
    with naming_unreadable():
        for kind, sign in signs.items():
            if (root / sign).exists():
                return kind
    raise DataError(
        f"{root}: found no data set, expected one of {', '.join(signs.values())} in it",
        "give the folder that holds it; --config=configs/NAME.py names what is missing",
    )


def name_classes(config: ConfigDict) -> None:
    """Fills in `data.classes` and `model.num_classes` where a config leaves them to the data set.

    Raises UsageError where the data set does not name its classes, and DataError where it is absent.
    """
    data, root = config.data, pathlib.Path(config.data.root)
    if not data.classes:
        match data.kind:
            case "nnunet":
                with naming_unreadable():
                    description = volume_sets.read_description(root / "dataset.json")
                data.classes = volume_sets.class_names(description)
            case "packed":
                data.classes = tuple(open_packed(root).manifest["settings"]["classes"])
            case _:
                raise UsageError(
                    "config.data.classes: found none, expected the names of all labels from 0 on"
                )
    if not config.model.num_classes:
        config.model.num_classes = len(data.classes)


def with_patients(cases: Cases, table: pathlib.Path) -> Cases:
    """The cases with the patients of a table. Raises DataError where it does not name each case."""
    if not table.is_file():
        return cases
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            patient_of = {
                row["name"].strip(): row["patient"].strip() for row in csv.DictReader(file)
            }
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: found no readable columns name and patient ({error!r})",
            "mend or delete the file",
        ) from error

    def find(split: str, case: Case) -> str | None:
        return patient_of.get(f"{split}/{case.name}") or patient_of.get(case.name)

    unknown = [
        f"{split}/{x.name}"
        for split, found in cases.items()
        for x in found
        if x.num_slices and not find(split, x)
    ]
    if unknown:
        raise DataError(
            f"{table}: has no patient for {len(unknown)} cases:\n{list_some(unknown)}\n"
            "Add a row for each: its name (or SPLIT/NAME) and patient."
        )
    return {
        split: [dataclasses.replace(x, patient=find(split, x)) for x in found]
        for split, found in cases.items()
    }


def shared_patients(cases: Cases) -> dict[str, list[str]]:
    """Patients that are in several splits, with their cases as `SPLIT/NAME`."""
    found: dict[str, list[tuple[str, str]]] = {}
    for split, listed in cases.items():
        for case in listed:
            if case.patient is not None:
                found.setdefault(case.patient, []).append((split, case.name))
    return {
        patient: [f"{split}/{name}" for split, name in places]
        for patient, places in found.items()
        if len({split for split, _ in places}) > 1
    }


def phantom_cases(config: ConfigDict) -> Cases:
    """Generated patients: `config.num_patients` of train and test, numbered through."""
    if "num_patients" not in config:
        raise UsageError(
            "config.data.kind=phantom needs the fields of configs/phantom.py; use that"
        )
    num_train, num_test = config.num_patients
    numbers = {"train": range(num_train), "test": range(num_train, num_train + num_test)}
    return {split: [phantom_case(config, i) for i in numbers[split]] for split in numbers}


def phantom_case(config: ConfigDict, number: int) -> Case:
    name = f"phantom_{number:04d}"
    arguments = [config.phantom_seed, number, config.image_size, config.slices_per_patient]
    window = [config.window_level, config.window_width]
    load_fn = functools.partial(load_phantom, *arguments, *window)
    stamp = [anatomy.VERSION, *arguments]
    geometry = anatomy.patient_geometry(*arguments)
    return Case(name, name, config.slices_per_patient, stamp, load_fn, geometry)


def load_phantom(
    seed: int, number: int, size: int, num_slices: int, level: float = 40.0, width: float = 400.0
) -> Slices:
    made = anatomy.make_patient(seed, number, size, num_slices)
    return window_hu(made.image, level, width), made.labels
