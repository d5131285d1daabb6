"""Readers of users' files raise nothing but errors that name the file, whatever the content."""

import contextlib
import copy
import json
import pathlib
import random

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_files import write_series

from usam_jax.data.datasets.care import load_care_slice
from usam_jax.io import dataset_json, dicom, nifti
from usam_jax.io.geometry import make_geometry
from usam_jax.predict.clicks import read_clicks
from usam_jax.utils.errors import DataError, UserError
from usam_jax.utils.files import load_json

AFFINE = np.diag([-0.8, -0.8, 3.0, 1.0])
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1e-30, -1e30, 3e38, np.nan, np.inf, -np.inf, 32767, -32768)
VALUES = (None, True, -1, 0, 10**400, 1e308, float("nan"), "", "x\ud800\0", [], [[]], {}, {"a": 1})
GARBAGE = (b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * 9999, b'{"a": 1,}', b"\0", b"null", b"NaN")


@contextlib.contextmanager
def only_named_errors(path: pathlib.Path):
    """Pass if the body raises nothing, or an error of the project that names the path."""
    try:
        yield
    except UserError as error:
        assert str(path) in str(error)


def fuzz_nifti(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Read `count` files whose headers have one or two fields changed."""
    path = folder / "ct.nii"
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), AFFINE), path)
    whole, rng = path.read_bytes(), random.Random(seed)
    for _ in range(count):
        data = bytearray(whole)
        header = np.ndarray((), nibabel.nifti1.header_dtype, data)
        for name in rng.choices(header.dtype.names, k=rng.randint(1, 2)):
            field = header[name].reshape(-1)
            value = rng.choice(NUMBERS)
            with np.errstate(all="ignore"):
                start = rng.randrange(len(field))
                if field.dtype.kind == "S":
                    field[start] = rng.randbytes(field.dtype.itemsize)
                elif field.dtype.kind == "f" or np.isfinite(value):
                    limits = np.iinfo(field.dtype) if field.dtype.kind in "iu" else None
                    clipped = np.clip(value, limits.min, limits.max) if limits else value
                    field[start] = field.dtype.type(clipped)
        path.write_bytes(data)
        with only_named_errors(path):
            nifti.read_slices(path)
            nifti.header_warning(path)
            nifti.read_labels(path, 100)


def fuzz_itk(folder: pathlib.Path, ending: str, count: int, seed: int = 0) -> None:
    """Read `count` .mha or .nrrd files with a changed value or byte in the text header."""
    path, rng = folder / f"ct{ending}", random.Random(seed)
    image = SimpleITK.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    SimpleITK.WriteImage(image, str(path))
    header, mark, voxels = path.read_bytes().rpartition(b"LOCAL\n" if ending == ".mha" else b"\n\n")
    lines = (header + mark).splitlines(keepends=True)
    words = (
        b"0",
        b"-1",
        b"nan",
        b"1e400",
        b"99999999999",
        b"True",
        b"none",
        b"x\xff",
        b"1 2 3 4 5",
    )
    for _ in range(count):
        changed = list(lines)
        i = rng.randrange(len(changed))
        name, separator, _ = changed[i].partition(b"=" if ending == ".mha" else b":")
        if separator and rng.random() < 0.7:
            changed[i] = name + separator + b" " + rng.choice(words) + b"\n"
        elif rng.random() < 0.3:
            del changed[i]
        data = bytearray(b"".join(changed))
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data + voxels)
        with only_named_errors(path):
            nifti.read_slices(path)
            nifti.header_warning(path)


def fuzz_dicom(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Read `count` series of three slices in one of which some tag has another value."""
    paths = write_series(folder, np.arange(60, dtype=np.int16).reshape(5, 4, 3), AFFINE)
    rng, whole = random.Random(seed), paths[1].read_bytes()
    texts = ("", "x", "\\", "1\\2\\3", "-1", "1e400", "nan", "0", "\xff" * 70, "1.2.3", "999999")
    for _ in range(count):
        header = pydicom.dcmread(paths[1])
        tags = list(header.keys())  # iterating over the header would parse its elements
        tag = rng.choice(tags[:-1])
        raw = header.get_item(tag)
        if rng.random() < 0.2:
            del header[tag]
        elif isinstance(raw, pydicom.dataelem.RawDataElement):
            value = rng.choice(texts).encode("latin-1")
            value = rng.randbytes(len(raw.value or b"")) if rng.random() < 0.5 else value
            header._dict[tag] = raw._replace(value=value, length=len(value))
        with contextlib.suppress(Exception):  # what pydicom does not write is not a file
            header.save_as(paths[1])
        with only_named_errors(folder):
            dicom.read_series(folder)
        paths[1].write_bytes(whole)


def changed(content, rng: random.Random):
    """A copy of a JSON value with one of its parts replaced, removed or put twice."""
    content = copy.deepcopy(content)
    places = []

    def walk(node):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(content)
    node, key = rng.choice(places)
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return content


def fuzz_json(path: pathlib.Path, content, read_fn, count: int, seed: int = 0) -> None:
    """Read `count` JSON files that differ from `content` in a value, or in a byte."""
    rng = random.Random(seed)
    for i in range(count):
        data = json.dumps(changed(content, rng)).encode()
        if i % 4 == 0:
            place = rng.randrange(len(data))
            data = data[:place] + rng.randbytes(rng.randrange(4)) + data[place + rng.randrange(3) :]
        if i % 50 == 0:
            data = rng.choice(GARBAGE)
        path.write_bytes(data)
        with only_named_errors(path):
            read_fn(path)


DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "rectum": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
    "dataset": {"a": {"images": ["a.nii.gz"], "label": "b.nii.gz"}},
}
CLICKS = {
    "space": "world",
    "points": [{"at": [-1.0, -1.0, 3.0], "label": 1}],
    "boxes": [{"from": [0, 0, 0], "to": [-1, -1, 3]}],
}


