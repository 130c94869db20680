"""Convolutional networks of residual or inverted residual blocks, described by their configuration.

One definition serves EfficientNet-Lite (Tan 2020), MobileNet-like networks (Sandler et al. 2018, arXiv 1801.04381;
Howard et al. 2019, arXiv 1905.02244) and small ResNets (He et al. 2016, arXiv 1512.03385). The classes are those of a
transformers model, so that folders, artifacts and `AutoModelForImageClassification` treat it like any other.
"""

# B images, C channels, H × W pixels, K classes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

MODEL_TYPE = "lissome-convnet"

_ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU}


class ConvNetConfig(PreTrainedConfig):
    """What a network is made of.

    Args:
        image_size: Height and width of an image.
        num_channels: Its channels.
        stem: Channels and stride of the first convolution.
        stages: Blocks in groups, as mappings: ``kind`` (``"inverted"`` or ``"residual"``), ``channels``, ``blocks``,
            ``stride`` of the first, and, of inverted ones, ``kernel``, ``expand`` (factor of the channels) and
            ``squeeze`` (share of the block's input channels that a squeeze-and-excite has; 0 for none).
        head: Channels of the last convolution; 0 for none.
        activation: ``relu``, ``relu6``, ``hardswish`` or ``silu``.
        norm_eps: Added to variances.
        norm_momentum: Weight of a new batch in running statistics.
        dropout: Before the classifier.
        image_mean: What is subtracted from pixels in [0, 1], by channel.
        image_std: What they are divided by then.
        kwargs: Further fields of transformers, such as ``num_labels``.
    """

    model_type = MODEL_TYPE

    def __init__(  # noqa: PLR0913, PLR0917  transformers builds it from its fields
        self,
        image_size: int = 32,
        num_channels: int = 3,
        stem: Sequence[int] = (16, 1),
        stages: Sequence[Mapping[str, Any]] = (),
        head: int = 0,
        activation: str = "relu",
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        dropout: float = 0.0,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        **kwargs: Any,
    ) -> None:
        self.image_size, self.num_channels = image_size, num_channels
        self.stem, self.stages, self.head = list(stem), [dict(stage) for stage in stages], head
        self.activation, self.norm_eps, self.norm_momentum = activation, norm_eps, norm_momentum
        self.dropout = dropout
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        super().__init__(**kwargs)


