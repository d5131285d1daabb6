"""Interactive evaluation: a robot user clicks on each slice, and every click is scored.

The slices of a batch are encoded once and decoded once per click, by one compiled program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from usam_jax.data import loader
from usam_jax.data.packed.format import Packed
from usam_jax.data.prompt_modes import none_mode
from usam_jax.data.prompts import BACKGROUND, FOREGROUND, empty_prompts
from usam_jax.data.splits import Subset
from usam_jax.evaluation import robot_user
from usam_jax.evaluation.inference import Forward
from usam_jax.evaluation.pixel_counts import count_pixels, pooled_scores
from usam_jax.evaluation.robot_user import Click, next_click
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_prompts
from usam_jax.utils import console
from usam_jax.utils.mesh import batch_sharding, replicated, shard_batch
from usam_jax.utils.parallel import ordered_map

TARGETS = (80, 85, 90)  # per cent: Dice at which a user stops clicking


@dataclasses.dataclass(frozen=True)
class ClickRecord:
    """What the robot user did on the n slices with foreground of a subset, with up to m clicks.

    `rows` int[n] are the slices, `counts` int32[n m+1 k 3] their pixel counts after 0 to m clicks,
    `clicked` bool[n m] whether a click was made (none once no error is left to click on), `obeyed`
    bool[n m] whether the clicked pixel changed as it should, `xy` int[n m 2] where the clicks lie,
    `labels` uint8[n m] their classes and `cleared` float32[n m] the corrected share of their error
    regions. `predicted` uint8[n m+1 h w] is empty unless predictions are kept.
    """

    rows: np.ndarray
    counts: np.ndarray
    clicked: np.ndarray
    obeyed: np.ndarray
    xy: np.ndarray
    labels: np.ndarray
    cleared: np.ndarray
    predicted: np.ndarray

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
    """Return the jitted decoder of a batch: counts, classes and probabilities.

    Its arguments are variables, features, prompts, labels int32[b h w] and valid bool[b].
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


class Predict(NamedTuple):
    """Prediction of one encoded batch for any clicks."""

    decode: Callable[..., Any]
    variables: Any
    features: Any
    labels: Any
    valid: Any
    mesh: Mesh

    def __call__(self, prompts: dict[str, np.ndarray], previous: Any) -> Any:
        """Return counts, classes and probabilities for the prompts of the whole batch."""
        given = shard_batch(own_share(prompts), self.mesh) | {"previous": previous}
        return self.decode(self.variables, self.features, given, self.labels, self.valid)


def click_through(
    decode: Any,
    forward: Forward,
    variables: Any,
    packed: Packed,
    subset: Subset,
    config: ConfigDict,
    mesh: Mesh,
    keep: bool = False,
) -> ClickRecord:
    """Let the robot user click on the slices of a subset, which all have foreground.

    Makes up to `config.eval.max_clicks` clicks per slice, the first after the automatic prediction.
    `decode` is the network's `make_click_decoder`. Predictions are kept if `keep`.
    """
    labels, rows = packed.labels(subset.split), subset.rows
    size = config.eval.batch_size
    batches, num_batches = loader.eval_batches(
        packed,
        subset.split,
        rows,
        config,
        [none_mode(config)],
        jax.process_index(),
        jax.process_count(),
    )
    done = []
    with console.Progress("robot user", num_batches, "batches") as bar:
        for number, batch in enumerate(batches):
            placed = shard_batch({x: batch[x] for x in ("image", "label", "valid")}, mesh)
            predict = Predict(
                decode,
                variables,
                forward.encode(variables, placed["image"]),
                placed["label"].astype(jnp.int32),
                placed["valid"],
                mesh,
            )
            used = rows[number * size :][:size]
            blank = np.zeros((*batch["label"].shape, config.model.num_classes), np.float32)
            previous = shard_batch({"previous": blank}, mesh)["previous"]
            truth = np.array(labels[used])
            done.append(click_batch(predict, previous, truth, size, config, keep))
            bar.advance(per_step=size)
    joined = {name: np.concatenate([x[name] for x in done]) for name in done[0]}
    return ClickRecord(rows, **joined)


def with_foreground(packed: Packed, subset: Subset) -> Subset:
    """Return the slices of a subset that have foreground."""
    labels = packed.labels(subset.split)
    return Subset(subset.split, np.array([row for row in subset.rows if labels[row].any()], int))


