"""What the experiments vary, and the runs that come of it."""

import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from covjax import config as config_module
from covjax.config import differences, flatten
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.train.transfer import transfer
from experiments.ablations import EXPERIMENTS, Arm, Experiment
from experiments.plan import Plan, Run, make_plan

OUT = Path("out")


def plan(
    experiment: str | Experiment, variant: str = "laptop", seeds: int = 1, **more: Any
) -> Plan:
    if isinstance(experiment, str):
        experiment = EXPERIMENTS[experiment]
    arms = more.pop("arms", list(experiment.arms))
    settings = more.pop("settings", {})
    return make_plan(
        experiment, arms=arms, seeds=seeds, variant=variant, settings=settings,
        out=more.pop("out", OUT),
    )  # fmt: skip


def of(arms: dict[str, Arm], baseline: str = "base") -> Experiment:
    return Experiment("?", arms, baseline)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_run_of_its_own(name):
    experiment = EXPERIMENTS[name]
    assert experiment.baseline in experiment.arms
    for variant in ("", "laptop", "phantom"):
        folders = [of_seed[0].folder for of_seed in plan(name, variant).of_arm.values()]
        assert len(set(folders)) == len(experiment.arms)


@functools.cache
def shapes(model: str, channels: int, size: int) -> Any:
    config = ml_collections.ConfigDict({"model": json.loads(model)})
    picture = np.zeros((1, size, size, channels), np.float32)
    found = jax.eval_shape(
        lambda: make_model(config).init(jax.random.key(0), picture, train=False)
    )
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape), found)


def variables(run: Run) -> Any:
    config = run.config
    return shapes(
        json.dumps(config.model.to_dict()),
        make_region(config.data).channels,
        config.data.image_size,
    )


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"smoke", "loss"}))
def test_every_arm_can_start_from_its_run_of_stage_1(name):
    small = {"model.width": 2, "model.depth": 3, "data.image_size": 16}
    for of_seed in plan(name, settings=small).of_arm.values():
        run = of_seed[0]
        assert run.lung is not None
        if run.config.init_from:
            fresh = run.config.transfer.fresh
            transfer(variables(run.lung), variables(run), fresh=fresh, name="stage 1")


def test_stage_1_has_the_network_of_the_arm_but_not_its_heads():
    heads = {
        "model.presence_head": True,
        "loss.presence": 0.5,
        "model.deep_supervision": 1,
        "model.norm": "group",
        "model.residual": True,
    }
    run = plan(of({"base": Arm(heads)})).of_arm["base"][0]
    assert run.lung is not None
    changed = differences(run.lung.config, plan("loss").runs[0].config)
    assert changed == {
        "model.norm": ("group", "batch"),
        "model.residual": (True, False),
    }
    assert run.config.model.presence_head and run.config.model.deep_supervision == 1


def test_stage_1_is_shared_by_the_arms_of_a_seed_and_by_experiments():
    two = plan("loss", seeds=2)
    assert len(two.runs) == 2 * (1 + 8)  # a seed each: stage 1, and eight arms
    lungs = {run.lung.folder for run in two.runs if run.lung}
    assert len(lungs) == 2
    assert {run.config.seed for run in two.runs if not run.lung} == {0, 1}
    # In `norm` one arm needs another, and the baseline is the run of `loss`.
    norm = plan("norm", seeds=2)
    assert len(norm.runs) == 2 * (2 + 2)
    assert norm.of_arm["batch"][1].folder == two.of_arm["hybrid .5"][1].folder
    assert norm.of_arm["group"][1].lung.folder not in lungs  # type: ignore


def test_a_run_of_stage_1_stands_before_those_that_need_it():
    for name in EXPERIMENTS:
        before = set()
        for run in plan(name, seeds=2).runs:
            assert run.lung is None or run.lung.folder in before
            before.add(run.folder)


def test_the_share_of_images_is_of_stage_1_alone():
    of_arm = plan("lung_data").of_arm
    shares = {
        arm: (runs[0].lung.config.data.train_share, runs[0].config.data.train_share)
        for arm, runs in of_arm.items()
        if runs[0].lung
    }
    assert shares == {"100 %": (1.0, 1.0), "30 %": (0.3, 1.0), "10 %": (0.1, 1.0)}
    # Else nothing tells the arms apart, but for the run they start from.
    ours, theirs = of_arm["10 %"][0], of_arm["100 %"][0]
    assert set(differences(ours.config, theirs.config)) == {"init_from"}
    assert ours.folder != theirs.folder


def test_an_arm_that_starts_anew_has_found_lungs_for_its_evaluation():
    run = plan("transfer").of_arm["none"][0]
    assert run.lung is not None
    assert run.config.init_from == ""
    assert run.config.data.lung_run == str(run.lung.folder)


