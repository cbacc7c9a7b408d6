"""The weights of a trained network in one small file, to keep, to send or to ship.

The form is safetensors: reading it runs no code of whoever made it. Parameters are
float16, which halves the file; batch statistics, which are few and divide, stay
float32. The file's metadata holds what the numbers mean, as JSON under "covjax":

    config             of the run, without the folders of the machine it ran on
    commit             of the code that trained it, null where it is not known
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
from safetensors.numpy import load, save

from covjax.calibrate import as_point
from covjax.config import fill_in
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.train_state import inference_state
from covjax.trained import Trained, check_fits

SUFFIX = ".safetensors"
FILMS = (
    "Trained on films in the layout of COVID-QU-Ex. The published ones: A. M. Tahir et"
    " al., COVID-QU-Ex, Qatar University; infection masks from QaTa-COV19; CC BY-SA 4.0"
    " (https://creativecommons.org/licenses/by-sa/4.0/). For research: not a medical"
    " device."
)
PHANTOMS = "Trained on phantoms, synthetic films of no patient: of no use to one."
# Folders of a machine, or of another run there, and what stands for none.
_FOLDERS = {"data.root": "", "data.cache": "auto", "data.lung_run": "", "init_from": ""}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file of weights holds.

    Attributes:
      trained: the network. Read from a file, its `run` is that file, and its config
        names no other run: found lungs are to be had from wherever there are some.
      points: operating points, by region of interest, as `calibrate.read_points` gives
        them.
      phantom: whether this stage was trained on synthetic films.
      commit: of the code that trained it; None: not known.
    """

    trained: Trained
    points: dict[str, dict[str, Any]]
    phantom: bool
    commit: str | None = None


def describe(weights: Weights) -> str:
    """Returns what the numbers mean, as above, as JSON."""
    trained = weights.trained
    config = ml_collections.ConfigDict(trained.config.to_dict())
    config.update_from_flattened_dict(_FOLDERS)
    about = {
        "config": config.to_dict(),
        "commit": weights.commit,
        "step": trained.step,
        "fingerprint": trained.fingerprint,
        "operating_points": weights.points,
        "phantom": weights.phantom,
        "attribution": PHANTOMS if weights.phantom else FILMS,
    }
    return json.dumps(about, sort_keys=True)


def pack_weights(weights: Weights) -> bytes:
    """Returns the content of a file that `read_weights` reads.

    Raises:
      UsageError: if a number is not finite, or a parameter too large for float16.
    """
    leaves: dict[str, Any] = flatten_dict(weights.trained.state.variables(), sep="/")
    arrays = {leaf: _narrow(leaf, np.asarray(array)) for leaf, array in leaves.items()}
    return save(arrays, {"covjax": describe(weights)})


def unpack_variables(content: bytes) -> dict[str, Any]:
    """Returns parameters and batch statistics of what `pack_weights` returned."""
    return _as_tree(load(content))


def _as_tree(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    floats = {leaf: array.astype(np.float32) for leaf, array in leaves.items()}
    return {"params": {}, "batch_stats": {}} | unflatten_dict(floats, sep="/")


def read_weights(path: Path) -> Weights:
    """Reads a file of weights; parameters become float32 again.

    Raises:
      UsageError: if it is no such file, or holds another network than it says.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["covjax"])
            leaves = {leaf: file.get_tensor(leaf) for leaf in file.keys()}
        points, phantom = about["operating_points"], bool(about["phantom"])
        for told in points.values():
            as_point(told)
        step, fingerprint = int(about["step"]), str(about["fingerprint"])
        config = fill_in(about["config"])
        model = make_model(config)
        variables = _as_tree(leaves)
        check_fits(variables, model, config.data, path)
    except (
        OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise UsageError(f"{path}: not weights of covjax ({error!r})") from None
    state = inference_state(model.apply, **variables).replace(step=step)
    trained = Trained(path, config, step, fingerprint, state)
    return Weights(trained, points, phantom, about.get("commit"))


def _narrow(leaf: str, array: np.ndarray) -> np.ndarray:
    """Returns a leaf as it is stored: in C order, which is all that safetensors knows.

    Raises:
      UsageError: if it cannot be.
    """
    if not np.isfinite(array).all():
        raise UsageError(f"{leaf} is not finite: no weights to keep")
    if not leaf.startswith("params/"):
        return np.ascontiguousarray(array, np.float32)
    largest = np.finfo(np.float16).max
    if np.abs(array).max(initial=0) > largest:
        worst = array.flat[np.abs(array).argmax()]
        raise UsageError(f"{leaf} holds {worst:g}: float16 ends at {largest:g}")
    return np.ascontiguousarray(array, np.float16)
