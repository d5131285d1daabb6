"""Torch checkpoints to a network's variables and back, by a map of names that is data.

Each leaf of the variables names its tensor: the path without the collection, joined by dots, `_3` at
the end of a part read as `.3`, `kernel` and `scale` as `weight`, `mean` and `var` as `running_mean`
and `running_var`; then the rules of the map's `rename`, in order. Two leaves may name one tensor.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.models import variable_shapes
from usam_jax.utils.errors import WeightsError

StateDict = Mapping[str, np.ndarray]
Variables = dict[str, Any]
Rules = tuple[tuple[str, str], ...]

LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# What every map may leave out.
COUNTER = (r"num_batches_tracked$", "a counter of torch's BatchNorm that nothing reads")

# Layouts of a kernel in torch, each with the way there and the way here. Ours have channels last.
LAYOUTS = {
    "linear": (lambda x: x.T, lambda x: x.T),
    "conv": (
        lambda x: np.moveaxis(x, (-1, -2), (0, 1)),
        lambda x: np.moveaxis(x, (0, 1), (-1, -2)),
    ),
    # The kernel of a transposed convolution is flipped: torch scatters, lax correlates.
    "conv_transpose": (
        lambda x: np.moveaxis(_flip(x), (-2, -1), (0, 1)),
        lambda x: _flip(np.moveaxis(x, (0, 1), (-2, -1))),
    ),
    "as_is": (lambda x: x, lambda x: x),
}


def _flip(kernel: np.ndarray) -> np.ndarray:
    """The kernel [*s i o] with all spatial axes reversed."""
    return np.flip(kernel, tuple(range(kernel.ndim - 2)))


@dataclasses.dataclass(frozen=True)
class NameMap:
    """How the tensors of one published checkpoint become a network's variables.

    Patterns are regular expressions for `re.search`. Those of `layout`, `stacked`, `fresh` and
    `resized` are for our paths (`params/backbone/inc/conv/kernel`), the others for torch names.
    """

    source: str  # whose checkpoint it is, for messages
    rename: Rules = ()  # (pattern, replacement) on the default name, in order
    layout: Rules = ()  # (pattern, key of LAYOUTS); default: by name and number of axes
    stacked: str = ""  # leaves whose first axis runs over tensors; `{}` in the name is its index
    ignored: Rules = ()  # (pattern, reason): tensors of the file that are not read
    fresh: Rules = ()  # (pattern, reason): leaves that keep their initial values
    resized: str = ""  # tables that are resized linearly to the model's size
    file_names: Rules = ()  # (pattern, replacement) on the names of the file, before all else


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the model's variables and the torch tensors that it holds."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]  # one, or one for each index of a stacked leaf
    layout: str
    stacked: bool
    resizable: bool

    def from_torch(self, tensors: list[np.ndarray]) -> np.ndarray:
        """The array in this package's layout (channels last, kernels [h, w, in, out])."""
        arrays = [LAYOUTS[self.layout][1](np.asarray(x, np.float32)) for x in tensors]
        return np.stack(arrays) if self.stacked else arrays[0]

    def to_torch(self, array: np.ndarray) -> list[np.ndarray]:
        """The tensors in torch's layout, the inverse of `from_torch`."""
        return [LAYOUTS[self.layout][0](x) for x in (array if self.stacked else [array])]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        return self.to_torch(np.broadcast_to(np.float32(0), self.shape))[0].shape


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each tensor of a checkpoint, by its name there, and what stays fresh here.

    `constants` holds what `params` cannot: the fixed matrix of SAM's Fourier features.
    """

    source: str
    loaded: list[str]
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left: dict[str, str]
    fresh: list[str]
    constants: Variables

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors, {len(self.resized)} of them resized:"]
        lines += [f"  {name}: {a} -> {b}" for name, (a, b) in self.resized.items()]
        for reason in sorted(set(self.left.values())):
            names = [name for name, why in self.left.items() if why == reason]
            lines.append(
                f"left out {len(names)}: {reason} ({names[0]}{', ...' * (len(names) > 1)})"
            )
        lines.append(f"left at their initial values: {len(self.fresh)} tensors of the model")
        return "\n".join(lines)


def first_match(text: str, rules: Rules) -> str:
    """The second half of the first rule whose pattern is found in `text`; empty without one."""
    return next((value for pattern, value in rules if re.search(pattern, text)), "")


def torch_name(path: tuple[str, ...], name_map: NameMap) -> str:
    """The tensor that a leaf names; for a stacked leaf `{}` stands for its index."""
    *parts, leaf = path[1:]
    dotted = [re.sub(r"_(\d+)$", r".\1", part) for part in (*parts, leaf)]
    dotted[-1] = LEAF_NAMES.get(leaf, dotted[-1])
    return rename(".".join(dotted), name_map.rename)


def rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def make_leaf(path: tuple[str, ...], shape: tuple[int, ...], name_map: NameMap) -> Leaf:
    text, name = "/".join(path), torch_name(path, name_map)
    stacked = bool(name_map.stacked and re.search(name_map.stacked, text))
    axes = len(shape) - stacked
    default = {2: "linear", 4: "conv", 5: "conv"}.get(axes, "as_is")
    layout = first_match(text, name_map.layout) or (default if path[-1] == "kernel" else "as_is")
    names = tuple(name.format(i) for i in range(shape[0])) if stacked else (name,)
    resizable = bool(name_map.resized and re.search(name_map.resized, text))
    return Leaf(path, shape, names, layout, stacked, resizable)


def model_leaves(config: ConfigDict, name_map: NameMap) -> list[Leaf]:
    """Every array of the model that `config` (`config.model`) describes, without computing any."""
    return leaves_of(variable_shapes(config), name_map)


def leaves_of(shapes: Variables, name_map: NameMap) -> list[Leaf]:
    """A leaf for each array of `shapes` (anything with a shape), with its tensors' names."""
    flat = traverse_util.flatten_dict(shapes)
    return [make_leaf(path, value.shape, name_map) for path, value in flat.items()]


