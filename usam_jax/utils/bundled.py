"""The folders configs/ and tools/: next to the package in a checkout, inside it in a wheel.

pyproject.toml moves them into the package when it builds a wheel, so that an installation does not
occupy the top-level names `configs` and `tools`.
"""

import importlib.machinery
import importlib.util
import pathlib
import sys

PACKAGE = pathlib.Path(__file__).parents[1]


def bundled_folder(name: str) -> pathlib.Path:
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def make_importable(name: str, first: pathlib.Path | None = None) -> None:
    """Make `name` importable in this process, from `first` if given and then the bundled folder.

    A module that is already imported under this name stays.
    """
    if name not in sys.modules:
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        folders = (first, bundled_folder(name))
        spec.submodule_search_locations = [str(x.resolve()) for x in folders if x]
        sys.modules[name] = importlib.util.module_from_spec(spec)
