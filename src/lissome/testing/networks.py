"""Tiny networks of every kind of coupling, as plain torch modules: what a user may hand in."""

# B images, C channels

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lissome.models.load import load_model
from lissome.models.model import Model


class _Basic(nn.Module):
    """Two convolutions beside a shortcut; the sum is written in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


class ResNet(nn.Module):
    """Residual blocks, one with a convolution in its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(_Basic(8, 8), _Basic(8, 8))
        self.layer2 = nn.Sequential(_Basic(8, 12, 2), _Basic(12, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, H, W] into classes."""
        pooled = F.adaptive_avg_pool2d(self.layer2(self.layer1(self.stem(x))), 1)
        classes: Tensor = self.fc(torch.flatten(pooled, 1))
        return classes


class _Squeeze(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.expand, self.bn0 = nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.bn1, self.squeeze = nn.BatchNorm2d(wide), _Squeeze(wide, inputs)
        self.project, self.bn2 = nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.depthwise(self.act(self.bn0(self.expand(x))))))
        y = self.bn2(self.project(self.squeeze(y)))
        made: Tensor = x + y if self.residual else y
        return made


class MobileNet(nn.Module):
    """Depthwise convolutions with kernels of 5 and 7, squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
        self.blocks = nn.Sequential(_Inverted(6, 6, 1, 5), _Inverted(6, 8, 2, 7), _Inverted(8, 8, 1, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, H, W] into classes."""
        classes: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return classes


class DenseNet(nn.Module):
    """Concatenated features with norms over all of them, and a classifier that reads every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6 + 4 * index) for index in range(2)])
        self.convs = nn.ModuleList([nn.Conv2d(6 + 4 * index, 4, 3, padding=1) for index in range(2)])
        self.fc = nn.Linear(14 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, 8, 8] into classes."""
        x = F.max_pool2d(self.stem(x), 2)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        classes: Tensor = self.fc(torch.flatten(x, 1))
        return classes


class ShuffleNet(nn.Module):
    """Channels that are split in halves, shuffled, and convolved in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU())
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=4)
        self.last = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, H, W] into classes."""
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat([left, self.right(right)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        classes: Tensor = self.fc(F.adaptive_max_pool2d(self.last(F.relu(self.grouped(x))), 1).flatten(1))
        return classes


class _NextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 3 * channels), nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        added: Tensor = self.scale * self.down(F.gelu(self.up(y)))
        return x + added.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """Norms over channels, which make the channels between blocks rigid; large kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(_NextBlock(8), _NextBlock(8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, H, W] into classes."""
        classes: Tensor = self.fc(self.blocks(self.stem(x)).mean((-2, -1)))
        return classes


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        made: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return made


class _ViTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), _Attention(width, 4)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        made: Tensor = x + self.mlp(self.norm2(x))
        return made


class VisionTransformer(nn.Module):
    """Attention with one layer for queries, keys and values; a token for the class, and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 17, 16))
        self.blocks = nn.ModuleList([_ViTBlock(16) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Put images [B, 3, 16, 16] into classes."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        classes: Tensor = self.head(self.norm(x)[:, 0])
        return classes


def _plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.GroupNorm(4, 8), nn.PReLU(8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3, padding=1),
        nn.InstanceNorm2d(6, affine=True), nn.Flatten(), nn.Linear(6 * 16, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip


def _decoding() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.Upsample(scale_factor=2),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def _rows() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))


_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (ResNet, (3, 16, 16)),
    "mobilenet": (MobileNet, (3, 16, 16)),
    "densenet": (DenseNet, (3, 8, 8)),
    "shufflenet": (ShuffleNet, (3, 8, 8)),
    "convnext": (ConvNext, (3, 32, 32)),
    "transformer": (VisionTransformer, (3, 16, 16)),
    "plain": (_plain, (1, 8, 8)),
    "decoding": (_decoding, (3, 8, 8)),
    "rows": (_rows, (10,)),
}

NETWORKS: tuple[str, ...] = tuple(_NETWORKS)
"""All names that `network` knows."""


def network(name: str, *, seed: int = 0) -> nn.Module:
    """Build a tiny network with random weights and running statistics.

    Args:
        name: One of `NETWORKS`.
        seed: Of the weights; the global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _NETWORKS[name][0]()
        for parameter in module.parameters():  # norms start at 1 and biases at 0, which would hide mistakes
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        for label, buffer in module.named_buffers():
            if label.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif label.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return module.eval()


def network_model(name: str, *, seed: int = 0) -> Model:
    """Build a tiny network as a `Model` that knows what it reads; arguments as in `network`."""
    return load_model(network(name, seed=seed), name=f"toy-{name}", example=_NETWORKS[name][1])
