"""Initial weights of a run: from a file of any known format, or from another run."""

import functools
import pathlib
import re
from collections.abc import Iterable

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.io import torch_checkpoint
from usam_jax.models import make_config, variable_shapes
from usam_jax.models.common import registry
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.files import checksum
from usam_jax.weights import run_checkpoint
from usam_jax.weights.fit import find_fit, shared_prefixes, strip
from usam_jax.weights.maps import find_maps, maps_of
from usam_jax.weights.name_map import (
    Leaf,
    NameMap,
    Report,
    Variables,
    from_torch,
    is_fresh,
    is_resizable,
    leaves_of,
    read_tensors,
    rename,
    to_torch,
    wanted_names,
)
from usam_jax.weights.problems import Problems, StateDict

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


def from_published(state_dict: StateDict, config: ConfigDict) -> Variables:
    """Return all variables of a network from its published checkpoint, as numpy float32.

    `config` is `config.model`. Raises a WeightsError that names missing, unknown,
    misshapen and non-finite tensors, and UsageError if the network has no map of names.
    """
    fit = find_fit(state_dict, maps_of(config.name)[:1], config)
    return from_torch(fit.tensors, fit.name_map, config)[0]


def to_published(variables: Variables, config: ConfigDict) -> dict[str, np.ndarray]:
    """Return the tensors that `from_published` reads, under their published names and layouts.

    Tensors of the published model that affect no output are absent: load with strict=False.
    """
    return to_torch(variables, maps_of(config.name)[0], config)


def from_usam(state_dict: StateDict, config: ConfigDict) -> Variables:
    """Return `from_published` for U-SAM, whose names may lack the prefix `sam.`."""
    return from_published(state_dict, config)


