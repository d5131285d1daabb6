"""The interface between a network and the framework: `ModelSpec`."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from usam_jax.utils.errors import UsageError

GREY_MEAN, GREY_STD = 0.1364736, 0.23238614  # mean and std of CARE, grey in [0, 1]


@dataclasses.dataclass(frozen=True)
class SizeRule:
    """The side lengths of the square images that a network takes, or the slices of its windows."""

    accepts: Callable[[int], bool]
    words: str  # completes the sentence "expected ..."


def multiple_of(divisor: int) -> SizeRule:
    """Return the rule for positive multiples of `divisor`."""
    words = f"a positive multiple of {divisor}" if divisor > 1 else "1 or more"
    return SizeRule(lambda size: size > 0 and size % divisor == 0, words)


def exactly(size: int) -> SizeRule:
    """Return the rule for a single size."""
    return SizeRule(lambda side: side == size, f"{size}, the only size that the network takes")


def odd() -> SizeRule:
    """Return the rule for windows with a middle slice."""
    return SizeRule(lambda size: size > 0 and size % 2 == 1, "an odd number")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Normalisation of grey values in [0, 1]: part of the network, not of the data."""

    channels: int = 1
    mean: float = GREY_MEAN
    std: float = GREY_STD

    def normalize(
        self, images: Float[Array, "b ..."], dtype: Any, dims: int = 2
    ) -> Float[Array, "b ... c"]:
        """Return `(images - mean) / std`, computed in float32, with channels last.

        An image of `dims` axes is repeated in each channel. One more axis is that of the slices of
        a window, which are the channels.
        """
        x = (images.astype(jnp.float32) - self.mean) / self.std
        if images.ndim == dims + 1:
            x = jnp.broadcast_to(x[..., None], (*images.shape, self.channels))
        return x.astype(dtype)


def refuse_prompts(prompts: Any) -> None:
    """Raise UsageError if a network that takes no prompts is given some."""
    if prompts is not None:
        raise UsageError("prompts: got some, expected None: the network takes no prompts")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Description of a network: the `SPEC` of a file of `usam_jax/models`, or of a user's file.

    The module that `build` returns is called as `module(images, prompts, train)`, with images
    float[b h w] and grey in [0, 1], and returns logits float32[b h w k]. With `config.model.slices`
    above 1, images are float[b h w c], the slices of a window being the channels. With `dims` 3 they
    are windows float[b d h w], and logits are float32[b d h w k]. Other training outputs are sown as
    `self.sow("aux_logits", NAME, logits)` and weighted in `loss_weights`.
    """

    # The network's own fields of `config.model`, each with a comment.
    config: Callable[[], ConfigDict]
    # Returns the module. Raises UsageError if a field is invalid.
    build: Callable[[ConfigDict], nn.Module]
    # Path regex -> learning-rate group, None to freeze. The first full match decides.
    param_groups: tuple[tuple[str, str | None], ...] = ((".*", "all"),)
    # Weights of "logits" and of each sown output in the loss.
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"logits": 1.0})
    # How labels shrink to the size of a smaller output, a key of training.losses.GRIDS.
    label_grid: str = "half_pixel"
    image_size: SizeRule = dataclasses.field(default_factory=lambda: multiple_of(1))
    # What `config.model.slices` may be: the slices of a window.
    slices: SizeRule = dataclasses.field(default_factory=odd)
    input: InputSpec = InputSpec()
    promptable: bool = False  # The module takes prompts and has `encode` and `decode`.
    stochastic: bool = False  # The module needs the rng "dropout" in training.
    dims: int = 2  # spatial dimensions: 2 for slices, 3 for windows of slices
    paper: str = ""  # arXiv id, or where it was published
    code: str = ""  # repository@commit that the golden values come from
    pretrained: str = ""  # default initial weights of training, a file in weights/
    # Fields of the versions that have published weights, to name the one that fits a file.
    versions: tuple[Mapping[str, Any], ...] = ()
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the demo size
    # Fields of this SPEC that depend on `config.model`, by name. Raises UsageError as `build` does.
    depends: Callable[[ConfigDict], Mapping[str, Any]] = lambda _config: {}

    def at(self, config: ConfigDict) -> "ModelSpec":
        """Return the SPEC with the fields that depend on `config.model` filled in."""
        return dataclasses.replace(self, **self.depends(config))

    @property
    def groups(self) -> list[str]:
        """The learning-rate groups, in the order of `param_groups`."""
        return list(dict.fromkeys(group for _, group in self.param_groups if group is not None))


def group_of(path: str, spec: ModelSpec) -> str | None:
    """Return the learning-rate group of the parameter at `path`, or None if it is frozen.

    A path is such as `backbone/inc/conv/kernel`. Raises UsageError if no rule of the network covers
    it.
    """
    for pattern, group in spec.param_groups:
        if re.fullmatch(pattern, path):
            return group
    raise UsageError(
        f"the parameter {path}: got no learning-rate group, expected a rule of SPEC.param_groups "
        f"that matches it. The rules are {[pattern for pattern, _ in spec.param_groups]}."
    )


def used_groups(params: dict[str, Any], spec: ModelSpec) -> list[str]:
    """Return the learning-rate groups that hold a parameter, in the order of `param_groups`."""
    paths = traverse_util.flatten_dict(params, sep="/")
    found = {group_of(path, spec) for path in paths}
    return [group for group in spec.groups if group in found]


def split_params(params: dict[str, Any], spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a parameter tree into the trainable and the frozen parameters, both nested dicts.

    `merge_params` is the inverse.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    frozen = {path for path in flat if group_of(path, spec) is None}
    trainable = {path: x for path, x in flat.items() if path not in frozen}
    return (
        traverse_util.unflatten_dict(trainable, sep="/"),
        traverse_util.unflatten_dict({path: flat[path] for path in frozen}, sep="/"),
    )


def merge_params(trainable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """Merge trainable and frozen parameters into one tree, the inverse of `split_params`."""
    flat = traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)
