"""Read communication and arithmetic from the text of a compiled or lowered program.

`collectives` reads optimised HLO (`compiled.as_text()`), to which the partitioner has added them.
`products` reads StableHLO (`lowered.as_text()`), which has the types that the model asks for: a
CPU's compiler widens bfloat16.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import Any

# Collectives are in place before code generation, so that may be quick.
QUICK: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

HLO_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
HLO_ARRAY = re.compile(r"\b([a-z]+[a-z0-9]*)\[([\d,]*)\]")
PRODUCT = re.compile(
    r"stablehlo\.(dot_general|convolution)\b(.*) : \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>"
)
ALGORITHM = re.compile(r"lhs_precision_type = (\w+), rhs_precision_type = (\w+)")


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """Element type as the program writes it (f32, bf16, pred) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        width = re.search(r"\d+", self.dtype)  # pred has no width in its name
        bits = int(width[0]) if width else 8
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communicating operation: its kind, and the arrays that it returns."""

    kind: str
    arrays: tuple[ArrayType, ...]

    @property
    def bytes(self) -> int:
        return sum(x.bytes for x in self.arrays)


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product or a convolution.

    `multiplied` are the element types that the factors are rounded to before they are multiplied:
    the operands' own unless the operation names an algorithm.
    """

    kind: str
    operands: tuple[ArrayType, ArrayType]
    result: ArrayType
    multiplied: tuple[str, str]


def parse_arrays(text: str) -> list[ArrayType]:
    """The arrays of an HLO type, such as those of a tuple."""
    return [
        ArrayType(dtype, tuple(map(int, filter(None, shape.split(",")))))
        for dtype, shape in HLO_ARRAY.findall(text)
    ]


def collectives(text: str) -> list[Collective]:
    """The collectives of an HLO program in its order, each counted once, even inside a loop.

    An asynchronous collective counts at its start, with its results only.
    """
    found = []
    for line in text.splitlines():
        if match := HLO_OPERATION.match(line):
            result, kind, start = match.groups()
            arrays = parse_arrays(result)
            if start and kind != "all-reduce":
                # These starts return their operands, then the results, then their context.
                arrays = [x for x in arrays if x != ArrayType("u32", ())]
                arrays = arrays[len(arrays) // 2 :]
            found.append(Collective(kind, tuple(arrays)))
    return found


def bytes_by_kind(found: list[Collective]) -> dict[str, int]:
    """Bytes per device by kind of collective."""
    total: Counter[str] = Counter()
    for x in found:
        total[x.kind] += x.bytes
    return dict(total)


def products(text: str) -> list[Product]:
    """The matrix products and convolutions of a StableHLO program, in its order."""
    found = []
    for kind, options, *types in PRODUCT.findall(text):
        a, b, result = map(stablehlo_array, types)
        rounded = ALGORITHM.search(options)
        multiplied = (rounded[1], rounded[2]) if rounded else (a.dtype, b.dtype)
        found.append(Product(kind, (a, b), result, multiplied))
    return found


def stablehlo_array(text: str) -> ArrayType:
    """The array type of a tensor's inner text, such as "8x32xf32"."""
    *shape, dtype = text.split("x")
    return ArrayType(dtype, tuple(map(int, shape)))


def element_types(text: str) -> set[str]:
    """The element types of all tensors of a StableHLO program."""
    return set(re.findall(r"tensor<(?:\d+x)*([a-z]\w*)>", text))
