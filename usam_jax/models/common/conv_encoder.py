"""The convolutional encoder of the U (the paper's downsampling encoder, formula 5)."""

from flax import linen as nn
from jaxtyping import Array, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import ConvUnit, Dtype


class DownBlock(nn.Module):
    """2x2 max-pooling, then two `ConvUnit`s."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"], train: bool) -> Float[Array, "b i j e"]:
        x = ops.max_pool(x)
        x = ConvUnit(self.features, self.dtype, name="nConvs_0")(x, train)
        return ConvUnit(self.features, self.dtype, name="nConvs_1")(x, train)


class ConvEncoder(nn.Module):
    """Five feature maps of a slice: f0 at full size to f4 at 1/16, which feeds the transformer.

    Channels: D/8, D/4, D/2, D and the transformer's `width` (D = `dim`).
    """

    dim: int
    width: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        d = self.dim
        features = [ConvUnit(d // 8, self.dtype, grey=True, name="inc")(images, train)]
        for i, channels in enumerate((d // 4, d // 2, d, self.width), start=1):
            down = DownBlock(channels, self.dtype, name=f"down{i}")
            features.append(down(features[-1], train))
        return tuple(features)