def read_dataset(path: pathlib.Path) -> None:
    """Everything that is read from a `dataset.json`."""
    description = dataset_json.read_description(path)
    dataset_json.class_names(description)
    dataset_json.listed_files(description, path)


def read_points(path: pathlib.Path) -> None:
    """Read a points file of a small volume."""
    read_clicks(path, make_geometry((5, 4, 3), AFFINE))


def fuzz_npz(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Read `count` slices of CARE of which some bytes are changed or missing."""
    path, rng = folder / "slice.npz", random.Random(seed)
    arrays = {"image": np.zeros((224, 224), np.float32), "label": np.zeros((224, 224), np.uint8)}
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for _ in range(count):
        data = bytearray(whole[: rng.choice([None, None, rng.randrange(len(whole))])])
        for _ in range(rng.randint(1, 3)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        with only_named_errors(path):
            load_care_slice(path, 3)


def test_fuzzed_nifti_headers_give_named_errors(tmp_path):
    fuzz_nifti(tmp_path, 300)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_fuzzed_itk_headers_give_named_errors(tmp_path, ending):
    fuzz_itk(tmp_path, ending, 300)


def test_fuzzed_dicom_tags_give_named_errors(tmp_path):
    fuzz_dicom(tmp_path, 60)


def test_fuzzed_dataset_json_gives_named_errors(tmp_path):
    fuzz_json(tmp_path / "dataset.json", DESCRIPTION, read_dataset, 500)


def test_fuzzed_points_json_gives_named_errors(tmp_path):
    fuzz_json(tmp_path / "points.json", CLICKS, read_points, 500)


def test_fuzzed_npz_gives_named_errors(tmp_path):
    fuzz_npz(tmp_path, 150)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"space": "voxel",}', r"line 1, column \d+ \(remove the comma before }\)"),
        ('{"points": [1, 2,]}', r"line 1, column \d+ \(remove the comma before \]\)"),
        ("", r"line 1, column 1 \(the file is empty\)"),
        ('{"a" 1}', r"line 1, column 6 \(Expecting ':' delimiter\)"),
    ],
)
def test_load_json_names_the_place_of_a_fault(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json: not JSON in " + message):
        load_json(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_read_description_takes_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(DESCRIPTION), encoding=encoding)
    assert dataset_json.read_description(path) == DESCRIPTION
