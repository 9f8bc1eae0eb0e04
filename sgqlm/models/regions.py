"""Region classifier: names an entity from the pixels under its mask, and what two have in common.

It plays the part of the tagger and detector for towers that are trained here: word w of a label is
predicted from the mean patch feature of the region, with the tokens of the language model as
classes. The pair head only teaches the tower to see relations; nothing it says enters the model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sgqlm.models import layers


class RegionClassifier(nn.Module):
    """Two-layer heads over the tokens of the language model."""

    num_words: int
    vocab_size: int
    width: int

    def setup(self):
        """Declare the heads."""
        self.norm = layers.LayerNorm()
        self.fc1 = layers.Dense(2 * self.width)
        self.fc2 = layers.Dense(self.num_words * self.vocab_size)
        self.receive = layers.Dense(self.width)
        self.send = layers.Dense(self.width)
        self.evidence = layers.Dense(self.width)
        self.pair = layers.Dense(self.vocab_size)

    def words(self, pooled):
        """Map pooled features float32[B, N, D] to logits float32[B, N, W, V]."""
        logits = self.fc2(jax.nn.gelu(self.fc1(self.norm(pooled))))
        return logits.reshape(*logits.shape[:-1], self.num_words, self.vocab_size)

    def pairs(self, pooled, between, chosen):
        """Score the first token of the predicate of chosen pairs.

        Args:
            pooled: float32[B, N, D].
            between: features of the union box of a pair, float32[B, N, N, D].
            chosen: int32[B, K], each receiver * N + sender.

        Returns:
            float32[B, K, V].
        """
        nodes = self.norm(pooled)
        hidden = self.receive(nodes)[:, :, None] + self.send(nodes)[:, None]
        hidden = jax.nn.gelu(hidden + self.evidence(self.norm(between)))
        flat = hidden.reshape(hidden.shape[0], -1, self.width)
        return self.pair(jnp.take_along_axis(flat, chosen[..., None], axis=1))
