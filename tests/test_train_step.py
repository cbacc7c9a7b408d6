"""The three steps, compiled by parallel.py for one device and for eight.

A small U-Net and images of 16x16 pixels. What is compiled is shared: fixtures of the
module hand out results, or functions that were compiled once.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import base
from covjax import parallel
from covjax.errors import UsageError
from covjax.metrics.counts import confusion_counts
from covjax.models.unet import UNet
from covjax.train.losses import make_loss, make_objective
from covjax.train.optimizer import make_optimizer, make_schedule
from covjax.train.train_state import TrainState, start_state
from covjax.train.train_step import eval_step, predict_step, train_step
from covjax.types import AXIS, Prediction

BATCH, SIDE = 16, 16
LOSS = make_loss(dice=0.5, bce=0.5)
OBJECTIVE = make_objective(dice=0.5, bce=0.5)
ONE_STEP = functools.partial(train_step, objective=OBJECTIVE)
MODEL = UNet(width=2, depth=1, upsample="depth_to_space")
KEY = jax.random.key(3)
STATE = ("step", "params", "batch_stats")
GOLDEN = Path(__file__).parent / "golden" / "train_step.json"
RENEW = "COVJAX_RENEW_GOLDEN"


def make_batch(seed: int, samples: int = BATCH) -> dict[str, np.ndarray]:
    """Images of unlike brightness, so that no device's share is like another's."""
    rng = np.random.default_rng(seed)
    shape = (samples, SIDE, SIDE, 1)
    brightness = np.linspace(40, 250, samples).reshape(-1, 1, 1, 1)
    return {
        "image": (rng.random(shape) * brightness).astype(np.uint8),
        "mask": (
            rng.random(shape) < np.linspace(0, 0.6, samples)[:, None, None, None]
        ).astype(np.uint8),
        "index": rng.permutation(samples).astype(np.int32),
        "weight": np.ones(samples, np.float32),
    }


def on_devices(batch: dict[str, np.ndarray]) -> Any:
    [sharded] = parallel.prefetch([batch])
    return sharded


def snapshot(tree: Any) -> Any:
    """A copy on the host that shares no memory with the devices."""
    return jax.tree.map(np.array, jax.device_get(tree))


def assert_trees_close(first: Any, second: Any, *, rtol: float, atol: float = 0):
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(first)]
    assert paths
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    for name, (a, b) in zip(paths, leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)


def fixed_variables(model: UNet) -> dict[str, Any]:
    """Variables that no generator made: a release of jax or NumPy may change those."""
    shapes = jax.eval_shape(
        lambda: model.init(KEY, jnp.zeros((1, SIDE, SIDE, 1)), train=False)
    )
    leaves, treedef = jax.tree.flatten(shapes["params"])
    numbers = [waves(a.shape, 1.7 + 0.1 * place) for place, a in enumerate(leaves)]
    params = treedef.unflatten(
        jnp.asarray(0.2 * a if a.ndim > 1 else 1 + 0.5 * a, jnp.float32)
        for a in numbers
    )
    stats = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), shapes["batch_stats"])
    return {"params": params, "batch_stats": stats}


def waves(shape: tuple[int, ...], pace: float) -> np.ndarray:
    """Numbers in [-1, 1], not in any order."""
    return np.sin(pace * (1 + np.arange(np.prod(shape)))).reshape(shape)


@pytest.fixture(scope="module")
def start(devices) -> TrainState:
    """The state before the first step of plain gradient descent at rate 1.

    So a parameter's change is its gradient.
    """
    return start_state(MODEL.apply, optax.sgd(1.0), **fixed_variables(MODEL))


@pytest.fixture(scope="module")
def train_on_eight(devices) -> Callable[..., Any]:
    return parallel.compile_train_step(ONE_STEP)


def compile_for_one(step: Callable[..., Any], device: Any) -> tuple[Any, Any]:
    """Returns `step` compiled for one device alone, and what puts a tree there."""
    compiled = jax.pmap(step, axis_name=AXIS, in_axes=(0, 0, None), devices=[device])
    first = NamedSharding(Mesh(np.array([device]), (AXIS,)), PartitionSpec(AXIS))

    def put(tree: Any) -> Any:
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[None], tree)
        return jax.device_put(rows, first)

    return compiled, put


@pytest.fixture(scope="module")
def runs(start, train_on_eight, devices) -> dict[int, list[dict[str, Any]]]:
    """Devices (1 or 8) → after each of four steps, what every device holds."""
    on_one, on_first = compile_for_one(ONE_STEP, devices[0])

    def run(step, state, put) -> list[dict[str, Any]]:
        found = []
        for seed in range(4):
            state, metrics = step(state, put(make_batch(seed)), KEY)
            after = {name: getattr(state, name) for name in STATE}
            found.append(snapshot(after | {"metrics": metrics}))
        return found

    return {
        1: run(on_one, on_first(start), on_first),
        8: run(train_on_eight, parallel.replicate(start), on_devices),
    }


@pytest.mark.parametrize("what", ["metrics", "params", "batch_stats"])
def test_eight_devices_compute_what_one_computes(runs, start, what: str):
    for of_one, of_eight in zip(runs[1], runs[8], strict=True):
        first = jax.tree.map(lambda leaf: leaf[0], of_eight[what])
        alone = jax.tree.map(lambda leaf: leaf[0], of_one[what])
        assert_trees_close(first, alone, rtol=1e-5, atol=2e-6)
    if what != "metrics":  # something happened, and not by the tolerance alone
        before, after = getattr(start, what), runs[8][-1][what]
        moved = jax.tree.map(lambda a, b: np.abs(a[0] - b).max(), after, before)
        assert min(jax.tree.leaves(moved)) > 1e-4


def test_every_device_holds_the_same_state(runs):
    for leaf in jax.tree.leaves(runs[8][-1]):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_steps_are_counted(runs):
    assert [int(after["step"][0]) for after in runs[8]] == [1, 2, 3, 4]


def test_loss_is_the_mean_over_the_images_and_grad_norm_that_of_its_gradient(
    runs, start
):
    batch = make_batch(seed=0)

    def mean_loss(params, images):
        # All images on one "device", whose axis `vmap` names.
        variables = {"params": params, "batch_stats": start.batch_stats}
        logits = jax.vmap(
            lambda x: MODEL.apply(variables, x, train=True, mutable="batch_stats")[0],
            axis_name=AXIS,
        )(images[None]).logits[0]
        return LOSS(logits, jnp.asarray(batch["mask"], jnp.float32)).mean()

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(
        start.params, jnp.asarray(batch["image"], jnp.float32) / 255
    )
    after = runs[8][0]
    norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(grads)))
    np.testing.assert_allclose(after["metrics"]["loss"][0], loss, rtol=1e-5)
    np.testing.assert_allclose(after["metrics"]["grad_norm"][0], norm, rtol=1e-4)
    expected = jax.tree.map(np.subtract, start.params, grads)
    found = jax.tree.map(lambda leaf: leaf[0], after["params"])
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5)


# Three weights, of which NumPy knows what comes out.
WEIGHTS = {"fine": 1.6, "coarse": -0.7, "claim": 2.5}
RATE = 5.0  # of the descent


def three_heads(variables, images, *, train, mutable=(), rngs=None):
    """A network with a coarser level and a presence head, and a statistic."""
    weights = variables["params"]
    prediction = Prediction(
        weights["fine"] * images - 1,
        weights["claim"] * images.mean(axis=(1, 2, 3)) - 1,
        (weights["coarse"] * images[:, ::2, ::2] - 1,) if train else (),
    )
    if not train:
        return prediction
    seen = variables["batch_stats"]["seen"] + jax.lax.pmean(images.mean(), AXIS)
    return prediction, {"batch_stats": {"seen": seen}}


def state_of_three(**changes: float) -> TrainState:
    weights = {k: jnp.float32(v) for k, v in (WEIGHTS | changes).items()}
    stats = {"seen": jnp.float32(0)}
    return start_state(three_heads, optax.sgd(RATE), weights, stats)


def half_empty_batch() -> dict[str, np.ndarray]:
    batch = make_batch(0)
    batch["mask"][::2] = 0
    return batch


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.float64(logits)))


def mean_objective(weights: dict[str, float]) -> float:
    """0.5 Dice over the batch + 0.5 cross entropy, of both levels, + 0.25 presence."""
    batch = half_empty_batch()
    x, masks = batch["image"][..., 0] / 255, batch["mask"][..., 0].astype(float)
    blocks = masks.reshape(BATCH, SIDE // 2, 2, SIDE // 2, 2)
    total = 0.0
    for weight, logits, truth in (
        (2 / 3, weights["fine"] * x - 1, masks),
        (1 / 3, weights["coarse"] * x[:, ::2, ::2] - 1, blocks.mean(axis=(2, 4))),
    ):
        p = sigmoid(logits)
        dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
        entropy = -(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
        total += weight * (dice + entropy) / 2
    p = sigmoid(weights["claim"] * x.mean(axis=(1, 2)) - 1)
    right = np.where(masks.any(axis=(1, 2)), p, 1 - p)
    return total - 0.25 * np.log(right).mean()


def test_a_step_descends_the_objective_of_every_head_over_all_devices(devices):
    objective = make_objective(dice=0.5, bce=0.5, batch_dice=True, presence=0.25)
    step = parallel.compile_train_step(
        functools.partial(train_step, objective=objective)
    )
    state = parallel.replicate(state_of_three())
    state, metrics = step(state, on_devices(half_empty_batch()), KEY)
    slopes = {
        name: (
            mean_objective(WEIGHTS | {name: value + 1e-5})
            - mean_objective(WEIGHTS | {name: value - 1e-5})
        )
        / 2e-5
        for name, value in WEIGHTS.items()
    }
    before = mean_objective(WEIGHTS)
    np.testing.assert_allclose(metrics["loss"][0], before, rtol=1e-5)
    norm = np.sqrt(sum(slope**2 for slope in slopes.values()))
    np.testing.assert_allclose(metrics["grad_norm"][0], norm, rtol=1e-4)
    assert min(map(abs, slopes.values())) > 3e-3
    after = {name: float(a[0]) for name, a in state.params.items()}
    expected = {name: WEIGHTS[name] - RATE * slopes[name] for name in WEIGHTS}
    assert after == pytest.approx(expected, rel=1e-5)
    assert mean_objective(after) < before - 5e-4


def one_weight(variables, images, *, train, mutable=(), rngs=None):
    """A network of one weight, and a statistic that follows what it is shown."""
    logits = variables["params"]["w"] * images
    seen = variables["batch_stats"]["seen"] + 1
    return Prediction(logits, None, ()), {"batch_stats": {"seen": seen}}


def loss_of_first(prediction, masks):
    """The logits' first pixel; not finite where the mask says so."""
    bad = masks.max(axis=(1, 2, 3)) > 1
    return prediction.logits[:, 0, 0, 0] * jnp.where(bad, jnp.inf, 1.0)


