"""What is read and written for each volume, and the classes, decided before any work."""

import pathlib
from collections.abc import Sequence

from usam_jax.data.class_names import require_class_names
from usam_jax.evaluation.class_labels import read_classes
from usam_jax.io.volume_files import VOLUME_ENDINGS
from usam_jax.predict import output
from usam_jax.predict.output_paths import class_list_path
from usam_jax.utils.errors import DataError, UsageError
from usam_jax.viewer.case import Model, Paths, check_paths

DEFAULT_CLASSES = ("background", "class 1", "class 2", "class 3")


def plan(
    inputs: dict[str, pathlib.Path],
    source: pathlib.Path,
    out: pathlib.Path,
    named: bool,
    masks: pathlib.Path | None,
    references: pathlib.Path | None,
) -> list[Paths]:
    """Return the files of each volume.

    `named` says whether the user gave `out`. Raises UsageError if an output would replace an input
    or a file of the user, and DataError if a mask does not exist.
    """
    several = list(inputs.values()) != [source]
    output.require_elsewhere(out, source)
    output.require_output(out, several)
    planned = []
    for name, ct in inputs.items():
        mask = out / f"{name}.nii.gz" if several else out
        initial, reference = (
            find_mask(flag, path, name if several else None)
            for flag, path in (("--mask", masks), ("--reference", references))
        )
        planned.append(Paths(ct, mask, initial, reference))
        check_paths(planned[-1], named and not several)
    return planned


def find_mask(flag: str, path: pathlib.Path | None, name: str | None) -> pathlib.Path | None:
    """Return the mask at a path, or for the volume `name` the one in the folder `path`, if any.

    Raises UsageError or DataError if the path cannot be one.
    """
    if path is None:
        return None
    if name is None:
        if not path.is_file():
            raise DataError(f"{flag}: {path} is not a file, expected a mask")
        return path
    if not path.is_dir():
        raise UsageError(f"{flag}: got {path}, expected a folder of masks for several volumes")
    found = (path / f"{name}{ending}" for ending in VOLUME_ENDINGS)
    return next((x for x in found if x.is_file()), None)


def find_classes(
    checkpoint: pathlib.Path | None, planned: Sequence[Paths], given: list[str] | None
) -> tuple[tuple[str, ...], Model | None]:
    """Return the classes of the checkpoint, --classes or a mask's class list, and the model.

    Raises WeightsError if there is no such checkpoint, and UsageError for unusable names.
    """
    if checkpoint:
        from usam_jax.viewer.model import describe_checkpoint  # imports JAX

        model = describe_checkpoint(checkpoint)
        return model.classes, model
    if given:
        require_class_names(given, "--classes")
        return tuple(given), None
    masks = (x for paths in planned for x in (paths.initial, paths.mask, paths.reference) if x)
    for path in map(class_list_path, masks):
        if path.is_file():
            return read_classes(path), None
    return DEFAULT_CLASSES, None
