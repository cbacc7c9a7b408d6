"""What varies: experiments, their arms, and nothing about how they are run.

An arm is a config and what it says otherwise. `python -m experiments.run` lists them
all; docs/experiments.md tells how to run one and how to read its table.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from configs import infection, infection_best
from covjax.config import flatten

# The config whose run comes before, with the same network.
STAGE_1 = {"infection": "lung", "infection_best": "lung_best"}

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config, and what it says otherwise.

    Attributes:
      overrides: fields → values, {"loss.batch_dice": True}. A field that begins with
        "lung:" is of the run of stage 1. That run has this arm's network by itself:
        nobody has to say `model.norm` twice.
      config: name of a file in configs/, a key of `STAGE_1`.
    """

    overrides: Overrides = dataclasses.field(default_factory=dict)
    config: str = "infection"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Arms that differ from a baseline.

    Attributes:
      question: what it asks.
      arms: by their names in the table.
      baseline: name of the arm that the others are compared with.
      variant: of all configs, unless the command gives another.
      settings: fields → values of all runs of both stages; "lung:" and "infection:"
        before a field mean those of one stage.
    """

    question: str
    arms: Mapping[str, Arm]
    baseline: str
    variant: str = ""
    settings: Overrides = dataclasses.field(default_factory=dict)


_HEAD, _PRESENCE, _DEEP = "^params/head/", "^params/presence/", "^params/deep_"
_ENCODER = "^params/(encoder_|bottleneck)"
_STRONG = {
    "augment.rotate": 20.0,
    "augment.scale": 0.2,
    "augment.gamma_prob": 0.3,
    "augment.noise_prob": 0.2,
}


def _loss(**weights: Any) -> Arm:
    plain = {"dice": 0.0, "bce": 0.0}
    return Arm({f"loss.{name}": value for name, value in (plain | weights).items()})


# What the recipe adds to the study's, one part at a time.
_PARTS: dict[str, Overrides] = {
    "found lungs beside the image": {"data.roi": "predicted", "data.roi_as": "channel"},
    "presence head": {
        "model.presence_head": True,
        "loss.presence": 0.5,
        "transfer.fresh": (_HEAD, _PRESENCE),
    },
    "blanks left to the head": {"loss.empty_weight": 0.0},
    "batch Dice": {"loss.batch_dice": True},
    "positives .8 to .4": {"data.positive_share": (0.8, 0.4)},
    "moving average": {"optim.average": "ema"},
    "residual": {"model.residual": True},
    "deep supervision": {
        "model.deep_supervision": 2,
        "transfer.fresh": (_HEAD, _DEEP),
    },
    "strong augmentation": _STRONG,
    "flip": {"eval.tta_flip": True},
    "epoch chosen tuned": {"eval.choose": "tuned"},
}
# A part → the one that it means nothing without.
_NEEDS = {"blanks left to the head": "presence head"}
_STUDY, _RECIPE = (flatten(c.get_config()) for c in (infection, infection_best))


def _with(part: str) -> Arm:
    """Returns the study with a part, and with what that needs."""
    return Arm({**_PARTS.get(_NEEDS.get(part, ""), {}), **_PARTS[part]})


def _without(part: str) -> Arm | None:
    """Returns the recipe with the study's values of a part; None: it lacks the part."""
    parts = [part, *(other for other, needed in _NEEDS.items() if needed == part)]
    fields = [f for name in parts for f in _PARTS[name] if f != "transfer.fresh"]
    if all(_RECIPE[field] == _STUDY[field] for field in fields):
        return None
    overrides = {field: _STUDY[field] for field in fields}
    if part == "presence head":  # a pattern that matches no leaf is an error
        rest = tuple(p for p in _RECIPE["transfer.fresh"] if p != _PRESENCE)
        overrides["transfer.fresh"] = rest
    return _recipe(overrides)


def _recipe(overrides: Overrides) -> Arm:
    return Arm(overrides, "infection_best")


