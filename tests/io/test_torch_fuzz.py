"""Fuzzed files are read or rejected, without other errors, calls or excessive memory."""

import pickle
import pickletools
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_torch_checkpoint import (
    FILES,
    FOLDER,
    MAKERS,
    Raw,
    make_legacy,
    make_storage,
    make_tensor,
    make_zip,
    to_opcodes,
    to_pickle,
)

from usam_jax.io import torch_checkpoint
from usam_jax.utils.errors import WeightsError

CALLS: list[Any] = []


def fire(*arguments: Any) -> None:
    """The function that a file calls if its pickle is executed."""
    CALLS.append(arguments)


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], None]:
    """Reads a file's bytes and asserts the properties that hold for any file."""
    path = tmp_path_factory.mktemp("fuzz") / "weights.pt"

    def load(data: bytes) -> None:
        path.write_bytes(data)
        tracemalloc.start()
        try:
            arrays = torch_checkpoint.load(path)
        except WeightsError:
            arrays = {}
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert all(type(array) is np.ndarray for array in arrays.values())
        # One pickled byte makes an object of at most about 200 bytes; the rest is the reader's own.
        assert peak < 200 * len(data) + (1 << 20)
        assert not CALLS

    return load


FUZZ = settings(deadline=None, database=None, derandomize=True)

# Bytes.

HEADS = [b"", b"PK\3\4", b"\x80\x02", b"\x80\x04\x95", b"\x20" + bytes(7) + b"{"]
HEADS += [to_pickle(0x1950A86A20F9469CFC6C), to_pickle(0x1950A86A20F9469CFC6C) + to_pickle(1001)]
EXTREMES = [0, 1, 255, 0x7FFF, 0xFFFF, 1 << 20, 15 << 20, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40]
EXTREMES += [(1 << 63) - 1, (1 << 64) - 1]
PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.one_of(
    st.tuples(st.just("put"), PLACES, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("insert"), PLACES, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("number"), PLACES, st.sampled_from(EXTREMES), st.sampled_from([2, 4, 8])),
    st.tuples(st.just("cut"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("repeat"), PLACES, st.integers(1, 64)),
    st.tuples(st.just("end"), PLACES),
)


def put(data: bytes, at: int, size: int, value: int) -> bytes:
    return data[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + data[at + size :]


def edit(data: bytes, edits: list[tuple[Any, ...]]) -> bytes:
    """Applies each of `edits` to `data`, at a position given as a share of its length."""
    for kind, place, *how in edits:
        at = int(place * len(data))
        match kind:
            case "put":
                data = data[:at] + how[0] + data[at + len(how[0]) :]
            case "insert":
                data = data[:at] + how[0] + data[at:]
            case "number":
                data = put(data, at, how[1], how[0])
            case "cut":
                data = data[:at] + data[at + how[0] :]
            case "repeat":
                data = data[: at + how[0]] + data[at:]
            case "end":
                data = data[:at]
    return data


@settings(FUZZ, max_examples=150)
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=300))
def test_load_survives_any_bytes(check: Any, head: bytes, tail: bytes) -> None:
    check(head + tail)


@settings(FUZZ, max_examples=400)
@given(file=st.sampled_from(FILES), edits=st.lists(EDITS, min_size=1, max_size=6))
def test_load_survives_edited_file(check: Any, file: Path, edits: list[tuple[Any, ...]]) -> None:
    check(edit(file.read_bytes(), edits))


@settings(FUZZ, max_examples=300)
@given(
    file=st.sampled_from([x for x in FILES if "_zip" in x.name]),
    edits=st.lists(EDITS, min_size=1, max_size=6),
)
def test_load_survives_edited_pickle(check: Any, file: Path, edits: list[tuple[Any, ...]]) -> None:
    # Edit before zipping, since the checksum of a zip file would reject it unread.
    with zipfile.ZipFile(file) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    pickled = edit(entries.pop("data.pkl"), edits)
    check(make_zip(pickled, entries))
    check(make_legacy(pickled))


# The zip directory: offset and size in bytes of each number in a record.

