"""Interactive evaluation: a robot user clicks on each slice, and every click is scored.

The slices of a batch are encoded once and decoded once per click, by one compiled program.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.data import loader
from usam_jax.data.packed.format import Packed
from usam_jax.data.prompt_modes import none_mode
from usam_jax.data.prompts import BACKGROUND, FOREGROUND, PADDING
from usam_jax.data.splits import Subset
from usam_jax.evaluation import robot_user
from usam_jax.evaluation.inference import Forward
from usam_jax.evaluation.pixel_counts import count_pixels, pooled_scores
from usam_jax.evaluation.robot_user import Click
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_prompts
from usam_jax.utils import console
from usam_jax.utils.mesh import batch_sharding, replicated, shard_batch
from usam_jax.utils.parallel import ordered_map

TARGETS = (80, 85, 90)  # per cent: Dice at which a user stops clicking
SHOWN_CLICKS = (0, 1, 3, 5, 10)  # of tables


@dataclasses.dataclass(frozen=True)
class ClickRecord:
    """What the robot user did on the n slices with foreground of a subset, with up to m clicks.

    `rows` int[n] are the slices, `counts` int32[n m+1 k 3] their pixel counts after 0 to m clicks,
    `clicked` bool[n m] whether a click was made (none is once a slice is right), `obeyed` bool[n m]
    whether the clicked pixel changed as told, `labels` uint8[n m] the clicks' classes and `cleared`
    float32[n m] the corrected share of the clicks' error regions.
    """

    rows: np.ndarray
    counts: np.ndarray
    clicked: np.ndarray
    obeyed: np.ndarray
    labels: np.ndarray
    cleared: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """Mean Dice of each slice after 0 to m clicks, float64[n m+1].

        The mean is over the foreground classes that the slice has in truth or prediction.
        """
        tp, fp, fn = np.moveaxis(self.counts[:, :, 1:].astype(float), -1, 0)
        total = 2 * tp + fp + fn
        found = total > 0
        dice = np.divide(2 * tp, total, out=np.zeros_like(tp), where=found)
        return dice.sum(-1) / np.maximum(found.sum(-1), 1)


def make_click_decoder(model: nn.Module, mesh: Mesh) -> Any:
    """Return the jitted (variables, features, prompts, labels, valid) -> counts, classes, previous.

    Counts are int32[b k 3], classes uint8[b h w], and `previous` float32[b h w k], the class
    probabilities, which stay on the device.
    """

    def decode(variables: Any, features: Any, prompts: Any, labels: Any, valid: Any) -> Any:
        logits = registry.decode(model, variables, features, batch_prompts(prompts))
        predicted = logits.argmax(-1).astype(jnp.int32)
        counts = count_pixels(predicted, labels, valid, logits.shape[-1])
        return counts, predicted.astype(jnp.uint8), jax.nn.softmax(logits)

    split, everywhere = batch_sharding(mesh), replicated(mesh)
    return jax.jit(
        decode,
        in_shardings=(None, split, split, split, split),
        out_shardings=(everywhere, everywhere, split),
    )


def click_through(
    model: nn.Module,
    forward: Forward,
    variables: Any,
    packed: Packed,
    subset: Subset,
    config: ConfigDict,
    mesh: Mesh,
) -> ClickRecord:
    """Let the robot user click on each slice of a subset that has foreground.

    Makes up to `config.eval.max_clicks` clicks per slice, the first after the automatic prediction.
    """
    labels = packed.labels(subset.split)
    rows = np.array([row for row in subset.rows if labels[row].any()], int)
    size = config.eval.batch_size
    process, processes = jax.process_index(), jax.process_count()
    batches, num_batches = loader.eval_batches(
        packed, subset.split, rows, config, [none_mode(config)], process, processes
    )
    decode, done = make_click_decoder(model, mesh), []
    with console.Progress("robot user", num_batches, "batches") as bar:
        for number, batch in enumerate(batches):
            part = click_batch(forward, decode, variables, batch, config, mesh)
            used = len(rows[number * size :][:size])
            done.append({name: x[:used] for name, x in part.items()})
            bar.advance(per_step=size)
    joined = {name: np.concatenate([x[name] for x in done]) for name in done[0]}
    return ClickRecord(rows, **joined)


def click_batch(
    forward: Forward,
    decode: Any,
    variables: Any,
    batch: loader.Batch,
    config: ConfigDict,
    mesh: Mesh,
) -> dict[str, np.ndarray]:
    """Return the fields of `ClickRecord`, but for `rows`, of one batch over all processes."""
    m, b = config.eval.max_clicks, len(batch["label"])
    first = jax.process_index() * b
    own = slice(first, first + b)
    placed = shard_batch({name: batch[name] for name in ("image", "label", "valid")}, mesh)
    features = forward.encode(variables, placed["image"])
    truth = placed["label"].astype(jnp.int32)
    prompts = blank_prompts(b, m, config)
    previous = shard_batch({"previous": prompts.pop("previous")}, mesh)["previous"]
    counts, clicked, obeyed, labels, share = [], [], [], [], []
    clicks: list[Click | None] = [None] * b
    for number in range(m + 1):
        given = shard_batch(prompts, mesh) | {"previous": previous}
        found, predicted, previous = decode(variables, features, given, truth, placed["valid"])
        counts.append(np.asarray(found))
        own_predicted = np.asarray(predicted)[own]
        if number:
            ...
    return {}
