"""From an experiment to runs: which there are, which of them arms share, and where.

A run lies in OUT/runs/NAME. NAME tells what its config says otherwise than its file,
and ends with a hash of all that it says otherwise than configs/base.py: arms, and
experiments, that ask for the same run share it.
"""

import ast
import dataclasses
import hashlib
import importlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

import configs
from configs import base
from covjax.config import NOT_IDENTITY, flatten, validate_config
from covjax.errors import UsageError
from experiments.ablations import STAGE_1, Arm, Experiment, Overrides

# Heads that each stage has of its own; all else of `model` has to be the same in both.
_OWN_HEADS = ("presence_head", "deep_supervision")
_PATHS = ("init_from", "data.lung_run")  # of the run of stage 1


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation on Val.

    Attributes:
      folder: of the run; its log and its record lie beside it.
      config: that it is to have.
      command: that trains and evaluates it, after `python`.
      label: what it is for.
      lung: the run of stage 1 that has to be finished before; None for stage 1.
    """

    folder: Path
    config: ml_collections.ConfigDict
    command: tuple[str, ...]
    label: str
    lung: "Run | None" = None

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def record(self) -> Path:
        """What the runner knows of it."""
        return self.folder.with_name(f"{self.folder.name}.json")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All runs of an experiment.

    Attributes:
      runs: each once, seed by seed, a run of stage 1 before those that need it.
      of_arm: arm → seed → its run.
    """

    runs: list[Run]
    of_arm: dict[str, dict[int, Run]]


def make_plan(
    experiment: Experiment,
    *,
    arms: Sequence[str],
    seeds: int,
    variant: str,
    settings: Overrides,
    out: Path,
) -> Plan:
    """Returns the runs of some arms of an experiment.

    Args:
      experiment: whose.
      arms: names.
      seeds: how many; they are 0, 1, …
      variant: of all configs.
      settings: fields → values of all runs, as in `Experiment.settings`, after these.
      out: folder above all runs.

    Raises:
      UsageError: naming the arm, if a config is not there or could not give a run.
    """
    runs = dict[Path, Run]()
    of_arm: dict[str, dict[int, Run]] = {name: {} for name in arms}
    for seed in range(seeds):
        for name in arms:
            try:
                run = _make_run(
                    experiment.arms[name], name, seed, variant,
                    [experiment.settings, settings], out / "runs",
                )  # fmt: skip
            except UsageError as error:
                raise UsageError(f"arm {name}: {error}") from None
            for made in (run.lung, run):
                if made is not None:
                    runs.setdefault(made.folder, made)
            of_arm[name][seed] = runs[run.folder]
    return Plan(list(runs.values()), of_arm)


def _make_run(
    arm: Arm,
    name: str,
    seed: int,
    variant: str,
    settings: Sequence[Overrides],
    folder: Path,
) -> Run:
    stage_1 = STAGE_1[arm.config]
    plain, plain_lung = (_get_config(file, variant) for file in (arm.config, stage_1))
    config, lung_config = (_copy(c) for c in (plain, plain_lung))
    for overrides in settings:
        _check_networks(overrides)
        _apply(config, overrides, ("", "infection"))
        _apply(lung_config, overrides, ("", "lung"))
    config.seed = lung_config.seed = seed
    _apply(config, arm.overrides, ("",))
    for field in lung_config.model:
        if field not in _OWN_HEADS:
            lung_config.model[field] = config.model[field]
    _apply(lung_config, arm.overrides, ("lung",))

    lung = _finish(
        stage_1, variant, lung_config, plain_lung, folder, f"stage 1 of {name}", None
    )
    if "init_from" not in arm.overrides:
        config.init_from = str(lung.folder)
    else:  # lungs are found for the evaluation all the same
        config.data.lung_run = str(lung.folder)
    return _finish(arm.config, variant, config, plain, folder, name, lung)


