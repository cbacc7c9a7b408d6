"""A network as StableHLO is called by a process that knows nothing of covjax."""

import io
import json
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from covjax.export.inference import make_inference
from covjax.export.safetensors import describe
from covjax.export.stablehlo import make_stablehlo, run_stablehlo
from small_network import POINT, make_config, make_weights, samples_of

# Images in, probabilities out, batch by batch; all that it needs.
FRESH = """
import sys, zipfile
import jax, numpy as np
from jax import export
with zipfile.ZipFile("network.stablehlo") as file:
    network = export.deserialize(bytearray(file.read("network")))
images = np.load("images.npy")
for n in (1, 3, 8):
    np.savez(f"{n}.npz", **network.call(images[:n]))
print(*network.platforms, network.in_avals[0].dtype, "covjax" in sys.modules)
"""


def network_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return file.read("network")


@pytest.mark.parametrize(
    "settings",
    [
        {"presence": True, "channel": True, "flip": True, "residual": True, "deep": 1},
        {"norm": "group", "intensity": "equal", "upsample": "depth_to_space"},
    ],
    ids=["all-parts", "group-equal"],
)
def test_a_fresh_process_says_what_the_run_says_for_any_batch_size(settings, tmp_path):
    weights = make_weights(make_config(**settings))
    samples = samples_of(weights.trained.config)
    (tmp_path / "network.stablehlo").write_bytes(make_stablehlo(weights))
    np.save(tmp_path / "images.npy", samples)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "cpu cuda tpu uint8 False\n", done.stderr
    expected = jax.device_get(make_inference(weights.trained)(jnp.asarray(samples)))
    assert expected["probability"].std() > 0.02
    assert ("presence" in expected) == settings.get("presence", False)
    for n in (1, 3, 8):
        with np.load(tmp_path / f"{n}.npz") as file:
            found = dict(file)
        assert set(found) == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], values[:n], atol=2e-5)


def test_a_network_that_was_trained_in_bfloat16_is_computed_in_float32():
    config = make_config()
    config.model.dtype = "bfloat16"
    weights = make_weights(config)
    samples = samples_of(config)
    found = run_stablehlo(make_stablehlo(weights), samples)["probability"]
    exact = make_weights(make_config()).trained  # the same numbers, float32
    expected = make_inference(exact)(jnp.asarray(samples))["probability"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_file_says_what_the_numbers_mean_and_is_the_same_each_time(tmp_path):
    weights = make_weights(make_config())
    content = make_stablehlo(weights)
    path = tmp_path / "network.stablehlo"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == ["network", "about.json"]
        about = json.loads(file.read("about.json"))
    assert about == json.loads(describe(weights))
    assert about["operating_points"] == {"predicted": POINT}
    again = make_stablehlo(weights)  # of another line of this file
    assert again == content


def test_the_file_tells_no_folder_of_the_machine():
    before = jax.config.values["jax_traceback_in_locations_limit"]
    network = network_of(make_stablehlo(make_weights(make_config())))
    assert b"unet" not in network and b".py" not in network
    assert jax.config.values["jax_traceback_in_locations_limit"] == before


def test_factors_are_not_rounded_on_other_platforms():
    # A GPU and a TPU multiply float32 with fewer bits, unless the program asks.
    content = make_stablehlo(make_weights(make_config(residual=True)))
    network = export.deserialize(bytearray(network_of(content)))
    lines = [
        line
        for line in network.mlir_module().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(lines) > 10
    assert not [line for line in lines if line.count("HIGHEST") < 2]
