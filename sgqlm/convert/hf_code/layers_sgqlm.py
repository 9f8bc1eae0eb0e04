"""Layers of the torch model, and its CLIP vision tower."""

import torch
from torch import nn
from torch.nn import functional


def activation(name: str):
    """Return the activation called `name`, `gelu` being the exact one."""
    if name == "quick_gelu":
        return lambda x: x * torch.sigmoid(1.702 * x)
    return functional.gelu


def masked_softmax(logits, mask, dim):
    """Softmax in float32 over the entries where `mask` holds; zero where none does."""
    return logits.float().masked_fill(~mask, -1e9).softmax(dim) * mask


class Dense(nn.Linear):
    """Linear layer that follows the type of its input, with an optional adapter beside it.

    The adapter is `lora_a` [in, rank] and `lora_b` [rank, out].
    """

    def __init__(self, fan_in, fan_out, bias=True, lora=None):
        super().__init__(fan_in, fan_out, bias=bias)
        self.scale, a, b = 0.0, None, None
        if lora is not None and lora.rank:
            self.scale = lora.alpha / lora.rank
            a = nn.Parameter(torch.zeros(fan_in, lora.rank))
            b = nn.Parameter(torch.zeros(lora.rank, fan_out))
        self.register_parameter("lora_a", a)
        self.register_parameter("lora_b", b)

    def forward(self, x, use_lora=True):
        """Map [..., in] to [..., out]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = functional.linear(x, self.weight.to(x.dtype), bias)
        if self.lora_a is not None and use_lora:
            y = y + ((x @ self.lora_a.to(x.dtype)) @ self.lora_b.to(x.dtype)) * self.scale
        return y


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32 that returns the type of its input."""

    def forward(self, x):
        """Normalise the last axis."""
        weight, bias = self.weight.float(), self.bias.float()
        return functional.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


class RmsNorm(nn.Module):
    """Root-mean-square normalisation in float32 that returns the type of its input."""

    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        """Normalise the last axis."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


class VisionAttention(nn.Module):
    """Bidirectional attention with biases."""

    def __init__(self, config, lora):
        super().__init__()
        self.num_heads = config.num_heads
        width = config.width
        self.q_proj, self.k_proj = Dense(width, width, lora=lora), Dense(width, width, lora=lora)
        self.v_proj, self.out_proj = Dense(width, width, lora=lora), Dense(width, width, lora=lora)

    def forward(self, x, use_lora):
        """Map [B, T, D] to [B, T, D]."""
        q, k, v = (
            dense(x, use_lora).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for dense in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(y.transpose(1, 2).flatten(2), use_lora)


class VisionMlp(nn.Module):
    """Two layers with CLIP's activation between them."""

    def __init__(self, config, lora):
        super().__init__()
        self.activation = activation(config.activation)
        self.fc1 = Dense(config.width, config.mlp_dim, lora=lora)
        self.fc2 = Dense(config.mlp_dim, config.width, lora=lora)

    def forward(self, x, use_lora):
        """Map [B, T, D] to [B, T, D]."""
        return self.fc2(self.activation(self.fc1(x, use_lora)), use_lora)


class VisionLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, config, lora):
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(config, lora), VisionMlp(config, lora)
        self.layer_norm1 = LayerNorm(config.width, config.layer_norm_eps)
        self.layer_norm2 = LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, x, use_lora):
        """Map [B, T, D] to [B, T, D]."""
        x = x + self.self_attn(self.layer_norm1(x), use_lora)
        return x + self.mlp(self.layer_norm2(x), use_lora)


class VisionEmbeddings(nn.Module):
    """Class token, patches and their positions."""

    def __init__(self, config):
        super().__init__()
        patch, count = config.patch_size, (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(1 + count, config.width)

    def forward(self, pixels):
        """Map [B, 3, S, S] to [B, 1 + P, D]."""
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + self.position_embedding.weight.to(x.dtype)


class VisionEncoder(nn.Module):
    """The layers up to the feature layer."""

    def __init__(self, config, lora):
        super().__init__()
        index = config.feature_layer
        count = index if index >= 0 else config.num_layers + 1 + index
        self.layers = nn.ModuleList(VisionLayer(config, lora) for _ in range(count))


class VisionModel(nn.Module):
    """CLIP's transformer, the class token dropped at the end."""

    def __init__(self, config, lora):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.width, config.layer_norm_eps)
        self.encoder = VisionEncoder(config, lora)

    def forward(self, pixels, use_lora):
        """Map [B, 3, S, S] to [B, P, D]."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x, use_lora)
        return x[:, 1:]


class VisionTower(nn.Module):
    """Holds the tower under the name that its weights have in LLaVA folders."""

    def __init__(self, config, lora):
        super().__init__()
        self.vision_model = VisionModel(config, lora)

    def forward(self, pixels, use_lora=True):
        """Map normalised pixels [B, 3, S, S] to patch features [B, P, D]."""
        return self.vision_model(pixels, use_lora)
