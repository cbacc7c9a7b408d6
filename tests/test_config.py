"""Settings: every field is checked, read somewhere, and survives its file."""

import ast
import inspect
import json
import math
from pathlib import Path

import ml_collections
import pytest

from configs import base, infection, infection_best, lung, lung_best
from covjax.config import (
    NOT_IDENTITY,
    PIXEL_LOSSES,
    ROIS,
    differences,
    flatten,
    read_about,
    read_config,
    save_config,
    validate_config,
)
from covjax.data.augment import Augment
from covjax.data.augment_params import Strengths, strengths_of
from covjax.errors import UsageError
from covjax.train.device_augment import DeviceAugment
from covjax.train.losses import make_loss, make_objective

SOURCES = Path(__file__).parents[1] / "covjax"
STAGES = {"lung": lung, "infection": infection}
BEST = {"lung": lung_best, "infection": infection_best}
FIELDS = flatten(base.get_config())
CHECKED = sorted(FIELDS)
WHOLE = [name for name in CHECKED if type(FIELDS[name]) is int]
REAL = [name for name in CHECKED if type(FIELDS[name]) is float]
WORDS = [name for name in CHECKED if type(FIELDS[name]) is str]


def change(config: ml_collections.ConfigDict, name: str, value: object) -> None:
    """Sets one field, whatever the type of its value."""
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})


def refusal(config: ml_collections.ConfigDict) -> str:
    with pytest.raises(UsageError) as caught:
        validate_config(config)
    return str(caught.value)