@pytest.mark.parametrize("skip", [True, False])
def test_an_update_that_is_not_finite_is_dropped_whole_on_every_device(devices, skip):
    tx = optax.adam(0.1)
    state = start_state(one_weight, tx, {"w": jnp.float32(2)}, {"seen": jnp.float32(0)})
    state = state.replace(averaged=state.variables())
    step = parallel.compile_train_step(
        functools.partial(
            train_step,
            objective=loss_of_first,
            averaging=lambda _: jnp.float32(0.5),
            skip=skip,
        )
    )
    good, bad = make_batch(0), make_batch(0)
    bad["mask"][-1] = 2  # of one image, on the last device
    states, finite = [parallel.replicate(state)], []
    for batch in (good, bad, good):
        new, metrics = step(jax.tree.map(jnp.copy, states[-1]), on_devices(batch), KEY)
        states.append(new)
        finite.append(float(metrics["finite"][0]))
    assert finite == ([1, 0, 1] if skip else [1, 0, 0])
    first, second, third = (snapshot(s) for s in states[1:])
    assert [int(s.step[0]) for s in states] == [0, 1, 2, 3]
    if not skip:
        assert np.isnan(second.params["w"]).all()
        return
    for name in ("params", "batch_stats", "opt_state", "averaged"):
        before, after = getattr(first, name), getattr(second, name)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (third.params["w"] != second.params["w"]).all()
    assert np.ptp(third.params["w"]) == 0  # the same on every device


