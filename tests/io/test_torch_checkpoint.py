"""Checkpoints are read exactly, and a malicious file is rejected without being executed."""

import io
import math
import os
import pickle
import re
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import Raw, to_opcodes

from usam_jax.io import torch_checkpoint
from usam_jax.utils.errors import WeightsError

FOLDER = Path(__file__).parents[1] / "torch_files"
FORMATS = ["zip", "legacy"]
DTYPES = {name: np.dtype(name) for name in ("float64", "float32", "float16", "bool")}
DTYPES |= {name: np.dtype(name) for name in ("int64", "int32", "int16", "int8", "uint8")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


def make_values(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """The values of make_torch_files.py: a ramp modulo 100, plus 0.5 if `dtype` has fractions."""
    dtype = np.dtype(dtype)
    half = 0.0 if dtype.kind in "iub" else 0.5
    return (np.arange(math.prod(shape)) % 100 + half).astype(dtype).reshape(shape)


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert type(found[name]) is np.ndarray, name
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        flags = found[name].flags
        assert flags.c_contiguous and flags.writeable and flags.owndata, name


def to_pickle(value: Any) -> bytes:
    return b"\x80\x02" + to_opcodes(value) + b"."


def make_storage(
    numel: Any = 6, key: Any = "0", dtype: str = "torch\nFloatStorage", view: bytes = b""
) -> Raw:
    ends = to_opcodes(key) + to_opcodes("cpu") + to_opcodes(numel) + view
    return Raw(b"(" + to_opcodes("storage") + b"c" + dtype.encode() + b"\n" + ends + b"tQ")


def make_tensor(
    shape: Any = (2, 3),
    strides: Any = (3, 1),
    offset: Any = 0,
    storage: Any = None,
    function: str = "torch._utils\n_rebuild_tensor_v2",
) -> Raw:
    parts = (make_storage() if storage is None else storage, offset, shape, strides)
    return Raw(b"c" + function.encode() + b"\n(" + b"".join(map(to_opcodes, parts)) + b"\x89}tR")


def make_zip(
    pickled: bytes, entries: dict[str, bytes] | None = None, compression: int = 0
) -> bytes:
    if entries is None:
        entries = {"data/0": make_values(2, 3).tobytes(), "byteorder": b"little"}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in {"data.pkl": pickled, **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def make_legacy(pickled: bytes, keys: Any = ("0",), numel: int = 6) -> bytes:
    head = [to_pickle(0x1950A86A20F9469CFC6C), to_pickle(1001), to_pickle({"little_endian": True})]
    storage = numel.to_bytes(8, "little") + make_values(2, 3).tobytes()
    return b"".join([*head, pickled, to_pickle(list(keys)), storage])


MAKERS: dict[str, Callable[[bytes], bytes]] = {"zip": make_zip, "legacy": make_legacy}


@pytest.fixture
def load_bytes(tmp_path: Path) -> Callable[[bytes], dict[str, np.ndarray]]:
    def load(data: bytes) -> dict[str, np.ndarray]:
        path = tmp_path / "weights.pt"
        path.write_bytes(data)
        return torch_checkpoint.load(path)

    return load


# Files written by torch.


@pytest.mark.parametrize("form", FORMATS)
def test_load_reads_nnunets_weights_and_settings(form: str) -> None:
    path = FOLDER / f"nnunet_{form}.pt"
    names = ("conv", "all_modules.0", "decoder.encoder.conv")
    expected = {f"{name}.weight": make_values(3, 2) for name in names}
    assert_same(
        torch_checkpoint.load(path), expected | {f"{x}.bias": make_values(3) for x in names}
    )
    settings = torch_checkpoint.load_settings(path)
    assert settings["trainer_name"] == "nnUNetTrainer"
    assert settings["inference_allowed_mirroring_axes"] == (0, 1)
    plans = {"configurations": {"2d": {"patch_size": [224, 224]}}}
    # What is not plain data, as the device and NumPy's numbers, is left out.
    assert settings["init_args"] == {"plans": plans, "configuration": "2d", "fold": 0}
    assert settings["logging"] == {"mean_fg_dice": [], "lrs": [0.01]}
    assert "_best_ema" not in settings and "conv.weight" not in settings["network_weights"]


def test_load_settings_refuses_settings_in_themselves(tmp_path: Path) -> None:
    nested: list[Any] = []
    for _ in range(30):
        nested = [nested]
    (tmp_path / "x.pt").write_bytes(make_zip(to_pickle({"a": nested})))
    with pytest.raises(WeightsError, match="settings of more than 20 levels"):
        torch_checkpoint.load_settings(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(make_zip(to_pickle([1])))
    with pytest.raises(WeightsError, match="holds no dict but <list>"):
        torch_checkpoint.load_settings(tmp_path / "x.pt")


@pytest.mark.parametrize("form", FORMATS)
def test_load_reads_every_dtype(form: str) -> None:
    expected = {name: make_values(3, 5, dtype=dtype) for name, dtype in DTYPES.items()}
    assert_same(torch_checkpoint.load(FOLDER / f"dtypes_{form}.pt"), expected)


def test_load_reads_safetensors() -> None:
    expected = {name: make_values(3, 5, dtype=dtype) for name, dtype in DTYPES.items()}
    expected |= {"scalar": make_values(), "empty": np.zeros((0, 3), np.float32)}
    assert_same(torch_checkpoint.load(FOLDER / "dtypes.safetensors"), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_load_reads_views_of_shared_storages(form: str) -> None:
    base, flags = make_values(6, 8), make_values(4, 6, dtype=bool)
    expected = {
        "whole": base,
        "transposed": base.T,
        "sliced": base[1:5:2, 2:7:3],
        "row": base[3],
        "permuted": make_values(2, 3, 4).transpose(2, 0, 1),
        "expanded": np.broadcast_to(make_values(3, 1), (3, 4)),
        "flags": flags.T[1::2],
        "scalar": make_values(),
        "flag": np.array(True),
        "empty": np.zeros((0, 3), np.float32),
        "empty_slice": base[6:],
        "half": make_values(4, 4, dtype=ml_dtypes.bfloat16).T,
    }
    found = torch_checkpoint.load(FOLDER / f"views_{form}.pt")
    assert_same(found, expected)
    found["whole"][:] = -1
    np.testing.assert_array_equal(found["row"], base[3], err_msg="arrays share memory")


@pytest.mark.parametrize("form", ["zip", "legacy", "zip_protocol4", "legacy_protocol4"])
def test_load_reads_model_of_a_training_checkpoint(form: str) -> None:
    expected = {name: make_values(3) for name in ("0.bias", "1.weight", "1.bias")}
    expected |= {f"1.{name}": make_values(3) for name in ("running_mean", "running_var")}
    expected |= {
        "0.weight": make_values(3, 4),
        "1.num_batches_tracked": make_values(dtype=np.int64),
    }
    assert_same(torch_checkpoint.load(FOLDER / f"training_{form}.pt"), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_load_reads_parameters(form: str) -> None:
    expected = {"weight": make_values(3, 4), "bias": make_values(3)}
    assert_same(torch_checkpoint.load(str(FOLDER / f"parameters_{form}.pt")), expected)


# The entry of a file that holds the weights.


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "model_state", "net", "module"]
)
def test_load_finds_state_dict_and_drops_module_prefix(
    load_bytes: Any, form: str, key: str
) -> None:
    content = {"epoch": 3, "best": make_tensor(), key: {"module.weight": make_tensor()}}
    assert_same(load_bytes(MAKERS[form](to_pickle(content))), {"weight": make_values(2, 3)})


def test_load_keeps_module_prefix_that_some_names_lack(load_bytes: Any) -> None:
    content = {"module.weight": make_tensor(), "bias": make_tensor()}
    found = load_bytes(make_zip(to_pickle(content)))
    assert list(found) == ["module.weight", "bias"]


def test_load_reads_files_of_older_torch(load_bytes: Any) -> None:
    tensor = make_tensor(function="torch._utils\n_rebuild_tensor")
    tensor = Raw(tensor.replace(b"\x89}tR", b"tR"))  # without gradient flag and hooks
    found = load_bytes(make_zip(to_pickle({"weight": tensor})))
    assert_same(found, {"weight": make_values(2, 3)})
    tensor = make_tensor(storage=make_storage(view=b"N"))
    assert_same(load_bytes(make_legacy(to_pickle({"w": tensor}))), {"w": make_values(2, 3)})


def test_load_names_entries_that_are_not_tensors(load_bytes: Any) -> None:
    content = {"model": {"weight": make_tensor(), "extra": {"a": 1}, "step": 7, 5: make_tensor()}}
    with pytest.raises(WeightsError, match=r"'extra': <dict>\n  'step': 7\n  <ignored>: <tensor>"):
        load_bytes(make_zip(to_pickle(content)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": {"w": make_tensor()}, "epoch": 1}, "keys:\n  'weights'\n  'epoch'"),
        ({}, "(none)"),
        ({"model": {}}, "'model'"),
        ([1, 2], "<list>"),
        (make_tensor(), "<tensor>"),
    ],
)
def test_load_lists_content_without_a_state_dict(
    load_bytes: Any, content: Any, message: str
) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_bytes(make_zip(to_pickle(content)))


# Files that are not checkpoints.


def test_load_names_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}: No such file"):
        torch_checkpoint.load(path)
    with pytest.raises(WeightsError, match="directory"):
        torch_checkpoint.load(tmp_path)


def test_load_error_names_file_and_fix(load_bytes: Any) -> None:
    with pytest.raises(WeightsError, match=r"weights\.pt: not a checkpoint; .* Check the download"):
        load_bytes(b"<!DOCTYPE html><html>")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a checkpoint"),
        (pickle.dumps({"a": 1}, 2), "not one that torch.save wrote"),
        (make_zip(b"", {}).replace(b"data.pkl", b"data.txt"), "0 entries"),
        (make_zip(b""), "cannot be read"),
        (make_zip(to_pickle({"w": make_tensor()}), {}), "no item named 'archive/data/0'"),
        (make_zip(to_pickle({"w": make_tensor()}), {"data/0": b"short"}), "5 bytes, not 24"),
        (make_zip(to_pickle({"w": make_tensor()}), {"byteorder": b"big"}), "little-endian"),
        (make_zip(to_pickle({"w": make_tensor()}), None, zipfile.ZIP_DEFLATED), "compressed"),
        (make_legacy(to_pickle({"w": make_tensor()}), numel=7), "not as declared"),
        (make_legacy(to_pickle({"w": make_tensor()}), keys=["1"]), "cannot be read"),
        (make_legacy(to_pickle({"w": make_tensor()}), keys=[((),)]), "<tuple> instead of"),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "cannot be read"),
    ],
)
def test_load_rejects_what_torch_does_not_write(load_bytes: Any, data: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_bytes(data)


# Malicious files.


class Call:
    """Pickles as a call of `function`, as a malicious file does."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["whole", "entry", "state"])
def test_load_rejects_calls_without_making_them(
    load_bytes: Any, tmp_path: Path, form: str, protocol: int, place: str
) -> None:
    marker = tmp_path / "marker"
    call = Call(os.system, f"touch {marker}")
    content = {"whole": call, "entry": {"args": call}, "state": {"model": {"w": call}}}[place]
    pickled = pickle.dumps(content, protocol)
    with pytest.raises(WeightsError, match=rf"'{os.system.__module__}\.system', refused"):
        load_bytes(MAKERS[form](pickled))
    assert not marker.exists()
    pickle.loads(pickled)
    assert marker.exists(), "the call has no effect, so the test proves nothing"


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, open, subprocess.Popen])
def test_load_rejects_dangerous_functions(
    load_bytes: Any, function: Callable[..., Any], protocol: int
) -> None:
    with pytest.raises(WeightsError, match=rf"{function.__name__}', refused"):
        load_bytes(make_zip(pickle.dumps({"model": Call(function, "1")}, protocol)))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "OrderedDict.fromkeys"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch._utils", ""),
        ("torch.storage", "_load_from_bytes"),
        ("usam_jax.torch_file", "load"),
    ],
)
def test_load_accepts_exact_global_names_only(load_bytes: Any, module: str, name: str) -> None:
    refused = re.escape(f"'{module}.{name}', refused")
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    for opcodes in (texts + b"\x93", f"c{module}\n{name}\n".encode()):
        with pytest.raises(WeightsError, match=refused):
            load_bytes(make_zip(b"\x80\x04" + opcodes + b")R."))


@pytest.mark.parametrize(
    "opcodes",
    [
        b"ccollections\nOrderedDict\n}(X\x01\0\0\0aK\x01ub",  # BUILD: attributes of a function
        b"cargparse\nNamespace\n)\x81}X\x09\0\0\0__class__K\x01sb",
        b"ctorch\nFloatStorage\n)R",
        b"X\x01\0\0\0a)R",
        b"(ios\nsystem\n",  # INST
        b"(cargparse\nNamespace\no",  # OBJ
        b"\x82\x01",  # EXT1
        b"cargparse\nNamespace\n)}\x92",  # NEWOBJ_EX
        b"P0\n",  # PERSID
        b"K\x01K\x02a",
        b"0",
        b"t",
        b"h\x07",
    ],
)
def test_load_rejects_opcodes_out_of_place(load_bytes: Any, opcodes: bytes) -> None:
    with pytest.raises(WeightsError):
        load_bytes(make_zip(b"\x80\x02" + opcodes + b"."))


@pytest.mark.parametrize(
    "tensor",
    [
        make_tensor(shape=(3, 3)),
        make_tensor(offset=1),
        make_tensor(offset=-1),
        make_tensor(strides=(-3, 1)),
        make_tensor(shape=(-2, -3)),
        make_tensor(shape=(2,)),
        make_tensor(shape=(2.0, 3.0)),
        make_tensor(shape=(True, 3)),
        make_tensor(shape="ab", strides="cd"),
        make_tensor(shape=5, strides=1),
        make_tensor(shape=(1,) * 65, strides=(1,) * 65),
        make_tensor(shape=(1 << 70, 0)),
        make_tensor(strides=(1 << 62, 1)),
        make_tensor(storage="0"),
        make_tensor(storage=make_tensor()),
        make_tensor(storage=make_storage(key=0)),
        make_tensor(storage=make_storage(key="../data.pkl")),
        make_tensor(storage=make_storage(numel=-6)),
        make_tensor(storage=make_storage(numel="6")),
        make_tensor(storage=make_storage(dtype="argparse\nNamespace")),
        make_tensor(storage=make_storage(dtype="torch\nDoubleStorage")),
        make_tensor(storage=make_storage(view=to_opcodes(("0", 0, 6)))),
        make_tensor(function="torch._utils\n_rebuild_parameter", storage=7),
        Raw(b"ctorch._utils\n_rebuild_tensor_v2\n)R"),
    ],
)
@pytest.mark.parametrize("form", FORMATS)
def test_load_rejects_tensor_outside_its_storage(load_bytes: Any, form: str, tensor: Raw) -> None:
    content = {"right": make_tensor(), "wrong": tensor}
    with pytest.raises(WeightsError):
        load_bytes(MAKERS[form](to_pickle(content)))


def make_tuple_bomb(levels: int) -> Raw:
    # Each level is a pair of the level below, so that hashing it takes 2**levels steps.
    return Raw(b")" + b"q\x00h\x00\x86" * levels)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "content",
    [
        {"w": make_tensor((1 << 40,), (1,), storage=make_storage(1 << 40))},
        {"w": make_tensor((1 << 40,), (0,))},
        {"w": make_tensor((1 << 20, 1 << 20), (0, 0))},
        {f"w{i}": make_tensor((1000,), (0,)) for i in range(100)},
        Raw(b"}r\0\0\0\x40"),  # a memo index for which a table would take gigabytes
        Raw(b"X\0\0\0\x7f"),  # texts and bytes that claim gigabytes
        Raw(b"\x8d" + (1 << 60).to_bytes(8, "little")),
        Raw(b"\x8e" + (1 << 60).to_bytes(8, "little")),
        Raw(b"\x96" + (1 << 32).to_bytes(8, "little")),
        Raw(b"\x95" + (1 << 60).to_bytes(8, "little") + b"}"),
        Raw(b"\x8b\0\0\0\x7f"),
        {make_tuple_bomb(100): 1},
        {"model": make_tuple_bomb(100)},
        {"a": Raw(b"]" * 10_000 + b"a" * 9_999)},
    ],
)
def test_load_rejects_oversized_claims_cheaply(load_bytes: Any, form: str, content: Any) -> None:
    data = MAKERS[form](to_pickle(content))
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            load_bytes(data)
        # One pickled byte makes an object of at most about 200 bytes.
        assert tracemalloc.get_traced_memory()[1] < 200 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_load_does_not_hash_deeply_nested_keys(load_bytes: Any) -> None:
    nested = Raw(b")" + b"\x85" * 150_000)
    for content in ({nested: 1}, Raw(nested + b"X\x01\0\0\0a\x93")):
        with pytest.raises(WeightsError):
            load_bytes(make_zip(to_pickle(content)))


def test_load_normalises_boolean_bytes(load_bytes: Any) -> None:
    storage = make_storage(numel=4, dtype="torch\nBoolStorage")
    pickled = to_pickle({"flags": make_tensor((4,), (1,), storage=storage)})
    found = load_bytes(make_zip(pickled, {"data/0": b"\0\1\2\xff"}))
    np.testing.assert_array_equal(found["flags"].view(np.uint8), [0, 1, 1, 1])


# Damage.

FILES = sorted(FOLDER.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_load_rejects_truncated_file(load_bytes: Any, path: Path) -> None:
    data = path.read_bytes()
    for size in {*range(0, len(data), 29), len(data) - 1}:
        with pytest.raises(WeightsError):
            load_bytes(data[:size])


def load_damaged(path: Path, data: bytes, damage: list[tuple[float, int]]) -> None:
    damaged = bytearray(data)
    for place, byte in damage:
        damaged[int(place * len(data))] = byte
    path.write_bytes(damaged)
    try:
        arrays = torch_checkpoint.load(path)
    except WeightsError:
        return
    assert all(type(array) is np.ndarray for array in arrays.values())


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(file=st.sampled_from(FILES), damage=DAMAGE)
def test_load_reads_or_rejects_damaged_file(
    tmp_path_factory: pytest.TempPathFactory, file: Path, damage: list[tuple[float, int]]
) -> None:
    load_damaged(tmp_path_factory.getbasetemp() / "damaged.pt", file.read_bytes(), damage)


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(file=st.sampled_from([file for file in FILES if "_zip" in file.name]), damage=DAMAGE)
def test_load_reads_or_rejects_damaged_pickle(
    tmp_path_factory: pytest.TempPathFactory, file: Path, damage: list[tuple[float, int]]
) -> None:
    # Damaged before it is packed, since a zip file's checksums would hide the pickle.
    with zipfile.ZipFile(file) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    pickled = bytearray(entries.pop("data.pkl"))
    for place, byte in damage:
        pickled[int(place * len(pickled))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged_pickle.pt"
    load_damaged(path, make_zip(bytes(pickled), entries), [])