RECORD = {"flags": (8, 2), "method": (10, 2), "crc": (16, 4), "packed": (20, 4), "size": (24, 4)}
RECORD |= {"name": (28, 2), "extra": (30, 2), "local": (42, 4)}
END = {"entries": (10, 2), "directory_size": (12, 4), "directory_at": (16, 4)}


@pytest.mark.parametrize("value", EXTREMES)
def test_load_survives_wrong_zip_directory(check: Any, value: int) -> None:
    data = (FOLDER / "parameters_zip.pt").read_bytes()
    for start in [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"]:
        for place, size in RECORD.values():
            check(put(data, start + place, size, value))
        # Both sizes alike, so that the entry is not rejected because they differ.
        check(put(put(data, start + 20, 4, value), start + 24, 4, value))
    for place, size in END.values():
        check(put(data, data.rindex(b"PK\5\6") + place, size, value))


def make_overlapping(count: int) -> bytes:
    """A zip file in which each storage contains all later ones, headers included."""
    names = [f"archive/data/{i}".encode() for i in range(count)]
    body, records = b"", []
    for name in reversed(names):
        numbers = zlib.crc32(body), len(body), len(body), len(name), 0
        header = b"PK\3\4" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, *numbers) + name
        body, size = header + body, len(body)
        records.append((name, size, numbers, len(body)))
    tensors = {}
    for i, (_, size, _, _) in enumerate(reversed(records)):
        storage = make_storage(size, str(i), "torch\nByteStorage")
        tensors[str(i)] = make_tensor((min(size, 1),), (1,), 0, storage)
    pickled = to_pickle(tensors)
    numbers = zlib.crc32(pickled), len(pickled), len(pickled), 16, 0
    name = b"archive/data.pkl"
    start = b"PK\3\4" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, *numbers) + name + pickled
    records.append((name, 0, numbers, len(start) + len(body)))
    directory = b"".join(
        b"PK\1\2"
        + struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 0, *of, 0, 0, 0, 0, len(start + body) - back)
        + name
        for name, _, of, back in records
    )
    ends = len(records), len(records), len(directory), len(start + body), 0
    return start + body + directory + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, *ends)


def test_load_rejects_overlapping_storages(tmp_path: Path) -> None:
    # Reading each of n storages would read n times the file: minutes for a few megabytes.
    path = tmp_path / "weights.pt"
    path.write_bytes(make_overlapping(1))
    torch_checkpoint.load(path)
    path.write_bytes(make_overlapping(50))
    with pytest.raises(WeightsError, match="bytes of storages"):
        torch_checkpoint.load(path)


# Pickles, opcode by opcode.

CALL = b"ctest_torch_fuzz\nfire\n(K\1tR"
FUNCTIONS = ["test_torch_fuzz fire", "os system", "builtins eval", "builtins getattr"]
KNOWN = ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"]
KNOWN += ["torch._utils _rebuild_parameter", "argparse Namespace", "torch.storage BoolStorage"]
TEXTS = st.sampled_from(["storage", "0", "cpu", "model", "weight", "os", "system", "x" * 50])


def encode_argument(opcode: Any, draw: Any) -> bytes:
    """An argument for `opcode` in the form that pickletools reads, sometimes cut off."""
    kind = opcode.arg.name
    numbers = st.sampled_from([0, 1, 2, 3, 6, 255, *EXTREMES]) | st.integers(0, 8)
    match kind:
        case "stringnl_noescape_pair":
            module, name = draw(st.sampled_from(FUNCTIONS + KNOWN)).split()
            return f"{module}\n{name}\n".encode()
        case "float8":
            return struct.pack(">d", draw(st.floats()))
        case "uint1" | "uint2" | "int4" | "uint4" | "uint8":
            size = int(kind[-1])
            return (draw(numbers) % (1 << 8 * size)).to_bytes(size, "little")
        case name if name.endswith("nl") or name.startswith("decimal") or "nl_" in name:
            return draw(TEXTS).encode() + b"\n"
        case _:  # bytes or text, preceded by their length in one, four or eight bytes
            text = draw(TEXTS).encode()
            size = {"1": 1, "8": 8}.get(kind[-1], 4)
            length = draw(st.just(len(text)) | numbers)
            return (length % (1 << 8 * size)).to_bytes(size, "little") + text