@pytest.mark.parametrize("part", ["gradients", "weights"])
def test_a_step_is_not_finite_if_its_gradients_or_its_weights_are_not(devices, part):
    def objective(prediction, masks):
        value = prediction.logits[:, 0, 0, 0]
        if part == "gradients":  # the loss is 0, its slope at 0 is not
            return jnp.sqrt(jnp.abs(value - jax.lax.stop_gradient(value)))
        return value

    rate = 1.0 if part == "gradients" else np.inf
    state = start_state(
        one_weight, optax.sgd(rate), {"w": jnp.float32(2)}, {"seen": jnp.float32(0)}
    )
    step = parallel.compile_train_step(
        functools.partial(train_step, objective=objective)
    )
    _, metrics = step(parallel.replicate(state), on_devices(make_batch(0)), KEY)
    assert np.isfinite(metrics["loss"][0])
    assert metrics["finite"][0] == 0


def harmonic(step: jax.Array) -> jax.Array:
    """An α of 1/2 after the first step, 1/3 after the second, and so on."""
    return 1 / (1 + step)


def test_averages_follow_the_newest_weights_and_statistics_on_any_devices(devices):
    step = functools.partial(train_step, objective=OBJECTIVE, averaging=harmonic)
    start = state_of_three()
    start = start.replace(averaged=start.variables())
    on_one, on_first = compile_for_one(step, devices[0])
    found = {}
    for name, compiled, put, state in (
        (1, on_one, on_first, on_first(start)),
        (8, parallel.compile_train_step(step), on_devices, parallel.replicate(start)),
    ):
        expected = jax.tree.map(np.float64, start.variables())
        for count in (1, 2, 3):
            state, _ = compiled(state, put(make_batch(count)), KEY)
            newest = jax.tree.map(lambda a: a[0], snapshot(state.variables()))
            expected = jax.tree.map(
                lambda old, new, rate: old + rate * (new - old),
                expected,
                newest,
                jax.tree.map(lambda _, count=count: 1 / (1 + count), newest),
            )
            averaged = jax.tree.map(lambda a: a[0], snapshot(state.averaged))
            assert_trees_close(averaged, expected, rtol=1e-6)
        found[name] = averaged, newest
    assert_trees_close(found[1], found[8], rtol=1e-5)
    moved, stats = (found[8][1][k] for k in ("params", "batch_stats"))
    assert abs(moved["fine"] - WEIGHTS["fine"]) > 0.01 and stats["seen"] > 0.5
    for leaf in jax.tree.leaves(snapshot(state.averaged)):  # the same on all devices
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_a_step_that_averages_nothing_leaves_what_it_finds(devices):
    step = parallel.compile_train_step(ONE_STEP)
    batch = on_devices(make_batch(0))
    state, _ = step(parallel.replicate(state_of_three()), batch, KEY)
    assert state.averaged is None
    kept = state_of_three(fine=7.0).variables()
    state = parallel.replicate(state_of_three().replace(averaged=kept))
    state, _ = step(state, batch, KEY)
    assert_trees_close(parallel.unreplicate(state.averaged), kept, rtol=0)


