"""The weights of a trained network in one small file, to keep, to send or to ship.

The form is safetensors: reading it runs no code of whoever made it. Parameters are
float16, which halves the file; batch statistics, which are few and divide, stay
float32. The file's metadata holds what the numbers mean, as JSON under "covjax":

    config             of the run, without the folders of the machine it ran on
    step, fingerprint  of the checkpoint
    operating_points   by region of interest, as the run's folder has them
    phantom            whether the films were synthetic
    attribution        whom the films are owed to, and under which licence
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from covjax.calibrate import as_point
from covjax.config import fill_in
from covjax.errors import UsageError
from covjax.files import write_whole
from covjax.models import make_model
from covjax.train_state import inference_state
from covjax.trained import Trained, check_fits

SUFFIX = ".safetensors"
ATTRIBUTION = (
    "Trained on COVID-QU-Ex (A. M. Tahir, M. E. H. Chowdhury et al., Qatar University;"
    " infection masks from QaTa-COV19), CC BY-SA 4.0. Research use; no medical device."
)
PHANTOMS = "Trained on phantoms: synthetic films, of no patient and no use to one."
# Folders of a machine, or of another run there, and what stands for none.
_FOLDERS = {"data.root": "", "data.cache": "auto", "data.lung_run": "", "init_from": ""}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
      trained: the network; its `run` is the file.
      points: operating points, by region of interest, as `calibrate.read_points` gives
        them.
      phantom: whether it has only seen synthetic films.
    """

    trained: Trained
    points: dict[str, dict[str, Any]]
    phantom: bool


def write_weights(path: Path, weights: Weights) -> None:
    """Writes what `read_weights` reads, whole or not at all.

    Raises:
      UsageError: if a parameter is not finite, or too large for float16; or the file
        cannot be written.
    """
    trained = weights.trained
    arrays = {
        leaf: _halve(leaf, np.asarray(array))
        for leaf, array in _flatten(trained.state.variables()).items()
    }
    about = {
        "config": _without_folders(trained.config),
        "step": trained.step,
        "fingerprint": trained.fingerprint,
        "operating_points": weights.points,
        "phantom": weights.phantom,
        "attribution": PHANTOMS if weights.phantom else ATTRIBUTION,
    }
    content = save(arrays, {"covjax": json.dumps(about, sort_keys=True)})
    try:
        write_whole(path, content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def read_weights(path: Path) -> Weights:
    """Reads a file of weights; parameters become float32 again.

    Raises:
      UsageError: if it is no such file, or holds another network than it says.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["covjax"])
            leaves = {leaf: file.get_tensor(leaf) for leaf in file.keys()}
        config = fill_in(about["config"])
        points, phantom = about["operating_points"], bool(about["phantom"])
        for told in points.values():
            as_point(told)
        step, fingerprint = int(about["step"]), str(about["fingerprint"])
        model = make_model(config)
    except (
        OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise UsageError(f"{path}: not weights of covjax ({error!r})") from None
    floats = {leaf: array.astype(np.float32) for leaf, array in leaves.items()}
    variables = {"params": {}, "batch_stats": {}} | unflatten_dict(floats, sep="/")
    check_fits(variables, model, config.data, path)
    state = inference_state(model.apply, **variables).replace(step=step)
    return Weights(Trained(path, config, step, fingerprint, state), points, phantom)


def _flatten(variables: Any) -> dict[str, Any]:
    return flatten_dict(variables, sep="/")


def _halve(leaf: str, array: np.ndarray) -> np.ndarray:
    if not leaf.startswith("params/"):
        return array.astype(np.float32)
    with np.errstate(over="ignore"):  # said below, with a name
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise UsageError(f"{leaf} holds {abs(array).max():g}: no float16 can")
    return half


def _without_folders(config: ml_collections.ConfigDict) -> dict[str, Any]:
    copy = ml_collections.ConfigDict(config.to_dict())
    copy.update_from_flattened_dict(_FOLDERS)
    return copy.to_dict()