@st.composite
def programs(draw: Any) -> bytes:
    """A pickle of opcodes in any order, with pieces of real pickles among them."""
    pieces = [CALL, to_opcodes(make_storage()), make_tensor(), b"}", b"(", b")R", b"tR", b"s", b"u"]
    pieces += [to_opcodes(x) for x in ("weight", "model", 6, (2, 3), {"a": 1})]
    opcodes = [x for x in pickletools.opcodes if x.name != "STOP"]
    program = b""
    for _ in range(draw(st.integers(1, 25))):
        if draw(st.booleans()):
            program += draw(st.sampled_from(pieces))
        else:
            opcode = draw(st.sampled_from(opcodes))
            program += opcode.code.encode("latin-1")
            program += encode_argument(opcode, draw) if opcode.arg else b""
    return b"\x80\x02}" + draw(st.sampled_from([b"", b"X\1\0\0\0w"])) + program + b"s."


@settings(FUZZ, max_examples=500)
@given(program=programs())
def test_load_survives_opcodes_in_any_order(check: Any, program: bytes) -> None:
    check(make_zip(program))
    check(make_legacy(program))


def test_pickle_would_call_the_function_in_the_fuzz() -> None:
    pickle.loads(b"\x80\x02" + CALL + b".")
    assert CALLS.pop() == (1,)


# Tensors with arbitrary claims.

CLAIMS = st.sampled_from([-1, 0, 1, 2, 3, 6, 7, 24, *EXTREMES, 1 << 64, 1 << 3000])
SHAPES = st.lists(CLAIMS, max_size=4).map(tuple) | st.sampled_from([(2, 3), (6,), ()])
STORAGES = st.builds(
    make_storage,
    CLAIMS | st.just(6),
    st.sampled_from(["0", "1", "../data.pkl", "byteorder", "", "\0", "é" * 100]),
    st.sampled_from(["torch\nFloatStorage", "torch\nBoolStorage", "torch\nUntypedStorage"]),
)


@settings(FUZZ, max_examples=300)
@given(
    form=st.sampled_from(sorted(MAKERS)),
    tensors=st.lists(
        st.builds(make_tensor, SHAPES, SHAPES, CLAIMS | st.just(0), STORAGES | st.none()),
        min_size=1,
        max_size=3,
    ),
)
def test_load_survives_any_tensor_claims(check: Any, form: str, tensors: list[Raw]) -> None:
    check(MAKERS[form](to_pickle({f"w{i}": x for i, x in enumerate(tensors)})))


# Pickle bombs.

LEVELS = 4_000
BOMBS = {
    "nested lists": b"]" * LEVELS + b"a" * (LEVELS - 1),
    "nested tuples": b")" + b"\x85" * LEVELS,
    "nested dicts": (b"}" + to_opcodes("a")) * LEVELS + b"N" + b"s" * LEVELS,
    "a list in itself": b"]q\0" + b"h\0a" * LEVELS,
    "a dict in itself": b"}q\0" + (to_opcodes("a") + b"h\0s") * LEVELS,
    "pairs of pairs": b")" + b"q\0h\0\x86" * LEVELS,
    "a memo entry each byte": b"N" + b"\x94" * LEVELS,
    "memo entries far apart": b"N"
    + b"".join(b"r\0\0" + struct.pack("<H", i) for i in range(LEVELS)),
    "a long text again and again": to_opcodes("x" * LEVELS) + b"q\0" + b"h\0" * LEVELS,
    "lists filled from one another": b"]q\0" + b"(h\0h\0h\0e" * LEVELS,
    "a long number": b"\x8b" + struct.pack("<I", LEVELS) + b"\x7f" * LEVELS,
    "long decimals": b"L" + b"9" * LEVELS + b"L\n",
}


@pytest.mark.parametrize("form", sorted(MAKERS))
@pytest.mark.parametrize("bomb", sorted(BOMBS))
def test_load_survives_pickle_bombs(check: Any, form: str, bomb: str) -> None:
    for content in ({"model": Raw(BOMBS[bomb])}, {"w": make_tensor(), "bomb": Raw(BOMBS[bomb])}):
        check(MAKERS[form](to_pickle(content)))
    check(MAKERS[form](to_pickle({"w": make_tensor(shape=Raw(BOMBS[bomb]))})))