def test_the_recipe_lacks_one_part_in_each_arm():
    of_arm = plan("recipe_changed").of_arm
    best = of_arm["recipe"][0].config
    by_itself = {"init_from", "transfer.fresh"}
    changed = {
        arm: set(differences(best, runs[0].config)) - by_itself
        for arm, runs in of_arm.items()
        if arm.startswith("without ")
    }
    assert changed["without residual"] == {"model.residual"}
    assert changed["without presence head"] == {
        "model.presence_head", "loss.presence", "loss.empty_weight",
    }  # fmt: skip
    assert changed["without blanks left to the head"] == {"loss.empty_weight"}
    # Without the head, nothing would teach a network to be silent.
    added = plan("recipe").of_arm["blanks left to the head"][0].config
    assert added.model.presence_head and added.loss.empty_weight == 0
    study = plan("loss").runs[1].config
    for arm, fields in changed.items():
        values = flatten(of_arm[arm][0].config)
        assert {f: values[f] for f in fields} == {f: flatten(study)[f] for f in fields}


def test_settings_are_of_both_stages_or_of_one():
    run = plan(
        "lung_data",
        arms=["100 %", "10 %"],
        settings={
            "train.epochs": "6",
            "lung:train.epochs": "3",
            "infection:data.roi": "predicted",
            "data.image_size": "64",
            "data.train_share": ".5",
            "optim.lr": "1e-2",
        },
    ).of_arm["10 %"][0]
    lung = run.lung
    assert lung is not None
    assert (run.config.train.epochs, lung.config.train.epochs) == (6, 3)
    assert (run.config.data.roi, lung.config.data.roi) == ("predicted", "none")
    assert run.config.data.image_size == lung.config.data.image_size == 64
    assert run.config.optim.lr == 0.01
    # An arm is what varies: a setting does not take that away.
    assert (run.config.data.train_share, lung.config.data.train_share) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.size": "64"}, "no such config field: data.size"),
        ({"data.image_size": "big"}, "config.data.image_size = 'big': must be like"),
        ({"data.image_size": "65"}, "config.data.image_size = 65: must be divisible"),
        ({"optim.lr": "__import__('os')"}, "must be like"),
        ({"test:seed": "1"}, "no stage 'test'"),
        ({"eval.tta_flip": "3.5"}, "config.eval.tta_flip = 3.5: must be like False"),
    ],
)
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(UsageError, match="arm truth: ") as raised:
        plan("roi", settings=settings)
    assert said in str(raised.value)


def test_a_wrong_variant_is_named():
    with pytest.raises(UsageError, match="--variant: no variant 'huge'"):
        plan("roi", variant="huge")


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", ["roi", "transfer", "recipe", "smoke"])
def test_the_command_line_gives_the_same_config(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    for run in plan(name, EXPERIMENTS[name].variant, seeds=2).runs:
        assert run.command[:2] == ("-m", "covjax.main")
        values = flags.FlagValues()
        config = config_flags.DEFINE_config_file(
            "config", lock_config=True, flag_values=values
        )
        for flag in ("workdir", "split"):
            flags.DEFINE_string(flag, None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", ["main", *run.command[2:]])
        values(sys.argv)
        assert flatten(config.value) == flatten(run.config)
        assert values["workdir"].value == str(run.folder)
        assert values["split"].value == "val"  # and never test


def test_the_name_of_a_folder_is_of_the_run_and_not_of_where_it_lies():
    here, there = plan("roi"), plan("roi", out=Path("elsewhere"))
    names = [run.folder.name for run in here.runs]
    assert names == [run.folder.name for run in there.runs]
    assert names[2].startswith("infection-laptop-roi=predicted-seed0-")
    # Where the images lie, and how many threads read them, is no other run.
    moved = plan("roi", settings={"data.root": "/images", "data.threads": "3"})
    assert names == [run.folder.name for run in moved.runs]
    other = plan("roi", settings={"lung:train.epochs": "3"})
    assert not set(names) & {run.folder.name for run in other.runs}


def test_a_field_that_comes_later_changes_no_name(monkeypatch):
    from configs import base

    names = [run.folder.name for run in plan("roi").runs]
    before = base.get_config

    def get_config(variant: str = ""):
        config = before(variant)
        config.model.later = 0
        return config

    monkeypatch.setattr(base, "get_config", get_config)
    monkeypatch.setitem(config_module._CHECKS, "model.later", (lambda _: True, ""))
    assert "model.later" in flatten(plan("roi").runs[0].config)
    assert [run.folder.name for run in plan("roi").runs] == names


def test_a_network_of_stage_1_alone_is_refused():
    with pytest.raises(UsageError, match="lung:model.width: stage 1 has the network"):
        plan("roi", settings={"lung:model.width": "8"})
    heads = plan("roi", settings={"lung:model.deep_supervision": "1"}).runs[0]
    assert heads.config.model.deep_supervision == 1
