"""A trained model on its device: one compiled `encode` per image, one `decode` per prompt."""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from usam_jax import models
from usam_jax.data.preprocessing import Preparation, make_preparation, source_kind
from usam_jax.data.prompts import empty_prompts
from usam_jax.models import make_model
from usam_jax.models.common import registry
from usam_jax.models.common.prompts import batch_images, batch_prompts
from usam_jax.utils import console
from usam_jax.utils.errors import UsageError, WeightsError
from usam_jax.utils.workdir import Workdir
from usam_jax.weights import run_checkpoint, run_config

MIN_POINTS = 32  # Arrays hold at least so many points: adding a click rarely recompiles.
TRAIN_INTERACTIVE = (
    "Train usam or sam_s with --config.model.interactive=True --config.prompts.kind=interactive"
)


class Clicks(NamedTuple):
    """Prompts of one slice in pixels of the model's input.

    `points_xy` is float32[n 2], `point_labels` int32[n] (1: foreground, 0: background) and `box`
    float32[4] (x0, y0, x1, y1) or None. Interactive networks alone take the class of each point,
    `point_classes` int32[n] (0: background), and `previous` float32[s s k], the probabilities of
    the last prediction.
    """

    points_xy: np.ndarray
    point_labels: np.ndarray
    box: np.ndarray | None = None
    point_classes: np.ndarray | None = None
    previous: np.ndarray | None = None


NO_CLICKS = Clicks(np.zeros((0, 2), np.float32), np.zeros(0, np.int32))


def pad_clicks(clicks: list[Clicks]) -> dict[str, np.ndarray]:
    """Return the prompts of a batch as the arrays of `empty_prompts`, padded to p points.

    p is MIN_POINTS, doubled until the clicks fit.
    """
    p = MIN_POINTS
    while p < max(len(x.point_labels) for x in clicks):
        p *= 2
    arrays = empty_prompts(len(clicks), p)
    for i, one in enumerate(clicks):
        n = len(one.point_labels)
        arrays["points_xy"][i, :n] = one.points_xy
        arrays["point_labels"][i, :n] = one.point_labels
        arrays["prompts_given"][i, :n] = True
        if one.box is not None:
            arrays["boxes_xyxy"][i] = one.box
            arrays["prompts_given"][i, -1] = True
    return arrays


@functools.cache
def say_growth(p: int) -> None:
    """Say, once in a process, that p points on a slice need another program."""
    console.info(f"more than {p // 2} points on a slice: compiling the decoder for up to {p}")


def pad_interactive(clicks: list[Clicks], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return `pad_clicks` with what interactive networks take in addition.

    That is `point_classes` int32[b p] and `previous` float32[b s s k] of the `shape` (s, s, k).
    """
    arrays = pad_clicks(clicks)
    arrays["point_classes"] = np.zeros(arrays["point_labels"].shape, np.int32)
    arrays["previous"] = np.zeros((len(clicks), *shape), np.float32)
    for i, one in enumerate(clicks):
        if one.point_classes is not None:
            arrays["point_classes"][i, : len(one.point_classes)] = one.point_classes
        if one.previous is not None:
            arrays["previous"][i] = one.previous
    return arrays


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: nn.Module, variables: Any, images: jax.Array) -> Any:
    return registry.encode(model, variables, batch_images(images))


@functools.partial(jax.jit, static_argnums=0)
def _decode(model: nn.Module, variables: Any, features: Any, prompts: dict[str, Any]) -> Any:
    logits = registry.decode(model, variables, features, batch_prompts(prompts))
    return logits.argmax(-1).astype(jnp.uint8), jax.nn.softmax(logits)


class Network(NamedTuple):
    """The model of a run's best checkpoint, its preprocessing and the run's config."""

    model: nn.Module
    variables: Any
    preparation: Preparation
    classes: tuple[str, ...]
    config: dict[str, Any]
    step: int

    @property
    def slices(self) -> int:
        """Number of consecutive slices in one input."""
        return int(self.config["model"]["slices"])

    @property
    def dims(self) -> int:
        """2 if the network predicts slices, 3 if it predicts windows of slices."""
        return models.get(self.config["model"]["name"]).dims

    @property
    def promptable(self) -> bool:
        """Whether the network takes prompts."""
        return registry.is_promptable(self.model)

    @property
    def interactive(self) -> bool:
        """Whether the network takes clicks with a class and a previous prediction."""
        return bool(self.config["model"].get("interactive", False))

    def require_interactive(self, what: str) -> None:
        """Raise UsageError, which names the source `what`, if the network is not interactive."""
        if not self.interactive:
            name = registry.short_name(self.config["model"]["name"])
            raise UsageError(
                f"{what}: got classes of points or a previous prediction, expected points alone: this "
                f"{name} was trained without the interactive extension. {TRAIN_INTERACTIVE}"
            )

    def require_promptable(self, what: str) -> None:
        """Raise UsageError, which names the source `what`, if the network takes no prompts."""
        if not self.promptable:
            name = registry.short_name(self.config["model"]["name"])
            raise UsageError(
                f"{what}: got prompts, expected none: the network {name} takes no prompts"
            )

    def require_single_slices(self) -> None:
        """Raise UsageError if a slice cannot be predicted without its neighbours."""
        if self.slices > 1:
            raise UsageError(
                f"config.model.slices: got {self.slices}, expected 1: this network needs the "
                "neighbours of a slice. Predict whole volumes: python -m usam_jax.predict"
            )

    def encode(self, images: np.ndarray) -> Any:
        """Return the features of images uint8[b ...] from `preparation`.

        They are [b s s], [b s s c] with neighbours as channels, or windows [b d s s].
        """
        return _encode(self.model, self.variables, images)

    def decode(self, features: Any, clicks: list[Clicks]) -> tuple[Any, Any]:
        """Return classes uint8[b s s] and probabilities float32[b s s k], on the device.

        Of windows they are [b d s s] and [b d s s k].
        """
        if self.config["prompts"]["order"] == "rowcol":  # the order that the model was trained with
            clicks = [x._replace(points_xy=x.points_xy[:, ::-1]) for x in clicks]
        arrays = self.pad(clicks)
        if (p := arrays["point_labels"].shape[1]) > MIN_POINTS:
            say_growth(p)
        return _decode(self.model, self.variables, features, arrays)

    def pad(self, clicks: list[Clicks]) -> dict[str, np.ndarray]:
        """Return the prompts of a batch as arrays that the network takes."""
        if not self.interactive:
            return pad_clicks(clicks)
        size = self.config["model"]["image_size"]
        return pad_interactive(clicks, (size, size, len(self.classes)))


def load_network(workdir: pathlib.Path) -> Network:
    """Load a run's best checkpoint.

    Raises WeightsError if there is none, or if it or the run's config is damaged.
    """
    try:
        saved = run_config.require_config(workdir)
        config = ConfigDict(saved)
        model, classes = make_model(config.model), tuple(saved["data"]["classes"])
        preparation = make_preparation(saved, source_kind(workdir, saved))
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{Workdir(workdir).config}: cannot be used ({error!r}), expected what the run wrote. "
            "Restore it from a copy, or train again."
        ) from error
    step, variables = run_checkpoint.load_best(workdir, config.model)
    return Network(model, variables, preparation, classes, saved, step)
