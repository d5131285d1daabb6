"""The classes that a `dataset.json` gives to the labels of volumes to be scored.

Only its `labels` count: channels and file ending describe images, which scoring does not read.
"""

import pathlib

from usam_jax.io.dataset_json import NAME
from usam_jax.utils.errors import DataError, UsageError, list_some
from usam_jax.utils.files import load_json

GIVE = "give --classes=background,NAME,... in the order of the labels"


def find_classes(predictions: pathlib.Path, references: pathlib.Path) -> tuple[str, ...]:
    """The classes of the `dataset.json` in one of the folders or above the references.

    Raises UsageError if there is no such file, if two of them disagree, or if one does not give
    each label a class.
    """
    paths = [x / NAME for x in (predictions, references, references.resolve().parent)]
    found = {x: read_classes(x) for x in paths if x.is_file()}
    if not found:
        raise UsageError(
            f"the classes are not known: {predictions}, {references} and its parent folder hold no "
            f"{NAME}; {GIVE}"
        )
    if len(set(found.values())) > 1:
        lines = list_some([f"{path}: {', '.join(names)}" for path, names in found.items()])
        raise UsageError(f"the files name different classes:\n{lines}\nRemove one, or {GIVE}")
    return next(iter(found.values()))


def read_classes(path: pathlib.Path) -> tuple[str, ...]:
    """The names under `labels` in the order of their numbers, background first.

    nnU-Net v2 and v1 write them either way round. Raises UsageError for regions, an ignore label
    and numbers other than 0, 1, 2, ...
    """
    try:
        labels = load_json(path)["labels"]
        if all(isinstance(name, str) for name in labels.values()):  # v1: {"1": "liver"}
            labels = {name: int(number) for number, name in labels.items()}
    except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"got no usable labels ({error!r}), expected labels (name: number)"
        raise UsageError(f"{path}: {problem}; {GIVE}") from error
    if regions := [name for name, value in labels.items() if isinstance(value, list)]:
        raise UsageError(
            f"{path}: labels: got the regions {', '.join(regions)}, expected one number for each "
            f"name, since each voxel is scored as one class; {GIVE}"
        )
    if "ignore" in labels:
        raise UsageError(
            f"{path}: labels: got an ignore label ({labels['ignore']!r}), expected none: its voxels "
            f"would be scored as a class. Map them to the background in the references and {GIVE}"
        )
    names = {number: name for name, number in labels.items() if type(number) is int}
    if len(names) < len(labels) or sorted(names) != list(range(len(labels))):
        raise UsageError(f"{path}: labels: got {labels}, expected the numbers 0, 1, 2, ...; {GIVE}")
    return tuple(names[number] for number in sorted(names))