def test_the_memory_of_the_old_state_goes_to_the_new_one(start, train_on_eight):
    before, copy = snapshot(start), parallel.replicate(start)
    held = parallel.unreplicate(copy)  # as a checkpoint holds it, still being written
    after, _ = train_on_eight(copy, on_devices(make_batch(0)), KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy))
    jax.block_until_ready(after)
    # What was copied from, and what was copied to the host, stays.
    assert_trees_close(held, before, rtol=0, atol=0)
    assert_trees_close(jax.device_get(start), before, rtol=0, atol=0)


def test_the_key_of_dropout_differs_between_devices_and_steps(devices):
    def apply_fn(variables, images, *, train, mutable, rngs):
        # The "statistics" carry the key out of the step.
        key = jax.random.key_data(rngs["dropout"])
        logits = variables["params"]["w"] * images
        return Prediction(logits), {"batch_stats": {"key": key}}

    first = TrainState.create(
        apply_fn=apply_fn,
        tx=optax.sgd(0.1),
        params={"w": jnp.ones(())},
        batch_stats={"key": jnp.zeros(2, jnp.uint32)},
    )
    step = parallel.compile_train_step(ONE_STEP)
    batch = on_devices(make_batch(0))

    def keys_of(rng: jax.Array) -> list[tuple[int, ...]]:
        state, found = parallel.replicate(first), []
        for _ in range(3):
            state, _ = step(state, batch, rng)
            found += map(tuple, np.array(state.batch_stats["key"]).tolist())
        return found

    keys = keys_of(KEY)
    assert len(set(keys)) == len(keys) == 3 * len(devices)
    assert keys_of(KEY) == keys
    assert not set(keys_of(jax.random.key(4))) & set(keys)


