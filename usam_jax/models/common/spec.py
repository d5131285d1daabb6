"""What the framework has to know of a network: its fields, how it is built, trained and fed."""

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

GREY_MEAN, GREY_STD = 0.1364736, 0.23238614  # of CARE's grey values in [0, 1]


@dataclasses.dataclass(frozen=True)
class SizeRule:
    """The side lengths of square images, in pixels, that a network takes."""

    accepts: Callable[[int], bool]
    words: str  # completes the sentence "expected ..."


def multiple_of(divisor: int) -> SizeRule:
    words = f"a positive multiple of {divisor}" if divisor > 1 else "1 or more"
    return SizeRule(lambda size: size > 0 and size % divisor == 0, words)


def exactly(size: int) -> SizeRule:
    return SizeRule(lambda found: found == size, f"{size}, the only size that the network takes")


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """How grey values in [0, 1] become a network's input; part of the network, not of the data."""

    channels: int = 1
    mean: float = GREY_MEAN
    std: float = GREY_STD

    def normalize(self, images: Float[Array, "b ..."], dtype: Any) -> Float[Array, "b ... c"]:
        """Subtract `mean`, divide by `std` in float32, and repeat the grey value in each channel."""
        x = ((images.astype(jnp.float32) - self.mean) / self.std)[..., None]
        return jnp.broadcast_to(x, (*images.shape, self.channels)).astype(dtype)


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network: each file of `usam_jax/models` that defines one has it as `SPEC`.

    The module that `build` returns is called as `module(images float[b h w], prompts, train)` and
    returns logits float32[b h w k]. Other training outputs are sown as
    `self.sow("aux_logits", NAME, logits)` and weighted in `loss_weights`.
    """

    # The network's own fields of `config.model`, each with a comment.
    config: Callable[[], ConfigDict]
    # Returns the module. Raises UsageError for a field that makes no sense.
    build: Callable[[ConfigDict], nn.Module]
    # Path regex -> learning-rate group, None to freeze; the first match of a parameter counts.
    param_groups: tuple[tuple[str, str | None], ...] = ((".*", "all"),)
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"logits": 1.0})
    image_size: SizeRule = dataclasses.field(default_factory=lambda: multiple_of(1))
    input: InputSpec = InputSpec()
    promptable: bool = False  # has `encode` and `decode`
    stochastic: bool = False  # draws from the rng "dropout" in training
    dims: int = 2
    paper: str = ""  # arXiv id, or where it was published
    code: str = ""  # repository@commit that the golden values come from
    pretrained: str = ""  # file of weights/ that training starts from by default
    small: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of a demo's size

    @property
    def groups(self) -> list[str]:
        """The learning-rate groups in the order of `param_groups`."""
        return list(dict.fromkeys(group for _, group in self.param_groups if group is not None))


def group_of(path: str, spec: ModelSpec) -> str | None:
    """The learning-rate group of the parameter at `path`, such as `backbone/inc/conv/kernel`.

    Raises UsageError if no rule of the network covers the path.
    """
    for pattern, group in spec.param_groups:
        if re.fullmatch(pattern, path):
            return group
    raise UsageError(
        f"the parameter {path}: got no learning-rate group, expected a rule of SPEC.param_groups "
        f"that matches it; the rules are {[pattern for pattern, _ in spec.param_groups]}"
    )


def split_params(params: dict[str, Any], spec: ModelSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a parameter tree into the trainable and the frozen part, both nested dicts.

    `merge_params` puts them together again.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    frozen = {path for path in flat if group_of(path, spec) is None}
    trainable = {path: x for path, x in flat.items() if path not in frozen}
    return (
        traverse_util.unflatten_dict(trainable, sep="/"),
        traverse_util.unflatten_dict({path: flat[path] for path in frozen}, sep="/"),
    )


def merge_params(trainable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `split_params`."""
    flat = traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)
