"""SAM's vision transformer: windowed and global attention with decomposed relative positions."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models.layers import Dtype, GreyConv, Mlp, conv, gelu, layer_norm, linear


class Attention(nn.Module):
    """Multi-head self-attention of a square map, with relative positions along h and along w.

    A query's bias towards a key is `q . rel_pos_h[i_q - i_k]` plus the same along w, with q not
    scaled. Source: Segment Anything, image encoder (after MViTv2's decomposed positions).
    """

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b s s d"]) -> Float[Array, "b s s d"]:
        b, s, _, d = x.shape
        head_dim = d // self.num_heads
        qkv = linear(3 * d, d, self.dtype, "qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, s * s, 3, self.num_heads, head_dim), 2, 0)
        offset = jnp.arange(s)[:, None] - jnp.arange(s)[None, :] + s - 1
        grid = q.reshape(b, s, s, self.num_heads, head_dim)
        zeros = nn.initializers.zeros
        rel_h = self.param("rel_pos_h", zeros, (2 * s - 1, head_dim)).astype(self.dtype)
        rel_w = self.param("rel_pos_w", zeros, (2 * s - 1, head_dim)).astype(self.dtype)
        bias_h = jnp.einsum("bijnd,ikd->bnijk", grid, rel_h[offset])
        bias_w = jnp.einsum("bijnd,jkd->bnijk", grid, rel_w[offset])
        bias = (bias_h[..., :, None] + bias_w[..., None, :]).reshape(b, -1, s * s, s * s)
        x = jax.nn.dot_product_attention(q, k, v, bias=bias).reshape(b, s, s, d)
        return linear(d, d, self.dtype, "proj")(x)


def split_windows(x: Float[Array, "b h w d"], window: int) -> Float[Array, "n s s d"]:
    """Non-overlapping windows of a map that is zero-padded at the bottom and right to fit."""
    b, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(b, rows, window, columns, window, d)
    return x.swapaxes(2, 3).reshape(-1, window, window, d)


def join_windows(
    x: Float[Array, "n s s d"], shape: tuple[int, int, int, int]
) -> Float[Array, "b h w d"]:
    """The map of `shape` (b, h, w, d) that `split_windows` took apart, without its padding."""
    b, h, w, d = shape
    window = x.shape[1]
    rows, columns = -(-h // window), -(-w // window)
    x = x.reshape(b, rows, columns, window, window, d).swapaxes(2, 3)
    return x.reshape(b, rows * window, columns * window, d)[:, :h, :w]


class Block(nn.Module):
    """Pre-norm transformer block; `window` 0 attends globally."""

    num_heads: int
    window: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        attend = Attention(self.num_heads, self.dtype, name="attn")
        y = layer_norm(1e-6, self.dtype, "norm1")(x)
        if self.window:
            y = join_windows(attend(split_windows(y, self.window)), y.shape)
        else:
            y = attend(y)
        x = x + y
        mlp = Mlp(4 * x.shape[-1], gelu, self.dtype, name="mlp")
        return x + mlp(layer_norm(1e-6, self.dtype, "norm2")(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of the image to tokens."""

    width: int
    patch_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 1"]) -> Float[Array, "b i j d"]:
        size = self.patch_size
        return GreyConv(self.width, size, size, self.dtype, name="proj")(x)


class ImageEncoder(nn.Module):
    """The transformer and its neck: a map at 1/16 of the image's size to its embedding.

    With `patch_size` 0 the input is the convolutional encoder's f4; otherwise it is the image,
    and SAM's own patch embedding comes first (the paper's first design, its row S).
    """

    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int
    width: int
    dim: int
    patch_size: int
    dtype: Dtype
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        if self.patch_size:
            x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        shape = (1, *x.shape[1:])
        x = x + self.param("pos_embed", nn.initializers.zeros, shape).astype(self.dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            x = block(self.num_heads, window, self.dtype, name=f"blocks_{i}")(x)
        x = conv(self.dim, self.width, 1, self.dtype, "neck_0", bias=False)(x)
        x = layer_norm(1e-6, self.dtype, "neck_1")(x)
        x = conv(self.dim, self.dim, 3, self.dtype, "neck_2", bias=False)(x)
        return layer_norm(1e-6, self.dtype, "neck_3")(x)
