"""Errors that name what a weights file holds, if it is for another network or version."""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.models import make_config, variable_shapes
from usam_jax.models.common import registry
from usam_jax.weights.fit import shared_prefixes, strip
from usam_jax.weights.maps import find_maps, maps_of
from usam_jax.weights.name_map import (
    Leaf,
    NameMap,
    Variables,
    is_fresh,
    is_resizable,
    leaves_of,
    read_tensors,
    rename,
)
from usam_jax.weights.problems import StateDict


def maps_for(path: pathlib.Path, network: str) -> tuple[NameMap, ...]:
    """Return the maps of a network that can be those of a file, the ones for its name first."""
    maps = maps_of(network)
    named = [x for x in maps if x.file and re.search(x.file, path.name, re.IGNORECASE)]
    return (*named, *(x for x in maps if not x.file))


def name_source(tensors: StateDict, path: pathlib.Path, config: ConfigDict) -> str:
    """An error that names what a file holds and what would fit, if it is for other networks."""
    found: dict[str, tuple[tuple[int, int], list[str]]] = {}
    stripped = [strip(tensors, x) for x in shared_prefixes(list(tensors))]

    # The network itself comes first, so that it wins if others want the same names and axes.
    for network in sorted(registry.names(), key=lambda x: x != config.name):
        leaves_by_map = default_leaves(network)
        for name_map in maps_for(path, network):
            leaves = leaves_by_map[name_map.source]
            # Published names as they are: those of S without their prefix are SAM's.
            rules = () if name_map is maps_of(network)[0] else name_map.file_names
            files = [{rename(name, rules): y for name, y in x.items()} for x in stripped]
            count = max(count_known(x, leaves, name_map) for x in files)
            if count[0]:
                found.setdefault(name_map.source, (count, []))[1].append(network)
    source = max(found, key=lambda x: found[x][0], default="")
    if not source or config.name in found[source][1]:
        return ""
    expected = ", ".join(x.source for x in maps_of(config.name))
    return (
        f"got weights of {source}, expected ones of the network {registry.short_name(config.name)}: "
        f"{expected}. Give one of these, or --config=configs/NAME.py:{' or '.join(found[source][1])}"
    )


def count_known(tensors: StateDict, leaves: list[Leaf], name_map: NameMap) -> tuple[int, int]:
    """Return how many tensors leaves want, and how many of them have as many axes as wanted.

    Zeros if one of them is missing. Networks of slices and of windows may have the same names.
    """
    axes = {
        name: len(leaf.torch_shape)
        for leaf in leaves
        if not is_fresh(leaf, name_map)
        for name in leaf.names
    }
    if not axes.keys() <= tensors.keys():
        return 0, 0
    return len(axes), sum(name_map.read(x, tensors[x]).ndim == n for x, n in axes.items())


def describe_other(source: str, network: str, config: ConfigDict) -> str:
    """The error for weights of another network than that of the config."""
    return (
        f"got weights of {source}, expected ones of the network {registry.short_name(config.name)}. "
        f"Give --config=configs/NAME.py:{network}"
    )


def name_flat_source(arrays: StateDict, config: ConfigDict) -> str:
    """An error that names the network of this package's arrays, if it is another one.

    Arrays are compared by name and number of axes. Variants of a network differ in the number of
    their blocks, so numbers in names do not count.
    """

    def kinds(arrays: Mapping[str, Any]) -> set[tuple[str, int]]:
        return {(re.sub(r"\d+", "#", name), len(x.shape)) for name, x in arrays.items()}

    def overlap(model: ConfigDict) -> float:
        shapes = variable_shapes(model)
        wanted = traverse_util.flatten_dict(shapes, sep="/")
        sets = [
            kinds({name: x for name, x in wanted.items() if name not in fresh})
            for fresh in (set(), *fresh_parts(model.name, shapes))
        ]
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


def fresh_parts(network: str, shapes: Variables) -> list[set[str]]:
    """Return, for each map that leaves variables at their initial values, their paths."""
    paths = [
        {"/".join(x.path) for x in leaves_of(shapes, name_map) if is_fresh(x, name_map)}
        for name_map in find_maps(network)
        if name_map.fresh
    ]
    return [x for x in paths if x]
