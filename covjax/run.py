"""A run from beginning to end: prepare the data, train, evaluate, report."""

import contextlib
import json
from pathlib import Path

import jax
import ml_collections

from covjax import multihost, parallel
from covjax.config import fill_in, read_config, validate_config
from covjax.data.audit.audit import audit_once
from covjax.data.covidqu import is_phantom
from covjax.data.pipeline import Region
from covjax.data.source import Samples, find_samples, phantom_prefix
from covjax.errors import UsageError
from covjax.evaluation import evaluate
from covjax.evaluation.evaluate import Subject
from covjax.evaluation.lung_masks import (
    LungFinder,
    find_finder,
    find_lungs,
    read_finder,
)
from covjax.evaluation.results import ROI_NAMES, headline_roi, read_results, roi_name
from covjax.report.figures import draw_curves
from covjax.report.page import write_report
from covjax.report.split_figures import draw_split
from covjax.report.tables import format_evaluation
from covjax.runtime.files import write_whole
from covjax.train import checkpoint, run_folder
from covjax.train.metric_writer import read_metrics
from covjax.train.sample_manifest import choose_samples
from covjax.train.train import make_training, train


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, split: str = "Test"
) -> None:
    """Trains one stage, or resumes it, then evaluates its best epoch.

    Args:
      config: as configs/*.py make it.
      workdir: the run's folder.
      split: on which it is evaluated; an experiment that compares arms takes "Val".

    Raises:
      UsageError: if config, data, folder or `init_from` cannot be used; nothing that
        was there before is changed.
      Diverged: if the loss is no longer finite; the checkpoints stay.
      StorageError: if the folder cannot be written any more; they stay as well.
      Interrupted: after SIGINT or SIGTERM, once a checkpoint is written.
    """
    validate_config(config)
    finder = find_finder(config)
    parallel.check_batch_size(config.train.batch_size)
    multihost.on_main(lambda: run_folder.check(workdir, config))
    root, samples = multihost.in_all(lambda: find_samples(config))
    chosen = choose_samples(
        config, workdir, samples, ("Train", "Val", split), training=True
    )
    training = make_training(config, workdir, chosen.samples)
    with _hold(workdir) as check:

        def claim() -> None:
            run_folder.claim(workdir, config, phantom=is_phantom(root))
            for line in checkpoint.set_aside_damaged(workdir):
                print(line, flush=True)
            chosen.write(workdir)

        multihost.on_main(claim)
        samples = _add_predicted_lungs(config, workdir, chosen.samples, finder)
        description = _describe(config, workdir, root, samples)
        train(training, workdir, samples, check=check, description=description)
        if parallel.is_main():
            draw_curves(
                workdir / "figures" / "curves.png",
                read_metrics(workdir),
                f"{phantom_prefix(root)}{config.data.task}: {workdir.name}",
            )
        evaluate_best(config, workdir, root, samples, split, finder)


def evaluate_run(
    workdir: Path, split: str, config: ml_collections.ConfigDict | None = None
) -> None:
    """Evaluates the best checkpoint of a run on any split.

    Args:
      workdir: the run's folder.
      split: "Train", "Val" or "Test".
      config: None, or the run's config, with another `data.root` or `data.lung_run`
        perhaps.

    Raises:
      UsageError: if there is no such run, or `config` is not its own.
    """
    stored = fill_in(
        multihost.on_main(lambda: read_config(workdir / run_folder.CONFIG).to_dict())
    )
    if config is not None:
        config.init_from = config.init_from or stored.init_from
        named = config.data.lung_run
        config.data.lung_run = named or stored.data.lung_run
        multihost.on_main(lambda: run_folder.check_same(workdir, config))
    else:
        config, named = stored, ""
    validate_config(config)
    if config.data.lung_run and not named and config.data.roi != "predicted":
        lung_run = config.data.lung_run
        config.data.lung_run = multihost.on_main(lambda: _if_there(lung_run))
    finder = find_finder(config)
    parallel.check_batch_size(config.train.batch_size)
    root, samples = multihost.in_all(lambda: find_samples(config))
    chosen = choose_samples(config, workdir, samples, ("Val", split), training=False)
    with _hold(workdir):
        multihost.on_main(lambda: chosen.write(workdir))
        evaluate_best(config, workdir, root, chosen.samples, split, finder)


