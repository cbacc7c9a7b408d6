"""Stage 1 past the study: the parts that stand in bold in docs/recipe.md.

python -m covjax.main --config=configs/lung_best.py --workdir=runs/lung_best
"""

import ml_collections

from configs import lung


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the settings of the recipe for stage 1; `variant` as in base.py."""
    config = lung.get_config(variant)
    strengthen(config)
    config.loss.dice, config.loss.bce = 0.5, 0.5
    config.train.epochs = {"": 40, "laptop": 8, "phantom": 8}[variant]
    return config


def strengthen(config: ml_collections.ConfigDict) -> None:
    """Sets what both stages of the recipe share."""
    config.model.residual = True
    config.model.deep_supervision = 2
    config.optim.average = "ema"
    config.eval.tta_flip = True