@pytest.mark.parametrize("variant", base.VARIANTS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_variant_of_both_stages_is_valid(stage, variant):
    config = STAGES[stage].get_config(variant)
    validate_config(config)
    assert config.data.task == stage


@pytest.mark.parametrize("variant", base.VARIANTS)
@pytest.mark.parametrize("stage", BEST)
def test_every_variant_of_the_recipe_is_valid(stage, variant):
    config = BEST[stage].get_config(variant)
    config.init_from = "runs/lung" if stage == "infection" else ""
    validate_config(config)
    assert config.data.task == stage


def test_both_stages_of_the_recipe_are_of_one_network():
    first, second = (BEST[stage].get_config().model.to_dict() for stage in BEST)
    assert first | {"presence_head": True} == second


@pytest.mark.parametrize("stage", [*STAGES.values(), *BEST.values()])
def test_variants_set_the_same_fields(stage):
    assert {frozenset(flatten(stage.get_config(v))) for v in base.VARIANTS} == {
        frozenset(FIELDS)
    }


def test_unknown_variant_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'tiny'.*laptop.*phantom"):
        lung.get_config("tiny")


def test_fields_of_all_kinds_are_covered():
    flags = [name for name in CHECKED if type(FIELDS[name]) is bool]
    kinds = [*WHOLE, *REAL, *WORDS, *flags]
    kinds += ["data.phantom_images", "data.positive_share"]
    kinds += ["transfer.fresh", "transfer.frozen"]
    assert sorted(kinds) == CHECKED


@pytest.mark.parametrize("name", CHECKED)
def test_missing_field_is_named(name):
    content = base.get_config().to_dict()
    *sections, leaf = name.split(".")
    section = content
    for part in sections:
        section = section[part]
    del section[leaf]
    assert refusal(ml_collections.ConfigDict(content)) == f"config.{name} is missing"


@pytest.mark.parametrize("value", [None, math.nan], ids=["None", "NaN"])
@pytest.mark.parametrize("name", CHECKED)
def test_no_value_is_refused_by_name(name, value):
    config = base.get_config()
    change(config, name, value)
    assert refusal(config).startswith(f"config.{name} = {value!r}: must be ")


@pytest.mark.parametrize("name", [*WHOLE, *REAL])
def test_word_for_a_number_is_refused_by_name(name):
    config = base.get_config()
    change(config, name, "3")
    assert refusal(config).startswith(f"config.{name} = '3': must be ")


@pytest.mark.parametrize("name", WORDS)
def test_number_for_a_word_is_refused_by_name(name):
    config = base.get_config()
    change(config, name, 3)
    texts = {"data.lung_run": "a run's folder", "data.cache": "a folder"}
    texts |= {"data.root": "a folder", "init_from": "a run or a checkpoint"}
    allowed = texts.get(name, "one of '")
    assert refusal(config).startswith(f"config.{name} = 3: must be {allowed}")


@pytest.mark.parametrize("name", REAL)
def test_infinity_is_refused_by_name(name):
    config = base.get_config()
    change(config, name, math.inf)
    assert refusal(config).startswith(f"config.{name} = inf: must be ")


@pytest.mark.parametrize("name", WHOLE)
def test_fraction_cannot_be_given_for_a_whole_number(name):
    with pytest.raises(TypeError):
        base.get_config().update_from_flattened_dict({name: 2.5})


@pytest.mark.parametrize("value", [2.0, True], ids=["a float", "a flag"])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_only_equal_to_a_whole_number_is_refused(name, value):
    config = base.get_config()
    change(config, name, value)
    assert refusal(config).startswith(f"config.{name} = {value!r}: must be a whole")


def test_a_field_that_there_is_not_is_named():
    content = base.get_config().to_dict()
    content["optim"]["momentum"] = 0.9
    said = refusal(ml_collections.ConfigDict(content))
    assert said.startswith("config.optim.momentum: there is no such field")


@pytest.mark.parametrize("name", ["transfer.fresh", "transfer.frozen"])
def test_a_pattern_that_is_none_is_refused_before_anything_is_read(name):
    config = base.get_config()
    change(config, name, ("^params/(head",))
    assert refusal(config).startswith(f"config.{name} = ('^params/(head',): ")


# Field, values that are refused, values at the edge of what is allowed, what is said.
RANGES = [
    ("seed", [-1, 2**32], [0, 2**32 - 1], "from 0 to 4294967295"),
    ("data.task", ["lungs", ""], ["lung", "infection"], "'lung', 'infection'"),
    (
        "data.roi",
        ["lungs", "Truth", ""],
        ["none"],
        "'none', 'truth', 'predicted', 'outside'",
    ),
    ("data.roi_dilate", [-1], [0], "at least 0"),
    ("data.roi_as", ["mask", ""], ["cut"], "'cut', 'channel'"),
    ("data.on_bad_record", ["raise", ""], ["error", "skip"], "'error', 'skip'"),
    ("data.train_share", [0.0, -0.5, 1.5], [0.001, 1.0], "above 0, at most 1"),
    (
        "data.positive_share",
        [(0.5,), (0.5, 0.5, 0.5), (0.5, 1.1), (-0.1, 0.5), 0.5, "ab"],
        [()],
        "(first, last), each from 0 to 1, or ()",
    ),
    ("data.lung_run", [("runs/lung",)], ["", "runs/lung"], "a run's folder, or ''"),
    ("data.cache", [("/cache",)], ["", "auto", "/cache"], "a folder, 'auto' or ''"),
    ("data.image_size", [0, -64, 7], [16], "at least 8"),
    ("data.threads", [0], [1], "at least 1"),
    ("data.workers", [-2], [-1, 0], "at least -1"),
    ("data.prefetch", [0], [1], "at least 1"),
    (
        "data.phantom_images",
        [(8,), (8, 8), (8, 8, 0), (8, 8, 2.5), (8, 8, True), 8, "abc"],
        [(), (1, 1, 1), [8, 8, 8]],
        "(Train, Val, Test)",
    ),
    ("augment.where", ["", "gpu", None], ["host", "device"], "'host', 'device'"),
    ("augment.flip_prob", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.affine_prob", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.shift", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.scale", [-0.1, 1.0], [0.0, 0.9], "from 0, below 1"),
    ("augment.rotate", [-1.0, 181.0], [0.0, 180.0], "from 0 to 180"),
    ("augment.brightness_contrast_prob", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.brightness", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.contrast", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.gamma_prob", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.gamma", [-0.1, 1.0], [0.0, 0.99], "from 0 to 0.99"),
    ("augment.noise_prob", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("augment.noise", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("model.width", [0], [1], "at least 1"),
    ("model.depth", [0, 9], [1, 8], "from 1 to 8"),
    ("model.norm", ["layer"], ["batch", "group"], "'batch', 'group'"),
    ("model.upsample", ["bilinear"], ["transpose", "depth_to_space"], "'transpose'"),
    ("model.dropout", [-0.1, 1.0], [0.0, 0.9], "from 0, below 1"),
    ("model.dtype", ["float16"], ["float32", "bfloat16"], "'float32', 'bfloat16'"),
    ("model.remat", [1, "True"], [True, False], "True or False"),
    ("model.intensity", ["", "z"], ["unit", "standard", "equal"], "'standard'"),
    ("model.residual", [1, "True"], [True, False], "True or False"),
    ("model.presence_head", [1, "True"], [False], "True or False"),
    ("model.deep_supervision", [-1], [0, 3], "at least 0"),
    ("loss.dice", [-0.5], [0.5], "at least 0"),
    ("loss.bce", [-0.5], [0.0, 2.0], "at least 0"),
    ("loss.focal", [-0.5], [0.0, 2.0], "at least 0"),
    ("loss.focal_gamma", [-0.5], [0.0, 5.0], "at least 0"),
    ("loss.tversky", [-0.5], [0.0, 2.0], "at least 0"),
    ("loss.tversky_beta", [-0.1, 1.1], [0.0, 1.0], "from 0 to 1"),
    ("loss.batch_dice", [1, "True"], [True, False], "True or False"),
    ("loss.presence", [-0.5], [0.0], "at least 0"),
    ("loss.empty_weight", [-0.1, 1.1], [0.1, 1.0], "from 0 to 1"),
    ("optim.lr", [0.0, -1e-3], [1e-9], "above 0"),
    ("optim.weight_decay", [-1e-4], [0.0], "at least 0"),
    ("optim.warmup_epochs", [-1.0], [0.0], "at least 0"),
    ("optim.clip_norm", [-1.0], [0.0], "at least 0"),
    (
        "optim.average",
        ["swa", ""],
        ["none", "ema", "epochs"],
        "'none', 'ema', 'epochs'",
    ),
    ("optim.ema_decay", [0.0, 1.0], [0.001, 0.9999], "above 0, below 1"),
    ("optim.average_epochs", [0], [1], "at least 1"),
    ("train.epochs", [0], [2], "at least 1"),
    ("train.batch_size", [0], [1], "at least 1"),
    ("train.log_every", [0], [1], "at least 1"),
    ("train.checkpoint_every", [-1], [0, 1], "at least 0"),
    ("train.on_nan", ["", "ignore"], ["stop", "skip"], "one of 'stop', 'skip'"),
    ("eval.threshold", [0.0, 1.0], [0.001, 0.999], "above 0, below 1"),
    ("eval.tta_flip", [1, "True"], [True, False], "True or False"),
    ("eval.choose", ["best", ""], ["untuned", "tuned"], "'untuned', 'tuned'"),
    ("init_from", [("runs/lung",), "a\nb"], ["", "runs/lung"], "a run or a checkpoint"),
    ("data.root", [0, "a\0b"], ["", "/data", "Röntgen 1"], "a folder, or ''"),
    ("transfer.fresh", ["^params", (1,)], [(), ["^params/head"]], "in a tuple"),
    ("transfer.frozen", ["^params", (None,)], [()], "in a tuple, or ()"),
    ("transfer.frozen_epochs", [-1], [0], "at least 0"),
]


def test_ranges_cover_every_checked_field():
    assert sorted(name for name, *_ in RANGES) == CHECKED


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [(name, value, text) for name, wrong, _, text in RANGES for value in wrong],
)
def test_wrong_value_is_refused_with_what_is_allowed(name, value, allowed):
    config = base.get_config()
    change(config, name, value)
    said = refusal(config)
    assert said.startswith(f"config.{name} = {value!r}: must be ")
    assert allowed in said


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, _, right, _ in RANGES for value in right],
)
def test_value_at_the_edge_is_allowed(name, value):
    config = base.get_config()
    change(config, name, value)
    validate_config(config)


INFECTION = {"data.task": "infection"}
INFECTION_PREDICTED = {"data.task": "infection", "data.roi": "predicted"}

COMBINATIONS = [
    ({"loss.dice": 0.0, "loss.bce": 0.0}, ["dice, bce, focal, tversky", "all 0"]),
    (
        INFECTION | {"model.presence_head": True},
        ["loss.presence = 0.0", "model.presence_head = True"],
    ),
    (
        INFECTION | {"loss.presence": 0.1},
        ["loss.presence = 0.1", "model.presence_head = False"],
    ),
    (
        {"model.presence_head": True, "loss.presence": 0.1},
        ["model.presence_head", "every image has lungs"],
    ),
    ({"data.positive_share": (0.8, 0.4)}, ["positive_share", "every image has lungs"]),
    (
        INFECTION | {"loss.empty_weight": 0.0},
        ["loss.empty_weight = 0", "above 0 where config.model.presence_head is False"],
    ),
    (
        INFECTION | {"loss.empty_weight": 0.9, "loss.batch_dice": True},
        ["loss.empty_weight = 0.9", "must be 1 where config.loss.batch_dice is set"],
    ),
    (
        {"model.deep_supervision": 4},
        ["model.deep_supervision = 4", "below config.model.depth = 4"],
    ),
    (
        INFECTION | {"data.roi_as": "channel"},
        ["data.roi_as = 'channel'", "'cut'", "data.roi is 'none'"],
    ),
    (
        {"transfer.frozen_epochs": 2, "init_from": "runs/lung"},
        ["transfer.frozen = ()", "transfer.frozen_epochs = 2", "both are set"],
    ),
    (
        {"transfer.frozen_epochs": 2, "transfer.frozen": ("encoder",)},
        ["transfer.frozen_epochs", "--init_from"],
    ),
    (
        {"transfer.frozen": ("encoder",), "init_from": "runs/lung"},
        ["transfer.frozen = ('encoder',)", "frozen_epochs = 0", "both are set"],
    ),
    (
        {"optim.warmup_epochs": 4.0, "train.epochs": 4},
        ["optim.warmup_epochs = 4.0", "below config.train.epochs = 4"],
    ),
    (
        {"optim.average": "epochs", "optim.average_epochs": 4, "train.epochs": 3},
        ["optim.average_epochs = 4", "at most config.train.epochs = 3"],
    ),
    (
        {"data.image_size": 72, "model.depth": 4},
        ["data.image_size = 72", "divisible by 16", "model.depth"],
    ),
    *(
        (
            {"data.task": "lung", "data.roi": roi, "data.lung_run": "runs/lung"},
            [f"data.roi = '{roi}'", "'none'", "data.task is 'lung'"],
        )
        for roi in ("truth", "predicted", "outside")
    ),
    (
        {"data.task": "infection", "data.roi_dilate": 1},
        ["data.roi_dilate = 1", "must be 0", "data.roi is 'none'"],
    ),
    (
        INFECTION_PREDICTED,
        ["data.roi = 'predicted'", "data.lung_run", "--init_from"],
    ),
]


@pytest.mark.parametrize(("fields", "words"), COMBINATIONS)
def test_values_that_contradict_each_other_are_refused(fields, words):
    config = base.get_config()
    for name, value in fields.items():
        change(config, name, value)
    said = refusal(config)
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    "fields",
    [
        {"loss.dice": 0.0, "loss.bce": 1.0},
        {"loss.dice": 0.0, "loss.focal": 1.0},
        {"loss.dice": 0.0, "loss.tversky": 1.0},
        INFECTION | {"model.presence_head": True, "loss.presence": 0.1},
        INFECTION | {"data.positive_share": (0.8, 0.4)},
        INFECTION | {"data.roi": "truth", "data.roi_as": "channel"},
        {
            "transfer.frozen_epochs": 2,
            "transfer.frozen": ("encoder",),
            "init_from": "runs/lung",
        },
        {"optim.warmup_epochs": 3.9, "train.epochs": 4},
        {"optim.average": "epochs", "optim.average_epochs": 4, "train.epochs": 4},
        {"optim.average": "ema", "optim.average_epochs": 4, "train.epochs": 3},
        {"data.image_size": 72, "model.depth": 3},
        {"data.task": "infection", "data.roi": "none"},
        {"data.task": "infection", "data.roi": "truth", "data.roi_dilate": 3},
        {"data.task": "infection", "data.roi": "outside", "data.roi_dilate": 3},
        INFECTION_PREDICTED | {"data.lung_run": "runs/lung"},
        INFECTION_PREDICTED | {"init_from": "runs/lung", "data.roi_dilate": 3},
    ],
)
def test_values_that_just_agree_are_allowed(fields):
    config = base.get_config()
    for name, value in fields.items():
        change(config, name, value)
    validate_config(config)


