"""What an exported network computes, from the logits of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covjax.export.inference import make_inference
from small_network import make_config, make_weights, samples_of


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_of_levels_over_255_and_of_the_mean_logits(flip):
    config = make_config(presence=True, channel=True, flip=flip)
    trained = make_weights(config).trained
    samples = samples_of(config)
    pixels = samples.astype(np.float32) / np.float32(255)
    apply, variables = trained.state.apply_fn, trained.state.variables()
    seen = jax.device_get(apply(variables, pixels, train=False))
    logits, presence = seen.logits, seen.presence
    if flip:
        turned = np.flip(pixels, axis=2)
        mirrored = jax.device_get(apply(variables, turned, train=False))
        logits = (logits + np.flip(mirrored.logits, axis=2)) / 2
        presence = (presence + mirrored.presence) / 2
    found = jax.device_get(make_inference(trained)(jnp.asarray(samples)))
    assert found.keys() == {"probability", "presence"}
    np.testing.assert_allclose(found["probability"], sigmoid(logits), atol=5e-6)
    np.testing.assert_allclose(found["presence"], sigmoid(presence), atol=5e-6)
    assert found["probability"].dtype == found["presence"].dtype == np.float32


def test_the_dtype_of_the_run_and_the_form_of_upsampling_change_nothing():
    samples = jnp.asarray(samples_of(make_config()))
    exact = make_inference(make_weights(make_config()).trained)(samples)
    config = make_config(upsample="depth_to_space")
    config.model.dtype = "bfloat16"
    trained = make_weights(config).trained
    for form in (None, "transpose", "depth_to_space"):
        found = make_inference(trained, form)(samples)
        assert found.keys() == {"probability"}
        np.testing.assert_allclose(
            found["probability"], exact["probability"], atol=1e-5
        )
    assert config.model.dtype == "bfloat16"  # the run's config stays