def test_all_steps_run_what_was_compiled_for_the_first(devices, caplog):
    # If the first state lay on the devices in another way than the ones that steps
    # return, the second step would be compiled again: minutes, for the full model.
    step = parallel.compile_train_step(
        lambda state, batch, rng: (state + 1, {"loss": batch["weight"].mean()})
    )
    state, compiled = parallel.replicate(np.float32(0)), []
    for batch in parallel.prefetch([make_batch(seed) for seed in range(3)]):
        caplog.clear()
        with jax.log_compiles():
            state, _ = step(state, batch, KEY)
        compiled.append(caplog.text.count("Finished XLA compilation"))
    assert compiled[0] > 0 and compiled[1:] == [0, 0]


@pytest.fixture(scope="module")
def scored(start) -> dict[str, Any]:
    """A state with sure and unsure pixels, a batch with padding, and what is said."""
    rng = np.random.default_rng(8)
    stats = jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(0.2, 0.9, a.shape), a.dtype),
        start.batch_stats,
    )
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), start.params
    )
    state = start_state(MODEL.apply, optax.sgd(1.0), params, stats)
    batch = make_batch(seed=6)
    for name, array in batch.items():
        if name != "index":
            array[-3:] = 0  # padding
    images = jnp.asarray(batch["image"], jnp.float32) / 255
    logits = jax.jit(lambda v, x: state.apply_fn(v, x, train=False).logits)(
        {"params": params, "batch_stats": stats}, images
    )
    copy = parallel.replicate(state)
    before = snapshot(copy)
    step = parallel.compile_eval_step(
        functools.partial(eval_step, loss_fn=LOSS, threshold=0.6)
    )
    result = parallel.gather(step(copy, on_devices(batch)))
    predict = parallel.compile_eval_step(functools.partial(predict_step, loss_fn=LOSS))
    return {
        "batch": batch,
        "logits": np.asarray(logits),
        "result": result,
        "predicted": parallel.gather(predict(copy, on_devices(batch))),
        "before": before,
        "after": copy,
        "again": parallel.gather(
            step(copy, on_devices({k: v[::-1] for k, v in batch.items()}))
        ),
    }


