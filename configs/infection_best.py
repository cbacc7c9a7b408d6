"""Stage 2 past the study: the parts that stand in bold in docs/recipe.md.

python -m covjax.main --config=configs/infection_best.py --init_from=runs/lung_best
"""

import ml_collections

from configs import infection, lung_best


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Returns the settings of the recipe for stage 2; `variant` as in base.py."""
    config = infection.get_config(variant)
    lung_best.strengthen(config)
    # A clinic has no true lungs; and an image is more than what lies inside of them.
    config.data.roi, config.data.roi_as = "predicted", "channel"
    # Most of a wrong Dice (`all`) is false alarms: a head tells whether there is any.
    # The mask, freed from that question, learns from images that have something.
    config.model.presence_head, config.loss.presence = True, 0.5
    config.loss.empty_weight = 0.0
    # Outlines first, then less of them than Train's half: the share of a batch that has
    # something, at the start and at the end.
    config.data.positive_share = (0.8, 0.4)
    config.eval.choose = "tuned"
    config.transfer.fresh = ("^params/head/", "^params/presence/", "^params/deep_")
    config.train.epochs = {"": 60, "laptop": 10, "phantom": 12}[variant]
    return config
