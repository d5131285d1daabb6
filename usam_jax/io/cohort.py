"""The volumes in a folder and the folders below it, and what was left out, with the reason."""

import pathlib
from typing import NamedTuple

from usam_jax.io import dicom
from usam_jax.io.side_files import is_side_file
from usam_jax.io.volume_files import EXPECTED, compose, is_pair_data, volume_ending, volume_name
from usam_jax.utils.errors import DataError, list_some, unreadable

PROBABILITIES = "_probabilities"  # of the case NAME, in the volume NAME_probabilities
EMPTY = "holds no volume"


class Cohort(NamedTuple):
    """Volumes by name, and the reason for each file or folder that was left out.

    A name is the path below the cohort's folder without the ending, such as `patient/ct`. A DICOM
    series is a volume whose path is its folder. `twins` are pairs of files with one name, of which
    the first counts.
    """

    volumes: dict[str, pathlib.Path]
    left_out: dict[pathlib.Path, str]
    twins: list[tuple[pathlib.Path, pathlib.Path]]


def find_cohort(
    folder: pathlib.Path, with_series: bool, skipped: pathlib.Path | None = None
) -> Cohort:
    """Find the volumes in a folder at any depth.

    With `with_series`, the DICOM series below it count as volumes. Hidden files, documents such as
    tables, pictures named after a volume, and the folder `skipped` in it do not count.
    Raises DataError if the folder cannot be read.
    """
    cohort = Cohort({}, {}, [])
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    walk(folder, entries, cohort, with_series, {folder.resolve()})
    if skipped is None or folder.resolve() not in skipped.resolve().parents:
        return cohort

    def counts(path: pathlib.Path) -> bool:
        return skipped.resolve() not in (path.resolve(), *path.resolve().parents)

    return cohort._replace(
        volumes={name: path for name, path in cohort.volumes.items() if counts(path)},
        left_out={path: reason for path, reason in cohort.left_out.items() if counts(path)},
    )


def walk(
    folder: pathlib.Path,
    entries: list[pathlib.Path],
    cohort: Cohort,
    with_series: bool,
    seen: set[pathlib.Path],
    top: pathlib.Path | None = None,
) -> None:
    """Add the entries of a folder to a cohort whose folder is `top`, by default this one.

    `seen` are the resolved folders so far, against links that lead upwards.
    """
    top = top or folder
    names = {x.name.lower() for x in entries}
    volumes = {volume_name(x) for x in entries if volume_ending(x)}
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() in seen:
                cohort.left_out[path] = "is a link to a folder that counts already"
            else:
                seen.add(path.resolve())
                enter(path, cohort, with_series, seen, top)
        elif volume_ending(path):
            if not is_pair_data(path):
                add(path, volume_name(path), cohort, top)
            elif f"{volume_name(path)}.hdr".lower() not in names:
                cohort.left_out[path] = "its header, the .hdr of the pair, is not there"
        elif not is_side_file(path, volumes):
            cohort.left_out[path] = f"is not a volume by its name, expected {EXPECTED}"


def enter(
    folder: pathlib.Path,
    cohort: Cohort,
    with_series: bool,
    seen: set[pathlib.Path],
    top: pathlib.Path,
) -> None:
    """Add a folder below `top` to a cohort: a DICOM series, or what the folder holds."""
    before = len(cohort.volumes) + len(cohort.left_out)
    try:
        entries = sorted(folder.iterdir())
        is_series = with_series and dicom.is_series(folder)
    except OSError as error:
        cohort.left_out[folder] = f"cannot be read ({error.strerror})"
        return
    except DataError as error:
        cohort.left_out[folder] = str(error)
        return
    if is_series:
        add(folder, folder.name, cohort, top)
        for path in (x for x in entries if volume_ending(x) and not x.is_dir()):
            cohort.left_out[path] = "lies among the slices of a series"
        entries = [x for x in entries if x.is_dir()]
    walk(folder, entries, cohort, with_series, seen, top)
    if len(cohort.volumes) + len(cohort.left_out) == before:
        cohort.left_out[folder] = EMPTY


def add(path: pathlib.Path, name: str, cohort: Cohort, top: pathlib.Path) -> None:
    """Add a volume under its name below `top`."""
    key = compose((path.parent.relative_to(top) / name).as_posix())
    if key in cohort.volumes:
        cohort.twins.append((cohort.volumes[key], path))
    else:
        cohort.volumes[key] = path


def find_others(folder: pathlib.Path, end: str) -> dict[pathlib.Path, str]:
    """The entries of a flat folder of NAME`end` that are neither cases nor side files.

    `end` may be in any letter case. Raises OSError if the folder cannot be read.
    """
    entries = sorted(folder.iterdir())
    others = [x for x in entries if not x.name.lower().endswith(end.lower())]
    names = {x.name[: -len(end)] for x in entries if x.name.lower().endswith(end.lower())}
    names |= {volume_name(x) for x in entries if volume_ending(x)}
    return {
        x: f"is not named NAME{end}"
        for x in others
        if not (is_side_file(x, names) and (x.is_file() or x.name.startswith(".")))
    }


def describe_left_out(left_out: dict[pathlib.Path, str]) -> list[str]:
    """A line for each file or folder that was left out."""
    return [f"{path}: {reason}" for path, reason in left_out.items()]


def describe_count(left_out: dict[pathlib.Path, str]) -> str:
    """The number of files and folders that were left out, and some of them with the reasons."""
    lines = list_some(describe_left_out(left_out))
    return f"{len(left_out)} files or folders were left out:\n{lines}"