def find_reads(source: str) -> set[tuple[str, str]]:
    """Finds `owner.name` in a source, as ("owner", "name"); `a.b.c` is ("b", "c")."""
    reads = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            match node.value:
                case ast.Attribute(attr=owner) | ast.Name(id=owner):
                    reads.add((owner, node.attr))
    return reads


def test_every_setting_is_read():
    reads = set()
    for path in SOURCES.rglob("*.py"):
        if path.name != "config.py":  # it checks; it uses nothing
            reads |= find_reads(path.read_text(encoding="utf-8"))
    # These go to Augment and to the losses as a whole, below.
    whole = ("augment", "loss")
    wanted = {
        (section.rpartition(".")[2] or "config", leaf)
        for section, _, leaf in (name.rpartition(".") for name in FIELDS)
        if section not in whole
    }
    assert {("config", name) for name in whole} | {("augment", "where")} <= reads
    assert wanted - reads == set()


@pytest.mark.parametrize("kind", [Strengths, Augment, DeviceAugment])
def test_settings_of_augment_are_its_arguments(kind):
    augment = base.get_config().augment
    arguments = set(inspect.signature(kind).parameters)
    assert arguments == set(strengths_of(augment)) == set(augment) - {"where"}


def test_settings_of_the_loss_are_the_arguments_of_what_is_lowered():
    loss = base.get_config().loss
    of_pixels = set(inspect.signature(make_loss).parameters)
    beyond = {
        name
        for name, parameter in inspect.signature(make_objective).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    assert set(loss) == of_pixels | beyond
    assert set(PIXEL_LOSSES) == {k for k in loss if k in of_pixels} - {
        "batch_dice",
        "focal_gamma",
        "tversky_beta",
    }


@pytest.mark.parametrize("text", [None, "", "{", "[]", '"about"', '{"about": 3}'])
def test_a_config_that_tells_nothing_about_itself_is_no_error(tmp_path, text):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    assert read_about(path) == {}
    save_config(base.get_config(), path, {"commit": "1f3a"})
    assert read_about(path) == {"commit": "1f3a"}


def test_flatten_names_leaves_by_their_path_in_order():
    nested = {"b": {"y": 1, "x": {"z": (2, 3)}}, "a": ""}
    assert list(flatten(nested).items()) == [("a", ""), ("b.x.z", (2, 3)), ("b.y", 1)]
    assert flatten(ml_collections.ConfigDict(nested)) == flatten(nested)


def test_differences_give_both_values():
    old, new = base.get_config(), base.get_config()
    new.model.width = 16
    new.transfer.fresh = ()
    assert differences(old, new) == {
        "model.width": (64, 16),
        "transfer.fresh": (["^params/head/"], []),
    }


def test_differences_show_a_field_that_one_side_lacks():
    old, new = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert differences(old, new) == {"a.b": (1, None), "a.c": (None, 2)}


def test_tuples_are_the_lists_that_json_makes_of_them():
    config = lung.get_config("phantom")
    read = json.loads(json.dumps(config.to_dict()))
    assert read["data"]["phantom_images"] == [320, 64, 128]
    assert differences(read, config) == {}
    read["data"]["phantom_images"][2] = 127
    assert list(differences(read, config)) == ["data.phantom_images"]


def test_only_fields_without_effect_on_numbers_may_change():
    assert NOT_IDENTITY <= FIELDS.keys()
    other = {int: 7, float: 0.77, str: "other", tuple: (7, 7, 7), bool: True}
    config = base.get_config()
    for name, value in FIELDS.items():
        assert value != other[type(value)]
        change(config, name, other[type(value)])
    changed = differences(base.get_config(), config)
    assert FIELDS.keys() - changed.keys() == {
        "data.root",
        "data.cache",
        "data.lung_run",  # where training is not shown its lungs
        "data.threads",
        "data.workers",
        "data.prefetch",
        "data.on_bad_record",
        "train.log_every",
        "train.checkpoint_every",
        "train.on_nan",
    }


@pytest.mark.parametrize("old_roi", ROIS)
@pytest.mark.parametrize("new_roi", ROIS)
def test_run_of_the_lungs_may_change_unless_training_was_shown_them(old_roi, new_roi):
    old, new = infection.get_config(), infection.get_config()
    old.data.roi, new.data.roi = old_roi, new_roi
    old.data.lung_run, new.data.lung_run = "runs/a", "runs/b"
    expected = {}
    if "predicted" in (old_roi, new_roi):
        expected["data.lung_run"] = ("runs/a", "runs/b")
    if old_roi != new_roi:
        expected["data.roi"] = (old_roi, new_roi)
    assert differences(old, new) == expected


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_saved_config_is_read_back_the_same(tmp_path, stage):
    config = stage.get_config("phantom")
    config.seed, config.init_from, config.optim.lr = 3, "runs/ä", 0.1 + 0.2
    save_config(config, tmp_path / "config.json", {"commit": "abc"})
    read = read_config(tmp_path / "config.json")
    assert flatten(read) == flatten(config) | {
        "data.phantom_images": [320, 64, 128],
        "transfer.fresh": ["^params/head/"],
        "transfer.frozen": [],
        "data.positive_share": [],
    }
    assert differences(config, read) == {}
    validate_config(read)


def test_saved_config_says_what_it_is_about(tmp_path):
    save_config(base.get_config(), tmp_path / "config.json", {"commit": "abc"})
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["about"] == {"commit": "abc"}
    assert content["model"]["width"] == 64


# Fields of later versions.
SINCE = {
    "data.lung_run": "",
    "data.roi_dilate": 0,
    "data.roi_as": "cut",
    "data.train_share": 1.0,
    "data.positive_share": (),
    "data.on_bad_record": "error",
    "augment.gamma_prob": 0.0,
    "augment.gamma": 0.3,
    "augment.noise_prob": 0.0,
    "augment.noise": 0.05,
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
    "eval.tta_flip": False,
    "eval.choose": "untuned",
    "transfer.frozen": (),
    "transfer.frozen_epochs": 0,
    "data.cache": "auto",
    "augment.where": "host",
    "model.remat": False,
}


def test_run_from_before_a_field_goes_on_with_the_value_that_stood_for_it(tmp_path):
    path = tmp_path / "config.json"
    save_config(infection.get_config(), path, {})
    content = json.loads(path.read_text())
    for name in SINCE:
        group, _, field = name.partition(".")
        del content[group][field]
    path.write_text(json.dumps(content))
    read = read_config(path)
    assert {name: flatten(read)[name] for name in SINCE} == SINCE
    assert differences(read, infection.get_config()) == {}
    validate_config(read)


def test_later_fields_that_a_run_has_are_read_as_they_are(tmp_path):
    config = infection.get_config()
    config.data.roi_dilate, config.data.lung_run = 3, "runs/lung"
    save_config(config, tmp_path / "config.json", {})
    read = read_config(tmp_path / "config.json")
    assert (read.data.roi_dilate, read.data.lung_run) == (3, "runs/lung")


def test_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="holds no run: no config.json") as caught:
        read_config(tmp_path / "config.json")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b'{"seed": 0', b"[1, 2]", b'"seed"', b"3", b"null", b'{"\xff": 1}']
)
def test_file_that_is_no_config_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a run's config") as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="not a run's config"):
        read_config(tmp_path)
