"""The pickle inside a torch checkpoint, interpreted as data without executing anything.

A pickle is a program. `unpickle` interprets it, accepts only the opcodes that torch writes for
data, and calls only the functions in `_GLOBALS`. `pickle.Unpickler` with a strict `find_class` is
not enough: it allocates memory for whatever memo index a damaged file names (gigabytes for ten
bytes), and a deeply nested tuple as a key overflows its C stack.
"""

import dataclasses
import io
import math
import pickletools
from typing import Any

import ml_dtypes
import numpy as np

from usam_jax.utils.errors import WeightsError

DTYPES: tuple[tuple[str, str, Any], ...] = (
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
# Names that a checkpoint may use outside its weights; they are read as `_IGNORED`.
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
# The number of stack entries that an opcode pops: fixed, or all down to the mark.
_NUM_TAKEN = {"APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "STACK_GLOBAL": 2}
_NUM_TAKEN |= {"REDUCE": 2, "NEWOBJ": 2, "BUILD": 1, "BINPERSID": 1, "STOP": 1}
_TAKES_TO_MARK = frozenset({"APPENDS", "SETITEMS", "ADDITEMS", "TUPLE", "FROZENSET"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Name prefixes of the opcodes whose argument is the value itself.
_VALUES = ("BININT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "BINBYTES", "BINSTRING", "SHORT_")


@dataclasses.dataclass(frozen=True)
class Storage:
    """A buffer of the checkpoint: its key in the file, dtype and number of elements."""

    key: str
    dtype: np.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, with `offset` and `strides` in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize

    def copy_from(self, buffer: bytes) -> np.ndarray:
        """The tensor as an array of its own, from the bytes of its storage."""
        dtype = self.storage.dtype
        if self.nbytes == 0:
            return np.zeros(self.shape, dtype)
        strides = [dtype.itemsize * stride for stride in self.strides]
        start = self.offset * dtype.itemsize
        return own(np.ndarray(self.shape, dtype, buffer, start, strides))


class _Ignored:
    """Stands for everything but weights: settings, numpy scalars, defaultdicts."""

    def __call__(self, *_arguments: object) -> "_Ignored":
        return self


_IGNORED = _Ignored()


def own(array: np.ndarray) -> np.ndarray:
    """A copy that owns its memory, with each byte but 0 of a bool array as True."""
    if array.dtype == np.bool_:  # a byte other than 0 and 1 is not a valid numpy bool
        return array.view(np.uint8).astype(np.bool_, order="C")
    return array.copy()


def brief(value: Any) -> str:
    """A short description of a value for messages."""
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"<{type(value).__name__.strip('_').lower()}>"


_SIMPLE = (str, int, float, bool, type(None))
_MAX_DEPTH = 20  # of nested containers; settings have a few levels


def plain_data(value: Any) -> Any:
    """Copy containers of text, numbers and None, without their other entries.

    Raises WeightsError for containers nested too deeply, or in themselves.
    """
    copies: dict[int, Any] = {}  # A pickle can name one container many times.

    def copy(value: Any, depth: int) -> Any:
        if isinstance(value, _SIMPLE):
            return value
        if depth > _MAX_DEPTH:
            raise WeightsError(f"has settings of more than {_MAX_DEPTH} levels.")
        if id(value) not in copies:
            if isinstance(value, dict):
                kept = {k: x for k, x in value.items() if isinstance(k, str) and is_plain(x)}
                copies[id(value)] = {k: copy(x, depth + 1) for k, x in kept.items()}
            else:
                copies[id(value)] = type(value)(copy(x, depth + 1) for x in value if is_plain(x))
        return copies[id(value)]

    def is_plain(value: Any) -> bool:
        return isinstance(value, (*_SIMPLE, dict, list, tuple))

    return copy(value, 0)


def _make_dict() -> dict[Any, Any]:
    return {}  # `dict` itself would hash its arguments


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_flags: Any) -> Tensor:
    # 64 dimensions and 63 bits: the limits of torch and numpy.
    numbers = (offset, *shape, *strides) if len(shape) == len(strides) <= 64 else ("mismatch",)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise WeightsError("a tensor has an invalid offset, shape or strides.")
    tensor = Tensor(storage, offset, tuple(shape), tuple(strides))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if tensor.nbytes and last >= storage.numel:
        raise WeightsError(f"a tensor of shape {shape} ends beyond its {storage.numel} elements.")
    return tensor


def _make_storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    kind, dtype, key, _device, numel, *view = identity[:7]
    is_typed = (kind, type(key), type(numel)) == ("storage", str, int)
    if not is_typed or not isinstance(dtype, np.dtype) or numel < 0 or view not in ([], [None]):
        raise WeightsError("describes a storage differently than torch does.")
    storage = Storage(key, dtype, numel)
    if storages.setdefault(key, storage) != storage:
        raise WeightsError(f"describes storage {brief(key)} twice and differently.")
    return storage


def expect_text(value: Any) -> str:
    """The value, if it is text. Raises WeightsError for other types."""
    # Called before each lookup, since other types can be slow or even fatal to hash.
    if not isinstance(value, str):
        raise WeightsError(f"has {brief(value)} instead of a name.")
    return value


def _find_global(module: Any, name: Any) -> Any:
    if (expect_text(module), expect_text(name)) not in _GLOBALS:
        raise WeightsError(f"names {brief(f'{module}.{name}')}, refused as not plain data.")
    return _GLOBALS[module, name]


def _fill(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        # Only text can name weights; `expect_text` says why other keys are not hashed.
        keys = [key if isinstance(key, str) else _IGNORED for key in items[::2]]
        target.update(zip(keys, items[1::2], strict=True))
    elif not isinstance(target, _Ignored):
        raise WeightsError(f"adds entries to {brief(target)}.")


def unpickle(file: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """Read the next object pickled in `file`, and add the storages it refers to to `storages`."""
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
                pass  # attributes that BUILD sets, such as `_metadata`, are not needed
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
                # Only values of `_GLOBALS` are callable here, and none takes many arguments.
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
    **{("torch", name): np.dtype(dtype) for name, _, dtype in DTYPES},
    **{("torch.storage", name): np.dtype(dtype) for name, _, dtype in DTYPES},
    **{(module, n): _IGNORED for module, names in _IGNORED_NAMES.items() for n in names.split()},
}