def test_eval_step_scores_each_image_as_the_pure_functions_do(scored):
    logits, masks = jnp.asarray(scored["logits"]), jnp.asarray(scored["batch"]["mask"])
    result = scored["result"]
    assert set(result) == {"loss", "counts", "index", "weight"}
    expected = LOSS(logits, masks.astype(jnp.float32))
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)
    assert len(np.unique(expected)) > BATCH - 3  # padding alone is alike
    counts = confusion_counts(logits, masks, threshold=0.6)
    np.testing.assert_array_equal(result["counts"], counts)
    assert result["counts"].dtype == np.int32
    assert (confusion_counts(logits, masks, threshold=0.5) != counts).any()


def test_eval_step_carries_index_and_the_weight_of_padding(scored):
    result, batch = scored["result"], scored["batch"]
    np.testing.assert_array_equal(result["index"], batch["index"])
    np.testing.assert_array_equal(result["weight"], [1] * (BATCH - 3) + [0] * 3)


def test_eval_step_leaves_the_state_alone(scored):
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(scored["after"]))
    assert_trees_close(jax.device_get(scored["after"]), scored["before"], rtol=0)


def test_the_score_of_an_image_does_not_depend_on_its_companions_or_its_device(scored):
    for name, array in scored["result"].items():
        np.testing.assert_allclose(array, scored["again"][name][::-1], rtol=1e-6)


def test_predict_step_keeps_the_nearest_level_of_every_pixel(scored):
    levels = scored["predicted"]["levels"]
    assert (levels.shape, levels.dtype) == ((BATCH, SIDE, SIDE), np.uint8)
    exact = 255 / (1 + np.exp(-np.float64(scored["logits"][..., 0])))
    # The last bits of a logit are not the same in two programs.
    assert np.abs(levels - exact).max() <= 0.5 + 1e-3
    assert len(np.unique(levels)) > 100


def test_predict_step_scores_each_image_and_carries_the_padding(scored):
    predicted, batch = scored["predicted"], scored["batch"]
    assert set(predicted) == {"levels", "loss", "index", "weight"}
    masks = jnp.asarray(batch["mask"], jnp.float32)
    expected = LOSS(jnp.asarray(scored["logits"]), masks)
    np.testing.assert_allclose(predicted["loss"], expected, rtol=1e-5)
    np.testing.assert_array_equal(predicted["index"], batch["index"])
    np.testing.assert_array_equal(predicted["weight"], [1] * (BATCH - 3) + [0] * 3)


def test_predict_step_rounds_half_way_levels_down(devices):
    def apply_fn(variables, images, *, train):
        assert not train
        return Prediction(variables["params"]["w"] * images)

    params = {"w": jnp.asarray(-np.log(3), jnp.float32)}
    state = parallel.replicate(start_state(apply_fn, optax.sgd(1.0), params, {}))
    batch = make_batch(0, samples=8)
    white = np.arange(8) % 3 == 1
    batch["image"][:] = np.where(white, 255, 0)[:, None, None, None]
    predict = parallel.compile_eval_step(functools.partial(predict_step, loss_fn=LOSS))
    levels = parallel.gather(predict(state, on_devices(batch)))["levels"]
    # Black: logit 0, p .5, level 127.5, which is not to be above .5. White: logit
    # -ln 3, p .25, level 63.75.
    np.testing.assert_array_equal(levels[:, 0, 0], np.where(white, 64, 127))
    assert (levels == levels[:, :1, :1]).all()


@pytest.mark.parametrize("averaged", [False, True])
def test_outputs_are_of_the_averages_where_there_are_any(devices, averaged: bool):
    state = state_of_three()
    if averaged:
        other = state_of_three(fine=4.0, claim=-3.0)
        state = state.replace(averaged=other.variables())
    fine, claim = (4.0, -3.0) if averaged else (1.6, 2.5)
    batch, state = make_batch(1), parallel.replicate(state)
    x = batch["image"][..., 0] / 255
    predict = parallel.compile_eval_step(functools.partial(predict_step, loss_fn=LOSS))
    found = parallel.gather(predict(state, on_devices(batch)))
    levels = found["levels"]
    assert np.abs(levels - 255 * sigmoid(fine * x - 1)).max() <= 0.5 + 1e-3
    presence = sigmoid(claim * x.mean(axis=(1, 2)) - 1)
    assert found["presence"].shape == (BATCH,)
    np.testing.assert_allclose(found["presence"], presence, rtol=1e-5)
    score = parallel.compile_eval_step(
        functools.partial(eval_step, loss_fn=LOSS, threshold=0.4)
    )
    found = parallel.gather(score(state, on_devices(batch)))
    above = (levels / 255 > 0.4).sum(axis=(1, 2))
    np.testing.assert_array_equal(found["counts"][:, :2].sum(axis=1), above)
    assert 0 < above.sum() < x.size and "presence" not in found


