"""Weights in .npz files: names, dtypes, and files that hold more than arrays of numbers."""

import os
import zipfile

import numpy as np
import pytest

from usam_jax.io import torch_checkpoint
from usam_jax.utils.errors import WeightsError


class Harm:
    """Creates a folder if `pickle` loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_arrays_by_name(tmp_path, save):
    arrays = {"a/kernel": np.arange(6.0).reshape(2, 3), "b": np.array(2, np.int32)}
    save(tmp_path / "x.npz", **arrays)
    found = torch_checkpoint.load(tmp_path / "x.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_npz_with_pickled_object_is_refused_unexecuted(tmp_path):
    harm = tmp_path / "harm"
    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.array([Harm(str(harm))], object))
    with pytest.raises(WeightsError, match=r"x.npz: .*allow_pickle=False"):
        torch_checkpoint.load(tmp_path / "x.npz")
    assert not harm.exists()


def test_npz_of_text_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array(["text"]))
    with pytest.raises(WeightsError, match=r"x.npz: 'a' has the dtype <U4, expected numbers"):
        torch_checkpoint.load(tmp_path / "x.npz")


def test_npz_that_expands_too_much_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(10**6))
    with pytest.raises(
        WeightsError, match=r"claims 8000128 bytes of arrays in a file of \d+ bytes"
    ):
        torch_checkpoint.load(tmp_path / "x.npz")


def test_npz_with_false_header_or_cut_short_is_damaged(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(2))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"x.npz: .*damaged or cut short"):
        torch_checkpoint.load(path)
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    text = header.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(WeightsError, match=r"x.npz: .*damaged or cut short"):
        torch_checkpoint.load(path)
