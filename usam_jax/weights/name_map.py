"""Torch checkpoints to a network's variables and back, by a declarative map of names.

The default name of a leaf's tensor is its path without the collection, joined by dots, with a final
`_3` of a component written as `.3`, `kernel` and `scale` as `weight`, and `mean` and `var` as
`running_mean` and `running_var`. The rules of the map's `rename` then apply in order. Two leaves
may name the same tensor.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.models import variable_shapes
from usam_jax.models.common.spec import InputSpec
from usam_jax.utils.errors import WeightsError
from usam_jax.weights.problems import Problems, StateDict

Variables = dict[str, Any]
Rules = tuple[tuple[str, str], ...]
Renaming = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# A rule of `NameMap.ignored` for any network with BatchNorm.
COUNTER = (r"num_batches_tracked$", "a counter of torch's BatchNorm that nothing reads")

# Kernel layouts of torch: (to torch, from torch). Kernels of this package are [*s, in, out].
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
    """Reverse all spatial axes of a kernel [*s, in, out]."""
    return np.flip(kernel, tuple(range(kernel.ndim - 2)))


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The map from the tensors of one published checkpoint to a network's variables.

    Patterns are regular expressions for `re.search`. Those of `layout`, `stacked`, `joined`,
    `fresh` and `resized` match paths of this package (`params/backbone/inc/conv/kernel`), the others match
    torch names.
    """

    source: str  # origin of the checkpoint, for messages
    rename: Renaming = ()  # (pattern, replacement) on the default name, in order
    layout: Rules = ()  # (pattern, key of LAYOUTS); default: by name and number of axes
    stacked: str = ""  # leaves whose first axis runs over tensors; `{}` in the name is its index
    # (pattern, parts): leaves whose last axis is made of several tensors, `{}` in the name a part.
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ignored: Rules = ()  # (pattern, reason): tensors of the file that are not read
    fresh: Rules = ()  # (pattern, reason): leaves that keep their initial values
    resized: str = ""  # tables that are resized linearly to the model's image size
    # (table, shape) -> the table resized, if not by half-pixel centres.
    resize: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None
    # (name, tensor) -> the tensor with the axes that `layout` expects.
    read: Callable[[str, np.ndarray], np.ndarray] = lambda _name, tensor: tensor
    file_names: Renaming = ()  # (pattern, replacement) on the names of the file, before the rest
    file: str = ""  # pattern of the file's name, if names of tensors do not tell its origin
    unit_input: str = ""  # first layer if it was trained on grey in [0, 1], not normalised
    refused: Rules = ()  # (pattern, reason): a tensor that shows a file that cannot be read


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the model's variables and the torch tensors that it is made of."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]  # one, or one for each index of a stacked and part of a joined leaf
    layout: str
    stacked: bool
    resizable: bool

    def from_torch(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Return the array in this package's layout, float32 with kernels [*s, in, out]."""
        arrays = [LAYOUTS[self.layout][1](np.asarray(x, np.float32)) for x in tensors]
        return np.stack(arrays) if self.stacked else np.concatenate(arrays, axis=-1)

    def to_torch(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the tensors in torch's layout, the inverse of `from_torch`."""
        parts = array if self.stacked else np.split(array, len(self.names), axis=-1)
        return [LAYOUTS[self.layout][0](x) for x in parts]

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape of each of the leaf's tensors in torch."""
        return self.to_torch(np.broadcast_to(np.float32(0), self.shape))[0].shape


@dataclasses.dataclass(frozen=True)
class Report:
    """Report of what was done with each tensor of a checkpoint, by torch name.

    `resized` gives the shapes before and after, `left` the reason why a tensor was not read.
    `fresh` lists the model's tensors that are not read and keep their values. `constants` holds variables
    outside `params`: the fixed matrix of SAM's Fourier features.
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
        lines.append(f"not read: {len(self.fresh)} tensors of the model, which keep their values")
        return "\n".join(lines)


def first_match(text: str, rules: Rules) -> str:
    """Return the value of the first rule whose pattern is found in `text`, or ""."""
    return next((value for pattern, value in rules if re.search(pattern, text)), "")


def torch_name(path: tuple[str, ...], name_map: NameMap) -> str:
    """Return the torch name of a leaf, with `{}` for the index or part of several tensors."""
    dotted = [re.sub(r"_(\d+)$", r".\1", component) for component in path[1:]]
    dotted[-1] = LEAF_NAMES.get(path[-1], dotted[-1])
    return rename(".".join(dotted), name_map.rename)


def rename(name: str, rules: Renaming) -> str:
    """Apply all rules to a name, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def make_leaf(path: tuple[str, ...], shape: tuple[int, ...], name_map: NameMap) -> Leaf:
    """Return the leaf at `path` with the tensors and the layout that the map gives it."""
    text, name = "/".join(path), torch_name(path, name_map)
    stacked = bool(name_map.stacked and re.search(name_map.stacked, text))
    axes = len(shape) - stacked
    default = {2: "linear", 4: "conv", 5: "conv"}.get(axes, "as_is")
    layout = first_match(text, name_map.layout) or (default if path[-1] == "kernel" else "as_is")
    parts = next((x for pattern, x in name_map.joined if re.search(pattern, text)), ("",))
    names = tuple(name.format(x) for x in (range(shape[0]) if stacked else parts))
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
    """Return whether a leaf keeps its initial values."""
    return bool(first_match("/".join(leaf.path), name_map.fresh))


def read_tensors(state_dict: StateDict, name_map: NameMap) -> dict[str, np.ndarray]:
    """Return the tensors of a file by the names, and with the axes, that a map expects."""
    renamed = {rename(name, name_map.file_names): x for name, x in state_dict.items()}
    return {name: name_map.read(name, x) for name, x in renamed.items()}


def from_torch(
    state_dict: StateDict, name_map: NameMap, config: ConfigDict
) -> tuple[Variables, Report]:
    """Return the variables of a checkpoint, as numpy float32 arrays, and a report.

    They are complete unless the map leaves some at their initial values. Raises a WeightsError that
    names missing, unknown, misshapen and non-finite tensors.
    """
    tensors = read_tensors(state_dict, name_map)
    for name in tensors:
        if reason := first_match(name, name_map.refused):
            raise WeightsError(f"got {name_map.source} with {name}, {reason}")
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
                tensors[name] = (name_map.resize or resize)(before, shape)
                resized[name] = (before.shape, shape)
        if usable := problems.check(leaf.names, leaf.torch_shape, tensors):
            flat[leaf.path] = leaf.from_torch(usable)
            loaded |= dict.fromkeys(leaf.names)
    left = {
        name: first_match(name, name_map.ignored) for name in tensors if name not in problems.used
    }
    problems.unknown += [name for name, reason in left.items() if not reason]
    problems.raise_any(name_map.source, config)
    if name_map.unit_input:
        normalise_input(flat, name_map.unit_input, models.get(config.name).at(config).input)
    tree = traverse_util.unflatten_dict(flat)
    constants = tree.get("constants", {})
    return tree, Report(name_map.source, list(loaded), resized, left, fresh, constants)


def normalise_input(flat: dict[tuple[str, ...], np.ndarray], layer: str, given: InputSpec) -> None:
    """Make the first layer, which took grey in [0, 1], take what the network feeds it.

    It is a convolution without padding at the path `layer`, so the result is the same for
    `n = (x - mean) / std`: the kernel times std, and the bias plus mean times the kernel's sum.
    """
    path = tuple(layer.split("/"))
    kernel = flat[*path, "kernel"]
    flat[*path, "bias"] = flat[*path, "bias"] + given.mean * kernel.sum((0, 1, 2))
    flat[*path, "kernel"] = kernel * np.float32(given.std)


def to_torch(variables: Variables, name_map: NameMap, config: ConfigDict) -> dict[str, np.ndarray]:
    """Return the tensors that `from_torch` reads, under their published names and layouts."""
    flat, tensors = traverse_util.flatten_dict(variables), {}
    for leaf in model_leaves(config, name_map):
        if is_fresh(leaf, name_map):
            continue
        arrays = leaf.to_torch(np.asarray(flat[leaf.path]))
        for name, array in zip(leaf.names, arrays, strict=True):
            tensors[name] = np.ascontiguousarray(array)
    return tensors


def is_resizable(before: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether two table shapes have the same rank and number of channels."""
    return len(before) == len(shape) and before[-1] == shape[-1]


def resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Resize linearly, with half-pixel centres and no antialiasing, as torch's interpolate."""
    resized = jax.image.resize(jnp.asarray(table, jnp.float32), shape, "linear", antialias=False)
    return np.asarray(resized)