def tilted(variables, images, *, train):
    """A network that tells left from right, and top from bottom."""
    across, down = np.linspace(-4, 8, SIDE), np.linspace(-2, 1, SIDE)
    logits = images * across[:, None] + down[:, None, None]
    return Prediction(logits, 8 * images[:, :, :4].mean(axis=(1, 2, 3)) - 2)


def test_a_flip_averages_the_logits_of_an_image_and_its_mirror_turned_back(devices):
    batch = make_batch(2)
    batch["image"][:, :, : SIDE // 2] //= 3  # darker on the left
    x = batch["image"][..., 0] / 255
    mirror = x[:, :, ::-1]
    across, down = np.linspace(-4, 8, SIDE), np.linspace(-2, 1, SIDE)[:, None]
    turned_back = (mirror * across + down)[:, :, ::-1]
    logits = (x * across + down + turned_back) / 2
    claim = 4 * (x[:, :, :4].mean((1, 2)) + mirror[:, :, :4].mean((1, 2))) - 2
    state = parallel.replicate(start_state(tilted, optax.identity(), {}, {}))
    predict, alone, score = (
        parallel.compile_eval_step(functools.partial(step, loss_fn=LOSS, **settings))
        for step, settings in (
            (predict_step, {"flip": True}),
            (predict_step, {}),
            (eval_step, {"flip": True, "threshold": 0.6}),
        )
    )
    found = parallel.gather(predict(state, on_devices(batch)))
    # The last bits of a logit are not the same in two programs.
    assert np.abs(found["levels"] - 255 * sigmoid(logits)).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(found["presence"], sigmoid(claim), rtol=1e-5)
    masks = jnp.asarray(batch["mask"], jnp.float32)
    expected = LOSS(jnp.asarray(logits[..., None], jnp.float32), masks)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    scores = parallel.gather(score(state, on_devices(batch)))
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)
    above = (found["levels"] > 0.6 * 255).sum(axis=(1, 2))
    np.testing.assert_array_equal(scores["counts"][:, :2].sum(axis=1), above)
    without = parallel.gather(alone(state, on_devices(batch)))
    assert np.abs(without["levels"] - 255 * sigmoid(x * across + down)).max() < 0.501
    assert np.abs(without["presence"] - found["presence"]).min() > 0.02


def numbered(batches: int) -> list[dict[str, np.ndarray]]:
    """Batches whose numbers say where they stand."""
    numbers = np.arange(batches * BATCH * 3).reshape(batches, BATCH, 3)
    return [{"a": rows.astype(np.int32), "b": rows[:, 0] * 0.5} for rows in numbers]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_prefetch_and_gather_keep_every_batch_and_its_order(devices, count: int):
    with jax.enable_x64(True):
        found = [parallel.gather(b) for b in parallel.prefetch(iter(numbered(count)))]
    assert len(found) == count
    for batch, expected in zip(found, numbered(count), strict=True):
        assert set(batch) == {"a", "b"}
        for name, array in batch.items():
            np.testing.assert_array_equal(array, expected[name])