class SameConv2d(nn.Conv2d):
    """A convolution whose outputs are as many as its inputs over its stride, as TensorFlow pads them: [B, C, H, W]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Pad by what the kernel, as large as it is now, needs; odd amounts go to the right and the bottom."""
        padding: list[int] = []
        for size, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [needed // 2, needed - needed // 2]
        return super().forward(F.pad(inputs, padding) if any(padding) else inputs)


class ConvNorm(nn.Sequential):
    """A convolution without bias, a batch norm, and an activation or none."""

    def __init__(
        self, config: ConvNetConfig, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1,
        active: bool = True,
    ) -> None:  # fmt: skip
        layer: nn.Module
        if stride > 1:
            layer = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        else:
            layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(outputs, config.norm_eps, config.norm_momentum)
        super().__init__(layer, norm, *([_ACTIVATIONS[config.activation](inplace=True)] if active else []))


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale [B, C, H, W]."""
        means = inputs.mean((2, 3), keepdim=True)
        scaled: Tensor = inputs * self.expand(F.relu(self.reduce(means))).sigmoid()
        return scaled


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; adds its input where shapes allow."""

    def __init__(self, config: ConvNetConfig, stage: Mapping[str, Any], inputs: int, stride: int) -> None:
        super().__init__()
        outputs, wide = int(stage["channels"]), inputs * int(stage.get("expand", 6))
        layers: list[nn.Module] = [ConvNorm(config, inputs, wide)] if wide > inputs else []
        layers.append(ConvNorm(config, wide, wide, int(stage.get("kernel", 3)), stride=stride, groups=wide))
        if stage.get("squeeze"):
            layers.append(SqueezeExcite(wide, max(1, int(inputs * stage["squeeze"]))))
        layers.append(ConvNorm(config, wide, outputs, active=False))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.residual else outputs


class Residual(nn.Module):
    """Two convolutions beside a shortcut, and an activation after their sum."""

    def __init__(self, config: ConvNetConfig, stage: Mapping[str, Any], inputs: int, stride: int) -> None:
        super().__init__()
        outputs = int(stage["channels"])
        self.first = ConvNorm(config, inputs, outputs, 3, stride=stride)
        self.second = ConvNorm(config, outputs, outputs, 3, active=False)
        plain = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if plain else ConvNorm(config, inputs, outputs, stride=stride, active=False)
        self.activation = _ACTIVATIONS[config.activation]()

    def forward(self, inputs: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        outputs: Tensor = self.activation(self.second(self.first(inputs)) + self.shortcut(inputs))
        return outputs


_BLOCKS: dict[str, Any] = {"inverted": InvertedResidual, "residual": Residual}


class ConvNetForImageClassification(PreTrainedModel):
    """A convolutional network that puts images into classes."""

    config_class = ConvNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__(config)
        channels, stride = config.stem
        self.stem = ConvNorm(config, config.num_channels, channels, 3, stride=stride)
        blocks = []
        for stage in config.stages:
            for index in range(int(stage.get("blocks", 1))):
                step = int(stage.get("stride", 1)) if index == 0 else 1
                blocks.append(_BLOCKS[stage.get("kind", "inverted")](config, stage, channels, step))
                channels = int(stage["channels"])
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(config, channels, config.head) if config.head else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.head or channels, len(config.id2label or {}))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Start convolutions as He et al. (2015) do, norms at one, the classifier small."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(getattr(module, "bias", None), Tensor):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Put images [B, C, H, W] into classes: logits [B, K], and the mean cross-entropy when `labels` [B] are given.

        Args:
            pixel_values: Pixels, normalised.
            labels: Numbers of the right classes.
            kwargs: Ignored: transformers passes more than a network of this kind has.
        """
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.classifier(self.dropout(self.head(hidden).mean((2, 3))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def _inverted(channels: int, blocks: int, stride: int, kernel: int, expand: int) -> dict[str, Any]:
    return {
        "kind": "inverted", "channels": channels, "blocks": blocks, "stride": stride, "kernel": kernel,
        "expand": expand,
    }  # fmt: skip


EFFICIENTNET_LITE0: dict[str, Any] = {
    "image_size": 224,
    "stem": (32, 2),
    "stages": (
        _inverted(16, 1, 1, 3, 1),
        _inverted(24, 2, 2, 3, 6),
        _inverted(40, 2, 2, 5, 6),
        _inverted(80, 3, 2, 3, 6),
        _inverted(112, 3, 1, 5, 6),
        _inverted(192, 4, 2, 5, 6),
        _inverted(320, 1, 1, 3, 6),
    ),
    "head": 1280,
    "activation": "relu6",
    "norm_eps": 1e-3,
    "norm_momentum": 0.01,
    "dropout": 0.2,
    "image_mean": (127 / 255,) * 3,
    "image_std": (128 / 255,) * 3,
    "num_labels": 1000,
}
"""Fields of EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excite, with ReLU6, for ImageNet's 1000 classes."""

FILE_OF_LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Checksum of the file with its weights: the state dict of another definition, in the same order."""


def resnet(*, width: int = 16, blocks: int = 3, stages: int = 3, labels: int = 10, **fields: Any) -> ConvNetConfig:
    """Return the configuration of a ResNet for small images: ``2 · blocks · stages + 2`` layers.

    Args:
        width: Channels of the first stage; each further one has twice as many, at half the size.
        blocks: Blocks of a stage.
        stages: Number of stages.
        labels: Number of classes.
        fields: Further fields of `ConvNetConfig`.
    """
    groups = [
        {"kind": "residual", "channels": width * 2**stage, "blocks": blocks, "stride": 2 if stage else 1}
        for stage in range(stages)
    ]
    return ConvNetConfig(stem=(width, 1), stages=groups, num_labels=labels, **fields)


def in_order(config: ConvNetConfig, tensors: Mapping[str, Tensor]) -> ConvNetForImageClassification:
    """Build a network and fill it with tensors that another definition of it stored in the same order.

    Raises:
        ArtifactError: When their number or a shape differs.
    """
    from lissome.core.errors import ArtifactError

    with torch.device("meta"):
        module = ConvNetForImageClassification(config)
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = [tuple(value.shape) for value in tensors.values()]
    if shapes != list(wanted.values()):
        raise ArtifactError(f"the file holds {len(shapes)} tensors that are not those of this network; get it again.")
    module.load_state_dict(dict(zip(wanted, tensors.values(), strict=True)), assign=True)
    module.eval()  # type: ignore[no-untyped-call]
    return module


AutoConfig.register(MODEL_TYPE, ConvNetConfig, exist_ok=True)
AutoModelForImageClassification.register(ConvNetConfig, ConvNetForImageClassification, exist_ok=True)
