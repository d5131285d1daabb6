"""What a run starts from: weights in a file of any known kind, or another run."""

import pathlib

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from usam_jax.io import torch_checkpoint
from usam_jax.utils import console
from usam_jax.utils.errors import WeightsError
from usam_jax.utils.files import checksum
from usam_jax.weights import run_checkpoint
from usam_jax.weights.name_map import (
    Problems,
    StateDict,
    Variables,
    comes_from_sam,
    from_sam,
    from_usam,
    model_leaves,
)


def flatten(variables: Variables) -> dict[str, np.ndarray]:
    """Arrays by path, `params/image_encoder/...`: the names in this package's safetensors."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def load_initial(config: ConfigDict, variables: Variables) -> Variables:
    """`variables` with all that `config.init_from` holds: nothing, SAM, a U-SAM, or a workdir.

    Raises WeightsError where there is no such file or it does not fit the model.
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
    """The variables in a file of any known kind, complete or SAM's part, and what was found."""
    tensors = torch_checkpoint.load(path)
    try:
        if any(name.startswith("params/") for name in tensors):
            return from_flat(tensors, config), f"{len(tensors)} arrays of this package"
        if any(name.startswith(("sam.", "backbone.")) for name in tensors):
            return from_usam(tensors, config), "a published U-SAM, complete"
        params, report = from_sam(tensors, config)
        return {"params": params, "constants": report.constants}, f"SAM, {report}"
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def from_flat(arrays: StateDict, config: ConfigDict) -> Variables:
    """Variables from this package's safetensors: all of a model, or all that SAM gives one.

    Raises WeightsError that lists every missing, unknown and misshapen array.
    """
    leaves = {"/".join(leaf.path): leaf for leaf in model_leaves(config)}
    problems = Problems()
    if all(name not in arrays for name, leaf in leaves.items() if not comes_from_sam(leaf)):
        leaves = {name: leaf for name, leaf in leaves.items() if comes_from_sam(leaf)}
    problems.missing = [name for name in leaves if name not in arrays]
    problems.unknown = [name for name in arrays if name not in leaves]
    problems.misshapen = [
        f"{name}: found {arrays[name].shape}, expected {leaf.shape}"
        for name, leaf in leaves.items()
        if name in arrays and arrays[name].shape != leaf.shape
    ]
    problems.raise_any("this package", config)
    return traverse_util.unflatten_dict(
        {leaf.path: np.asarray(arrays[name], np.float32) for name, leaf in leaves.items()}
    )
