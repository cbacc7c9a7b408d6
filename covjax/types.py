"""Names that the whole project shares, and the glossary of shapes.

    B  images of a batch, on one device
    D  devices of this process
    H, W  height and width, pixels
    C  channels; 1 for a grey image, for a mask and for logits; 2 for an image beside
    lungs n  images of a split

Arrays are [B, H, W, C] on a device, [D, B, H, W, C] on their way to the devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax

# The axis over which devices meet: gradients and batch statistics are means over it.
AXIS = "batch"
# A tree of parameters or batch statistics, as flax.linen makes it.
Params = Mapping[str, Any]
# Names → scalars, float32 [].
Metrics = dict[str, jax.Array]
# (logits [B, H, W, 1], masks [B, H, W, 1]) → the loss of every image, float32 [B].
LossFn = Callable[[jax.Array, jax.Array], jax.Array]


class Prediction(NamedTuple):
    """What a network says of a batch.

    Attributes:
      logits: of every pixel, float32 [B, H, W, 1].
      presence: logit that there is a finding at all, float32 [B]; None without a head
        that tells.
      deeper: in training, the logits of coarser levels of the decoder, the finest
        first: float32 [B, H / 2, W / 2, 1], [B, H / 4, W / 4, 1], …
    """

    logits: jax.Array
    presence: jax.Array | None = None
    deeper: tuple[jax.Array, ...] = ()


# (prediction, masks [B, H, W, 1]) → what training lowers, of every image, float32 [B].
Objective = Callable[[Prediction, jax.Array], jax.Array]


class Batch(TypedDict):
    """What the pipelines supply and the steps take.

    Attributes:
      image: image, cut to the region of interest, or beside its mask, uint8
        [B, H, W, C] in 0 to 255.
      mask: target, uint8 [B, H, W, 1] in {0, 1}.
      index: position of the image in its split, int32 [B].
      weight: 1 for an image, 0 for padding, float32 [B].
    """

    image: jax.Array
    mask: jax.Array
    index: jax.Array
    weight: jax.Array
