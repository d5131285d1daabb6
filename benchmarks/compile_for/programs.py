"""Training step, evaluation and click, lowered for a mesh without computing anything."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs import care
from usam_jax.models import make_model, variable_shapes
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_images
from usam_jax.predict.model import NO_CLICKS, _decode, pad_clicks
from usam_jax.training import loop
from usam_jax.utils.mesh import batch_sharding, replicated

STEPS_PER_EPOCH = 833  # of CARE


def make_config(network: str, variant: str, dtype: str, batch: int) -> ConfigDict:
    """configs/care.py without weights, for `batch` slices in all."""
    config = care.get_config(network)
    config.init_from, config.model.dtype = "", dtype
    config.train.batch_size = config.eval.batch_size = batch
    if variant:
        config.model.variant = variant
    return config


def training_step(config: ConfigDict, mesh: Mesh) -> Any:
    """The lowered training step."""
    batch, s = config.train.batch_size, config.model.image_size
    fields = {
        "image": ((batch, s, s), np.uint8),
        "label": ((batch, s, s), np.uint8),
        "index": ((batch,), np.int32),
        "points_xy": ((batch, 6, 2), np.float32),
        "point_labels": ((batch, 6), np.int32),
    }
    placed = batch_sharding(mesh)
    arrays = {x: jax.ShapeDtypeStruct(*y, sharding=placed) for x, y in fields.items()}
    training = loop.make_training(config, STEPS_PER_EPOCH, mesh)
    return training.train_step.lower(training.target, arrays)  # type: ignore[attr-defined]


def evaluation(config: ConfigDict, mesh: Mesh) -> Any:
    """The lowered forward pass without prompts."""
    model = make_model(config.model)
    images = abstract_images(config, config.eval.batch_size, batch_sharding(mesh))
    forward = jax.jit(lambda v, x: model.apply(v, batch_images(x), None))
    return forward.lower(abstract_variables(config, mesh), images)


def click(config: ConfigDict, mesh: Mesh) -> Any:
    """The lowered decoder for a click on one slice that is encoded."""
    model = make_model(config.model)
    variables = abstract_variables(config, mesh)
    images = abstract_images(config, 1, replicated(mesh))
    features = jax.eval_shape(
        lambda v, x: registry.encode(model, v, batch_images(x)), variables, images
    )
    given = jax.tree.map(lambda x: place(x, mesh), (features, pad_clicks([NO_CLICKS])))
    return _decode.lower(model, variables, *given)


def place(x: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))


def abstract_variables(config: ConfigDict, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: place(x, mesh), variable_shapes(config.model))


def abstract_images(config: ConfigDict, batch: int, sharding: Any) -> jax.ShapeDtypeStruct:
    size = config.model.image_size
    return jax.ShapeDtypeStruct((batch, size, size), np.uint8, sharding=sharding)


def largest_kernel(config: ConfigDict) -> int:
    """Pixels on the longest side of the network's convolution kernels."""
    flat = traverse_util.flatten_dict(variable_shapes(config.model)["params"])
    kernels = [x.shape for path, x in flat.items() if path[-1] == "kernel" and x.ndim == 4]
    return max(max(shape[:2]) for shape in kernels)


PROGRAMS: dict[str, Callable[[ConfigDict, Mesh], Any]] = {
    "train": training_step,
    "eval": evaluation,
    "click": click,
}
