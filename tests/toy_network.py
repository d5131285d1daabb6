"""A network in a file of the user's own, with everything that a SPEC can ask for.

Frozen parameters, two groups, dropout and a second output.
"""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from usam_jax.models.common.spec import ModelSpec, multiple_of


class Toy(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, images, prompts=None, train=False):
        x = SPEC.input.normalize(images, jnp.float32)
        x = nn.relu(nn.Conv(self.width, (3, 3), name="stem")(x))
        x = nn.relu(nn.Conv(self.width, (3, 3), name="body")(x))
        x = nn.BatchNorm(momentum=0.9, use_running_average=not train, name="norm")(x)
        half = nn.Conv(self.num_classes, (1, 1), name="side")(x[:, ::2, ::2])
        self.sow("aux_logits", "half", half)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Conv(self.num_classes, (1, 1), name="head")(x)


def toy_config():
    config = ConfigDict()
    config.width = 8  # channels
    return config


SPEC = ModelSpec(
    config=toy_config,
    build=lambda config: Toy(config.num_classes, config.width),
    param_groups=(("stem/.*", None), ("(body|norm)/.*", "body"), (".*", "heads")),
    loss_weights={"logits": 1.0, "half": 0.5},
    image_size=multiple_of(4),
    stochastic=True,
)
