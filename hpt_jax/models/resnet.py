"""ResNet backbones that can host PyTorch's weights exactly.

He et al., "Deep Residual Learning" (2015), in torchvision's variant: the stride of a bottleneck
sits on its 3x3 convolution, paddings are explicit and symmetric (XLA's `SAME` is not at stride 2).
Modules are named as torchvision names them: `layer1_0_conv1` for `layer1.0.conv1`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hpt_jax.models.batch_norm import BatchNorm, GroupLayout
from hpt_jax.models.convolution import conv_general_dilated

# Kaiming-normal over fan-in, as the original code initialises its convolutions and its head.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

# name -> (uses bottleneck blocks, blocks of each stage)
ARCHITECTURES: dict[str, tuple[bool, tuple[int, ...]]] = {
    "resnet10": (False, (1, 1, 1, 1)),
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}


# The fields of a model that its weights decide.
ARCHITECTURE_FIELDS = ("arch", "width", "stem", "stem_stride")


@dataclasses.dataclass(frozen=True)
class Stem:
    """The first convolution and what follows it.

    Attributes:
      kernel: side of the convolution's kernel, pixels.
      padding: of the convolution on every side, pixels.
      stride: of the convolution; None: the model's `stem_stride`.
      pool: padding of a 3x3 max-pool of stride 2, as `nn.max_pool` takes it; None: no pool.
    """

    kernel: int
    padding: int
    stride: int | None = None
    pool: Any = None


# 'simclr' and 'solo' exist for the sake of weights that were trained so, by google-research/simclr
# (TensorFlow's SAME pads even maps on the right alone) and by solo-learn for CIFAR.
STEMS = {
    "imagenet": Stem(7, 3, 2, ((1, 1), (1, 1))),
    "simclr": Stem(7, 3, 2, "SAME"),
    "small": Stem(3, 1),
    "solo": Stem(3, 2),
}


class ResNet(nn.Module):
    """ResNet up to global average pooling.

    Attributes:
      arch: a name in `ARCHITECTURES`.
      width: channels of the stem and the first stage (64 in the paper).
      stem: a name in `STEMS`: 'imagenet' (7x7, stride 2, max-pool) or 'small' (3x3, no max-pool;
        for images under about 100 pixels), or a variant of these for weights that need it.
      stem_stride: stride of a stem of 3x3, 1 or 2.
      dtype: compute dtype of convolutions and activations.
      layout: how a shard lies in the batch-norm groups.
      bn_momentum: torch's momentum of the running statistics.
    """

    arch: str = "resnet50"
    width: int = 64
    stem: str = "imagenet"
    stem_stride: int = 2
    dtype: Any = jnp.float32
    layout: GroupLayout = GroupLayout()
    bn_momentum: float = 0.1

    @property
    def features(self) -> int:
        """Number of output features."""
        bottleneck, stages = ARCHITECTURES[self.arch]
        return self.width * 2 ** (len(stages) - 1) * (4 if bottleneck else 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Pooled features of normalised images.

        Args:
          x: [batch, height, width, channels], any number of channels.
          train: normalise with the batch's own statistics and update the running ones (needs the
            collection 'batch_stats' to be mutable); else with the running ones.

        Returns:
          [batch, features] in `promote_types(float32, dtype)`. Every block's output is in the
          collection 'intermediates' where that is asked for, by names like 'layer1_0'.
        """
        bottleneck, stages = ARCHITECTURES[self.arch]
        x = x.astype(self.dtype)
        stem = STEMS[self.stem]
        stride = stem.stride or self.stem_stride
        x = self._conv(x, self.width, stem.kernel, stride, "conv1", stem.padding)
        x = nn.relu(self._bn(x, train, "bn1"))
        if stem.pool is not None:
            x = nn.max_pool(x, (3, 3), (2, 2), stem.pool)
        block = self._bottleneck if bottleneck else self._basic
        for stage, blocks in enumerate(stages):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                x = block(x, self.width * 2**stage, stride, train, name)
                self.sow("intermediates", name, x)
        return x.astype(jnp.promote_types(jnp.float32, self.dtype)).mean((1, 2))

    def _conv(
        self,
        x: jax.Array,
        channels: int,
        kernel: int,
        stride: int,
        name: str,
        padding: int | None = None,
    ) -> jax.Array:
        return nn.Conv(
            channels,
            (kernel, kernel),
            (stride, stride),
            padding=kernel // 2 if padding is None else padding,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=jnp.promote_types(jnp.float32, self.dtype),
            kernel_init=kaiming_normal,
            conv_general_dilated=conv_general_dilated,
            name=name,
        )(x)

    def _bn(self, x: jax.Array, train: bool, name: str) -> jax.Array:
        return BatchNorm(self.layout, self.bn_momentum, name=name)(x, train)

    def _shortcut(
        self, x: jax.Array, channels: int, stride: int, train: bool, name: str
    ) -> jax.Array:
        if stride == 1 and x.shape[-1] == channels:
            return x
        x = self._conv(x, channels, 1, stride, f"{name}_downsample_conv")
        return self._bn(x, train, f"{name}_downsample_bn")

    def _basic(self, x: jax.Array, channels: int, stride: int, train: bool, name: str) -> jax.Array:
        y = self._conv(x, channels, 3, stride, f"{name}_conv1")
        y = nn.relu(self._bn(y, train, f"{name}_bn1"))
        y = self._bn(self._conv(y, channels, 3, 1, f"{name}_conv2"), train, f"{name}_bn2")
        return nn.relu(y + self._shortcut(x, channels, stride, train, name))

    def _bottleneck(
        self, x: jax.Array, channels: int, stride: int, train: bool, name: str
    ) -> jax.Array:
        y = self._conv(x, channels, 1, 1, f"{name}_conv1")
        y = nn.relu(self._bn(y, train, f"{name}_bn1"))
        y = self._conv(y, channels, 3, stride, f"{name}_conv2")
        y = nn.relu(self._bn(y, train, f"{name}_bn2"))
        y = self._bn(self._conv(y, 4 * channels, 1, 1, f"{name}_conv3"), train, f"{name}_bn3")
        return nn.relu(y + self._shortcut(x, 4 * channels, stride, train, name))
