"""The weights of a trained network in one small file, to keep, to send or to ship.

The form is safetensors: reading it runs no code of whoever made it. Parameters are
float16, which halves the file; batch statistics, which are few and divide, stay
float32. The file's metadata holds what the numbers mean, as JSON under "covjax":

    config             of the run, without the folders of the machine it ran on
    commit             of the code that trained it, null where it is not known
    step, fingerprint  of the checkpoint
    operating_points   by region of interest, as the run's folder has them
    phantom            whether the images were synthetic
    attribution        whom the images are owed to, and under which licence
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

from covjax.config import ROIS, fill_in, validate_stored
from covjax.errors import UsageError
from covjax.metrics.operating_point import as_point
from covjax.models import make_model
from covjax.runtime.strict_json import parse_json
from covjax.train.restore import Trained, check_fits
from covjax.train.train_state import inference_state

SUFFIX = ".safetensors"
SAMPLES = (
    "Trained on images in the layout of COVID-QU-Ex. The published ones: A. M. Tahir et"
    " al., COVID-QU-Ex, Qatar University; infection masks from QaTa-COV19; CC BY-SA 4.0"
    " (https://creativecommons.org/licenses/by-sa/4.0/). For research: not a medical"
    " device."
)
PHANTOMS = "Trained on phantoms, synthetic images of no patient: of no use to one."
_LONGEST_HEADER = 1 << 20  # bytes; the shipped ones have 15,000
_LONGEST_TEXT = 1000
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
      phantom: whether this stage was trained on synthetic images.
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
        "attribution": PHANTOMS if weights.phantom else SAMPLES,
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

    The file may come from anybody. Its header and all that its metadata says are
    checked before a number is read, so that a file takes no more memory than its size.

    Raises:
      UsageError: if it is no such file, or holds another network than it says.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="numpy") as file:
            about = parse_json((file.metadata() or {})["covjax"])
            _check_about(about)
            config = _read_config(about["config"])
            model = make_model(config)
            check_fits(_shapes(file), model, config.data, path)
            leaves = {leaf: _read_finite(file, leaf) for leaf in file.keys()}
        variables = _as_tree(leaves)
    except (
        OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise UsageError(
            f"{path}: not weights of covjax ({repr(error)[:300]})"
        ) from None
    step = about["step"]
    state = inference_state(model.apply, **variables).replace(step=step)
    trained = Trained(path, config, step, about["fingerprint"], state)
    points, commit = about["operating_points"], about.get("commit")
    return Weights(trained, points, about["phantom"], commit)


def _read_config(content: dict[str, Any]) -> ml_collections.ConfigDict:
    config = fill_in(content)
    try:
        validate_stored(config)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return config


def _check_header(path: Path) -> None:
    """Refuses what is no regular file, or announces a header that no network has.

    Raises:
      OSError, ValueError: if it is refused.
    """
    if not path.is_file():
        raise OSError("no such file" if not path.exists() else "not a regular file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")


def _shapes(file: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the leaves, as the header has them.

    Raises:
      ValueError: if one is of another type than float16 or float32.
    """
    shapes = {}
    for leaf in file.keys():
        part = file.get_slice(leaf)
        if part.get_dtype() not in ("F16", "F32"):
            raise ValueError(f"{leaf}: {part.get_dtype()}, not float16 or float32")
        shapes[leaf] = tuple(part.get_shape())
    return shapes


def _read_finite(file: Any, leaf: str) -> np.ndarray:
    array = file.get_tensor(leaf)
    if not np.isfinite(array).all():
        raise ValueError(f"{leaf}: not finite")
    return array


def _check_about(about: Any) -> None:
    """Refuses metadata of other types or ranges than `describe` gives.

    What it says is shown in messages, in reports and in the app.

    Raises:
      ValueError, LookupError, TypeError, AttributeError: if it is refused.
    """
    _check_texts(about)
    if type(about["step"]) is not int or not 0 <= about["step"] < 2**31:
        raise ValueError("step: not a whole number from 0 to 2^31")
    if type(about["phantom"]) is not bool:
        raise ValueError("phantom: neither true nor false")
    if type(about["fingerprint"]) is not str:
        raise ValueError("fingerprint: not a text")
    if type(about.get("commit")) not in (str, type(None)):
        raise ValueError("commit: neither a text nor null")
    for roi, told in about["operating_points"].items():
        as_point(told)
        if roi not in ROIS or type(told.get("lungs")) not in (dict, type(None)):
            raise ValueError(f"operating_points: {roi!r}, or its lungs")
        reached = told.get("reached", 0.0)
        if type(reached) not in (int, float) or not 0 <= reached <= 1:
            raise ValueError("operating_points: reached: not from 0 to 1")


def _check_texts(value: Any) -> None:
    """Refuses text, in whichever part of some JSON, that does not fit into a line.

    Raises:
      ValueError: naming the beginning of the text.
    """
    if isinstance(value, dict):
        for name, part in value.items():
            _check_texts(name)
            _check_texts(part)
    elif isinstance(value, list):
        for part in value:
            _check_texts(part)
    elif isinstance(value, str) and not (
        len(value) <= _LONGEST_TEXT and value.isprintable()
    ):
        raise ValueError(f"a text that is too long, or not printable: {value[:40]!r}")


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
