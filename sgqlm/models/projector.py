"""W_v: patch features to LLM tokens (LLaVA-1.5)."""

import flax.linen as nn

from sgqlm import config
from sgqlm.models import functional, layers


class Projector(nn.Module):
    """One or two dense layers, after joining merge x merge patches."""

    config: config.ProjectorConfig
    features: int

    @nn.compact
    def __call__(self, x, *, merge: bool = True):
        """Map float[B, P, D] to float[B, I, H]; `merge=False` takes rows as they are."""
        if merge:
            x = functional.merge_patches(x, self.config.merge)
        x = layers.Dense(self.features, name="fc1")(x)
        if self.config.kind == "linear":
            return x
        return layers.Dense(self.features, kernel_init=layers.TOKEN_INIT, name="fc2")(
            functional.activation(self.config.activation)(x)
        )
