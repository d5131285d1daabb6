"""Torch checkpoints and safetensors read as numpy arrays, without torch.

A checkpoint is a pickle, and a pickle is a program. `_unpickle` steps through it, knows only what
torch writes for data, and calls only the functions in `_GLOBALS`. `pickle.Unpickler` with a strict
`find_class` would not do: it reserves memory for whatever memo index a damaged file names
(gigabytes for ten bytes), and a deeply nested tuple as a key overflows its C stack.
"""

import dataclasses
import io
import itertools
import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from usam_jax.errors import WeightsError, list_some

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "net", "module")
# A tensor takes some 200 bytes of pickle: far more than any model has.
_MAX_PICKLE_BYTES = 16 << 20
# Tied weights repeat a storage and expanded ones repeat an element; honest files do little of it.
_MAX_EXPANSION = 4
_ADVICE = (
    "Expected a torch checkpoint or a .safetensors file of plain tensors. Check the download or, "
    "where you trust the file, load it with torch and run torch.save(model.state_dict(), PATH)."
)

_DTYPES: tuple[tuple[str, str, Any], ...] = (
    ("DoubleStorage", "F64", np.float64),
    ("FloatStorage", "F32", np.float32),
    ("HalfStorage", "F16", np.float16),
    ("BFloat16Storage", "BF16", ml_dtypes.bfloat16),
    ("LongStorage", "I64", np.int64),
    ("IntStorage", "I32", np.int32),
    ("ShortStorage", "I16", np.int16),
    ("CharStorage", "I8", np.int8),
    ("ByteStorage", "U8", np.uint8),
    ("UntypedStorage", "U8", np.uint8),
    ("BoolStorage", "BOOL", np.bool_),
)
# What a checkpoint may name beside its weights; nothing is made of it.
_IGNORED_NAMES = {
    "torch": "Size device float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool",
    "torch.torch_version": "TorchVersion",
    "argparse": "Namespace",
    "collections": "defaultdict Counter",
    "pathlib": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePosixPath PureWindowsPath",
    "builtins": "set frozenset dict list tuple str bytes bytearray int float bool complex",
    "__builtin__": "set frozenset dict list tuple str unicode bytearray int float bool complex",
    "_codecs": "encode",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
}
# How many entries of the stack an opcode takes, where it takes any: a fixed number, or to the mark.
_NUM_TAKEN = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "STACK_GLOBAL": 2}
_NUM_TAKEN |= {"REDUCE": 2, "NEWOBJ": 2, "BUILD": 1, "BINPERSID": 1, "STOP": 1}
_TAKES_TO_MARK = frozenset({"APPENDS", "SETITEMS", "ADDITEMS", "TUPLE", "FROZENSET"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# The beginnings of the names of the opcodes whose argument is itself the value.
_VALUES = ("BININT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "BINBYTES", "BINSTRING", "SHORT_")


@dataclasses.dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def copy_from(self, buffer: bytes) -> np.ndarray:
        dtype = self.storage.dtype
        if self.nbytes == 0:
            return np.zeros(self.shape, dtype)
        strides = [dtype.itemsize * stride for stride in self.strides]
        start = self.offset * dtype.itemsize
        return _own(np.ndarray(self.shape, dtype, buffer, start, strides))


class _Ignored:
    """Stands for all that is not weights: settings, numpy scalars, defaultdicts."""

    def __call__(self, *_arguments: object) -> "_Ignored":
        return self


_IGNORED = _Ignored()
_ReadStorage = Callable[[_Storage], bytes]


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights of a torch checkpoint or safetensors file, running nothing that is in it.

    The state dict is the file's entry "model", "state_dict", "model_state_dict", "net" or "module",
    else the file's whole object; the prefix "module." goes where all names have it. The arrays have
    the tensors' shapes and dtypes (bfloat16 is that of ml_dtypes) and own their memory. Raises
    `WeightsError` for a file that is missing, damaged, more than plain data, or without weights.
    """
    try:
        with Path(path).open("rb") as file:
            arrays = _load_by_content(file, os.fstat(file.fileno()).st_size)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error} {_ADVICE}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise WeightsError(f"{path}: {error.strerror}; check the path. {_ADVICE}") from error
    except Exception as error:  # damage shows up as nearly any error, MemoryError among them
        found = f"cannot be read ({type(error).__name__}: {str(error)[:200]})"
        raise WeightsError(f"{path}: {found}; is it damaged or cut short? {_ADVICE}") from error
    if all(name.startswith("module.") for name in arrays):  # from DistributedDataParallel
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def _load_by_content(file: io.BufferedReader, file_bytes: int) -> dict[str, np.ndarray]:
    head = file.read(9)
    file.seek(0)
    if head[8:] == b"{":
        return _load_safetensors(file.read())
    if head.startswith(b"PK\3\4"):
        with zipfile.ZipFile(file) as archive:
            return _read_tensors(*_open_zip(archive, file_bytes), file_bytes)
    if head.startswith(b"\x80"):
        return _read_tensors(*_open_legacy(file, file_bytes), file_bytes)
    raise WeightsError(f"no checkpoint; it starts with {head!r}.")


def _load_safetensors(data: bytes) -> dict[str, np.ndarray]:
    # `safetensors.numpy` knows bfloat16 only in its later releases.
    dtypes = {name: dtype for _, name, dtype in _DTYPES}
    arrays = {}
    for name, entry in safetensors.deserialize(data):
        if entry["dtype"] not in dtypes:
            raise WeightsError(f"{_brief(name)} has the unsupported dtype {entry['dtype']}.")
        flat = np.frombuffer(entry["data"], dtypes[entry["dtype"]])
        arrays[name] = _own(flat.reshape(entry["shape"]))
    if not arrays:
        raise WeightsError("holds no tensors.")
    return arrays


def _open_zip(archive: zipfile.ZipFile, file_bytes: int) -> tuple[Any, _ReadStorage]:
    def read_entry(name: str, limit: int) -> bytes:
        entry = archive.getinfo(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise WeightsError(f"entry {_brief(name)} is compressed, which torch never does.")
        if entry.file_size > limit:
            raise WeightsError(
                f"entry {_brief(name)} claims {entry.file_size} bytes, over {limit}."
            )
        return archive.read(entry)

    names = archive.namelist()
    roots = [name[:-8] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise WeightsError(f"a zip archive with {len(roots)} entries NAME/data.pkl, not one.")
    root = roots[0]
    if f"{root}byteorder" in names and read_entry(f"{root}byteorder", 8) != b"little":
        raise WeightsError("was not written on a little-endian machine.")

    def read_storage(storage: _Storage) -> bytes:
        data = read_entry(f"{root}data/{storage.key}", file_bytes)
        if len(data) != storage.nbytes:
            raise WeightsError(
                f"storage {_brief(storage.key)} has {len(data)} bytes, not {storage.nbytes}."
            )
        return data

    pickled = read_entry(f"{root}data.pkl", _MAX_PICKLE_BYTES)
    return _unpickle(io.BytesIO(pickled), {}), read_storage


def _open_legacy(file: io.BufferedReader, file_bytes: int) -> tuple[Any, _ReadStorage]:
    # Five pickles (magic number, protocol, system, object, storage keys), then the storages, each
    # after its number of elements and always little-endian.
    pickles = io.BytesIO(file.read(min(file_bytes, _MAX_PICKLE_BYTES)))
    if _unpickle(pickles, {}) != _LEGACY_MAGIC:
        raise WeightsError("a pickle, but not one that torch.save wrote.")
    storages: dict[str, _Storage] = {}
    _protocol, _system, found, keys = (_unpickle(pickles, storages) for _ in range(4))
    position = pickles.tell()
    positions = {}
    for storage in map(storages.__getitem__, map(_expect_text, keys)):
        file.seek(position)
        numel = int.from_bytes(file.read(8), "little")
        positions[storage.key] = position + 8
        position += 8 + storage.nbytes
        if numel != storage.numel or position > file_bytes:
            raise WeightsError(f"storage {_brief(storage.key)} is cut short or not as declared.")

    def read_storage(storage: _Storage) -> bytes:
        file.seek(positions[storage.key])
        return file.read(storage.nbytes)

    return found, read_storage


def _find_state(found: Any) -> dict[str, _Tensor]:
    if not isinstance(found, dict):
        raise WeightsError(f"holds no state dict but {_brief(found)}.")
    for state in (*(found.get(key) for key in _STATE_KEYS), found):
        if not isinstance(state, dict) or not any(isinstance(v, _Tensor) for v in state.values()):
            continue
        others = [
            f"{_brief(name)}: {_brief(value)}"
            for name, value in state.items()
            if not (isinstance(name, str) and isinstance(value, _Tensor))
        ]
        if others:
            raise WeightsError(f"the state dict has more than tensors:\n{list_some(others)}\n")
        return state
    keys = list_some([_brief(key) for key in found]) or "  (none)"
    raise WeightsError(f"no state dict, whole or in {', '.join(_STATE_KEYS)}; keys:\n{keys}\n")


def _read_tensors(found: Any, read: _ReadStorage, file_bytes: int) -> dict[str, np.ndarray]:
    tensors = _find_state(found)
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _MAX_EXPANSION * file_bytes:
        raise WeightsError(f"claims {total} bytes of tensors in a file of {file_bytes} bytes.")
    arrays = {}
    # Storage by storage, so that each is read once and one is held at a time.
    by_storage = sorted(tensors.items(), key=lambda item: item[1].storage.key)
    for storage, group in itertools.groupby(by_storage, key=lambda item: item[1].storage):
        buffer = read(storage)
        arrays.update({name: tensor.copy_from(buffer) for name, tensor in group})
    return {name: arrays[name] for name in tensors}


def _own(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.bool_:  # a byte other than 0 and 1 is no valid numpy bool
        return array.view(np.uint8).astype(np.bool_, order="C")
    return array.copy()


def _brief(value: Any) -> str:
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"<{type(value).__name__.strip('_').lower()}>"


def _make_dict() -> dict[Any, Any]:
    return {}  # `dict` itself would hash what it is given


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_flags: Any) -> _Tensor:
    # 64 dimensions and 63 bits: the limits of torch and numpy.
    numbers = (offset, *shape, *strides) if len(shape) == len(strides) <= 64 else ("mismatch",)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise WeightsError("a tensor has an offset, shape or strides that make no sense.")
    tensor = _Tensor(storage, offset, tuple(shape), tuple(strides))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if tensor.nbytes and last >= storage.numel:
        raise WeightsError(f"a tensor of shape {shape} ends beyond its {storage.numel} elements.")
    return tensor


def _make_storage(identity: Any, storages: dict[str, _Storage]) -> _Storage:
    kind, dtype, key, _device, numel, *view = identity[:7]
    is_typed = (kind, type(key), type(numel)) == ("storage", str, int)
    if not is_typed or not isinstance(dtype, np.dtype) or numel < 0 or view not in ([], [None]):
        raise WeightsError("describes a storage in another way than torch does.")
    storage = _Storage(key, dtype, numel)
    if storages.setdefault(key, storage) != storage:
        raise WeightsError(f"describes storage {_brief(key)} in two ways.")
    return storage


def _expect_text(value: Any) -> str:
    # Asked before a value is looked up, since other types can be slow or even fatal to hash.
    if not isinstance(value, str):
        raise WeightsError(f"has {_brief(value)} in the place of a name.")
    return value


def _find_global(module: Any, name: Any) -> Any:
    if (_expect_text(module), _expect_text(name)) not in _GLOBALS:
        raise WeightsError(f"names {_brief(f'{module}.{name}')}, refused as not plain data.")
    return _GLOBALS[module, name]


def _fill(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        # Only text can name weights; for the rest see `_expect_text`.
        keys = [key if isinstance(key, str) else _IGNORED for key in items[::2]]
        target.update(zip(keys, items[1::2], strict=True))
    elif not isinstance(target, _Ignored):
        raise WeightsError(f"adds entries to {_brief(target)}.")


def _unpickle(file: io.BytesIO, storages: dict[str, _Storage]) -> Any:
    """The next object pickled in `file`; the storages that it refers to go into `storages`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        is_to_mark = opcode.name in _TAKES_TO_MARK
        num_taken = len(stack) - marks.pop() if is_to_mark else _NUM_TAKEN.get(opcode.name, 0)
        taken = [stack.pop() for _ in range(num_taken)][::-1]
        match opcode.name:
            case "PROTO" | "FRAME" | "BUILD":
                pass  # what BUILD sets, such as a state dict's `_metadata`, is not needed
            case "STOP":
                return taken[0]
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS":
                _fill(stack[-1], taken)
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE" | "FROZENSET":
                stack.append(tuple(taken))
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "GLOBAL" | "STACK_GLOBAL":
                stack.append(_find_global(*(taken or argument.split(" ", 1))))
            case "REDUCE" | "NEWOBJ":
                # Nothing but a value of `_GLOBALS` is callable here, and none takes many arguments.
                stack.append(taken[0](*taken[1][:64]))
            case "BINPERSID":
                stack.append(_make_storage(taken[0], storages))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name.startswith(_VALUES):
                stack.append(argument)
            case name:
                raise WeightsError(f"has the pickle opcode {name}, which torch does not write.")
    raise WeightsError("has a pickle without an end.")


_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_flags: data,
    ("collections", "OrderedDict"): _make_dict,
    **{("torch", name): np.dtype(dtype) for name, _, dtype in _DTYPES},
    **{("torch.storage", name): np.dtype(dtype) for name, _, dtype in _DTYPES},
    **{(module, n): _IGNORED for module, names in _IGNORED_NAMES.items() for n in names.split()},
}
