"""Stage 2: COVID-19 infection, from the weights of a lung run.

  python -m covjax.main --config=configs/infection.py --init_from=runs/lung

The study: Test Dice .6167, IoU .5642 (family `all`). Ours: experiments/results.
"""

import ml_collections

from configs import base


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the settings of stage 2; `variant` as in base.py."""
    config = base.get_config(variant)
    config.data.task = "infection"
    config.data.roi = "truth"  # the study's equation (1): image x lung mask
    config.loss.dice, config.loss.bce = 0.5, 0.5  # its equation (2)
    config.train.epochs = {"": 40, "laptop": 8, "phantom": 12}[variant]
    return config