def test_prefetch_gives_each_device_its_share(devices):
    [batch], [expected] = list(parallel.prefetch(numbered(1))), numbered(1)
    assert batch["a"].shape == (8, BATCH // 8, 3)
    shares = {shard.device: shard.data for shard in batch["a"].addressable_shards}
    assert set(shares) == set(devices)
    for place, device in enumerate(devices):
        np.testing.assert_array_equal(
            np.squeeze(shares[device]), expected["a"][2 * place : 2 * place + 2]
        )


def test_prefetch_is_no_further_ahead_than_three_batches(devices):
    taken = []

    def source():
        for place, batch in enumerate(numbered(6)):
            taken.append(place)
            yield batch

    batches = iter(parallel.prefetch(source()))
    next(batches)
    assert len(taken) == 3


def test_an_error_of_the_batches_is_known_two_steps_before_it_is_raised(devices):
    def source():
        yield from numbered(5)
        raise OSError("gone")

    prefetched = parallel.prefetch(source())
    known = []
    with pytest.raises(OSError, match="gone"):
        for _ in prefetched:
            known.append(prefetched.error is not None)
    assert known == [False, False, False, True, True]


def test_replicate_and_unreplicate_keep_every_number(devices):
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.int32(4)}
    copies = parallel.replicate(tree)
    assert copies["a"].shape == (8, 2, 3) and set(copies["a"].devices()) == set(devices)
    back = parallel.unreplicate(copies)
    assert isinstance(back["a"], np.ndarray)
    assert_trees_close(back, tree, rtol=0)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_batch_that_the_devices_can_share_passes(devices, size: int):
    parallel.check_batch_size(size)


@pytest.mark.parametrize("size", [1, 4, 12, 17])
def test_a_batch_that_the_devices_cannot_share_is_refused(devices, size: int):
    text = f"^config.train.batch_size = {size}: must be divisible by the 8 devices$"
    with pytest.raises(UsageError, match=text):
        parallel.check_batch_size(size)


def test_one_process_is_the_main_one(devices):
    assert parallel.process() == (0, 1) and parallel.is_main()


def golden_run() -> dict[str, float]:
    """Two steps of the project's optimizer from fixed numbers on a fixed batch."""
    config = base.get_config()
    config.optim.update(dict(warmup_epochs=0.0, weight_decay=0.1))
    tx = make_optimizer(config, make_schedule(config, steps_per_epoch=10), 10)
    first = start_state(MODEL.apply, tx, **fixed_variables(MODEL))
    pixels = (BATCH, SIDE, SIDE, 1)
    batch = make_batch(0) | {
        "image": (127 * waves(pixels, 0.37) + 127).astype(np.uint8),
        "mask": (waves(pixels, 0.011) > 0.4).astype(np.uint8),
    }
    step = parallel.compile_train_step(ONE_STEP)
    state, numbers = parallel.replicate(first), {}
    for place in (1, 2):
        state, metrics = step(state, on_devices(batch), KEY)
        for name, value in parallel.unreplicate(metrics).items():
            numbers[f"{name} of step {place}"] = float(value)
    after = parallel.unreplicate(state)
    for kind in ("params", "batch_stats"):
        for module, tree in getattr(after, kind).items():
            before = getattr(first, kind)[module]
            moves = jax.tree.leaves(jax.tree.map(np.subtract, tree, before))
            total = sum(np.abs(move).sum(dtype=float) for move in moves)
            numbers[f"change of {kind}/{module}"] = float(total)
    return numbers


def test_a_training_step_gives_the_numbers_of_the_golden_table(devices):
    found = golden_run()
    if os.environ.get(RENEW):
        text = json.dumps(found, indent=2) + "\n"
        GOLDEN.write_text(text, encoding="utf-8")
        pytest.fail(f"{GOLDEN} is written anew; look at its diff, unset {RENEW}")
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    message = (
        f"A training step computes other numbers than {GOLDEN.name} holds. If no change"
        " of the model, the losses, the optimizer or the step was meant, this is a"
        " fault. If one was, or a new jax rounds differently, renew the table and say"
        f" why in the commit:\n  {RENEW}=1 python -m pytest tests/test_steps.py -k"
        " golden"
    )
    assert found == pytest.approx(expected, rel=1e-4), message
