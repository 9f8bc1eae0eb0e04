"""Region classifier: names an entity from the pixels under its mask.

It plays the part of the tagger and detector for towers that are trained here: word w of a label is
predicted from the mean patch feature of the region, with the tokens of the language model as
classes.
"""

import flax.linen as nn
import jax

from sgqlm.models import layers


class RegionClassifier(nn.Module):
    """A two-layer head with one softmax over the vocabulary for each word of the label."""

    num_words: int
    vocab_size: int

    @nn.compact
    def __call__(self, pooled):
        """Map pooled features float32[B, N, D] to logits float32[B, N, W, V]."""
        x = layers.LayerNorm(name="norm")(pooled)
        x = jax.nn.gelu(layers.Dense(2 * pooled.shape[-1], name="fc1")(x))
        logits = layers.Dense(self.num_words * self.vocab_size, name="fc2")(x)
        return logits.reshape(*logits.shape[:-1], self.num_words, self.vocab_size)
