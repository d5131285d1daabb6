"""What a run starts from: weights in a file of any known kind, or another run."""

import pathlib

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
from usam_jax.weights.maps import find_maps, maps_of
from usam_jax.weights.name_map import (
    Problems,
    Report,
    StateDict,
    Variables,
    best_map,
    from_torch,
    is_fresh,
    model_leaves,
    to_torch,
    wanted_names,
)


def from_published(state_dict: StateDict, config: ConfigDict) -> Variables:
    """The variables of a network's published checkpoint, complete, as numpy float32 arrays.

    `config` is `config.model`. Raises WeightsError that lists every missing, unknown and misshapen
    tensor.
    """
    return from_torch(state_dict, maps_of(config.name)[0], config)[0]


def to_published(variables: Variables, config: ConfigDict) -> dict[str, np.ndarray]:
    """A model's tensors under their published names and layouts, all that `from_published` reads.

    Tensors of the published model that touch no output are absent: load with strict=False.
    """
    return to_torch(variables, maps_of(config.name)[0], config)


def from_usam(state_dict: StateDict, config: ConfigDict) -> Variables:
    """`from_published` for U-SAM; names may lack the prefix `sam.`."""
    names = (f"sam.{x}" if not x.startswith(("sam.", "backbone.")) else x for x in state_dict)
    return from_published(dict(zip(names, state_dict.values(), strict=True)), config)


def from_sam(state_dict: StateDict, config: ConfigDict) -> tuple[Variables, Report]:
    """What a fresh U-SAM or S takes from SAM: a partial `params` tree, and a report.

    `state_dict` has SAM's own names or those of the Hugging Face hub. `pos_embed` and the global
    blocks' relative positions are resized to the model's image size. The fixed matrix of the
    Fourier features is not a parameter: it is in `report.constants`.
    Raises WeightsError that lists every missing, unknown and misshapen tensor.
    """
    maps = maps_of(config.name)[1:]
    if not maps:
        raise UsageError(f"config.model.name: got {config.name}, which takes nothing from SAM")
    tree, report = from_torch(state_dict, best_map(state_dict, maps, config), config)
    return tree["params"], report


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """Arrays by path, `params/image_encoder/...`: the names in this package's safetensors."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def load_initial(config: ConfigDict, variables: Variables) -> Variables:
    """`variables` with all that `config.init_from` holds: nothing, a file of weights, or a workdir.

    Raises WeightsError if there is no such file or it does not fit the model.
    """
    if not config.init_from:
        return variables
    path = pathlib.Path(config.init_from)
    try:
        if path.is_dir():
            step, loaded = run_checkpoint.load_best(path, config.model)
            console.info(f"{path}: all weights of its best checkpoint, step {step}")
            return loaded
        found, news = read_weights(path, config.model)
    except WeightsError as error:
        raise WeightsError(f"config.init_from: {error}") from error
    console.info(f"{path}: {news}; sha256 {checksum(path)}")
    flat = traverse_util.flatten_dict(variables)
    flat |= traverse_util.flatten_dict(found)
    return traverse_util.unflatten_dict(flat)


def read_weights(path: pathlib.Path, config: ConfigDict) -> tuple[Variables, str]:
    """The variables in a file of any known kind, complete or in part, and what was found."""
    tensors = torch_checkpoint.load(path)
    try:
        if any(name.startswith("params/") for name in tensors):
            return from_flat(tensors, config), f"{len(tensors)} arrays of this package"
        name_map = best_map(tensors, maps_of(config.name), config)
        tree, report = from_torch(tensors, name_map, config)
    except WeightsError as error:
        raise WeightsError(f"{path}: {name_source(tensors, config) or error}") from error
    return tree, f"{name_map.source}, {report if report.fresh else 'complete'}"


def name_source(tensors: StateDict, config: ConfigDict) -> str:
    """An error that names the network whose published checkpoint `tensors` is, if it is another one."""
    for network in registry.names():
        published = maps_of(network)[0]
        names = wanted_names(model_leaves(make_config(network), published), published)
        if network != config.name and names <= set(tensors):
            return (
                f"got weights of {published.source}, expected ones of the network {config.name}. "
                f"Give --config=configs/NAME.py:{network}"
            )
    return ""


def from_flat(arrays: StateDict, config: ConfigDict) -> Variables:
    """Variables from this package's safetensors: all of a model, or all that a map gives a fresh one.

    Raises WeightsError that lists every missing, unknown and misshapen array.
    """
    shapes = traverse_util.flatten_dict(variable_shapes(config), sep="/")
    wanted = {name: value.shape for name, value in shapes.items()}
    for fresh in fresh_parts(config):
        if not any(name in arrays for name in fresh):
            wanted = {name: shape for name, shape in wanted.items() if name not in fresh}
            break
    problems = Problems()
    problems.missing = [name for name in wanted if name not in arrays]
    problems.unknown = [name for name in arrays if name not in wanted]
    problems.misshapen = [
        f"{name}: got {arrays[name].shape}, expected {shape}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    problems.raise_any("this package", config)
    found = {name: np.asarray(arrays[name], np.float32) for name in wanted}
    return traverse_util.unflatten_dict(found, sep="/")


def fresh_parts(config: ConfigDict) -> list[set[str]]:
    """For each map that leaves something fresh, the paths of what it leaves."""
    parts = [
        {"/".join(x.path) for x in model_leaves(config, name_map) if is_fresh(x, name_map)}
        for name_map in find_maps(config.name)
        if name_map.fresh
    ]
    return [part for part in parts if part]
