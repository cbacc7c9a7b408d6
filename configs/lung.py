"""Stage 1: the lungs on a whole image.

  python -m covjax.main --config=configs/lung.py --workdir=runs/lung

The study: Test Dice .9690, IoU .9411 (family `all`). Ours: experiments/results.
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the settings of stage 1; `variant` as in base.py."""
    config = base.get_config(variant)
    config.data.task = "lung"
    config.data.roi = "none"
    config.loss.dice, config.loss.bce = 1.0, 0.0
    config.train.epochs = {"": 20, "laptop": 4, "phantom": 8}[variant]
    return config
