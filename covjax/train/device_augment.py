"""The augmentations as arrays of jax, inside the compiled train step.

They do what data/augment.py does through Albumentations and OpenCV: the same
distributions, though other draws; the same matrix about the same centre; an image
interpolated linearly, a mask by the nearest pixel, both 0 beyond the border.

What is written for one image is meant for `jax.vmap`: each image is augmented from its
own seed, whichever images stand beside it.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from covjax.data.augment_params import Strengths
from covjax.data.mask_ops import disk

Record = dict[str, jax.Array]  # of an image, as `read_sample` names its parts


class Draw(NamedTuple):
    """What happens to one image; each a scalar, float32 but for `flip` and `noise`.

    A transform that does not happen has the values that change nothing. Those beyond
    the study are None where they never happen: then nothing of them is computed.

    Attributes:
      flip: whether left and right are exchanged, bool.
      angle: of the rotation, radians; above 0 it is counter-clockwise.
      scale: of the size; above 1 the image grows.
      shift_x: whole pixels to the right.
      shift_y: whole pixels down.
      contrast: factor of the levels.
      brightness: levels added after that.
      gamma: exponent of the levels, as shares of full scale, after that.
      noise: levels added to each pixel at last, float32 [H, W].
    """

    flip: jax.Array
    angle: jax.Array
    scale: jax.Array
    shift_x: jax.Array
    shift_y: jax.Array
    contrast: jax.Array
    brightness: jax.Array
    gamma: jax.Array | None = None
    noise: jax.Array | None = None


class DeviceAugment(Strengths):
    """Does on the device what data/augment.py does to an image and its masks."""

    def __call__(self, record: Record, seed: jax.Array) -> Record:
        """Augments one image.

        Args:
          record: "image" uint8 [H, W], and masks uint8 [H, W] in {0, 1}.
          seed: of this record in this epoch, uint32 [].

        Returns:
          The same keys, shapes, dtypes; masks stay in {0, 1}. Where the image moves
          away, pixels are 0 until brightness and noise change them as any others. An
          image to which nothing happens keeps every bit.
        """
        return apply(self.draw(seed, *record["image"].shape), record)

    def draw(self, seed: jax.Array, height: int, width: int) -> Draw:
        """Draws what happens to an image.

        Args:
          seed: of this record in this epoch, uint32 [].
          height: of the image, pixels.
          width: of the image, pixels.
        """
        key = jax.random.key(seed)
        u = jax.random.uniform(key, (9,))
        signed = 2 * u - 1  # from -1 to 1
        affine, tone = u[1] < self.affine_prob, u[6] < self.brightness_contrast_prob
        return Draw(
            flip=u[0] < self.flip_prob,
            angle=jnp.where(affine, jnp.deg2rad(self.rotate * signed[2]), 0.0),
            scale=jnp.where(affine, 1 + self.scale * signed[3], 1.0),
            # Albumentations cuts a shift to whole pixels, towards 0.
            shift_x=jnp.where(affine, jnp.trunc(self.shift * width * signed[4]), 0.0),
            shift_y=jnp.where(affine, jnp.trunc(self.shift * height * signed[5]), 0.0),
            contrast=jnp.where(tone, 1 + self.contrast * signed[7], 1.0),
            brightness=jnp.where(tone, 255 * self.brightness * signed[8], 0.0),
            gamma=self._draw_gamma(jax.random.fold_in(key, 9)),
            noise=self._draw_noise(jax.random.fold_in(key, 10), (height, width)),
        )

    # Keys of their own: the nine numbers above stay what they are for the study alone.
    def _draw_gamma(self, key: jax.Array) -> jax.Array | None:
        if not self.gamma_prob:
            return None
        u = jax.random.uniform(key, (2,))
        return jnp.where(u[0] < self.gamma_prob, 1 + self.gamma * (2 * u[1] - 1), 1.0)

    def _draw_noise(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array | None:
        if not self.noise_prob:
            return None
        which, pixels = jax.random.split(key)
        u = jax.random.uniform(which, (2,))
        deviation = jnp.where(u[0] < self.noise_prob, 255 * self.noise * u[1], 0.0)
        return deviation * jax.random.normal(pixels, shape)


def apply(draw: Draw, record: Record) -> Record:
    """Does to an image and its masks what was drawn.

    Args:
      draw: of this image.
      record: "image" uint8 [H, W], and masks uint8 [H, W] in {0, 1}.

    Returns:
      The same keys, shapes, dtypes.
    """
    places = _places(draw, *record["image"].shape)
    moved = {
        name: map_coordinates(
            pixels, places, order=1 if name == "image" else 0, mode="constant"
        )
        for name, pixels in record.items()
    }
    sample = _as_levels(moved["image"] * draw.contrast + draw.brightness)
    if draw.gamma is not None:
        curved = _as_levels(255 * (sample / 255) ** draw.gamma)
        sample = jnp.where(draw.gamma == 1, sample, curved)  # to the last bit
    if draw.noise is not None:
        sample = _as_levels(sample + draw.noise)
    return moved | {"image": sample}


def _as_levels(sample: jax.Array) -> jax.Array:
    """Returns uint8, cut off, not rounded: each transform of Albumentations ends so."""
    return jnp.clip(sample, 0, 255).astype(jnp.uint8)


def _places(draw: Draw, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Returns where each pixel comes from: rows and columns, float32 [H, W].

    A flip first, then scale, rotation and shift take the point p of an image to

        p' = centre + shift + scale * [[cos, sin], [-sin, cos]] (p - centre)

    in (x, y), y downwards; this is its inverse. Without them it is exact.
    """
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - (middle_x + draw.shift_x)
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - (middle_y + draw.shift_y)
    cos, sin = jnp.cos(draw.angle) / draw.scale, jnp.sin(draw.angle) / draw.scale
    columns = cos * x - sin * y
    columns = jnp.where(draw.flip, -columns, columns) + middle_x
    return sin * x + cos * y + middle_y, columns


def dilate(mask: jax.Array, radius: int) -> jax.Array:
    """Returns a mask and all pixels at most `radius` pixels away from it.

    As data/mask_ops.py does. The disk is a pile of bars, one for each of its rows: the
    mask is widened to the bars of every length, then each is moved to its row.

    Args:
      mask: uint8 [H, W] in {0, 1}.
      radius: pixels.
    """
    height, width = mask.shape
    padded = jnp.pad(mask, radius)
    bars = [padded[:, radius : radius + width]]
    for reach in range(1, radius + 1):
        left, right = radius - reach, radius + reach
        ends = padded[:, left : left + width] | padded[:, right : right + width]
        bars.append(bars[-1] | ends)
    reaches = disk(radius).sum(axis=1) // 2  # of the disk's rows, to either side
    rows = (bars[reach][row : row + height] for row, reach in enumerate(reaches))
    return functools.reduce(operator.or_, rows)
