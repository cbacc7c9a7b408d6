"""Averages of weights, against loops that keep every weight there was."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import base
from covjax.train.ema import average, make_averaging

jitted = jax.jit(average)


def make_config(**fields) -> ml_collections.ConfigDict:
    """The base config with other `optim` fields, 4 epochs."""
    config = base.get_config()
    config.train.epochs = 4
    for name, value in fields.items():
        config.optim[name] = value
    return config


def rates(config, steps: int, steps_per_epoch: int = 3) -> list[float]:
    """α after each of the first updates."""
    rate = make_averaging(config, steps_per_epoch)
    assert rate is not None
    # In a compiled step, the number of updates is no Python number.
    return [float(a) for a in jax.jit(jax.vmap(rate))(1 + jnp.arange(steps))]


def run(config, weights: list[Any]) -> list[Any]:
    """The average after each update; training begins with the first weights."""
    averaged, found = jax.tree.map(jnp.asarray, weights[0]), []
    for newest, alpha in zip(weights[1:], rates(config, len(weights) - 1), strict=True):
        averaged = jitted(averaged, newest, jnp.float32(alpha))
        found.append(jax.device_get(averaged))
    return found


def random_weights(count: int) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        {
            "params": {"kernel": rng.normal(0, 1, (2, 3)).astype(np.float32)},
            "batch_stats": {"var": rng.random(2).astype(np.float32)},
        }
        for _ in range(count)
    ]


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_nothing_is_averaged_unless_asked():
    assert make_averaging(make_config(), 3) is None


def test_an_exponential_average_forgets_by_hand():
    # 1 - (1 + t) / (10 + t) = 9 / (10 + t), until 1 - decay is more.
    found = rates(make_config(average="ema", ema_decay=0.25), 4)
    np.testing.assert_allclose(found, [9 / 11, 0.75, 0.75, 0.75], rtol=1e-6)
    found = rates(make_config(average="ema", ema_decay=0.9), 100)
    expected = [max(9 / (10 + t), 0.1) for t in range(1, 101)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.index(max(found)) == 0 and expected[78] > 0.1 == expected[80]


def test_an_exponential_average_is_that_of_a_float64_loop():
    weights = random_weights(13)
    expected = jax.tree.map(np.float64, weights[0])
    config = make_config(average="ema", ema_decay=0.5)
    for t, (newest, found) in enumerate(
        zip(weights[1:], run(config, weights), strict=True), 1
    ):
        keep = min(0.5, (1 + t) / (10 + t))
        expected = jax.tree.map(
            lambda a, w, keep=keep: keep * a + (1 - keep) * np.float64(w),
            expected,
            newest,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
        )


@pytest.mark.parametrize("last", [1, 2, 3, 4])
def test_the_mean_is_of_the_weights_at_the_ends_of_the_last_epochs(last: int):
    weights = random_weights(13)  # as training begins, then after each of 12 updates
    found = run(make_config(average="epochs", average_epochs=last), weights)
    ends = [weights[step] for step in (3, 6, 9, 12)]
    jax.tree.map(
        lambda a, *of_epochs: np.testing.assert_allclose(
            a, np.mean(of_epochs, axis=0, dtype=np.float64), rtol=1e-5, atol=1e-7
        ),
        found[11],
        *ends[4 - last :],
    )
    # To the end of the first epoch that counts, the weights are their own average.
    first_end = 3 * (5 - last)
    for step in range(1, first_end + 1):
        assert bits(found[step - 1]) == bits(weights[step])
    # From there on it changes at the ends of epochs alone.
    for step in range(first_end + 1, 13):
        stays = bits(found[step - 1]) == bits(found[step - 2])
        assert stays == (step % 3 != 0)


# Their difference, or what is added to the other, is rounded, or is no number.
OLD = np.array([0.1, 1e8, -0.0, 3.4e38, np.inf, 1.0], np.float32)
NEW = np.array([0.3, 1e-8, 0.7, -3.4e38, 1.0, -0.0], np.float32)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, OLD), (1.0, NEW)])
def test_all_or_nothing_keeps_every_bit(alpha: float, expected: np.ndarray):
    assert bits(jitted(OLD, NEW, jnp.float32(alpha))) == bits(expected)


def test_weights_that_stay_are_their_own_average():
    stays = np.random.default_rng(1).normal(0, 1, 1000).astype(np.float32)
    for alpha in (0.002, 0.1, 1 / 3, 0.9):
        assert bits(jitted(stays, stays, jnp.float32(alpha))) == bits(stays)


def test_dtypes_are_kept():
    tree = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "c": jnp.arange(2)}
    found = jitted(tree, tree, jnp.float32(0.5))
    assert [leaf.dtype for leaf in found.values()] == [
        leaf.dtype for leaf in tree.values()
    ]
