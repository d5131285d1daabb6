"""Self-attention of a square map with SAM's decomposed relative positions."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import Dtype, linear
from usam_jax.models.sam.lora import LoraQkv


class Attention(nn.Module):
    """Multi-head self-attention of a square map, with relative positions along h and along w.

    A query's bias towards a key is `q . rel_pos_h[i_q - i_k]` plus the same along w, with q not
    scaled. With a `lora_rank`, q and v have a LoRA term. Source: Segment Anything, image encoder
    (after MViTv2's decomposed positions).
    """

    num_heads: int
    dtype: Dtype
    lora_rank: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b s s d"]) -> Float[Array, "b s s d"]:
        b, s, _, d = x.shape
        head_dim = d // self.num_heads
        if self.lora_rank:
            qkv = LoraQkv(self.lora_rank, self.dtype, name="qkv")(x)
        else:
            qkv = linear(3 * d, d, self.dtype, "qkv")(x)
        qkv = qkv.reshape(b, s * s, 3 * d)
        # A split, not an index: its gradient is a concatenation instead of padding and sums.
        q, k, v = (
            y.reshape(b, s * s, self.num_heads, head_dim) for y in jnp.split(qkv, 3, axis=-1)
        )
        zeros = nn.initializers.zeros
        rel_pos_h = self.param("rel_pos_h", zeros, (2 * s - 1, head_dim))
        rel_pos_w = self.param("rel_pos_w", zeros, (2 * s - 1, head_dim))
        x = ops.relative_attention(q, k, v, rel_pos_h, rel_pos_w)
        return linear(d, d, self.dtype, "proj")(x.reshape(b, s, s, d))