EXPERIMENTS: dict[str, Experiment] = {
    "roi": Experiment(
        "Which region of an image should the network be trained on, and how be shown"
        " it?",
        {
            "truth": Arm(),
            "predicted": Arm({"data.roi": "predicted"}),
            "none": Arm({"data.roi": "none"}),
            "truth as channel": Arm({"data.roi_as": "channel"}),
            "predicted as channel": Arm(
                {"data.roi": "predicted", "data.roi_as": "channel"}
            ),
            "dilated": Arm({"data.roi": "predicted", "data.roi_dilate": 4}),
        },
        "truth",
    ),
    "transfer": Experiment(
        "What does stage 2 gain from the weights of stage 1, and from which of them?",
        {
            "all": Arm(),
            "encoder only": Arm(
                {"transfer.fresh": (_HEAD, "^params/upsample_", "/decoder_")}
            ),
            "none": Arm({"init_from": ""}),
            "encoder frozen 2 epochs": Arm(
                {"transfer.frozen": (_ENCODER,), "transfer.frozen_epochs": 2}
            ),
            "head carried": Arm({"transfer.fresh": ()}),
            "batch statistics new": Arm({"transfer.fresh": (_HEAD, "^batch_stats/")}),
        },
        "all",
    ),
    "loss": Experiment(
        "Which loss?",
        {
            "hybrid .5": Arm(),
            "Dice": _loss(dice=1.0),
            "Dice over the batch": _loss(dice=1.0, batch_dice=True),
            "BCE": _loss(bce=1.0),
            "hybrid .25": _loss(dice=0.25, bce=0.75),
            "hybrid .75": _loss(dice=0.75, bce=0.25),
            "focal": _loss(focal=1.0),
            "Tversky": _loss(tversky=1.0),
        },
        "hybrid .5",
    ),
    "augmentation": Experiment(
        "How much augmentation?",
        {
            "study": Arm(),
            "off": Arm(
                {
                    f"augment.{kind}_prob": 0.0
                    for kind in ("flip", "affine", "brightness_contrast")
                }
            ),
            "strong": Arm(_STRONG),
        },
        "study",
    ),
    "norm": Experiment(
        "Norm over the batch, or over groups of channels?",
        {"batch": Arm(), "group": Arm({"model.norm": "group"})},
        "batch",
    ),
    "intensity": Experiment(
        "What should the levels of an image become, before the network?",
        {
            "unit": Arm(),
            "standard": Arm({"model.intensity": "standard"}),
            "equal": Arm({"model.intensity": "equal"}),
        },
        "unit",
    ),
    "lung_data": Experiment(
        "How many images does stage 1 need?",
        {
            "100 %": Arm(),
            "30 %": Arm({"lung:data.train_share": 0.3}),
            "10 %": Arm({"lung:data.train_share": 0.1}),
        },
        "100 %",
    ),
    "background": Experiment(
        "What does an image give away outside of the lungs?",
        {"lungs": Arm(), "outside": Arm({"data.roi": "outside"})},
        "lungs",
    ),
    "recipe": Experiment(
        "What does each part of the recipe add to the study's?",
        {
            "study": Arm(),
            **{name: _with(name) for name in _PARTS},
            "mean of epochs": Arm({"optim.average": "epochs"}),
            "all of the recipe": Arm(config="infection_best"),
        },
        "study",
    ),
    "recipe_changed": Experiment(
        "What does the recipe lose without a part, and what would another part add?",
        {
            "recipe": Arm(config="infection_best"),
            **{f"without {name}": arm for name in _PARTS if (arm := _without(name))},
            "whole image": _recipe({"data.roi": "none", "data.roi_as": "cut"}),
            "image cut to found lungs": _recipe({"data.roi_as": "cut"}),
            "batch Dice": _recipe({"loss.batch_dice": True, "loss.empty_weight": 1.0}),
            "strong augmentation": _recipe(_STRONG),
            "mean of epochs": _recipe({"optim.average": "epochs"}),
        },
        "recipe",
    ),
    "smoke": Experiment(
        "Does the machinery work? (phantoms; the answer means nothing)",
        {
            "hybrid .5": Arm(),
            "BCE": Arm({"loss.dice": 0.0, "loss.bce": 1.0}),
        },
        "hybrid .5",
        variant="phantom",
        settings={
            "data.phantom_images": (16, 12, 2),
            "data.image_size": 32,
            "data.cache": "",
            "model.width": 4,
            "model.depth": 2,
            "train.batch_size": 8,
            "train.epochs": 2,
        },
    ),
}
