"""Prototype extractors of the torch model; both compute in float32."""

import torch
from torch import nn
from torch.nn import functional

from .layers_sgqlm import Dense, LayerNorm


class PaperExtractor(nn.Module):
    """Learned centres, refined by attention over the patches, and a residual."""

    def __init__(self, config, width):
        super().__init__()
        self.iterations = config.iterations
        self.centers = nn.Parameter(torch.zeros(config.num_prototypes, width))
        self.q, self.k = Dense(width, width), Dense(width, width)
        self.v, self.z = Dense(width, width), Dense(width, width)

    def forward(self, x):
        """Map patches [B, P, D] to enhanced patches and centres float32[B, K, D]."""
        z = x.float()
        keys, values = self.k(z), self.v(z)
        centers = self.centers.float().expand(len(x), -1, -1)
        for _ in range(self.iterations):
            logits = self.q(centers) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
            centers = logits.softmax(-1) @ values
        mean = (_unit(centers) @ _unit(z).transpose(1, 2)).transpose(1, 2) @ centers
        patches = z + self.z(mean / len(self.centers))
        return patches.to(x.dtype), centers


class ReleasedExtractor(nn.Module):
    """The clustering of the released SQ-LLaVA; `ln_1` is stored there and never used."""

    def __init__(self, config, width):
        super().__init__()
        self.num, self.iterations = config.num_prototypes, config.iterations
        self.sim_alpha = nn.Parameter(torch.ones(1, 1, 1))
        self.sim_beta = nn.Parameter(torch.zeros(1, 1, 1))
        self.c, self.v, self.f = (Dense(width, width) for _ in range(3))
        self.ln_1 = LayerNorm(width)

    def forward(self, x):
        """Map patches [B, P, D] to enhanced patches and centres float32[B, K, D]."""
        z = x.float()
        pool = _pool_matrix(z.shape[1], self.num, z.device)
        value, keys = self.f(z), self.v(z)
        # over the patches, channel by channel, as released
        keys = keys / keys.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        centers, center_values = pool @ z, pool @ value
        for _ in range(self.iterations):
            logits = _unit(self.c(centers)) @ keys.transpose(1, 2)
            centers = logits.softmax(1) @ value
        cosine = _unit(centers) @ _unit(z).transpose(1, 2)
        similarity = torch.sigmoid(self.sim_beta.float() + self.sim_alpha.float() * cosine)
        nearest = similarity.argmax(1)
        member = functional.one_hot(nearest, self.num).float()  # [B, P, K]
        gate = (similarity.transpose(1, 2) * member).sum(2, keepdim=True)
        pooled = (similarity * member.transpose(1, 2)) @ value + center_values
        pooled = pooled / (member.sum(1) + 1.0)[..., None]
        y = z + gate * (member @ pooled)
        weights = member / member.sum(1, keepdim=True).clamp(min=1.0)
        return y.to(x.dtype), weights.transpose(1, 2) @ y


def _unit(x):
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-24))


def _pool_matrix(length, bins, device):
    """Return float32[bins, length] of adaptive average pooling."""
    matrix = torch.zeros(bins, length)
    for i in range(bins):
        start, stop = i * length // bins, -((-(i + 1) * length) // bins)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix.to(device)
