"""Checks of a config, before anything is read or compiled; and its file."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from covjax.errors import UsageError
from covjax.runtime.files import write_whole
from covjax.runtime.strict_json import read_json

# A run may go on with other values of these: no number that it computes depends on
# them (the folder of the data may have moved).
NOT_IDENTITY = {
    "data.root",
    "data.cache",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.on_bad_record",  # a run keeps to its images: train/sample_manifest.py
    "train.log_every",
    "train.checkpoint_every",
    "train.on_nan",
}

# Fields that runs of before they existed lack, with the value that they go on with.
_SINCE = {
    "data.lung_run": "",
    "data.roi_dilate": 0,
    "data.roi_as": "cut",
    "data.train_share": 1.0,
    "data.positive_share": (),
    "data.cache": "auto",
    "data.on_bad_record": "error",
    "augment.where": "host",
    "augment.gamma_prob": 0.0,
    "augment.gamma": 0.3,
    "augment.noise_prob": 0.0,
    "augment.noise": 0.05,
    "model.remat": False,
    "model.intensity": "unit",
    "model.residual": False,
    "model.presence_head": False,
    "model.deep_supervision": 0,
    "loss.focal": 0.0,
    "loss.focal_gamma": 2.0,
    "loss.tversky": 0.0,
    "loss.tversky_beta": 0.7,
    "loss.batch_dice": False,
    "loss.presence": 0.0,
    "loss.empty_weight": 1.0,
    "optim.average": "none",
    "optim.ema_decay": 0.998,
    "optim.average_epochs": 3,
    "train.checkpoint_every": 0,
    "train.on_nan": "stop",
    "eval.tta_flip": False,
    "eval.choose": "untuned",
    "transfer.frozen": (),
    "transfer.frozen_epochs": 0,
}

ROIS = ("none", "truth", "predicted", "outside")
# Of networks that are read from files: one layer takes 512 MiB for each image at most.
LARGEST_SIDE, LARGEST_WIDTH, MOST_FEATURES = 4096, 1024, 2**27
PIXEL_LOSSES = ("dice", "bce", "focal", "tversky")  # weights in `config.loss`

Tree = Mapping[str, Any] | ml_collections.ConfigDict
_Check = tuple[Callable[[Any], bool], str]


def _one_of(*allowed: str) -> _Check:
    return (lambda v: v in allowed, "one of " + ", ".join(map(repr, allowed)))


def _whole(low: int, high: float = math.inf) -> _Check:
    limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    return (
        lambda v: type(v) is int and low <= v <= high,  # True is no number here
        f"a whole number, {limits}",
    )


def _at_least(low: float) -> _Check:
    return (lambda v: _is_number(v) and v >= low, f"at least {low}")


def _between(low: float, high: float) -> _Check:
    return (lambda v: _is_number(v) and low <= v <= high, f"from {low} to {high}")


def _above(low: float, high: float, *, with_high: bool = False) -> _Check:
    if with_high:
        return (
            lambda v: _is_number(v) and low < v <= high,
            f"above {low}, at most {high}",
        )
    limits = f"above {low}" + (f", below {high}" if high < math.inf else "")
    return (lambda v: _is_number(v) and low < v < high, limits)


def _is_number(value: Any) -> bool:
    # A whole number may be too large to be made a float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _text(allowed: str) -> _Check:
    return (lambda v: type(v) is str and v.isprintable(), allowed)


def _are_patterns(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(type(v) is str for v in value)


_PROBABILITY = _between(0, 1)
_FRACTION = (lambda v: _is_number(v) and 0 <= v < 1, "from 0, below 1")
_FLAG = (lambda v: isinstance(v, bool), "True or False")
_PATTERNS = (_are_patterns, "regular expressions in a tuple, or ()")

_CHECKS: dict[str, _Check] = {
    "seed": _whole(0, 2**32 - 1),
    "init_from": _text("a run or a checkpoint, or ''"),
    "data.root": _text("a folder, or ''"),
    "data.task": _one_of("lung", "infection"),
    "data.roi": _one_of(*ROIS),
    "data.roi_dilate": _whole(0),
    "data.roi_as": _one_of("cut", "channel"),
    "data.train_share": _above(0, 1, with_high=True),
    "data.positive_share": (
        lambda v: (
            len(v) in (0, 2)
            and all(_is_number(share) and 0 <= share <= 1 for share in v)
        ),
        "(first, last), each from 0 to 1, or () for images as they come",
    ),
    "data.lung_run": _text("a run's folder, or ''"),
    "data.cache": _text("a folder, 'auto' or ''"),
    "data.image_size": _whole(8),
    "data.threads": _whole(1),
    "data.workers": _whole(-1),
    "data.prefetch": _whole(1),
    "data.on_bad_record": _one_of("error", "skip"),
    "data.phantom_images": (
        lambda v: len(v) in (0, 3) and all(type(n) is int and n > 0 for n in v),
        "(Train, Val, Test), whole numbers above 0, or () for the images of data.root",
    ),
    "augment.where": _one_of("host", "device"),
    "augment.flip_prob": _PROBABILITY,
    "augment.affine_prob": _PROBABILITY,
    "augment.shift": _between(0, 1),
    "augment.scale": _FRACTION,
    "augment.rotate": _between(0, 180),
    "augment.brightness_contrast_prob": _PROBABILITY,
    "augment.brightness": _between(0, 1),
    "augment.contrast": _between(0, 1),
    "augment.gamma_prob": _PROBABILITY,
    "augment.gamma": _between(0, 0.99),  # Albumentations wants exponents from .01
    "augment.noise_prob": _PROBABILITY,
    "augment.noise": _between(0, 1),
    "model.width": _whole(1),
    "model.depth": _whole(1, 8),
    "model.norm": _one_of("batch", "group"),
    "model.upsample": _one_of("transpose", "depth_to_space"),
    "model.dropout": _FRACTION,
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.remat": _FLAG,
    "model.intensity": _one_of("unit", "standard", "equal"),
    "model.residual": _FLAG,
    "model.presence_head": _FLAG,
    "model.deep_supervision": _whole(0),
    "loss.dice": _at_least(0),
    "loss.bce": _at_least(0),
    "loss.focal": _at_least(0),
    "loss.focal_gamma": _at_least(0),
    "loss.tversky": _at_least(0),
    "loss.tversky_beta": _between(0, 1),
    "loss.batch_dice": _FLAG,
    "loss.presence": _at_least(0),
    "loss.empty_weight": _between(0, 1),
    "optim.lr": _above(0, math.inf),
    "optim.weight_decay": _at_least(0),
    "optim.warmup_epochs": _at_least(0),
    "optim.clip_norm": _at_least(0),
    "optim.average": _one_of("none", "ema", "epochs"),
    "optim.ema_decay": _above(0, 1),
    "optim.average_epochs": _whole(1),
    "train.epochs": _whole(1),
    "train.batch_size": _whole(1),
    "train.log_every": _whole(1),
    "train.checkpoint_every": _whole(0),
    "train.on_nan": _one_of("stop", "skip"),
    "eval.threshold": _above(0, 1),
    "eval.tta_flip": _FLAG,
    "eval.choose": _one_of("untuned", "tuned"),
    "transfer.fresh": _PATTERNS,
    "transfer.frozen": _PATTERNS,
    "transfer.frozen_epochs": _whole(0),
}


def validate_config(config: ml_collections.ConfigDict) -> None:
    """Refuses values that could not give a run.

    Raises:
      UsageError: naming the first wrong field, its value and what is allowed.
    """
    _check_fields(config)
    if not any(config.loss[name] for name in PIXEL_LOSSES):
        raise UsageError(
            f"config.loss: {', '.join(PIXEL_LOSSES)} are all 0; one has to be above"
        )
    if not config.loss.empty_weight and not config.model.presence_head:
        raise UsageError(
            "config.loss.empty_weight = 0: must be above 0 where"
            " config.model.presence_head is"
            " False (nothing would teach the network that an image can be blank)"
        )
    if bool(config.loss.presence) != config.model.presence_head:
        raise UsageError(
            f"config.loss.presence = {config.loss.presence} and"
            " config.model.presence_head"
            f" = {config.model.presence_head}: a presence head needs a loss, and only"
            " one"
            " that is there can have one"
        )
    if config.loss.empty_weight < 1 and config.loss.batch_dice:
        raise UsageError(
            f"config.loss.empty_weight = {config.loss.empty_weight}: must be 1 where"
            " config.loss.batch_dice is set (a sum over the batch is not of one image)"
        )
    if config.optim.warmup_epochs >= config.train.epochs:
        raise UsageError(
            f"config.optim.warmup_epochs = {config.optim.warmup_epochs}: must be below"
            f" config.train.epochs = {config.train.epochs}"
        )
    if (
        config.optim.average == "epochs"
        and config.optim.average_epochs > config.train.epochs
    ):
        raise UsageError(
            f"config.optim.average_epochs = {config.optim.average_epochs}: must be at"
            f" most config.train.epochs = {config.train.epochs}"
        )
    if bool(config.transfer.frozen_epochs) != bool(config.transfer.frozen):
        raise UsageError(
            f"config.transfer.frozen = {tuple(config.transfer.frozen)} and"
            f" config.transfer.frozen_epochs = {config.transfer.frozen_epochs}: either"
            " both are set or none"
        )
    if config.transfer.frozen_epochs and not config.init_from:
        raise UsageError(
            "config.transfer.frozen_epochs needs --init_from: parameters that start"
            " anew must not be frozen"
        )
    _check_network(config)
    if config.data.task == "lung" and config.data.roi != "none":
        raise UsageError(
            f"config.data.roi = {config.data.roi!r}: must be 'none' where"
            " config.data.task is 'lung' (the lungs are the answer)"
        )
    if config.data.task == "lung" and (
        config.data.positive_share or config.model.presence_head
    ):
        raise UsageError(
            "config.data.positive_share and config.model.presence_head are of the"
            " infection:"
            " every image has lungs"
        )
    if config.data.roi == "none" and config.data.roi_as == "channel":
        raise UsageError(
            "config.data.roi_as = 'channel': must be 'cut' where config.data.roi is"
            " 'none' (there is no mask to show beside the image)"
        )
    if config.data.roi == "none" and config.data.roi_dilate:
        raise UsageError(
            f"config.data.roi_dilate = {config.data.roi_dilate}: must be 0 where"
            " config.data.roi is 'none' (there is no mask to widen)"
        )
    if config.data.roi == "predicted" and not (
        config.data.lung_run or config.init_from
    ):
        raise UsageError(
            "config.data.roi = 'predicted' needs the run that finds the lungs:"
            " config.data.lung_run, or --init_from"
        )


def _check_fields(config: ml_collections.ConfigDict) -> None:
    """Refuses fields that are missing, unknown, of another type or out of range."""
    fields = flatten(config)
    for name, (holds, allowed) in _CHECKS.items():
        if name not in fields:
            raise UsageError(f"config.{name} is missing")
        value = fields[name]
        try:
            right = holds(value)
        except TypeError:  # None, or a string among numbers
            right = False
        if not right:
            raise UsageError(f"config.{name} = {_brief(value)}: must be {allowed}")
    unknown = min(fields.keys() - _CHECKS.keys(), default=None)
    if unknown is not None:
        raise UsageError(
            f"config.{_brief(unknown)[1:-1]}: there is no such field (it may be of a"
            " later version)"
        )
    for name in ("transfer.fresh", "transfer.frozen"):
        compile_patterns(fields[name], name)


def _check_network(config: ml_collections.ConfigDict) -> None:
    if config.model.deep_supervision >= config.model.depth:
        raise UsageError(
            f"config.model.deep_supervision = {config.model.deep_supervision}: must be"
            f" below config.model.depth = {config.model.depth}"
        )
    step = 2**config.model.depth
    if config.data.image_size % step:
        raise UsageError(
            f"config.data.image_size = {config.data.image_size}: must be divisible by"
            f" {step} (2 ** config.model.depth)"
        )


def validate_stored(config: ml_collections.ConfigDict) -> None:
    """Refuses the config of a trained network that cannot be one, or is too large.

    A file of weights, or a run's folder, may come from others. What its config asks for
    is allocated; so a network has limits here, which training has not.

    Raises:
      UsageError: naming the first wrong field.
    """
    _check_fields(config)
    _check_network(config)
    side, width = config.data.image_size, config.model.width
    if side > LARGEST_SIDE or width > LARGEST_WIDTH or side**2 * width > MOST_FEATURES:
        raise UsageError(
            f"config.data.image_size = {side} and config.model.width = {width}: a"
            f" stored network has at most {LARGEST_SIDE} and {LARGEST_WIDTH}, and"
            f" {MOST_FEATURES:,} features in its first layer (image_size ** 2 * width)"
        )


def _brief(value: Any) -> str:
    """Returns a value as Python writes it, without the middle of a long one."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]} … {text[-10:]}"