def wanted_names(leaves: list[Leaf], name_map: NameMap) -> set[str]:
    """The tensors that a checkpoint must have for a map."""
    return {name for leaf in leaves if not is_fresh(leaf, name_map) for name in leaf.names}


def is_fresh(leaf: Leaf, name_map: NameMap) -> bool:
    return bool(first_match("/".join(leaf.path), name_map.fresh))


def from_torch(
    state_dict: StateDict, name_map: NameMap, config: ConfigDict
) -> tuple[Variables, Report]:
    """The variables that a checkpoint holds, as numpy float32 arrays, and a report.

    They are complete unless the map leaves some fresh. Raises WeightsError that lists every
    missing, unknown and misshapen tensor.
    """
    tensors = {rename(name, name_map.file_names): x for name, x in state_dict.items()}
    problems, flat, resized = Problems(), {}, {}
    fresh: list[str] = []
    loaded: dict[str, None] = {}
    for leaf in model_leaves(config, name_map):
        if is_fresh(leaf, name_map):
            fresh += leaf.names
            continue
        if leaf.resizable and (name := leaf.names[0]) in tensors:
            before, shape = tensors[name], leaf.torch_shape
            if before.shape != shape and is_resizable(before.shape, shape):
                tensors[name] = resize(before, shape)
                resized[name] = (before.shape, shape)
        if found := problems.check(leaf, tensors):
            flat[leaf.path] = leaf.from_torch(found)
            loaded |= dict.fromkeys(leaf.names)
    left = {
        name: first_match(name, name_map.ignored) for name in tensors if name not in problems.used
    }
    problems.unknown += [name for name, reason in left.items() if not reason]
    problems.raise_any(name_map.source, config)
    tree = traverse_util.unflatten_dict(flat)
    constants = tree.get("constants", {})
    return tree, Report(name_map.source, list(loaded), resized, left, fresh, constants)


def to_torch(variables: Variables, name_map: NameMap, config: ConfigDict) -> dict[str, np.ndarray]:
    """A model's tensors under their published names and layouts: all that `from_torch` reads."""
    flat, tensors = traverse_util.flatten_dict(variables), {}
    for leaf in model_leaves(config, name_map):
        arrays = leaf.to_torch(np.asarray(flat[leaf.path]))
        for name, array in zip(leaf.names, arrays, strict=True):
            tensors[name] = np.ascontiguousarray(array)
    return tensors


def best_map(state_dict: StateDict, maps: tuple[NameMap, ...], config: ConfigDict) -> NameMap:
    """The map that reads most of a file's names and misses fewest; the first one if all are equal."""

    shapes = variable_shapes(config)

    def score(name_map: NameMap) -> int:
        names = {rename(name, name_map.file_names) for name in state_dict}
        wanted = wanted_names(leaves_of(shapes, name_map), name_map)
        return len(names & wanted) - len(wanted - names)

    return max(maps, key=score)


class Problems:
    """Collects what is wrong with a checkpoint, to be raised once."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.unknown: list[str] = []
        self.misshapen: list[str] = []

    def check(self, leaf: Leaf, tensors: StateDict) -> list[np.ndarray]:
        """The leaf's tensors, or nothing if one is missing or misshapen."""
        new = [name for name in leaf.names if name not in self.used]
        self.used.update(leaf.names)
        absent = [name for name in leaf.names if name not in tensors]
        wrong = [
            name
            for name in leaf.names
            if name in tensors and tensors[name].shape != leaf.torch_shape
        ]
        self.missing += [name for name in absent if name in new]
        self.misshapen += [
            f"{name}: got {tensors[name].shape}, expected {leaf.torch_shape}" for name in wrong
        ]
        return [] if absent or wrong else [tensors[name] for name in leaf.names]

    def raise_any(self, source: str, config: ConfigDict) -> None:
        kinds = {"missing": self.missing, "unknown": self.unknown, "misshapen": self.misshapen}
        found = ["\n  ".join([f"{len(v)} {kind}:", *v]) for kind, v in kinds.items() if v]
        if found:
            fields = ", ".join(f"{name} = {value}" for name, value in config.items())
            raise WeightsError(
                f"these weights are not those of {source} with config.model: {fields}\n"
                + "\n".join(found)
                + "\nCheck config.model against the file."
            )


def is_resizable(before: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether two tables differ in their positions alone, not in rank or channels."""
    return len(before) == len(shape) and before[-1] == shape[-1]


def resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Linear resizing with half-pixel centres and without antialiasing, as torch's interpolate."""
    resized = jax.image.resize(jnp.asarray(table, jnp.float32), shape, "linear", antialias=False)
    return np.asarray(resized)
