"""Image embedding, skips and prompt tokens to logits, by U-SAM's decoder or SAM's own."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from usam_jax.models import ops
from usam_jax.models.common.layers import BatchNorm, Dtype, LayerNorm, conv, torch_uniform
from usam_jax.models.common.up_block import UpBlock, up_kernel
from usam_jax.models.sam.transformer import TwoWayTransformer


class TokenLinear(nn.Module):
    """A separate linear layer for each token, with tokens first.

    So all layers are one batched matmul. XLA:CPU makes a plain loop of a batch axis in the middle
    (3.0 ms a layer -> 0.4 ms).
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "t b d"]) -> Float[Array, "t b e"]:
        t, _, d = x.shape
        init = torch_uniform(d)
        kernel = self.param("kernel", init, (t, d, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (t, self.features)).astype(self.dtype)
        return x @ kernel + bias[:, None]


class TokenMlps(nn.Module):
    """A three-layer MLP for each mask token, to the channels of the upsampled map (formula 3)."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        d = x.shape[-1]
        x = nn.relu(TokenLinear(d, self.dtype, name="layers_0")(x.swapaxes(0, 1)))
        x = nn.relu(TokenLinear(d, self.dtype, name="layers_1")(x))
        return TokenLinear(self.features, self.dtype, name="layers_2")(x).swapaxes(0, 1)


class MaskDecoder(nn.Module):
    """Two-way transformer of mask and prompt tokens, then upsampling to logits.

    With `num_skips` None the upsampling is SAM's own (the paper's S); otherwise it is U-SAM's
    with the deepest `num_skips` of the four skips. With `sow_low_res`, SAM's logits at 1/4 size are
    sown as `low_res`; with `sow_coarse`, logits of the transformer's map, before any skip, as
    `coarse`.
    """

    num_classes: int
    num_mask_tokens: int
    num_skips: int | None
    dtype: Dtype
    sow_low_res: bool = False
    sow_coarse: bool = False

    @nn.compact
    def __call__(
        self,
        embedding: Float[Array, "b g g d"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        sparse: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None,
        dense: Float[Array, "1 1 1 d"],
        position: Float[Array, "1 g g d"],
        train: bool,
    ) -> Float[Array, "b h w k"]:
        b, g, _, d = embedding.shape
        normal, t = nn.initializers.normal(1.0), self.num_mask_tokens
        queries = jnp.concatenate(
            [
                self.param("iou_token", normal, (1, d)),
                self.param("mask_tokens", normal, (t, d)),
            ]
        )
        queries = jnp.broadcast_to(queries, (b, *queries.shape))
        tokens = jnp.concatenate([queries, sparse], axis=1).astype(self.dtype)
        source = (embedding + dense.astype(self.dtype)).reshape(b, g * g, d)
        position = position.reshape(1, g * g, d).astype(self.dtype)
        transformer = TwoWayTransformer(self.dtype, name="transformer")
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (1 + t, 0)), constant_values=True)
        tokens, source = transformer(tokens, source, position, mask)

        mlps = TokenMlps(d // 8, self.dtype, name="output_hypernetworks_mlps")
        weights = mlps(tokens[:, 1 : 1 + t])
        source = source.reshape(b, g, g, d)
        if self.sow_coarse and (self.is_initializing() or self.is_mutable_collection("aux_logits")):
            head = conv(self.num_classes, d, 1, self.dtype, "coarse_head")
            self.sow("aux_logits", "coarse", head(source).astype(jnp.float32))
        if self.num_skips is None:
            return self.upsample_sam(source, weights, skips)
        return self.upsample_u(source, weights, skips, train)

    def upsample_sam(
        self,
        x: Float[Array, "b g g d"],
        weights: Float[Array, "b k e"],
        hints: tuple[Float[Array, "b _ _ _"], ...],
    ) -> Float[Array, "b h w k"]:
        """SAM's `output_upscaling` to 1/4 size, one map per class, then 4x bilinear resizing.

        `hints`, of an interactive network alone, are added at 1/4 and 1/8 of the image's size.
        """
        quarter, eighth = hints or (0.0, 0.0)
        d = x.shape[-1]
        x = ops.up_conv(x, *up_kernel(d, d // 4, self.dtype, "output_upscaling_0")())
        x = ops.gelu(LayerNorm(1e-6, name="output_upscaling_1")(x) + eighth)
        x = ops.up_conv(x, *up_kernel(d // 4, d // 8, self.dtype, "output_upscaling_3")())
        x = ops.gelu(x + quarter)
        self.sow("intermediates", "upscaled", x)
        maps = jnp.einsum("bkc,bhwc->bhwk", weights, x).astype(jnp.float32)
        if self.sow_low_res:
            self.sow("aux_logits", "low_res", maps)
        b, h, w, k = maps.shape
        return jax.image.resize(maps, (b, 4 * h, 4 * w, k), "bilinear", antialias=False)

    def upsample_u(
        self,
        x: Float[Array, "b g g d"],
        weights: Float[Array, "b t e"],
        skips: tuple[Float[Array, "b _ _ _"], ...],
        train: bool,
    ) -> Float[Array, "b h w k"]:
        """Three up blocks to half size, one map per token there, a fourth block to full size."""
        d = x.shape[-1]
        dropped = 4 - (self.num_skips or 0)  # shallow skips are dropped first
        f0, f1, f2, f3 = (None if i < dropped else skip for i, skip in enumerate(skips))
        x = UpBlock(d // 2, self.dtype, name="up4")(x, f3, train)
        x = UpBlock(d // 4, self.dtype, name="up3")(x, f2, train)
        x = UpBlock(d // 8, self.dtype, name="up2")(x, f1, train)
        maps = jnp.einsum("btc,bhwc->bhwt", weights, x)
        x = UpBlock(d // 8, self.dtype, name="up1")(maps, f0, train)
        x = conv(d // 8, d // 8, 3, self.dtype, "final_output_0")(x)
        x = ops.relu(BatchNorm(name="final_output_1")(x, train))
        x = conv(self.num_classes, d // 8, 1, self.dtype, "final_output_3", bias=False)(x)
        return x.astype(jnp.float32)
