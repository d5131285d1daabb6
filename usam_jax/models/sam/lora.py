"""LoRA: trainable low-rank terms of a frozen linear layer."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models.common.layers import Dtype, linear, torch_uniform


class LoraQkv(nn.Module):
    """The linear layer to q, k and v, plus a product of two matrices of `rank` on q and on v.

    The second matrix starts at 0, so the layer starts as the linear layer alone. There is no scale.
    Source: SAMed.
    """

    rank: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        d = x.shape[-1]
        qkv = linear(3 * d, d, self.dtype, "qkv")(x)
        q, v = (self.low_rank(x, part) for part in ("q", "v"))
        return qkv + jnp.concatenate([q, jnp.zeros_like(q), v], axis=-1)

    def low_rank(self, x: Float[Array, "*n d"], part: str) -> Float[Array, "*n d"]:
        """Multiply `x` by both matrices of `part`."""
        for letter, features, init in (
            ("a", self.rank, torch_uniform(x.shape[-1])),
            ("b", x.shape[-1], nn.initializers.zeros),
        ):
            name = f"linear_{letter}_{part}"
            x = nn.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x)
        return x