def own_share(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return this process's part of arrays of a whole batch."""
    process, processes = jax.process_index(), jax.process_count()
    return {name: np.split(x, processes)[process] for name, x in arrays.items()}


def click_batch(
    predict: Predict,
    previous: Any,
    labels: np.ndarray,
    batch_size: int,
    config: ConfigDict,
    keep: bool,
) -> dict[str, np.ndarray]:
    """Return the fields of `ClickRecord`, but for `rows`, of the slices of one batch.

    `previous` are probabilities of no prediction, all zero. `labels` uint8[n h w] are the n <=
    `batch_size` slices that are not padding.
    """
    m, n = config.eval.max_clicks, len(labels)
    prompts = empty_prompts(batch_size, m)
    prompts["point_classes"] = np.zeros((batch_size, m), np.int32)
    counts, predicted, previous = predict(prompts, previous)
    before = np.asarray(predicted)[:n]
    all_counts, kept = [np.asarray(counts)[:n]], [before]
    record = {
        "clicked": np.zeros((n, m), bool),
        "obeyed": np.zeros((n, m), bool),
        "xy": np.zeros((n, m, 2), np.int32),
        "labels": np.zeros((n, m), np.uint8),
        "cleared": np.zeros((n, m), np.float32),
    }
    for number in range(m):
        earlier = [xy[made] for xy, made in zip(record["xy"], record["clicked"], strict=True)]
        seen = list(zip(before, labels, earlier, strict=True))
        clicks = [click for _, click in ordered_map(lambda x: next_click(*x), seen)]
        for i, click in enumerate(clicks):
            if click:
                add_click(prompts, i, number, click)
        counts, predicted, previous = predict(prompts, previous)
        # A slice without a click keeps its prediction, as a user who has finished does.
        made = np.array([click is not None for click in clicks])[:, None, None]
        all_counts.append(np.where(made, np.asarray(counts)[:n], all_counts[-1]))
        after = np.where(made, np.asarray(predicted)[:n], before)
        kept += [after] if keep else []
        for i, click in enumerate(clicks):
            if click:
                record["clicked"][i, number] = True
                record["xy"][i, number] = click.xy
                record["labels"][i, number] = click.label
                record["obeyed"][i, number] = robot_user.obeys(click, after[i])
                record["cleared"][i, number] = robot_user.cleared(click, after[i])
        before = after
    record["predicted"] = np.stack(kept, axis=1) if keep else np.zeros((n, 0), np.uint8)
    return {"counts": np.stack(all_counts, axis=1), **record}


def add_click(prompts: dict[str, np.ndarray], i: int, number: int, click: Click) -> None:
    """Write a click into slot `number` of image `i`."""
    prompts["points_xy"][i, number] = click.xy
    prompts["point_labels"][i, number] = FOREGROUND if click.label else BACKGROUND
    prompts["point_classes"][i, number] = click.label
    prompts["prompts_given"][i, number] = True


def summarise_clicks(record: ClickRecord, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the metrics of `summary.json` under "clicks": shares from 0 to 1, and click counts.

    A slice that does not reach a target counts the maximum number of clicks. A click of class 0
    lies on a false positive, whose region `cleared_by_negative` is about: the share of these clicks
    that clear at least half of it. `classes` are their names, background first. The Dice of a class
    is pooled over the slices; it is None where the class is in neither truth nor prediction.
    """
    dice, clicked = record.dice, record.clicked
    maximum = clicked.shape[1]
    number_of_clicks = {}
    for target in TARGETS:
        reached = dice >= target / 100
        first = np.where(reached.any(1), reached.argmax(1), maximum)
        number_of_clicks[str(target)] = {
            "mean": float(first.mean()),
            "failed": float((~reached.any(1)).mean()),
        }
    negative = clicked & (record.labels == 0)
    pooled = [pooled_scores(x, classes).dice for x in np.moveaxis(record.counts, 1, 0)]
    return {
        "num_slices": len(record.rows),
        "max_clicks": maximum,
        "num_clicks": int(clicked.sum()),
        "dice": dice.mean(0).tolist(),
        "dice_sd": dice.std(0).tolist(),
        "adherence": share(record.obeyed, clicked),
        "adherence_negative": share(record.obeyed, negative),
        "cleared_by_negative": share(record.cleared >= 0.5, negative),
        "number_of_clicks": number_of_clicks,
        "classes": {
            name: {
                "dice": [x[name] for x in pooled],
                "num_clicks": int((clicked & (record.labels == i)).sum()),
                "adherence": share(record.obeyed, clicked & (record.labels == i)),
            }
            for i, name in enumerate(classes[1:], start=1)
        },
    }


def share(values: np.ndarray, chosen: np.ndarray) -> float | None:
    """Return the share of true values among the chosen ones, or None without any."""
    return float(values[chosen].mean()) if chosen.any() else None
