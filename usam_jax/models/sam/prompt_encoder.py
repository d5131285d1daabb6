"""Points and boxes to tokens. Training keeps SAM's weights here."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from usam_jax.models.common.prompts import FOREGROUND, PADDING, Prompts


class PositionEmbedding(nn.Module):
    """Fourier features of positions in [0, 1] (x, y): sine and cosine of random projections.

    The projection matrix is a constant of the checkpoint, not a parameter.
    """

    dim: int

    @nn.compact
    def __call__(self, xy: Float[Array, "*n 2"]) -> Float[Array, "*n d"]:
        matrix = self.variable(
            "constants",
            "positional_encoding_gaussian_matrix",
            lambda: jax.random.normal(self.make_rng("params"), (2, self.dim // 2), jnp.float32),
        ).value
        angle = 2 * jnp.pi * jnp.matmul(2 * xy - 1, matrix, precision="highest")
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class PromptEncoder(nn.Module):
    """Prompts to sparse tokens, the dense prompt, and the image positions (`dense_pe`)."""

    dim: int
    image_size: int

    def setup(self) -> None:
        self.pe_layer = PositionEmbedding(self.dim)
        normal, shape = nn.initializers.normal(1.0), (1, self.dim)
        self.point_embeddings = [
            self.param(f"point_embeddings_{i}", normal, shape) for i in range(4)
        ]
        self.not_a_point_embed = self.param("not_a_point_embed", normal, shape)
        self.no_mask_embed = self.param("no_mask_embed", normal, shape)

    def embed_points(
        self, points_xy: Float[Array, "b p 2"], labels: Int[Array, "b p"]
    ) -> Float[Array, "b p d"]:
        """Position plus label of each point, or the embedding of padding."""
        features = self.pe_layer((points_xy + 0.5) / self.image_size)
        label = labels[..., None]
        positive, negative = self.point_embeddings[1], self.point_embeddings[0]
        features = features + jnp.where(label == FOREGROUND, positive, negative)
        return jnp.where(label == PADDING, self.not_a_point_embed, features)

    def embed_boxes(self, boxes_xyxy: Float[Array, "b 4"]) -> Float[Array, "b 2 d"]:
        """Tokens of the two corners of each box."""
        corners = self.pe_layer((boxes_xyxy.reshape(-1, 2, 2) + 0.5) / self.image_size)
        return corners + jnp.concatenate(self.point_embeddings[2:])

    def image_positions(self, grid: int) -> Float[Array, "1 g g d"]:
        """Fourier features of the centres of a `grid` x `grid` map (SAM's `dense_pe`)."""
        centres = (jnp.arange(grid, dtype=jnp.float32) + 0.5) / grid
        xy = jnp.stack(jnp.meshgrid(centres, centres, indexing="xy"), axis=-1)
        return self.pe_layer(xy)[None]

    def __call__(
        self, prompts: Prompts | None, batch: int
    ) -> tuple[Float[Array, "b n d"], Float[Array, "1 1 1 d"]]:
        prompts = prompts or Prompts()
        tokens = [jnp.zeros((batch, 0, self.dim), jnp.float32)]
        if prompts.points_xy is not None:
            points, labels = prompts.points_xy, prompts.point_labels
            if labels is None:
                raise ValueError(
                    "prompts.point_labels: got None with points_xy, expected int32[b p]"
                )
            # SAM appends one padding token to points that no box follows.
            if prompts.boxes_xyxy is None or prompts.given is not None:
                points = jnp.pad(points, ((0, 0), (0, 1), (0, 0)))
                labels = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=PADDING)
            tokens.append(self.embed_points(points, labels))
        if prompts.boxes_xyxy is not None:
            tokens.append(self.embed_boxes(prompts.boxes_xyxy))
        return jnp.concatenate(tokens, axis=1), self.no_mask_embed[:, None, None, :]
