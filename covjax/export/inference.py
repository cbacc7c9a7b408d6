"""What an exported network computes: images in, probabilities out.

    image        uint8 [B, H, W, C], as `Region.show` (data/pipeline.py) shows an image
    probability  float32 [B, H, W, 1], of every pixel
    presence     float32 [B], that there is a finding at all; where a head tells

Levels are scaled, intensities normalized and, where `config.eval.tta_flip` says so, the
mirror image asked inside. Every format computes this in float32, whatever
`config.model.dtype` says.
"""

from collections.abc import Callable

import jax

from covjax.models.unet import Upsampling
from covjax.train.restore import Trained, in_form
from covjax.train.train_step import predict

# images → names → arrays, as above.
Inference = Callable[[jax.Array], dict[str, jax.Array]]


def make_inference(trained: Trained, upsample: Upsampling | None = None) -> Inference:
    """Returns the function above, its parameters inside, not compiled.

    Args:
      trained: the network.
      upsample: as in `config.model`; None: as it was trained.
    """
    config = trained.config
    form = {"upsample": upsample} if upsample else {}
    state = in_form(trained, dtype="float32", **form)

    def infer(images: jax.Array) -> dict[str, jax.Array]:
        prediction = predict(state, images, flip=config.eval.tta_flip)
        told = {"probability": jax.nn.sigmoid(prediction.logits)}
        if prediction.presence is not None:
            told["presence"] = jax.nn.sigmoid(prediction.presence)
        return told

    return infer
