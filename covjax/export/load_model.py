"""Where a trained network is read from: a run, a file of weights, or covjax itself."""

from pathlib import Path

from covjax.config import read_about
from covjax.errors import UsageError
from covjax.evaluation.lung_masks import make_finder
from covjax.evaluation.results import read_results
from covjax.export.safetensors import SUFFIX, Weights, read_weights
from covjax.metrics.operating_point import FILE, read_points
from covjax.train.restore import read_trained
from covjax.train.run_folder import CONFIG

_SHIPPED = Path(__file__).parents[1] / "pretrained"


def read_network(path: str) -> Weights:
    """Reads a trained network and its operating points.

    Args:
      path: a run's folder, one of its checkpoints, or a file of weights.

    Raises:
      UsageError: if it is none, or has no operating point.
    """
    if path.endswith(SUFFIX) and not Path(path).is_dir():
        return read_weights(Path(path))
    trained = read_trained(path)
    run = trained.run
    points = {
        roi: told
        for roi, told in read_points(run).items()
        if told.get("fingerprint") == trained.fingerprint
    }
    if not points:
        raise UsageError(
            f"{run / FILE}: no operating point of checkpoint {trained.step};"
            " --mode=evaluate --split=val chooses one for the best"
        )
    about = read_about(run / CONFIG)
    # Runs of before it was written down are what they were last evaluated on.
    phantom = about["phantom"] if "phantom" in about else _of_results(run)
    return Weights(trained, points, phantom, about.get("commit"))


def _of_results(run: Path) -> bool:
    return bool(read_results(run, "val")[0]["phantom"])


def shipped_network(task: str) -> Weights:
    """Reads the weights that come with covjax.

    Args:
      task: "lung" or "infection".

    Raises:
      UsageError: if they are not there.
    """
    return read_weights(_SHIPPED / f"{task}{SUFFIX}")


def read_stages(lung: str, infection: str) -> tuple[Weights, Weights]:
    """Reads the networks of both stages.

    Args:
      lung: as `read_network` takes it; "": what fits to the second stage.
      infection: likewise; "": what comes with covjax.

    Raises:
      UsageError: if one cannot be read.
    """
    first = read_network(lung) if lung else None
    second = read_network(infection) if infection else shipped_network("infection")
    return first or lungs_for(second), second


def lungs_for(infection: Weights) -> Weights:
    """Reads what finds the lungs for a network of stage 2: its run's, else the shipped.

    Raises:
      UsageError: if that cannot be read.
    """
    try:
        finder = make_finder(infection.trained.config)
    except UsageError:  # what it was trained with has moved
        finder = None
    return read_network(str(finder.checkpoint)) if finder else shipped_network("lung")
