"""The data set that a config names: its layout, its cases and its classes."""

import contextlib
import importlib
import pathlib
import pkgutil
from collections.abc import Iterator

from ml_collections import ConfigDict

from usam_jax.data import datasets
from usam_jax.data.case import Cases
from usam_jax.data.datasets.spec import DatasetSpec
from usam_jax.data.patients import PATIENTS, with_patients
from usam_jax.utils.errors import DataError, UsageError

NOT_LAYOUTS = ("registry", "spec")


def kinds() -> list[str]:
    """The values of `config.data.kind`: the names of the layouts' files."""
    return [x.name for x in pkgutil.iter_modules(datasets.__path__) if x.name not in NOT_LAYOUTS]


def get_spec(kind: str) -> DatasetSpec:
    """The layout of that kind. Raises UsageError if there is none."""
    if kind not in kinds():
        raise UsageError(f"config.data.kind: got {kind!r}, expected one of {', '.join(kinds())}")
    return importlib.import_module(f"{datasets.__name__}.{kind}").SPEC


def list_cases(data: ConfigDict) -> Cases:
    """The cases of `config.data` by split: train, val (if the data set has one) and test.

    `ROOT/patients.csv` (columns name and patient), if there is one, gives their patients. Raises
    DataError if the data set is missing, and UsageError if its kind does not exist.
    """
    root, spec = pathlib.Path(data.root), get_spec(data.kind)
    with naming_unreadable():
        require_present(root, spec)
        return with_patients(spec.list_cases(data), root / PATIENTS)


def find_left_out(data: ConfigDict) -> dict[pathlib.Path, str]:
    """Files and folders among the cases that the layout does not read, with the reasons."""
    with naming_unreadable():
        return get_spec(data.kind).find_left_out(data)


def detect_kind(root: pathlib.Path) -> str:
    """The kind of the data set in a folder, by what the folder holds. Raises DataError for none."""
    specs = {kind: get_spec(kind) for kind in kinds()}
    ranked = sorted((x.detect_rank, kind, x.sign) for kind, x in specs.items() if x.sign)
    with naming_unreadable():
        for _, kind, sign in ranked:
            if (root / sign).exists():
                return kind
    raise DataError(
        f"{root}: found no data set, expected one of {', '.join(x[2] for x in ranked)} in it",
        "give the folder that holds it; --config=configs/NAME.py says what is missing",
    )


def name_classes(config: ConfigDict) -> None:
    """Fill in `data.classes` and `model.num_classes` if a config leaves them to the data set.

    Raises UsageError if the data set does not name its classes, and DataError if it is missing.
    """
    data, root = config.data, pathlib.Path(config.data.root)
    if not data.classes:
        spec = get_spec(data.kind)
        if spec.read_classes is None:
            raise UsageError(
                "config.data.classes: found none, expected the names of all labels from 0 on"
            )
        with naming_unreadable():
            require_present(root, spec)
            data.classes = spec.read_classes(root)
    if not config.model.num_classes:
        config.model.num_classes = len(data.classes)


def require_present(root: pathlib.Path, spec: DatasetSpec) -> None:
    """Raise DataError, with where to get the data, if the folder has no such data set."""
    if spec.required and not (root / spec.required).exists():
        raise DataError(
            f"{root / spec.required} is not there; config.data.root: got {str(root)!r}, expected "
            f"a folder that holds {spec.layout}",
            spec.hint,
        )


@contextlib.contextmanager
def naming_unreadable() -> Iterator[None]:
    """Turn an OSError into a DataError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror})",
            "check the path and its permissions",
        ) from error
