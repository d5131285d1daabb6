"""Torch checkpoints, safetensors and .npz files as numpy arrays, read without torch."""

import contextlib
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from usam_jax.io.npz_file import is_npz, read_npz
from usam_jax.io.torch_pickle import (
    DTYPES,
    Storage,
    Tensor,
    brief,
    expect_text,
    own,
    plain_data,
    unpickle,
)
from usam_jax.utils.errors import DataError, WeightsError, list_some
from usam_jax.utils.files import load_json

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STATE_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "module",
    "network_weights",
)
# About 200 bytes of pickle describe one tensor, so no model comes near this limit.
_MAX_PICKLE_BYTES = 16 << 20
# Tied weights repeat a storage, expanded ones an element; genuine files rarely do either.
_MAX_EXPANSION = 4
_ADVICE = (
    "Expected a torch checkpoint, a .safetensors or an .npz file of plain tensors. Check the "
    "download or, if you trust the file, load it with torch and run "
    "torch.save(model.state_dict(), PATH)."
)

_ReadStorage = Callable[[Storage], bytes]


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the weights of a torch checkpoint, safetensors or .npz file without running pickles.

    The state dict is the file's entry "model", "state_dict", "model_state_dict", "model_state",
    "net", "module" or "network_weights", else the whole object. A `NAME.index.json` names the files
    of a checkpoint in several shards, next to it. The prefix "module." is removed if all names have
    it. The arrays have the shapes and dtypes of the tensors (ml_dtypes.bfloat16 for bfloat16) and
    own their memory. Raises WeightsError if the file is missing, damaged, more than plain data, or
    without weights.
    """
    if Path(path).name.endswith(".index.json"):
        return _load_shards(Path(path))
    with _opened(path) as (file, file_bytes):
        arrays = _load_by_content(file, file_bytes)
    if all(name.startswith("module.") for name in arrays):  # from DistributedDataParallel
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def load_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the entries of a torch checkpoint that are plain data, without executing its pickle.

    Plain are text, numbers, None, and lists, tuples and dicts of these; what else they hold is left
    out. Raises WeightsError as `load` does, and if the file is not a dict that torch.save wrote.
    """
    with _opened(path) as (file, file_bytes), _torch_file(file, file_bytes) as (found, _):
        if not isinstance(found, dict):
            raise WeightsError(f"holds no dict but {brief(found)}.")
        return plain_data(found)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[io.BufferedReader, int]]:
    """The open file and its size. Every error becomes a WeightsError that names the file."""
    try:
        with Path(path).open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except WeightsError as error:
        raise WeightsError(f"{path}: {error} {_ADVICE}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise WeightsError(f"{path}: {error.strerror}; check the path. {_ADVICE}") from error
    except Exception as error:  # damaged files raise nearly any type, MemoryError included
        found = f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
        raise WeightsError(f"{path}: {found}; is it damaged or cut short? {_ADVICE}") from error


def _load_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        shard_of = load_json(index)["weight_map"]
        shards = sorted(set(shard_of.values()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        found = f"got no usable index ({type(error).__name__}: {str(error)[:200]})"
        expected = 'expected {"weight_map": {TENSOR: FILE}} with files next to it'
        raise WeightsError(f"{index}: {found}, {expected}. {_ADVICE}") from error
    if any(Path(str(shard)).name != shard for shard in shards):
        raise WeightsError(f"{index}: got the files {shards}, expected names of files next to it.")
    arrays = {name: x for shard in shards for name, x in load(index.parent / shard).items()}
    if missing := sorted(shard_of.keys() - arrays.keys()):
        raise WeightsError(f"{index}: its files lack tensors:\n{list_some(missing)}")
    return arrays


def _load_by_content(file: io.BufferedReader, file_bytes: int) -> dict[str, np.ndarray]:
    head = file.read(9)
    file.seek(0)
    if head[8:] == b"{":
        return _load_safetensors(file.read())
    if head.startswith(b"PK\3\4"):
        with zipfile.ZipFile(file) as archive:
            if is_npz(archive):
                return read_npz(archive, file_bytes)
    with _torch_file(file, file_bytes) as (found, read_storage):
        return _read_tensors(found, read_storage, file_bytes)


@contextlib.contextmanager
def _torch_file(file: io.BufferedReader, file_bytes: int) -> Iterator[tuple[Any, _ReadStorage]]:
    """The object in a file that torch.save wrote, and a function that reads its storages."""
    file.seek(0)  # opening it as a zip archive moves the position
    head = file.read(9)
    file.seek(0)
    if head.startswith(b"PK\3\4"):
        with zipfile.ZipFile(file) as archive:
            yield _open_zip(archive, file_bytes)
    elif head.startswith(b"\x80"):
        yield _open_legacy(file, file_bytes)
    else:
        raise WeightsError(f"not a checkpoint; it starts with {head!r}.")


def _load_safetensors(data: bytes) -> dict[str, np.ndarray]:
    # `safetensors.numpy` supports bfloat16 only in its later releases.
    dtypes = {name: dtype for _, name, dtype in DTYPES}
    arrays = {}
    for name, entry in safetensors.deserialize(data):
        if entry["dtype"] not in dtypes:
            raise WeightsError(f"{brief(name)} has the unsupported dtype {entry['dtype']}.")
        flat = np.frombuffer(entry["data"], dtypes[entry["dtype"]])
        arrays[name] = own(flat.reshape(entry["shape"]))
    if not arrays:
        raise WeightsError("holds no tensors.")
    return arrays


def _open_zip(archive: zipfile.ZipFile, file_bytes: int) -> tuple[Any, _ReadStorage]:
    def read_entry(name: str, limit: int) -> bytes:
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise WeightsError(f"entry {brief(name)} is compressed, expected none as torch writes.")
        if entry.file_size > limit:
            raise WeightsError(f"entry {brief(name)} claims {entry.file_size} bytes, over {limit}.")
        return archive.read(entry)

    names = archive.namelist()
    roots = [name[:-8] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise WeightsError(f"a zip archive with {len(roots)} entries NAME/data.pkl, not one.")
    root = roots[0]
    if f"{root}byteorder" in names and read_entry(f"{root}byteorder", 8) != b"little":
        raise WeightsError("was not written on a little-endian machine.")

    def read_storage(storage: Storage) -> bytes:
        data = read_entry(f"{root}data/{storage.key}", file_bytes)
        if len(data) != storage.nbytes:
            raise WeightsError(
                f"storage {brief(storage.key)} has {len(data)} bytes, not {storage.nbytes}."
            )
        return data

    pickled = read_entry(f"{root}data.pkl", min(file_bytes, _MAX_PICKLE_BYTES))
    return unpickle(io.BytesIO(pickled), {}), read_storage


def _open_legacy(file: io.BufferedReader, file_bytes: int) -> tuple[Any, _ReadStorage]:
    # Five pickles (magic number, protocol, system, object, storage keys), then the storages, each
    # preceded by its number of elements and always little-endian.
    pickles = io.BytesIO(file.read(min(file_bytes, _MAX_PICKLE_BYTES)))
    if unpickle(pickles, {}) != _LEGACY_MAGIC:
        raise WeightsError("a pickle, but not one that torch.save wrote.")
    storages: dict[str, Storage] = {}
    _protocol, _system, found, keys = (unpickle(pickles, storages) for _ in range(4))
    position = pickles.tell()
    positions = {}
    for storage in map(storages.__getitem__, map(expect_text, keys)):
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little")
        positions[storage.key] = position + 8
        position += 8 + storage.nbytes
        if numel != storage.numel or position > file_bytes:
            raise WeightsError(f"storage {brief(storage.key)} is cut short or not as declared.")

    def read_storage(storage: Storage) -> bytes:
        file.seek(positions[storage.key])
        return file.read(storage.nbytes)

    return found, read_storage


def _find_state(found: Any) -> dict[str, Tensor]:
    if not isinstance(found, dict):
        raise WeightsError(f"holds no state dict but {brief(found)}.")
    for state in (*(found.get(key) for key in _STATE_KEYS), found):
        if not isinstance(state, dict) or not any(isinstance(v, Tensor) for v in state.values()):
            continue
        others = [
            f"{brief(name)}: {brief(value)}"
            for name, value in state.items()
            if not (isinstance(name, str) and isinstance(value, Tensor))
        ]
        if others:
            raise WeightsError(f"the state dict has more than tensors:\n{list_some(others)}\n")
        return state
    keys = list_some([brief(key) for key in found]) or "  (none)"
    raise WeightsError(f"no state dict, whole or in {', '.join(_STATE_KEYS)}; keys:\n{keys}\n")


def _read_tensors(found: Any, read: _ReadStorage, file_bytes: int) -> dict[str, np.ndarray]:
    tensors = _find_state(found)
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _MAX_EXPANSION * file_bytes:
        raise WeightsError(f"claims {total} bytes of tensors in a file of {file_bytes} bytes.")
    # Entries of a zip file can overlap, and each of them would be read.
    stored = sum(storage.nbytes for storage in {x.storage for x in tensors.values()})
    if stored > file_bytes:
        raise WeightsError(f"claims {stored} bytes of storages in a file of {file_bytes} bytes.")
    arrays = {}
    # Group by storage, so that each is read once and only one is in memory at a time.
    by_storage = sorted(tensors.items(), key=lambda item: item[1].storage.key)
    for storage, group in itertools.groupby(by_storage, key=lambda item: item[1].storage):
        buffer = read(storage)
        arrays.update({name: tensor.copy_from(buffer) for name, tensor in group})
    return {name: arrays[name] for name in tensors}
