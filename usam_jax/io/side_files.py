"""Files that lie next to volumes and are not images of a patient, told by their names."""

import pathlib
from collections.abc import Collection

from usam_jax.io.volume_files import volume_name

DOCUMENTS = (
    *(".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".pdf", ".xml", ".html", ".log"),
    *(".yaml", ".yml", ".toml", ".xlsx", ".docx", ".pkl", ".py", ".sh", ".bval", ".bvec"),
    *(".sha256", ".md5"),
)
# Previews and probabilities if they are named after a volume, else perhaps a CT in another format.
IMAGES = (".png", ".jpg", ".jpeg", ".npz")
NAMES = ("dicomdir", "thumbs.db", "desktop.ini", "readme", "license", "licence")


def is_document(path: pathlib.PurePath) -> bool:
    """Whether a file is hidden, or by its name neither a volume nor another image."""
    name = path.name.lower()
    return name.startswith(".") or name.endswith(DOCUMENTS) or name in NAMES


def is_image(path: pathlib.PurePath) -> bool:
    """Whether a file is by its name a picture or an array that no volume is read from."""
    return path.name.lower().endswith(IMAGES)


def is_side_file(path: pathlib.PurePath, volumes: Collection[str]) -> bool:
    """Whether a file is a document, or a picture or array named after one of the `volumes`."""
    return is_document(path) or (is_image(path) and volume_name(path) in volumes)