def loss_weights(loss: Tree) -> dict[str, float]:
    """Returns the pixel losses that a config sums up, and their weights above 0."""
    return {name: loss[name] for name in PIXEL_LOSSES if loss.get(name)}


def compile_patterns(patterns: Sequence[str], field: str) -> list[re.Pattern[str]]:
    """Compiles regular expressions that name parameters.

    Args:
      patterns: of them.
      field: of the config that holds them, for the message.

    Raises:
      UsageError: if one of them is none.
    """
    try:
        return [re.compile(pattern) for pattern in patterns]
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"config.{field} = {_brief(tuple(patterns))}: {error}"
        ) from None


def flatten(config: Tree, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a config as {"data.task": "lung", …}, sorted by name."""
    leaves: dict[str, Any] = {}
    for name in sorted(config):
        value = config[name]
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def differences(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which two configs are not the same run.

    Args:
      old: a config, or what `read_config` returned.
      new: another.

    Returns:
      Names → (old value, new value); None stands for an absent field.
    """
    # Through JSON, so that tuples and lists compare as they were written.
    a, b = (json.loads(json.dumps(flatten(c))) for c in (old, new))
    free = NOT_IDENTITY
    if "predicted" not in (a.get("data.roi"), b.get("data.roi")):
        free = free | {"data.lung_run"}  # of the evaluation alone
    return {
        name: (a.get(name), b.get(name))
        for name in sorted(a.keys() | b.keys())
        if name not in free and a.get(name) != b.get(name)
    }


def save_config(
    config: ml_collections.ConfigDict, path: Path, about: Mapping[str, Any]
) -> None:
    """Writes a config as JSON, with `about` (versions, commit, …) under "about"."""
    content = config.to_dict() | {"about": dict(about)}
    write_whole(path, json.dumps(content, indent=2) + "\n")


def read_about(path: Path) -> dict[str, Any]:
    """Reads the "about" of what `save_config` wrote; empty where there is none."""
    try:
        return dict(read_json(path).get("about") or {})
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def fill_in(content: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns a config that was written down, with the fields that were added since.

    Args:
      content: groups → fields → values; changed.
    """
    for name, value in _SINCE.items():
        group, _, field = name.partition(".")
        content.get(group, {}).setdefault(field, value)
    return ml_collections.ConfigDict(content)


def read_config(path: Path) -> ml_collections.ConfigDict:
    """Reads what `save_config` wrote, without its "about".

    Fields that were added later are filled in.

    Raises:
      UsageError: if there is no such file or it is no config.
    """
    try:
        content = read_json(path)
        content.pop("about", None)
        return fill_in(content)
    except FileNotFoundError:
        raise UsageError(f"{path.parent} holds no run: no {path.name}") from None
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UsageError(f"{path}: not a run's config ({error})") from None
