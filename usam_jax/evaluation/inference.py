"""Batched inference: each batch is encoded once and decoded for each prompt mode."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data import loader
from usam_jax.data.packed.format import Packed
from usam_jax.data.prompt_modes import PromptMode
from usam_jax.data.splits import Subset
from usam_jax.evaluation import pixel_counts
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_images, batch_prompts
from usam_jax.utils import console
from usam_jax.utils.mesh import batch_sharding, replicated, shard_batch


class Forward(NamedTuple):
    """Encoder and decoder of a model, each compiled once for all batches and prompt modes.

    `encode`: (variables, images uint8[b ...]) -> features. The features of a network that takes no
    prompts are its logits.
    `decode`: (variables, features, prompts, labels int32[b h w], valid bool[b]) -> pixel counts
    int32[b k 3], predicted classes uint8[b h w]. Of windows, labels are [b s h w] and valid is [b s];
    the results are those of b * s slices.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any]


def make_forward(model: nn.Module, mesh: Mesh) -> Forward:
    """Jit encoder and decoder for batches sharded over the mesh."""

    def encode(variables: Any, images: jax.Array) -> Any:
        return registry.encode(model, variables, batch_images(images))

    def decode(
        variables: Any, features: Any, prompts: dict[str, Any], labels: Any, valid: Any
    ) -> tuple[Any, Any]:
        logits = registry.decode(model, variables, features, batch_prompts(prompts))
        if valid.ndim == 2:  # windows
            logits, labels, valid = (x.reshape(-1, *x.shape[2:]) for x in (logits, labels, valid))
        predicted = logits.argmax(-1).astype(jnp.int32)
        counts = pixel_counts.count_pixels(predicted, labels, valid, logits.shape[-1])
        return counts, predicted.astype(jnp.uint8)

    split, everywhere = batch_sharding(mesh), replicated(mesh)
    # `None` keeps the variables' current sharding.
    return Forward(
        jax.jit(encode, in_shardings=(None, split), out_shardings=split),
        jax.jit(
            decode,
            in_shardings=(None, split, split, split, split),
            out_shardings=(everywhere, everywhere),
        ),
    )


class BatchPrediction(NamedTuple):
    """Results of a batch for one prompt mode, on the device until they are read.

    `valid` bool[b] says which of the batch's slices count.
    """

    device_counts: jax.Array  # int32[b k 3]
    device_classes: jax.Array  # uint8[b h w]
    valid: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Pixel counts int32[n k 3] of the slices that count."""
        return np.asarray(self.device_counts)[self.valid]

    @property
    def predicted(self) -> np.ndarray:
        """Classes uint8[n h w] of the slices that count."""
        return np.asarray(self.device_classes)[self.valid]


def stream(
    forward: Forward,
    variables: Any,
    packed: Packed,
    subset: Subset,
    modes: list[PromptMode],
    config: ConfigDict,
    mesh: Mesh,
    what: str,
) -> Iterator[tuple[np.ndarray, dict[str, BatchPrediction]]]:
    """Yield the rows int[n] of each batch of a subset, in order, and its predictions by mode.

    A network of windows predicts each row once, see `data.windows`. Each batch is yielded while the
    device computes the next. `what` labels the progress line.
    """
    size, dims = config.eval.batch_size, models.get(config.model.name).dims
    process, processes = jax.process_index(), jax.process_count()
    rows, counted = loader.eval_rows(packed, subset.split, subset.rows, config, dims)
    batches, num_batches = loader.eval_batches(
        packed, subset.split, subset.rows, config, modes, process, processes, dims
    )

    def compute(batch: loader.Batch, kept: np.ndarray) -> dict[str, BatchPrediction]:
        placed = shard_batch(batch, mesh)
        features = forward.encode(variables, placed["image"])
        labels, valid = placed["label"].astype(jnp.int32), placed["valid"]
        found = {}
        for name, prompts in placed["prompts"].items():
            counts, classes = forward.decode(variables, features, prompts, labels, valid)
            found[name] = BatchPrediction(counts, classes, kept)
        return found

    with console.Progress(what, num_batches, "batches") as bar:
        previous: tuple[np.ndarray, dict[str, BatchPrediction]] | None = None
        for number, batch in enumerate(batches):
            part = slice(number * size, (number + 1) * size)
            computed = compute(batch, counted[part].ravel())
            if previous:
                yield previous
                bar.advance(per_step=size)
            previous = rows[part][counted[part]], computed
        if previous:
            yield previous
            bar.advance(per_step=size)


def count_subset(
    forward: Forward,
    variables: Any,
    packed: Packed,
    subset: Subset,
    mode: PromptMode,
    config: ConfigDict,
    mesh: Mesh,
    name: str,
) -> np.ndarray:
    """Return pixel counts int32[n k 3] of the n slices of a subset, in order.

    `name` names the subset in the progress line.
    """
    batches = stream(forward, variables, packed, subset, [mode], config, mesh, f"evaluating {name}")
    return np.concatenate([by_mode[mode.name].counts for _, by_mode in batches])