def _check_networks(settings: Overrides) -> None:
    """Refuses a setting that would part the networks of the two stages."""
    for name in settings:
        stage, _, field = name.rpartition(":")
        group, _, leaf = field.partition(".")
        if stage == "lung" and group == "model" and leaf not in _OWN_HEADS:
            raise UsageError(
                f"{name}: stage 1 has the network of stage 2; set {field} for both"
            )


def _finish(
    file: str,
    variant: str,
    config: ml_collections.ConfigDict,
    plain: ml_collections.ConfigDict,
    folder: Path,
    label: str,
    lung: Run | None,
) -> Run:
    """Returns the run of a config, `plain` being what its file alone says."""
    validate_config(config)
    before = flatten(plain)
    told = {k: v for k, v in flatten(config).items() if v != before[k]}
    where = folder / _name(file, variant, config, told)
    flags = _flags(file, variant, config, plain)
    command = ("-m", "covjax.main", *flags, f"--workdir={where}", "--split=val")
    return Run(where, config, command, f"{label}, seed {config.seed}", lung)


def _get_config(file: str, variant: str) -> ml_collections.ConfigDict:
    module: ModuleType = importlib.import_module(f"configs.{file}")
    try:
        return module.get_config(variant)
    except ValueError as error:
        raise UsageError(f"--variant: {error}") from None


def _copy(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(config.to_dict())


def parse_setting(text: str) -> tuple[str, str]:
    """Returns the field and the value of "FIELD=VALUE".

    Raises:
      UsageError: if it is not of that form.
    """
    field, equals, value = text.partition("=")
    if not field or not equals:
        raise UsageError(f"--set {text}: not FIELD=VALUE, like data.image_size=64")
    return field, value


def _apply(
    config: ml_collections.ConfigDict, overrides: Overrides, stages: Sequence[str]
) -> None:
    """Sets the fields that are of one of these stages ("": of those that name none)."""
    fields = flatten(config)
    for name, value in overrides.items():
        stage, _, field = name.rpartition(":")
        if stage not in ("", "lung", "infection"):
            raise UsageError(f"{name}: no stage {stage!r}; lung: or infection:")
        if field not in fields:
            raise UsageError(f"no such config field: {field}")
        if stage not in stages:
            continue
        try:
            if isinstance(value, str) and not isinstance(fields[field], str):
                value = ast.literal_eval(value)  # as it was typed
            with config.unlocked():
                config.update_from_flattened_dict({field: value})
        except (ValueError, TypeError, SyntaxError):
            raise UsageError(
                f"config.{field} = {value!r}: must be like {fields[field]!r}"
            ) from None


def _name(
    file: str, variant: str, config: ml_collections.ConfigDict, told: dict[str, Any]
) -> str:
    """Returns "lung-laptop-norm=group-seed0-1a2b3c4d"."""
    told = {k: v for k, v in told.items() if k not in {"seed", *_PATHS, *NOT_IDENTITY}}
    text = ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in told.items())
    text = re.sub(r"[^\w.=,-]+", "", text)[:48].strip(",.")
    parts = [file, variant, text, f"seed{config.seed}", _hash(config)]
    return "-".join(part for part in parts if part)


def _hash(config: ml_collections.ConfigDict) -> str:
    """Returns eight digits of all that a config says otherwise than configs/base.py.

    A field that base.py gets later, and that no arm sets, changes no hash. The folder
    of stage 1 counts by its name, wherever OUT is.
    """
    plain = flatten(base.get_config())
    told = {
        field: value
        for field, value in flatten(config).items()
        if field not in NOT_IDENTITY and value != plain[field]
    }
    for field in _PATHS:
        if field in told:
            told[field] = Path(told[field]).name
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _flags(
    file: str,
    variant: str,
    config: ml_collections.ConfigDict,
    plain: ml_collections.ConfigDict,
) -> list[str]:
    path = os.path.relpath(Path(configs.__file__).parent / f"{file}.py")
    flags = [f"--config={path}" + (f":{variant}" if variant else "")]
    before, now = flatten(plain), flatten(config)
    return flags + [f"--config.{k}={v}" for k, v in now.items() if v != before[k]]
