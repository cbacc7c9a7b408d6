"""The optimizer against values worked out by hand, and against AdamW in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import base
from covjax.errors import UsageError
from covjax.models.unet import UNet
from covjax.train import optimizer


def make_config(**fields) -> ml_collections.ConfigDict:
    """The base config with other `optim` fields, 5 epochs."""
    config = base.get_config()
    config.train.epochs = 5
    for name, value in fields.items():
        config.optim[name] = value
    return config


def freeze(config, patterns: tuple[str, ...], epochs: int):
    config.transfer.frozen = patterns
    config.transfer.frozen_epochs = epochs
    return config


def updates_of(
    config, params: Any, grads: list[Any], lr: float = 0.01, steps_per_epoch: int = 1
) -> list[Any]:
    """The update of every step, at a constant learning rate."""
    schedule = optax.constant_schedule(lr)
    tx = optimizer.make_optimizer(config, schedule, steps_per_epoch)
    state, found = tx.init(params), []
    step = jax.jit(tx.update)
    for grad in grads:
        update, state = step(grad, state, params)
        params = optax.apply_updates(params, update)
        found.append(jax.device_get(update))
    return found


def adamw_in_numpy(
    params, grads, *, lr: float, decay: float, clip: float, held: dict | None = None
):
    """Loshchilov and Hutter's algorithm 2 after clipping; only `kernel` decays.

    `held` are the parameters that stay, and for how many steps.
    """
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
            if t <= (held or {}).get(k, 0):
                update[k] = np.zeros_like(update[k])
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
    schedule = optimizer.make_schedule(make_config(lr=0.01, warmup_epochs=0.5), 8)
    assert np.asarray(schedule(step)) == pytest.approx(lr, rel=1e-5, abs=1e-9)


def test_schedule_without_warm_up_starts_at_its_peak():
    schedule = optimizer.make_schedule(make_config(lr=0.01, warmup_epochs=0), 8)
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
    tx = optimizer.make_optimizer(config, lambda step: 0.5 + step, 1)
    params, grads = jnp.array([1.0]), jnp.array([2.0])
    state, sizes = tx.init(params), []
    for _ in range(3):  # of Adam under a constant gradient: -lr
        update, state = tx.update(grads, state, params)
        sizes.append(np.asarray(update).item())
    assert sizes == pytest.approx([-0.5, -1.5, -2.5], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "epochs", "steps_per_epoch"), [("kernel", 1, 2), ("bias", 2, 1)]
)
def test_what_is_held_stays_and_then_goes_on_as_the_rest(name, epochs, steps_per_epoch):
    # Weight decay would move it, too; its moments and the clipped norm know its
    # gradients from the first step.
    config = freeze(make_config(weight_decay=0.1), (f"/{name}$",), epochs)
    grads = [*GRADS, GRADS[0]]
    found = updates_of(config, PARAMS, grads, steps_per_epoch=steps_per_epoch)
    expected = adamw_in_numpy(PARAMS, grads, lr=0.01, decay=0.1, clip=1, held={name: 2})
    for step, reference in enumerate(expected):
        assert found[step][name].any() == (step >= 2)
        for leaf, update in reference.items():
            np.testing.assert_allclose(
                found[step][leaf], update, rtol=1e-4, err_msg=f"step {step}, {leaf}"
            )


def test_a_gradient_that_is_no_number_does_not_move_what_is_held():
    config = freeze(make_config(clip_norm=0.0), ("kernel",), 1)
    grads = {"kernel": jnp.full((2, 2), jnp.nan), "bias": jnp.array([1.0, 2.0])}
    [update] = updates_of(config, PARAMS, [grads])
    assert not update["kernel"].any() and update["bias"].all()


DEEP = {
    "encoder_0": {"conv_0": {"kernel": jnp.ones((2, 2))}},
    "encoder_1": {"norm_0": {"scale": jnp.ones(2)}},
    "decoder_0": {"conv_0": {"kernel": jnp.ones((2, 2))}},
    "head": {"kernel": jnp.ones((2, 1))},
}


@pytest.mark.parametrize(
    ("patterns", "held"),
    [
        (("^params/encoder_",), {"encoder_0", "encoder_1"}),
        (("encoder_0/conv_0/kernel", "scale$"), {"encoder_0", "encoder_1"}),
        (("conv_0",), {"encoder_0", "decoder_0"}),
    ],
)
def test_parameters_are_held_by_name(patterns: tuple[str, ...], held: set[str]):
    [update] = updates_of(freeze(make_config(), patterns, 1), DEEP, [DEEP])
    moved = {key for key, tree in update.items() if jax.tree.leaves(tree)[0].any()}
    assert moved == DEEP.keys() - held


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("encoder_0", "encoder_7"), "'encoder_7' matches no parameter.*params/decod"),
        (("^encoder_0",), "'.encoder_0' matches no parameter"),  # names have a root
        (("(",), r"config.transfer.frozen = \('\(',\): missing \)"),
        (("scale", "^params/"), "'.params/' would hold params/head/kernel, which star"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, said: str):
    with pytest.raises(UsageError, match=said):
        updates_of(freeze(make_config(), patterns, 1), DEEP, [DEEP])


def test_the_state_of_an_optimizer_that_holds_nothing_is_what_it_was():
    # Checkpoints of older runs are restored into it. Patterns alone hold nothing.
    tx = optimizer.make_optimizer(
        freeze(make_config(), ("no such",), 0), optax.constant_schedule(0.1), 1
    )
    names = [jax.tree_util.keystr(path) for path, _ in leaves(tx.init(PARAMS))]
    assert names == [
        "[1][0].count",
        "[1][0].mu['bias']",
        "[1][0].mu['kernel']",
        "[1][0].nu['bias']",
        "[1][0].nu['kernel']",
        "[1][2].count",
    ]
