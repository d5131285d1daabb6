"""Which files are volumes, told by the endings of their names in any letter case."""

import pathlib
import unicodedata

NIFTI_ENDINGS = (".nii.gz", ".nii")
PAIR_ENDINGS = (".hdr", ".img")  # NIfTI as two files
ITK_ENDINGS = (".mha", ".nrrd")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS, *PAIR_ENDINGS)
EXPECTED = "NAME.nii.gz, NAME.nii, NAME.mha, NAME.nrrd or NAME.hdr with NAME.img"


def volume_ending(path: pathlib.PurePath) -> str | None:
    """The ending of a volume's file name as it is written, or None if it is not a volume.

    Hidden files, such as the `._NAME` that macOS adds to a copy, are not volumes.
    """
    name = path.name
    if name.startswith("."):
        return None
    length = next((len(x) for x in VOLUME_ENDINGS if name.lower().endswith(x)), 0)
    return name[-length:] if length else None


def volume_name(path: pathlib.PurePath) -> str:
    """The file's name without the ending of a volume, or else without its last suffix."""
    return path.name.removesuffix(volume_ending(path) or path.suffix)


def compose(name: str) -> str:
    """A name with composed accents.

    macOS copies files with decomposed ones, which look the same.
    """
    return unicodedata.normalize("NFC", name)


def is_pair_data(path: pathlib.PurePath) -> bool:
    """Whether a file holds the voxels of an .hdr/.img pair, whose .hdr stands for the volume."""
    return (volume_ending(path) or "").lower() == ".img"
