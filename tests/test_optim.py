"""The optimizer against values worked out by hand, and against AdamW in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import base
from covjax import optim
from covjax.models.unet import UNet


def make_config(**fields) -> ml_collections.ConfigDict:
    """The base config with other `optim` fields, 5 epochs."""
    config = base.get_config()
    config.train.epochs = 5
    for name, value in fields.items():
        config.optim[name] = value
    return config


def updates_of(config, params: Any, grads: list[Any], lr: float = 0.01) -> list[Any]:
    """The update of every step, at a constant learning rate."""
    tx = optim.make_optimizer(config, optax.constant_schedule(lr))
    state, found = tx.init(params), []
    step = jax.jit(tx.update)
    for grad in grads:
        update, state = step(grad, state, params)
        params = optax.apply_updates(params, update)
        found.append(jax.device_get(update))
    return found


def adamw_in_numpy(params, grads, *, lr: float, decay: float, clip: float):
    """Loshchilov and Hutter's algorithm 2 after clipping; only `kernel` decays."""
    params = {k: np.float64(v) for k, v in params.items()}
    first = {k: np.zeros_like(v) for k, v in params.items()}
    second = {k: np.zeros_like(v) for k, v in params.items()}
    for t, grad in enumerate(grads, 1):
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in grad.values()))
        shrink = min(1.0, clip / norm)
        update = {}
        for k, g in grad.items():
            g = np.float64(g) * shrink
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g**2
            move = first[k] / (1 - 0.9**t)
            move /= np.sqrt(second[k] / (1 - 0.999**t)) + 1e-8
            update[k] = -lr * (move + decay * params[k] * (k == "kernel"))
            params[k] = params[k] + update[k]
        yield update


# One step of tiny gradients, then a burst that clipping at 1 has to tame, then calm.
PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -1])}
GRADS = [
    {
        "kernel": size * jnp.array([[1.0, -3.0], [2.0, 0.5]]),
        "bias": size * jnp.array([-2.0, 4.0]),
    }
    for size in (0.01, 50.0, 0.02)
]


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0),
        (2, 0.005),
        (4, 0.01),  # half an epoch of 8 steps is the warm-up
        (13, 0.01 * (1 + np.sqrt(0.5)) / 2),  # a quarter of the 36 steps left
        (22, 0.005),
        (40, 0),
        (50, 0),
    ],
)
def test_schedule_by_hand(step: int, lr: float):
    schedule = optim.make_schedule(make_config(lr=0.01, warmup_epochs=0.5), 8)
    assert np.asarray(schedule(step)) == pytest.approx(lr, rel=1e-5, abs=1e-9)


def test_schedule_without_warm_up_starts_at_its_peak():
    schedule = optim.make_schedule(make_config(lr=0.01, warmup_epochs=0), 8)
    assert np.asarray(schedule(0)) == pytest.approx(0.01)
    assert np.asarray(schedule(20)) == pytest.approx(0.005)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_weight_decay_shrinks_every_kernel_and_nothing_else(norm):
    model = UNet(width=2, depth=1, norm=norm)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)), train=False)
    )["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    zeros = jax.tree.map(jnp.zeros_like, params)
    [update] = updates_of(make_config(weight_decay=0.5), params, [zeros], lr=0.1)
    shrunk = {"/".join(k.key for k in path): u for path, u in leaves(update)}
    assert {name.rsplit("/")[-1] for name in shrunk} == {"kernel", "bias", "scale"}
    for name, change in shrunk.items():
        expected = -0.1 * 0.5 if name.endswith("kernel") else 0
        np.testing.assert_allclose(change, expected, rtol=1e-6, err_msg=name)


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize(("clip_norm", "clip"), [(1.0, 1.0), (0.1, 0.1), (0.0, np.inf)])
def test_updates_are_those_of_adamw_after_clipping_the_global_norm(clip_norm, clip):
    config = make_config(clip_norm=clip_norm, weight_decay=0.1)
    found = updates_of(config, PARAMS, GRADS)
    expected = adamw_in_numpy(PARAMS, GRADS, lr=0.01, decay=0.1, clip=clip)
    for step, reference in enumerate(expected):
        for name, update in reference.items():
            np.testing.assert_allclose(
                found[step][name], update, rtol=1e-4, err_msg=f"step {step}, {name}"
            )


def test_the_learning_rate_of_step_k_is_the_schedule_at_k():
    config = make_config(weight_decay=0.0, clip_norm=0.0)
    tx = optim.make_optimizer(config, lambda step: 0.5 + step)
    params, grads = jnp.array([1.0]), jnp.array([2.0])
    state, sizes = tx.init(params), []
    for _ in range(3):  # of Adam under a constant gradient: -lr
        update, state = tx.update(grads, state, params)
        sizes.append(np.asarray(update).item())
    assert sizes == pytest.approx([-0.5, -1.5, -2.5], rel=1e-4)
