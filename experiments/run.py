"""Runs an experiment of ablations.py, and makes its table.

  python -m experiments.run                                    lists them
  python -m experiments.run smoke --seeds=2
  python -m experiments.run loss --seeds=3 --variant=laptop --jobs=2
  python -m experiments.run loss --seeds=3 --variant=laptop --table

Arms x seeds are trained and evaluated on Val; what is finished is skipped, so the same
command goes on after an interruption. docs/experiments.md tells more.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from covjax.errors import Failure, UsageError
from covjax.runtime.signals import Interrupted
from experiments.ablations import EXPERIMENTS, Experiment
from experiments.at_once import run_here
from experiments.child import is_finished
from experiments.cluster import run_on_cluster
from experiments.plan import Plan, Run, make_plan, parse_setting
from experiments.summary import TABLE, format_table, summarize, write_summary

_LOCAL = "local"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m experiments.run",
        description="Runs the arms of an experiment, and makes its table.",
    )
    add = parser.add_argument
    add("name", nargs="?", help="of the experiment; none: lists them")
    add("--seeds", type=int, default=3, help="how many: 0, 1, … (%(default)s)")
    add("--variant", help="of all configs, as laptop (the experiment's own)")
    add("--out", type=Path, default=Path("runs/experiments"), help="(%(default)s)")
    add("--jobs", type=int, default=1, help="runs at once here (%(default)s)")
    add("--arms", help="only these, parted by commas, and the baseline")
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="in the configs of both stages; lung:FIELD or infection:FIELD: of one",
    )  # fmt: skip
    add(
        "--executor", choices=(_LOCAL, "submitit-local", "slurm"), default=_LOCAL,
        help="where: here, or as jobs of submitit (%(default)s)",
    )  # fmt: skip
    add(
        "--slurm", default="", metavar="KEY=VALUE,…",
        help="of the jobs: partition=gpu,gpus_per_node=1,timeout_min=240",
    )  # fmt: skip
    add("--table", action="store_true", help="starts nothing: of what is finished")
    return parser.parse_args(argv)


def format_list() -> str:
    """Returns every experiment with its question and its arms."""
    lines = []
    for name, experiment in EXPERIMENTS.items():
        arms = [
            f"{arm} (baseline)" if arm == experiment.baseline else arm
            for arm in experiment.arms
        ]
        lines += [f"{name}: {experiment.question}", f"    {', '.join(arms)}"]
    return "\n".join(lines)


def _choose_arms(experiment: Experiment, asked: str | None) -> list[str]:
    if asked is None:
        return list(experiment.arms)
    names = [part.strip() for part in asked.split(",") if part.strip()]
    for name in names:
        if name not in experiment.arms:
            raise UsageError(
                f"--arms: no arm {name!r}; there are {', '.join(experiment.arms)}"
            )
    return list(dict.fromkeys([experiment.baseline, *names]))


def _parse_parameters(text: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"--slurm: {part!r} is not KEY=VALUE")
        parameters[key] = int(value) if value.isdigit() else value
    return parameters


def _make_plan(
    arguments: argparse.Namespace, experiment: Experiment, variant: str, out: Path
) -> Plan:
    for flag in ("seeds", "jobs"):
        if getattr(arguments, flag) < 1:
            raise UsageError(f"--{flag}={getattr(arguments, flag)}: must be at least 1")
    if arguments.slurm and arguments.executor == _LOCAL:
        raise UsageError("--slurm needs --executor=slurm")
    plan = make_plan(
        experiment,
        arms=_choose_arms(experiment, arguments.arms),
        seeds=arguments.seeds,
        variant=variant,
        settings=dict(map(parse_setting, arguments.set)),
        out=out,
    )
    for run in plan.runs:
        is_finished(run)  # refuses a folder of another config, before any run starts
    return plan


def _run(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.name is None:
        print(format_list())
        return 0
    experiment = EXPERIMENTS.get(arguments.name)
    if experiment is None:
        raise UsageError(
            f"no experiment {arguments.name!r}; there are {', '.join(EXPERIMENTS)}"
        )
    variant = experiment.variant if arguments.variant is None else arguments.variant
    # The folder's name stands in configs: the same, however it was typed.
    out = Path(os.path.relpath(arguments.out))
    if out.parts[:1] == ("..",):
        out = arguments.out.absolute()
    plan = _make_plan(arguments, experiment, variant, out)
    failed = [] if arguments.table else _train(plan, arguments, out)
    summary = summarize(plan, experiment.baseline)
    if summary is None and failed:
        return 1  # each has been told
    if summary is None:
        raise UsageError(f"{out}: no run of {arguments.name} is finished: no table")
    folder = out / arguments.name
    seeds = ", ".join(map(str, range(arguments.seeds)))
    settings = {**experiment.settings, **dict(map(parse_setting, arguments.set))}
    write_summary(
        summary, plan, folder,
        name=arguments.name,
        question=experiment.question,
        about={
            "command": f"`{shlex.join(['python', '-m', 'experiments.run', *argv])}`",
            "seeds": seeds,
            "variant": variant or "none (the study's size)",
            "settings": ", ".join(f"`{k}={v}`" for k, v in settings.items()),
        },
    )  # fmt: skip
    print("\n" + format_table(summary))
    if summary.missing:
        print(f"\nmissing: {'; '.join(summary.missing)}")
    print(f"\ntable: {folder / TABLE}.md, .csv, .png", flush=True)
    return 1 if failed else 0


def _train(plan: Plan, arguments: argparse.Namespace, out: Path) -> list[Run]:
    """Runs what is not finished; returns what failed."""
    if arguments.executor == _LOCAL:
        return run_here(plan.runs, jobs=arguments.jobs, say=_say)
    return run_on_cluster(
        plan.runs,
        kind=arguments.executor,
        parameters=_parse_parameters(arguments.slurm),
        folder=out / "jobs",
        say=_say,
    )


def _say(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (Failure, Interrupted) as failure:
        print(f"experiments.run: {failure}", file=sys.stderr)
        return failure.exit_status


if __name__ == "__main__":
    sys.exit(main())