def from_sam(state_dict: StateDict, config: ConfigDict) -> tuple[Variables, Report]:
    """Return the part of the `params` of U-SAM or S that SAM initializes, and a report.

    `state_dict` has SAM's own names or those of the Hugging Face hub. `pos_embed` and the relative
    positions of the global blocks are resized to the model's image size. The fixed matrix of the
    Fourier features is not a parameter, so it is in `report.constants`.

    Raises a WeightsError that names missing, unknown, misshapen and non-finite tensors, and
    UsageError if the network has no weights of SAM.
    """
    maps = maps_of(config.name)[1:]
    if not maps:
        raise UsageError(
            f"config.model.name: got {config.name}, expected a network with a map of SAM's names"
        )
    fit = find_fit(state_dict, maps, config)
    tree, report = from_torch(fit.tensors, fit.name_map, config)
    return tree["params"], report


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """Return arrays by path (`params/head/kernel`), the names in this package's safetensors."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def load_initial(config: ConfigDict, variables: Variables) -> Variables:
    """Return `variables` updated from `config.init_from`.

    Raises WeightsError as `read_initial` does.
    """
    flat = traverse_util.flatten_dict(variables)
    flat |= traverse_util.flatten_dict(read_initial(config))
    return traverse_util.unflatten_dict(flat)


def read_initial(config: ConfigDict) -> Variables:
    """Return the variables, all or some, that `config.init_from` holds.

    It is "", a workdir, a weights file, or several files joined by commas, of which later ones
    replace what earlier ones hold. Raises WeightsError if a file does not exist or does not fit the
    model.
    """
    flat: Variables = {}
    for path in initial_files(config):
        try:
            if path.is_dir():
                step, loaded = run_checkpoint.load_best(path, config.model)
                console.info(f"{path}: all weights of its best checkpoint, step {step}")
            else:
                loaded, summary = read_weights(path, config.model)
                console.info(f"{path}: {summary}; sha256 {checksum(path)}")
        except WeightsError as error:
            raise WeightsError(f"config.init_from: {error}") from error
        flat |= traverse_util.flatten_dict(loaded)
    return traverse_util.unflatten_dict(flat)


def initial_files(config: ConfigDict) -> list[pathlib.Path]:
    """Return the paths in `config.init_from`: one if it exists, else those between its commas."""
    given = config.init_from
    names = [given] if pathlib.Path(given).exists() else given.split(",")
    return [pathlib.Path(name) for name in names if name]


def read_weights(path: pathlib.Path, config: ConfigDict) -> tuple[Variables, str]:
    """Return the variables in a file, all or some, and a summary of its content.

    The format (this package's safetensors or a torch checkpoint of any map) is detected from the
    names. Raises WeightsError if the file does not fit the model.
    """
    if shard := SHARD.search(path.name):
        raise WeightsError(
            f"{path}: got shard {int(shard[1])} of {int(shard[2])}, expected the index of all shards. "
            f"Give the file NAME.index.json next to it."
        )
    tensors = torch_checkpoint.load(path)
    hint = ""
    try:
        if any(name.startswith("params/") for name in tensors):
            return from_flat(tensors, config), f"{len(tensors)} arrays of this package"
        fit = find_fit(tensors, maps_for(path, config.name), config)
        tree, report = from_torch(fit.tensors, fit.name_map, config)
    except WeightsError as error:
        if not any(name.startswith("params/") for name in tensors):
            hint = name_source(tensors, path, config) or name_version(tensors, path, config)
        raise WeightsError(f"{path}: {hint or error}") from error
    return tree, f"{fit}, {report if report.fresh else 'complete'}"


def maps_for(path: pathlib.Path, network: str) -> tuple[NameMap, ...]:
    """Return the maps of a network that can be those of a file, the ones for its name first."""
    maps = maps_of(network)
    named = [x for x in maps if x.file and re.search(x.file, path.name, re.IGNORECASE)]
    return (*named, *(x for x in maps if not x.file))


def name_source(tensors: StateDict, path: pathlib.Path, config: ConfigDict) -> str:
    """An error that names what a file holds and what would fit, if it is for other networks."""
    found: dict[str, tuple[int, list[str]]] = {}
    stripped = [strip(tensors, x) for x in shared_prefixes(list(tensors))]

    for network in registry.names():
        leaves_by_map = default_leaves(network)
        for name_map in maps_for(path, network):
            names = wanted_names(leaves_by_map[name_map.source], name_map)
            # Published names as they are: those of S without their prefix are SAM's.
            rules = () if name_map is maps_of(network)[0] else name_map.file_names
            if any(names <= {rename(name, rules) for name in x} for x in stripped):
                found.setdefault(name_map.source, (len(names), []))[1].append(network)
    source = max(found, key=lambda x: found[x][0], default="")
    if not source or config.name in found[source][1]:
        return ""
    expected = ", ".join(x.source for x in maps_of(config.name))
    return (
        f"got weights of {source}, expected ones of the network {registry.short_name(config.name)}: "
        f"{expected}. Give one of these, or --config=configs/NAME.py:{' or '.join(found[source][1])}"
    )


def describe_other(source: str, network: str, config: ConfigDict) -> str:
    """The error for weights of another network than that of the config."""
    return (
        f"got weights of {source}, expected ones of the network {registry.short_name(config.name)}. "
        f"Give --config=configs/NAME.py:{network}"
    )


def name_flat_source(arrays: StateDict, config: ConfigDict) -> str:
    """An error that names the network of this package's arrays, if it is another one.

    Variants of a network differ in the number of their blocks, so numbers do not count.
    """

    def kinds(names: Iterable[str]) -> set[str]:
        return {re.sub(r"\d+", "#", name) for name in names}

    def overlap(model: ConfigDict) -> float:
        shapes = variable_shapes(model)
        wanted = set(traverse_util.flatten_dict(shapes, sep="/"))
        sets = [kinds(wanted - fresh) for fresh in (set(), *fresh_parts(model.name, shapes))]
        return max(len(names & found) / len(names | found) for names in sets)

    found = kinds(arrays)
    fits = {config.name: overlap(config)}
    if fits[config.name] < 1:
        others = (x for x in registry.names() if x != config.name)
        fits |= {network: overlap(make_config(network)) for network in others}
    network = max(fits, key=lambda x: fits[x])
    if network == config.name:
        return ""
    return describe_other(f"the network {network}", network, config)


def name_version(tensors: StateDict, path: pathlib.Path, config: ConfigDict) -> str:
    """An error that names the version whose weights a file holds, if it is another one."""
    for fields in registry.get(config.name).versions:
        given = {name: config[name] for name in fields}
        if given == fields:
            continue
        shapes = variable_shapes(ConfigDict(config.to_dict() | dict(fields)))
        for name_map in maps_for(path, config.name):
            if fits(tensors, leaves_of(shapes, name_map), name_map):
                flags = " ".join(f"--config.model.{name}={x}" for name, x in fields.items())
                return (
                    f"got weights of {name_map.source} for config.model with {dict(fields)}, "
                    f"expected {given}. Give {flags}"
                )
    return ""


def fits(tensors: StateDict, leaves: list[Leaf], name_map: NameMap) -> bool:
    """Return whether tensors have the names and shapes that leaves want, or can be resized."""
    tensors = read_tensors(tensors, name_map)
    return all(
        name in tensors
        and (
            tensors[name].shape == leaf.torch_shape
            or (leaf.resizable and is_resizable(tensors[name].shape, leaf.torch_shape))
        )
        for leaf in leaves
        if not is_fresh(leaf, name_map)
        for name in leaf.names
    )


@functools.cache
def default_leaves(network: str) -> dict[str, list[Leaf]]:
    """Return the leaves of a network at its default size for each of its maps, by source."""
    shapes = variable_shapes(make_config(network))
    return {name_map.source: leaves_of(shapes, name_map) for name_map in maps_of(network)}


def from_flat(arrays: StateDict, config: ConfigDict) -> Variables:
    """Return variables from this package's safetensors, by path, as numpy float32 arrays.

    The file holds either all variables of the model or all but those that a name map leaves at
    their initial values. Raises a WeightsError that names missing, unknown, misshapen and
    non-finite arrays, or the network that the arrays belong to.
    """
    shapes = variable_shapes(config)
    flat_shapes = traverse_util.flatten_dict(shapes, sep="/")
    wanted = {name: value.shape for name, value in flat_shapes.items()}
    for fresh in fresh_parts(config.name, shapes):
        if not any(name in arrays for name in fresh):
            wanted = {name: shape for name, shape in wanted.items() if name not in fresh}
            break
    problems = Problems()
    for name, shape in wanted.items():
        problems.check([name], shape, arrays)
    problems.unknown = [name for name in arrays if name not in wanted]
    if (problems.missing or problems.unknown) and (other := name_flat_source(arrays, config)):
        raise WeightsError(other)
    problems.raise_any("this package", config)
    flat = {name: np.asarray(arrays[name], np.float32) for name in wanted}
    return traverse_util.unflatten_dict(flat, sep="/")


def fresh_parts(network: str, shapes: Variables) -> list[set[str]]:
    """Return, for each map that leaves variables at their initial values, their paths."""
    paths = [
        {"/".join(x.path) for x in leaves_of(shapes, name_map) if is_fresh(x, name_map)}
        for name_map in find_maps(network)
        if name_map.fresh
    ]
    return [x for x in paths if x]