def evaluate_best(
    config: ml_collections.ConfigDict,
    workdir: Path,
    root: Path,
    samples: Samples,
    split: str,
    finder: LungFinder | None,
) -> None:
    """Scores the best checkpoint on a split, once for each region of interest.

    Writes results/, operating_points.json, figures/ and report.html, and prints the
    tables. Results of another checkpoint are removed.

    Args:
      config: the run's.
      workdir: the run's folder.
      root: of the data.
      samples: of every split.
      split: "Train", "Val" or "Test".
      finder: of the lungs; None leaves predicted lungs out.

    Raises:
      UsageError: if there is no whole checkpoint.
    """
    subject = evaluate.load_subject(config, workdir, root, samples, finder)
    rois = evaluate.list_rois(config, predicted=subject.finder is not None)
    if parallel.is_main():
        evaluate.remove_outdated(subject)
        if config.init_from and "truth" in rois and finder is None:
            print(
                f"{config.init_from} is no run of lungs, or not there: nothing is"
                " evaluated with found lungs (config.data.lung_run names another run)"
            )
    of_val = {}
    for roi in rois:
        if evaluate.needs_tuning(subject, roi):
            _say(subject, "Val", roi, " to choose the operating point")
            of_val[roi] = evaluate.tune_operating_point(subject, roi)
    for roi in rois:
        _say(subject, split, roi)
        outputs = of_val.pop(roi, None) if split == "Val" else None
        if outputs is None:
            outputs = evaluate.predict(subject, split, roi)
        if parallel.is_main():
            evaluated, summary = evaluate.score_split(subject, split, roi, outputs)
            if roi == _headline(subject, rois, split):
                data = config.data
                draw_split(
                    workdir / "figures", evaluated, summary,
                    region=Region(roi, data.roi_dilate, data.roi_as),
                    title=f"{phantom_prefix(root)}{data.task}, {split}; shown:"
                    f" {roi_name(summary)}; run: {workdir.name}",
                )  # fmt: skip
    if parallel.is_main():
        found = read_results(workdir, split)
        print("\n" + format_evaluation(found, str(workdir)), flush=True)
        write_whole(
            workdir / "results" / "audit.json",
            json.dumps(audit_once(root), indent=1) + "\n",
        )
        print(f"\nreport: {write_report(workdir)}")


@contextlib.contextmanager
def _hold(workdir: Path):
    """Holds the run's folder for all processes; yields `run_folder.hold`'s check."""
    with contextlib.ExitStack() as held:
        yield multihost.in_all(lambda: held.enter_context(run_folder.hold(workdir)))


def _if_there(lung_run: str) -> str:
    """Returns a run that was named when training began, if it can still be used."""
    try:
        read_finder(lung_run)
    except UsageError:
        return ""
    return lung_run


def _add_predicted_lungs(
    config: ml_collections.ConfigDict,
    workdir: Path,
    samples: Samples,
    finder: LungFinder | None,
) -> Samples:
    """Returns the images with the lungs that training, and Val, are to be shown."""
    if config.data.roi != "predicted" or finder is None:
        return samples
    shown = dict(samples)
    for split in ("Train", "Val"):  # Test is read by the evaluation alone
        shown[split] = find_lungs(finder, samples[split], spare=workdir)
    return shown


def _headline(subject: Subject, rois: list[str], split: str) -> str:
    """Returns the region of interest that the report shows first."""
    found = subject.workdir / "results" / f"{split.lower()}-predicted.json"
    return headline_roi(rois + ["predicted"] * found.exists())


def _describe(
    config: ml_collections.ConfigDict, workdir: Path, root: Path, samples: Samples
) -> str:
    counts = ", ".join(
        f"{len(of_split)} {split}" for split, of_split in samples.items()
    )
    return (
        f"{config.data.task}: {phantom_prefix(root)}images of {root}: {counts}\n"
        f"{jax.device_count()} {jax.default_backend()} device(s); run: {workdir}"
    )


def _say(subject: Subject, split: str, roi: str, why: str = "") -> None:
    if parallel.is_main():
        n = len(subject.samples[split])
        print(f"{split}, {n:,} images, {ROI_NAMES[roi]}{why}", flush=True)
