"""The U-Net of Ronneberger et al., 2015, with padded convolutions and a norm.

Names of the parameters, for transfer by name: `encoder_0` (full size) to
`encoder_<depth-1>`, `bottleneck`, `upsample_<i>` and `decoder_<i>` (back at the size
of `encoder_<i>`), `head`; where they are asked for, `presence`, and `deep_<i>` (the
head of level i of the decoder).
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from covjax.models.conv3x3 import Conv3x3
from covjax.models.intensity import Intensity, normalize_intensity
from covjax.types import AXIS, Prediction

Norm = Literal["batch", "group"]
Upsampling = Literal["transpose", "depth_to_space"]


class Upsample(nn.Module):
    """Doubles height and width by a 2x2 transposed convolution of stride 2.

    With such a stride no two inputs meet in one output, so the same map is a matrix
    product at every pixel, whose results are laid out as 2x2 blocks. Both forms hold
    the same parameters and give the same numbers; which is faster depends on the
    machine (on a CPU, XLA took more than twice as long for the gradient of the first).

    Attributes:
      features: channels of the output.
      form: "transpose" (a convolution) or "depth_to_space" (a product and a reshape).
      dtype: of the computation; parameters are float32.
    """

    features: int
    form: Upsampling
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2 H, 2 W, features]."""
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        if self.form == "transpose":
            x = jax.lax.conv_transpose(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return x + bias
        batch, height, width, _ = x.shape
        # conv_transpose correlates, so the block that an input spreads over is the
        # kernel turned by 180 degrees.
        blocks = jnp.einsum("bhwi,klio->bhkwlo", x, kernel[::-1, ::-1])
        return blocks.reshape(batch, 2 * height, 2 * width, self.features) + bias


class ConvBlock(nn.Module):
    """Twice: a 3x3 convolution, a norm, a ReLU.

    Attributes:
      features: channels of the output.
      norm: "batch" (over the batches of all devices) or "group".
      dtype: of the computation; parameters and statistics are float32.
      residual: whether the input, through a 1x1 convolution and a norm, is added before
        the last ReLU (He et al., Deep residual learning, CVPR 2016).
    """

    features: int
    norm: Norm
    dtype: jnp.dtype
    residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        past = self._shortcut(x, train) if self.residual else None
        for i in range(2):
            # The norm that follows has a bias of its own.
            x = Conv3x3(self.features, self.dtype, name=f"conv_{i}")(x)
            x = self._normalize(x, train=train, name=f"norm_{i}")
            if i == 1 and past is not None:
                x = x + past
            x = nn.relu(x)
        return x

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        project = nn.Dense(
            self.features, use_bias=False, dtype=self.dtype, name="shortcut"
        )
        return self._normalize(project(x), train=train, name="norm_shortcut")

    def _normalize(self, x: jax.Array, *, train: bool, name: str) -> jax.Array:
        if self.norm == "batch":
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                dtype=self.dtype,
                # `init` runs outside of the pmap, where the axis has no name.
                axis_name=None if self.is_initializing() else AXIS,
                name=name,
            )(x)
        groups = math.gcd(self.features, 8)
        return nn.GroupNorm(num_groups=groups, dtype=self.dtype, name=name)(x)


class UNet(nn.Module):
    """A U-Net for one binary mask.

    Attributes:
      width: channels of the first level; each level down has twice as many.
      depth: times that the picture is halved; its sides must be divisible by
        2 ** depth.
      norm: "batch" (statistics over the batches of all devices) or "group".
      upsample: "transpose" or "depth_to_space", two forms of the same map.
      dropout: rate at which features of the bottleneck are dropped in training.
      dtype: of the computation; parameters, statistics and logits are float32.
      remat: whether the gradient computes the inside of each block anew, rather than
        keeping it: less memory, more time, the same numbers.
      intensity: what the levels of an image become first (models/intensity.py).
      residual: whether the blocks of the encoder and the bottleneck are residual.
      presence_head: whether a head tells from the bottleneck (its mean and its maximum
        over the picture) that there is a finding at all.
      deep_supervision: coarser levels of the decoder that have a head in training.

    Reference:
      Ronneberger, Fischer, Brox: U-Net, MICCAI 2015, with padded convolutions.
    """

    width: int = 64
    depth: int = 4
    norm: Norm = "batch"
    upsample: Upsampling = "transpose"
    dropout: float = 0.0
    dtype: jnp.dtype = np.dtype("float32")
    remat: bool = False
    intensity: Intensity = "unit"
    residual: bool = False
    presence_head: bool = False
    deep_supervision: int = 0

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Prediction:
        """Computes the logit of every pixel, and what further heads say.

        Args:
          images: float [B, H, W, C] in [0, 1]; the image is the first channel; H and W
            are divisible by 2 ** depth.
          train: whether batch statistics are taken from this batch and features
            dropped; needs `mutable=["batch_stats"]` and an rng named "dropout".

        Returns:
          Logits, float32.

        Raises:
          ValueError: if a side is not divisible by 2 ** depth.
        """
        _, height, width, _ = images.shape
        if height % 2**self.depth or width % 2**self.depth:
            raise ValueError(
                f"a U-Net of depth {self.depth} halves the picture {self.depth} times:"
                f" {height}x{width} is not divisible by {2**self.depth}"
            )
        sample = normalize_intensity(images[..., :1], self.intensity)
        x = jnp.concatenate([sample, images[..., 1:]], axis=-1).astype(self.dtype)
        skips = []
        for i in range(self.depth):
            x = self._block(i, f"encoder_{i}", self.residual)(x, train)
            skips.append(x)
            x = _max_pool(x)
        x = self._block(self.depth, "bottleneck", self.residual)(x, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        presence = self._presence(x) if self.presence_head else None
        deeper = []
        for i in reversed(range(self.depth)):
            x = Upsample(
                self.width * 2**i, self.upsample, self.dtype, name=f"upsample_{i}"
            )(x)
            x = jnp.concatenate([skips[i], x], axis=-1)
            x = self._block(i, f"decoder_{i}")(x, train)
            if 1 <= i <= self.deep_supervision and (train or self.is_initializing()):
                deeper.insert(0, self._head(x, f"deep_{i}"))
        return Prediction(self._head(x, "head"), presence, tuple(deeper))

    def _block(self, level: int, name: str, residual: bool = False) -> ConvBlock:
        # `train`, the third argument with `self`, is no array.
        block = nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock
        return block(self.width * 2**level, self.norm, self.dtype, residual, name=name)

    def _head(self, x: jax.Array, name: str) -> jax.Array:
        return nn.Conv(1, (1, 1), dtype=jnp.float32, name=name)(x)

    def _presence(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        pooled = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
        return nn.Dense(1, dtype=jnp.float32, name="presence")(pooled)[:, 0]


def _max_pool(x: jax.Array) -> jax.Array:
    """Takes the maximum of 2x2 blocks.

    XLA's gradient of `nn.max_pool` (select and scatter) is about fourteen times slower
    on the CPU. That of `jnp.max` or `jnp.maximum` looks for the maximum by its value,
    and may not find it if XLA computes a feature twice with another rounding. A
    selection always passes the gradient on to one of the four.
    """
    rows = _larger(x[:, ::2], x[:, 1::2])
    return _larger(rows[:, :, ::2], rows[:, :, 1::2])


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(a > b, a, b)
