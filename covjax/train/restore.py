"""A trained network: a checkpoint, and the config of the run that it is of."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict

from covjax import multihost
from covjax.config import fill_in, read_config, validate_stored
from covjax.data.image_io import shown
from covjax.data.pipeline import make_region
from covjax.errors import UsageError
from covjax.models import make_model
from covjax.models.unet import UNet
from covjax.train.checkpoint import best_of, fingerprint, read_variables
from covjax.train.run_folder import CONFIG
from covjax.train.train_state import TrainState, inference_state


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
      run: its folder.
      config: its settings.
      step: of the checkpoint.
      fingerprint: of the checkpoint.
      state: of the checkpoint, on the host; it cannot be trained further.
    """

    run: Path
    config: ml_collections.ConfigDict
    step: int
    fingerprint: str
    state: TrainState


def read_trained(path: str) -> Trained:
    """Reads the best checkpoint of a run, or the one that is named.

    Args:
      path: a run's folder, or one of its checkpoints (runs/lung/checkpoints/932).

    Raises:
      UsageError: if it is neither, cannot be read, or is of another network than the
        run's config says.
    """
    checkpoint = best_of(path)
    run, step = run_of(checkpoint), step_of(checkpoint)
    config = read_config(run / CONFIG)
    try:
        validate_stored(config)
    except UsageError as error:
        raise UsageError(f"{run / CONFIG}: {error}") from None
    model, variables = make_model(config), read_variables(checkpoint)
    check_fits(_shapes(variables), model, config.data, checkpoint)
    state = inference_state(model.apply, **variables).replace(step=step)
    return Trained(run, config, step, fingerprint(checkpoint), state)


def share_trained(path: str) -> Trained:
    """Returns what `read_trained` does in the main process, on every process.

    Raises:
      UsageError: as there, in all of them.
    """

    def read() -> dict[str, Any]:
        trained = read_trained(path)
        told = {"run": str(trained.run), "config": trained.config.to_json()}
        told |= {"step": trained.step, "fingerprint": trained.fingerprint}
        return told | {"variables": trained.state.variables()}

    told = multihost.on_main(read)
    config = fill_in(json.loads(told["config"]))
    variables = told["variables"]
    state = inference_state(make_model(config).apply, **variables)
    state = state.replace(step=told["step"])
    return Trained(Path(told["run"]), config, told["step"], told["fingerprint"], state)


def in_form(
    trained: Trained, *, dtype: str | None = None, upsample: str | None = None
) -> TrainState:
    """Returns the state of a network that is computed in another form.

    Args:
      trained: the network.
      dtype: of the computation, in place of `config.model.dtype`.
      upsample: in place of `config.model.upsample`.
    """
    model = make_model(trained.config)
    if dtype:
        model = model.clone(dtype=jnp.dtype(dtype))
    if upsample:
        model = model.clone(upsample=upsample)
    return inference_state(model.apply, **trained.state.evaluated())


def check_fits(
    shapes: Mapping[str, tuple[int, ...]],
    model: UNet,
    data: ml_collections.ConfigDict,
    path: Path,
) -> None:
    """Refuses variables that are not of a network; allocates nothing.

    Args:
      shapes: of the variables, by name ("params/head/bias").
      model: the network that the config says.
      data: `config.data`, which says what it is shown.
      path: where the variables come from, for the error.

    Raises:
      UsageError: naming the first leaf that is missing, too much or of another shape.
    """
    side = data.image_size
    channels = make_region(data).channels
    image = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    init = functools.partial(model.init, train=False)
    expected = jax.eval_shape(init, jax.random.key(0), image)
    want = _shapes(expected)
    for leaf in sorted(shapes.keys() | want.keys()):
        found, asked = shapes.get(leaf), want.get(leaf)
        if found != asked:
            raise UsageError(
                f"{shown(leaf)} is {found} in {path}, and {asked} by the config of its"
                " run: not the weights of that config.model"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")
    return {leaf: tuple(array.shape) for leaf, array in leaves.items()}


def run_of(checkpoint: Path) -> Path:
    """Returns the folder of the run that a checkpoint is of."""
    return checkpoint.absolute().parents[1]


def step_of(checkpoint: Path) -> int:
    """Returns the step of a checkpoint, which is the name of its folder.

    Raises:
      UsageError: if it has another name.
    """
    if not checkpoint.name.isdecimal():
        raise UsageError(f"{checkpoint}: a checkpoint's folder is named by its step")
    return int(checkpoint.name)
