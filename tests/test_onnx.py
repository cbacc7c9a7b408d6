"""ONNX Runtime says of a graph what JAX says of the network, over all settings."""

import dataclasses
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from covjax.errors import UsageError
from covjax.export.inference import make_inference
from covjax.export.onnx import make_onnx, run_onnx
from covjax.export.safetensors import Weights, describe
from small_network import POINT, make_config, make_weights, samples_of

# Settings that change the graph most, all with all; the others are drawn, so that every
# two values meet (a test counts).
MAIN = itertools.product(
    ("batch", "group"),
    (False, True),  # residual
    ("unit", "standard", "equal"),
    (False, True),  # flip
)
DRAWN = np.random.default_rng(0).random((24, 4)) < 0.5
SETTINGS = [
    {
        "norm": norm, "residual": residual, "intensity": intensity, "flip": flip,
        "presence": bool(presence), "channel": bool(channel),
        "upsample": ("transpose", "depth_to_space")[int(form)], "deep": int(deep),
    }
    for (norm, residual, intensity, flip), (presence, channel, form, deep) in zip(
        MAIN, DRAWN, strict=True
    )
]  # fmt: skip


def said_by_jax(weights: Weights, samples: np.ndarray) -> dict[str, np.ndarray]:
    # Not compiled as a whole: all settings share the programs of its operations.
    return jax.device_get(make_inference(weights.trained)(jnp.asarray(samples)))


def test_every_two_settings_meet():
    for a, b in itertools.combinations(SETTINGS[0], 2):
        met = {(setting[a], setting[b]) for setting in SETTINGS}
        values = [{setting[name] for setting in SETTINGS} for name in (a, b)]
        assert len(met) == len(values[0]) * len(values[1]), (a, b)


@pytest.mark.parametrize(
    "settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values())
)
def test_onnx_runtime_says_what_jax_says(settings):
    config = make_config(**settings)
    weights, samples = make_weights(config), samples_of(config)
    expected = said_by_jax(weights, samples)
    content = make_onnx(weights)
    found = run_onnx(content, samples)
    assert found.keys() == expected.keys()
    assert ("presence" in found) == settings["presence"]
    assert expected["probability"].std() > 0.02  # there is something to be missed
    for name, values in expected.items():
        assert found[name].dtype == np.float32 and found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, atol=2e-5)
    alone = run_onnx(content, samples[2:3])  # a batch of another size
    for name, values in expected.items():
        np.testing.assert_allclose(alone[name], values[2:3], atol=2e-5)


def with_leaves(weights: Weights, changes: dict[str, np.ndarray | None]) -> Weights:
    """The same network with other leaves, and without those that are None."""
    trained = weights.trained
    leaves = flatten_dict(trained.state.variables(), sep="/") | changes
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    state = trained.state.replace(**unflatten_dict(leaves, sep="/"))
    return dataclasses.replace(
        weights, trained=dataclasses.replace(trained, state=state)
    )


def test_a_network_with_a_part_that_is_not_known_is_refused():
    name = "params/encoder_0/gate/kernel"
    weights = with_leaves(make_weights(make_config()), {name: np.zeros(1)})
    with pytest.raises(UsageError, match=f"onnx does not know {name};"):
        make_onnx(weights)


def test_a_network_that_lacks_a_part_is_refused():
    name = "params/decoder_1/conv_0/kernel"
    weights = with_leaves(make_weights(make_config()), {name: None})
    with pytest.raises(UsageError, match=f"no {name}, which --format=onnx needs"):
        make_onnx(weights)


def test_the_file_says_what_goes_in_and_out_and_what_the_numbers_mean():
    weights = make_weights(make_config(presence=True, channel=True))
    content = make_onnx(weights)
    model = onnx.load_from_string(content)
    shapes = {
        value.name: (
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
            [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "image": ("uint8", ["batch", 16, 16, 2]),
        "probability": ("float32", ["batch", 16, 16, 1]),
        "presence": ("float32", ["batch"]),
    }
    told = {prop.key: prop.value for prop in model.metadata_props}
    assert told == {"covjax": describe(weights)}
    assert json.loads(told["covjax"])["operating_points"] == {"predicted": POINT}
    assert make_onnx(weights) == content


def test_parameters_are_kept_whole():
    # Not rounded, and once: the mirror image goes through the same ones.
    weights = make_weights(make_config(flip=True))
    model = onnx.load_from_string(make_onnx(weights))
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    leaves: dict[str, Any] = flatten_dict(weights.trained.state.variables(), sep="/")
    assert leaves.keys() <= stored.keys()
    for name, leaf in leaves.items():
        assert stored[name].dtype == np.float32
        np.testing.assert_array_equal(np.sort(stored[name], None), np.sort(leaf, None))
    floats = sum(array.size for array in stored.values() if array.dtype == np.float32)
    assert floats < sum(leaf.size for leaf in leaves.values()) + 10
