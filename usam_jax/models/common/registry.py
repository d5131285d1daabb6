"""Networks by name: a file of `usam_jax/models` with a `SPEC`, or a user's Python file."""

import functools
import hashlib
import importlib
import importlib.util
import pathlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from ml_collections import ConfigDict, FrozenConfigDict

import usam_jax.models
from usam_jax.models.common.spec import ModelSpec
from usam_jax.utils.errors import UsageError

DTYPES = ("float32", "bfloat16")


def names() -> list[str]:
    """Return the names of this package's networks, which are file names."""
    return sorted(x.name for x in pkgutil.iter_modules(usam_jax.models.__path__) if not x.ispkg)


def is_file(name: str) -> bool:
    """Return whether the name of a network is the path of a user's Python file."""
    return name.endswith(".py")


def full_name(name: str) -> str:
    """Return the name for a config: a path becomes absolute, so that any directory works."""
    return str(pathlib.Path(name).resolve()) if is_file(name) else name


def short_name(name: str) -> str:
    """Return the name for folders and tables: of a path, its last part without ending."""
    return pathlib.Path(name).stem


def get(name: str) -> ModelSpec:
    """Return the SPEC of a network. Raises UsageError if the network or file does not exist."""
    return load(full_name(name)).SPEC


@functools.cache
def load(name: str) -> ModuleType:
    """Import the Python module of a network, by name or absolute path."""
    if is_file(name):
        return _load_file(pathlib.Path(name))
    if name not in names():
        raise UsageError(
            f"config.model.name: got {name!r}, expected one of {', '.join(names())}, or the path "
            "of a Python file that defines SPEC. See docs/adding-a-model.md."
        )
    return importlib.import_module(f"usam_jax.models.{name}")


def _load_file(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"config.model.name: got {path}, which is not a file")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]  # two files may have one stem
    spec = importlib.util.spec_from_file_location(f"usam_jax_network_{path.stem}_{digest}", path)
    assert spec is not None and spec.loader is not None  # because the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses and Flax look up the module.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise UsageError(f"{path}: got {type(error).__name__} when loading it: {error}") from error
    if not isinstance(getattr(module, "SPEC", None), ModelSpec):
        raise UsageError(f"{path}: got no SPEC, expected SPEC = ModelSpec(...)")
    return module


def make_config(name: str) -> ConfigDict:
    """Return `config.model` of a network: the fields that all networks share, then its own."""
    spec = get(name)
    config = ConfigDict()
    config.name = full_name(name)
    config.num_classes = 3
    config.image_size = 224
    config.slices = 1
    config.dtype = "float32"
    config.update(spec.config())
    return config


def make_model(config: ConfigDict) -> nn.Module:
    """Return the module that `config.model` describes.

    Raises UsageError if the network does not exist, or a field is unknown or invalid.
    """
    spec = get(config.name)
    fields, own_fields = set(config), set(make_config(config.name))
    if fields != own_fields:
        raise UsageError(
            f"config.model: the network {config.name} has no field {sorted(fields - own_fields)} and "
            f"misses {sorted(own_fields - fields)}. Choose the network with the config file: "
            f"--config=configs/care.py:{config.name}"
        )

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UsageError(f"config.model.{field}: got {config[field]!r}, expected {expected}")

    if spec.dims not in (2, 3) or (spec.dims == 3 and spec.promptable):
        raise UsageError(
            f"config.model.name: got {config.name} with SPEC.dims = {spec.dims} and promptable = "
            f"{spec.promptable}, expected 2, or 3 for a network that takes no prompts"
        )
    check(config.dtype in DTYPES, "dtype", " or ".join(DTYPES))
    check(config.num_classes >= 2, "num_classes", "2 or more (background included)")
    spec = spec.at(config)
    check(spec.image_size.accepts(config.image_size), "image_size", spec.image_size.words)
    check(spec.slices.accepts(config.slices), "slices", spec.slices.words)
    model = spec.build(config)
    if spec.promptable != is_promptable(model):
        raise UsageError(
            f"SPEC.promptable of {config.name}: got {spec.promptable}, expected True exactly if "
            "its module has the methods encode and decode"
        )
    return model


def input_shape(config: ConfigDict) -> tuple[int, ...]:
    """Return the shape of one input of `config.model`: [h w], [h w c] or [d h w].

    A window of several slices is the channels of a network of slices, and the depth of one of
    windows.
    """
    size, slices = (config.image_size,) * 2, config.slices
    if get(config.name).dims == 3:
        return (slices, *size)
    return size if slices == 1 else (*size, slices)


def predicted_slices(config: ConfigDict) -> int:
    """Return the number of slices that `config.model` predicts from one input."""
    return config.slices if get(config.name).dims == 3 else 1


def is_promptable(model: nn.Module) -> bool:
    """Return whether a module can encode images once and decode them for several prompts."""
    return hasattr(model, "encode") and hasattr(model, "decode")


def encode(model: nn.Module, variables: Any, images: Any) -> Any:
    """Return what depends on images alone, float[b *s] with s of `input_shape`.

    This is the features of a promptable network, and the logits of any other.
    """
    if is_promptable(model):
        return model.apply(variables, images, method="encode")
    return model.apply(variables, images)


def decode(model: nn.Module, variables: Any, features: Any, prompts: Any) -> Any:
    """Return logits float32[b h w k] of the output of `encode`.

    A network that takes no prompts has its logits already.
    """
    if is_promptable(model):
        return model.apply(variables, features, prompts, method="decode")
    return features


def init_variables(config: ConfigDict, key: Array) -> dict[str, Any]:
    """Return initial variables of `config.model`, all float32.

    They are `params` and, if the network has any, `batch_stats` and `constants`.
    """
    # No optimization: random numbers of 300 shapes take longer to compile than to draw.
    options: Any = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda key: _init(config, key), compiler_options=options)(key)


def variable_shapes(config: ConfigDict) -> dict[str, Any]:
    """Return the variables of `init_variables` as abstract arrays, without computing anything."""
    # A copy: callers may change the dicts, and tracing a network takes a second.
    return jax.tree.map(lambda x: x, _variable_shapes(FrozenConfigDict(config)))


@functools.lru_cache(maxsize=64)
def _variable_shapes(config: FrozenConfigDict) -> dict[str, Any]:
    return jax.eval_shape(lambda: _init(ConfigDict(config), jax.random.key(0)))


def _init(config: ConfigDict, key: Array) -> dict[str, Any]:
    images = jnp.zeros((1, *input_shape(config)), jnp.float32)
    variables = dict(make_model(config).init(key, images, None))
    return {name: tree for name, tree in variables.items() if name != "aux_logits"}
