"""The loss of an interactive network: a user's clicks, simulated inside the training step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from usam_jax.models.common.layers import SHARED
from usam_jax.models.common.prompts import batch_images, batch_prompts
from usam_jax.training import losses, simulated_clicks

AUTOMATIC_WEIGHT = 2.0  # of the mask before any click, next to 1 for that after each click


def interactive_loss(
    model: nn.Module,
    variables: dict[str, Any],
    batch: dict[str, Any],
    rounds: int,
    key: Any,
    loss_of: Callable[[Any, Any, Any], tuple[Any, losses.Terms]],
) -> tuple[Any, Any]:
    """Return the loss over rounds of clicks, and metrics and the changed BatchNorm statistics.

    `loss_of` takes logits, the collections that the network changed or sowed, and labels.

    The images are encoded once and decoded `rounds + 1` times: automatically, then after each
    click, but images with prompts in the batch get those in place of the first click. Loss and
    metrics are means over the rounds, weighted by `AUTOMATIC_WEIGHT`.
    """
    labels = batch["label"].astype(jnp.int32)
    given = batch_prompts(batch)
    assert given is not None and given.point_labels is not None
    first_slot = given.point_labels.shape[1]
    given = simulated_clicks.with_room(given, rounds)
    blank = jnp.zeros((*labels.shape, model.num_classes), jnp.float32)
    given = dataclasses.replace(given, previous=blank)
    counts = given.given
    assert counts is not None
    prompts = dataclasses.replace(given, given=jnp.zeros_like(counts))

    def apply(trees: Any, *arguments: Any, method: str, mutable: Any) -> Any:
        given = {name: tree for name, tree in {**variables, **trees}.items() if tree}
        return model.apply(given, *arguments, True, mutable=mutable, method=method)

    images = batch_images(batch["image"])
    features, stats = apply({}, images, method="encode", mutable=["batch_stats"])
    # Clicks change the statistics of the decoder's maps. All rounds share those of the automatic
    # one, and so do the running ones, which then fit all rounds in evaluation.
    logits, changed = apply(
        stats, features, prompts, method="decode", mutable=["batch_stats", SHARED, "aux_logits"]
    )
    shared = {SHARED: changed.pop(SHARED, {})}
    rows = [loss_of(logits, changed, labels)]
    # No `lax.scan`, even unrolled: XLA:CPU misses its fast convolutions there (4.5 s a step -> 0.9 s).
    for number, round_key in enumerate(jax.random.split(key, rounds)):
        slot = first_slot + number
        prompts = simulated_clicks.add_click(prompts, logits, labels, slot, round_key)
        if number == 0:
            prompts = simulated_clicks.choose(counts.any(1), given, prompts)
        trees = {**stats, **shared}
        logits, aux = apply(trees, features, prompts, method="decode", mutable=["aux_logits"])
        loss, terms = loss_of(logits, aux, labels)
        obeying = simulated_clicks.WEIGHT * simulated_clicks.click_loss(logits, prompts)
        rows.append((loss + obeying, terms))
    values = [{"loss": loss, **terms} for loss, terms in rows]
    weights = jnp.array([AUTOMATIC_WEIGHT] + [1.0] * rounds)
    metrics = jax.tree.map(lambda *x: jnp.average(jnp.stack(x), weights=weights), *values)
    return metrics["loss"], (metrics, changed.get("batch_stats", {}))
