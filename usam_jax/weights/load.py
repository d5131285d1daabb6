"""Initial weights of a run: from a file of any known format, or from another run."""

import pathlib
import re

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.io import torch_checkpoint
from usam_jax.models import variable_shapes
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.files import checksum
from usam_jax.weights import run_checkpoint
from usam_jax.weights.fit import find_fit
from usam_jax.weights.maps import maps_of
from usam_jax.weights.name_map import Report, Variables, from_torch, to_torch
from usam_jax.weights.problems import Problems, StateDict
from usam_jax.weights.recognise import (
    fresh_parts,
    maps_for,
    name_flat_source,
    name_source,
    name_version,
)

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
    wrong = problems.missing or problems.unknown or problems.misshapen
    if wrong and (other := name_flat_source(arrays, config)):
        raise WeightsError(other)
    problems.raise_any("this package", config)
    flat = {name: np.asarray(arrays[name], np.float32) for name in wanted}
    return traverse_util.unflatten_dict(flat, sep="/")
