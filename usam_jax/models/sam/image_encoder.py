"""SAM's vision transformer, with windowed and global attention."""

from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import Dtype, GreyConv, LayerNorm, Mlp, conv
from usam_jax.models.common.windows import window_partition, window_unpartition
from usam_jax.models.sam.attention import Attention


class Block(nn.Module):
    """Pre-norm transformer block with windowed attention, or global attention if `window` is 0."""

    num_heads: int
    window: int
    dtype: Dtype
    lora_rank: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        attention = Attention(self.num_heads, self.dtype, self.lora_rank, name="attn")
        y = LayerNorm(1e-6, name="norm1")(x)
        if self.window:
            y = window_unpartition(attention(window_partition(y, self.window)), y.shape)
        else:
            y = attention(y)
        x = x + y
        mlp = Mlp(4 * x.shape[-1], ops.gelu, self.dtype, name="mlp")
        return x + mlp(LayerNorm(1e-6, name="norm2")(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches of the image to tokens."""

    width: int
    patch_size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
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
    lora_rank: int = 0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        if self.patch_size:
            x = PatchEmbed(self.width, self.patch_size, self.dtype, name="patch_embed")(x)
        shape = (1, *x.shape[1:])
        x = x + self.param("pos_embed", nn.initializers.zeros, shape).astype(self.dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            window = 0 if i in self.global_blocks else self.window
            x = block(self.num_heads, window, self.dtype, self.lora_rank, name=f"blocks_{i}")(x)
        x = conv(self.dim, self.width, 1, self.dtype, "neck_0", bias=False)(x)
        x = LayerNorm(1e-6, name="neck_1")(x)
        x = conv(self.dim, self.dim, 3, self.dtype, "neck_2", bias=False)(x)
        return LayerNorm(1e-6, name="neck_3")(x)
