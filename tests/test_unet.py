"""The U-Net: its size, its paths, its two forms of going up, its norms."""

import functools
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import base
from covjax.models import make_model, unet
from covjax.models.unet import ConvBlock, UNet, Upsample, _max_pool
from covjax.types import AXIS, Prediction

KEY = jax.random.key(0)


def shapes_of(model: nn.Module, image: tuple[int, ...] = (1, 16, 16, 1)):
    """Shapes and dtypes of the variables; computes nothing."""
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros(image), train=False))


def random_like(tree, seed: int):
    """The same tree of arrays, with numbers from a NumPy generator."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def apply(model: nn.Module, variables: Any, x: jax.Array, **kwargs: Any) -> jax.Array:
    """The output of `model` alone, as flax gives it where nothing is mutable."""
    out = model.apply(variables, x, **kwargs)
    if isinstance(out, Prediction):
        out = out.logits
    assert isinstance(out, jax.Array)
    return out


@pytest.mark.parametrize(("width", "expected"), [(64, 31_036_481), (16, 1_942_289)])
def test_number_of_parameters(width: int, expected: int):
    params = shapes_of(UNet(width=width, depth=4))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("upsample", ["transpose", "depth_to_space"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_that_of_the_computation_alone(norm, upsample, dtype):
    config = base.get_config()
    config.model.update(dict(width=2, depth=2, norm=norm, upsample=upsample))
    config.model.dtype = dtype
    model = make_model(config)
    variables = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    prediction, captured = jax.eval_shape(
        lambda v: model.apply(
            v, jnp.zeros((3, 16, 16, 1)), train=False, capture_intermediates=True
        ),
        variables,
    )
    logits = prediction.logits
    assert logits.dtype == jnp.float32 and logits.shape == (3, 16, 16, 1)
    inner = {
        "/".join(str(k.key) for k in path if hasattr(k, "key")): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(captured["intermediates"])
    }
    outer = {"__call__", "head/__call__"}
    assert outer | {"encoder_0/conv_0/__call__", "upsample_1/__call__"} < set(inner)
    for name, found in inner.items():
        assert found == (np.dtype("float32") if name in outer else dtype), name


def test_make_model_takes_every_field_of_the_config():
    asked: dict[str, Any] = dict(
        width=6, depth=3, norm="group", dropout=0.25, upsample="depth_to_space",
        dtype="float32", remat=True, intensity="equal", residual=True,
        presence_head=True, deep_supervision=2,
    )  # fmt: skip
    config = base.get_config()
    assert set(asked) == set(config.model)
    assert all(config.model[name] != value for name, value in asked.items())
    config.model.update(asked)
    asked["dtype"] = jnp.dtype("float32")
    assert make_model(config) == UNet(**asked)


def touched(tree: dict) -> set[str]:
    """Names of the modules in whose leaves there is a number other than 0."""
    return {k for k, v in tree.items() if any(map(jnp.any, jax.tree.leaves(v)))}


@pytest.fixture(scope="module")
def paths():
    """(names of the open ways) → modules that the logits depend on.

    A way is "skip_i" or "up_i", one half of what enters `decoder_i`; it is closed by
    setting the weights of this half to 0.
    """
    model = UNet(width=3, depth=2)
    variables = random_like(shapes_of(model), seed=1)
    stats = jax.tree.map(jnp.abs, variables["batch_stats"])
    image = jnp.asarray(np.random.default_rng(2).normal(size=(1, 8, 8, 1)))
    weights = jnp.asarray(np.random.default_rng(3).normal(size=image.shape))

    @jax.jit
    def slopes(params):
        def weighed(params, image):
            variables = {"params": params, "batch_stats": stats}
            return jnp.vdot(weights, apply(model, variables, image, train=False))

        return jax.grad(weighed, argnums=(0, 1))(params, image)

    def modules_in_use(*open_ways: str) -> tuple[set[str], bool]:
        params = jax.tree.map(lambda leaf: leaf, variables["params"])  # new dicts
        for i in range(model.depth):
            features = model.width * 2**i
            kernel = np.array(params[f"decoder_{i}"]["conv_0"]["kernel"])
            if f"skip_{i}" not in open_ways:
                kernel[:, :, :features] = 0
            if f"up_{i}" not in open_ways:
                kernel[:, :, features:] = 0
            params[f"decoder_{i}"]["conv_0"]["kernel"] = jnp.asarray(kernel)
        of_params, of_image = slopes(params)
        # Of a block, the convolution that comes last: the first has closed ways.
        convs = {k: v.get("conv_1", v) for k, v in of_params.items()}
        return touched(convs), bool(jnp.any(of_image))

    return modules_in_use


@pytest.mark.parametrize(
    ("open_ways", "modules"),
    [
        ("skip_0", "encoder_0 decoder_0"),
        ("up_0 skip_1", "encoder_0 encoder_1 decoder_1 upsample_0 decoder_0"),
        (
            "up_0 up_1",
            "encoder_0 encoder_1 bottleneck upsample_1 decoder_1 upsample_0 decoder_0",
        ),
    ],
)
def test_each_skip_and_the_way_through_the_bottleneck_reach_the_logits(
    paths, open_ways: str, modules: str
):
    used, image_matters = paths(*open_ways.split())
    assert used == {*modules.split(), "head"}
    assert image_matters


def test_no_other_way_than_the_skips_and_the_bottleneck_reaches_the_logits(paths):
    used, image_matters = paths()
    assert used == {"decoder_0", "head"}  # what biases alone drive
    assert not image_matters


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (4, 12)])
def test_any_sides_divisible_by_two_to_the_depth_will_do(size):
    model = UNet(width=2, depth=2)
    variables = shapes_of(model)
    logits = jax.eval_shape(
        lambda v: apply(model, v, jnp.zeros((2, *size, 1)), train=False), variables
    )
    assert logits.shape == (2, *size, 1)


@pytest.mark.parametrize("size", [(10, 8), (8, 10), (6, 6), (9, 9)])
def test_other_sides_are_refused(size):
    model = UNet(width=2, depth=2)
    text = f"depth 2 halves .* {size[0]}x{size[1]} is not divisible by 4"
    with pytest.raises(ValueError, match=text):
        shapes_of(model, (1, *size, 1))


def transposed_convolution(x, kernel, bias) -> np.ndarray:
    """Zeros between the pixels and around them, then a 2x2 correlation; float64."""
    batch, height, width, _ = x.shape
    spread = np.zeros((batch, 2 * height + 1, 2 * width + 1, x.shape[-1]))
    spread[:, 1:-1:2, 1:-1:2] = x
    out = np.zeros((batch, 2 * height, 2 * width, kernel.shape[-1]))
    for i in range(2 * height):
        for j in range(2 * width):
            window = spread[:, i : i + 2, j : j + 2]
            out[:, i, j] = np.tensordot(window, np.float64(kernel), axes=3) + bias
    return out


FORMS = ("transpose", "depth_to_space")


@pytest.fixture(scope="module")
def upsampled():
    """Input, parameters, weights of the output, and each form's value and slopes."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 3)), jnp.float32)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(2, 2, 3, 5)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=5), jnp.float32),
    }
    weights = jnp.asarray(rng.normal(size=(2, 6, 10, 5)), jnp.float32)

    def run(form):
        module = Upsample(5, form, jnp.dtype("float32"))

        def weighed(params, x):
            out = apply(module, {"params": params}, x)
            return jnp.vdot(out, weights), out

        (_, out), slopes = jax.jit(
            jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True)
        )(params, x)
        return out, slopes

    return x, params, {form: run(form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_upsampling_is_a_transposed_convolution(upsampled, form: str):
    x, params, results = upsampled
    expected = transposed_convolution(np.asarray(x), params["kernel"], params["bias"])
    np.testing.assert_allclose(results[form][0], expected, rtol=1e-5, atol=1e-5)


def test_both_forms_of_upsampling_have_the_same_gradients(upsampled):
    _, _, results = upsampled
    first, second = (results[form][1] for form in FORMS)
    assert jnp.any(first[0]["kernel"]) and jnp.any(first[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        first,
        second,
    )


def test_both_forms_of_upsampling_hold_the_same_parameters():
    first, second = (shapes_of(UNet(width=2, depth=2, upsample=f)) for f in FORMS)
    assert first == second


def weighed_pool(pool, x, weights):
    return jax.value_and_grad(lambda x: jnp.vdot(pool(x), weights))(x)


def test_max_pool_is_that_of_flax():
    rng = np.random.default_rng(5)
    # Every number once, so that no block has a tie.
    x = jnp.asarray(rng.permutation(2 * 4 * 6 * 3).reshape(2, 4, 6, 3), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, 2, 3, 3)), jnp.float32)

    def of_flax(x):
        return nn.max_pool(x, (2, 2), strides=(2, 2))

    np.testing.assert_array_equal(_max_pool(x), of_flax(x))
    np.testing.assert_array_equal(
        weighed_pool(_max_pool, x, weights)[1], weighed_pool(of_flax, x, weights)[1]
    )


def test_equal_maxima_get_the_gradient_of_one():
    x = jnp.array([3.0, 3.0, 1.0, 2.0]).reshape(1, 2, 2, 1)
    _, slope = weighed_pool(_max_pool, x, jnp.ones((1, 1, 1, 1)))
    slope = slope.ravel()
    assert slope[0] + slope[1] == 1  # who gets how much of it is open
    np.testing.assert_array_equal(slope[2:], 0)


def test_gradients_do_not_depend_on_how_xla_orders_the_arithmetic():
    # XLA may compute a feature twice, with another rounding each time. A gradient that
    # looks for the maximum of a block by its value then finds none, and divides by 0.
    # Without optimisation it does so on any CPU; fusion may do it on an accelerator.
    model = UNet(width=2, depth=1)
    variables = random_like(shapes_of(model), seed=10)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    image = jnp.asarray(np.random.default_rng(11).normal(size=(4, 16, 16, 1)))

    def loss(params, variables, image):
        logits = apply(model, {**variables, "params": params}, image, train=False)
        return jnp.square(logits).mean()

    arguments = variables["params"], variables, image
    optimised = jax.jit(jax.grad(loss))
    plain = jax.jit(
        jax.grad(loss), compiler_options={"xla_backend_optimization_level": 0}
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        plain(*arguments),
        optimised(*arguments),
    )


def test_group_norm_keeps_no_statistics():
    assert set(shapes_of(UNet(width=2, depth=1, norm="group"))) == {"params"}
    with_batch_norm = shapes_of(UNet(width=2, depth=1, norm="batch"))
    assert set(with_batch_norm) == {"params", "batch_stats"}


@pytest.fixture(scope="module")
def dropping():
    """Logits of a model that drops half of the bottleneck: training(key), evaluating().

    Third, what it computes in training if nothing is dropped.
    """
    model = UNet(width=4, depth=1, norm="group", dropout=0.5)
    image = jnp.asarray(np.random.default_rng(6).normal(size=(2, 8, 8, 1)))
    params = random_like(shapes_of(model), seed=9)

    @jax.jit
    def train(params, image, key):
        return apply(model, params, image, train=True, rngs={"dropout": key})

    @functools.partial(jax.jit, static_argnames=("train", "rate"))
    def without_key(params, image, *, train, rate):
        return apply(model.clone(dropout=rate), params, image, train=train)

    return (
        functools.partial(train, params, image),
        functools.partial(without_key, params, image, train=False, rate=0.5),
        without_key(params, image, train=True, rate=0.0),
    )


def test_dropout_depends_on_the_key_and_on_nothing_else(dropping):
    training, _, _ = dropping
    first = training(jax.random.key(1))
    np.testing.assert_array_equal(first, training(jax.random.key(1)))
    assert not np.allclose(first, training(jax.random.key(2)), atol=1e-3)


def test_dropout_is_active_in_training_only(dropping):
    training, evaluating, undropped = dropping
    # Evaluation has no key: it would fail if it drew anything.
    np.testing.assert_allclose(evaluating(), undropped, rtol=1e-5, atol=1e-5)
    assert not np.allclose(training(jax.random.key(1)), undropped, atol=1e-3)


@pytest.fixture(scope="module")
def normed():
    """A model with batch norm, its variables, and two devices' shares of a batch."""
    model = UNet(width=2, depth=1)
    variables = random_like(shapes_of(model), seed=7)
    variables["batch_stats"] = jax.tree.map(
        lambda a: jnp.abs(a) + 0.5, variables["batch_stats"]
    )
    images = np.random.default_rng(8).normal(size=(2, 3, 8, 8, 1))

    def update(train: bool, mutable: Iterable[str]):
        def share(images):
            return model.apply(variables, images, train=train, mutable=list(mutable))

        # `vmap` names the axis just as `pmap` does.
        return jax.jit(jax.vmap(share, axis_name=AXIS))(jnp.asarray(images))[1]

    return variables, update


def test_statistics_move_a_tenth_of_the_way_to_those_of_all_devices(normed):
    variables, update = normed
    updates = update(True, ["batch_stats", "intermediates"])
    before, after = variables["batch_stats"], updates["batch_stats"]
    images = np.random.default_rng(8).normal(size=(2, 3, 8, 8, 1))
    features = convolve(
        images.reshape(6, 8, 8),
        np.asarray(
            variables["params"]["encoder_0"]["conv_0"]["kernel"][:, :, 0], np.float64
        ),
    )
    for name, of_batch in (
        ("mean", features.mean(axis=(0, 1, 2))),
        ("var", features.var(axis=(0, 1, 2))),
    ):
        old = np.asarray(before["encoder_0"]["norm_0"][name])
        new = after["encoder_0"]["norm_0"][name]
        for device in range(2):
            np.testing.assert_allclose(
                new[device], 0.9 * old + 0.1 * of_batch, rtol=1e-4, atol=1e-5
            )
    # Every norm takes part.
    still = jax.tree.map(lambda a, b: bool(jnp.any(a == b[0])), before, after)
    assert not any(jax.tree.leaves(still))


def convolve(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """3x3 correlation with zeros around: [n, H, W] and [3, 3, C] to [n, H, W, C]."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    height, width = images.shape[1:]
    shifted = [
        padded[:, i : i + height, j : j + width, None] * kernel[i, j]
        for i in range(3)
        for j in range(3)
    ]
    return np.sum(shifted, axis=0)


def test_statistics_stay_where_they_are_outside_of_training(normed):
    variables, update = normed
    updates = update(False, ["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.stack([a, a]), b),
        variables["batch_stats"],
        updates["batch_stats"],
    )


QUICKLY = {"xla_backend_optimization_level": 0}  # what runs once


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_remat_computes_blocks_twice_for_the_same_gradients(norm):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 32, 32, 1)))
    found = []
    for remat in (False, True):
        model = UNet(width=4, depth=2, norm=norm, remat=remat)
        variables = random_like(shapes_of(model, (2, 32, 32, 1)), seed=1)

        def loss(params, model=model, others=variables):
            def of_one(image):
                out, stats = model.apply(
                    {**others, "params": params},
                    image,
                    train=True,
                    mutable=["batch_stats"],
                )
                return jnp.sum(out.logits**2), stats

            sums, stats = jax.vmap(of_one, axis_name=AXIS)(images)
            return jnp.sum(sums), stats

        grad = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICKLY)
        # What the optimizer of XLA makes of it depends on version and device.
        program = grad.lower(variables["params"]).as_text()
        count = program.count("stablehlo.convolution")
        found.append((count, grad(variables["params"])))
    (once, results), (twice, results_anew) = found
    assert twice == once + 10  # two of each of five blocks
    assert bool(results[1]) == (norm == "batch")  # statistics come out once
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        results,
        results_anew,
    )


EXTRAS: dict[str, Any] = dict(residual=True, presence_head=True, deep_supervision=2)


@pytest.fixture(scope="module")
def extended():
    """A network with every further part, its variables and what it says of images."""
    model = UNet(width=2, depth=3, norm="group", **EXTRAS)
    variables = random_like(shapes_of(model), seed=11)
    images = jnp.asarray(np.random.default_rng(12).normal(size=(3, 16, 16, 1)))
    run = jax.jit(model.apply, static_argnames="train")
    return variables, images, functools.partial(run, variables)


def test_parts_beyond_the_study_have_leaves_of_their_own_and_change_no_other():
    plain: dict[str, Any]
    leaves: dict[str, Any]
    plain = traverse_util.flatten_dict(shapes_of(UNet(width=2, depth=3)), sep="/")
    model = UNet(width=2, depth=3, **EXTRAS)
    leaves = traverse_util.flatten_dict(shapes_of(model), sep="/")
    assert {k: v.shape for k, v in plain.items()}.items() < {
        k: v.shape for k, v in leaves.items()
    }.items()
    blocks = [f"encoder_{i}" for i in range(3)] + ["bottleneck"]
    heads = [
        f"{name}/{leaf}"
        for name in ("deep_1", "deep_2", "presence")
        for leaf in ("kernel", "bias")
    ]
    shortcuts = ["shortcut/kernel", "norm_shortcut/scale", "norm_shortcut/bias"]
    expected = {f"params/{name}" for name in heads}
    expected |= {f"params/{b}/{leaf}" for b in blocks for leaf in shortcuts}
    expected |= {
        f"batch_stats/{b}/norm_shortcut/{k}" for b in blocks for k in ("mean", "var")
    }
    assert leaves.keys() - plain.keys() == expected


def test_coarser_levels_speak_in_training_alone_the_finest_first(extended):
    _, images, run = extended
    training, evaluating = run(images, train=True), run(images, train=False)
    assert [a.shape for a in training.deeper] == [(3, 8, 8, 1), (3, 4, 4, 1)]
    assert evaluating.deeper == ()
    assert {a.dtype for a in training.deeper} == {np.dtype("float32")}
    np.testing.assert_allclose(training.logits, evaluating.logits, rtol=1e-5)


def test_presence_is_a_line_through_mean_and_maximum_of_the_bottleneck(extended):
    variables, images, run = extended
    model = UNet(width=2, depth=3, norm="group", **EXTRAS)
    _, captured = model.apply(
        variables, images, train=False, capture_intermediates=True
    )
    features = np.asarray(
        captured["intermediates"]["bottleneck"]["__call__"][0], np.float64
    )
    assert features.shape == (3, 2, 2, 16)
    head = jax.tree.map(np.float64, variables["params"]["presence"])
    expected = [
        sum(
            sample[:, :, c].mean() * head["kernel"][c, 0]
            + sample[:, :, c].max() * head["kernel"][16 + c, 0]
            for c in range(16)
        )
        + head["bias"][0]
        for sample in features
    ]
    found = run(images, train=False).presence
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_network_without_a_presence_head_says_nothing_of_presence():
    model = UNet(width=2, depth=1)
    prediction = jax.eval_shape(
        lambda v: model.apply(v, jnp.zeros((2, 8, 8, 1)), train=False), shapes_of(model)
    )
    assert prediction.presence is None and prediction.deeper == ()


def test_a_residual_block_adds_its_projected_input_before_the_last_relu():
    block = ConvBlock(8, "group", np.dtype("float32"), residual=True)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 4, 3)))
    variables = random_like(block.init(KEY, x, train=False), seed=3)
    params = variables["params"]

    def norm(features, name):
        # Groups of one channel each.
        mean = features.mean(axis=(1, 2), keepdims=True)
        std = np.sqrt(features.var(axis=(1, 2), keepdims=True) + 1e-6)
        return (features - mean) / std * params[name]["scale"] + params[name]["bias"]

    def conv(features, name):
        kernel = np.asarray(params[name]["kernel"], np.float64)
        channels = [
            sum(
                convolve(features[..., c], kernel[:, :, c, f : f + 1])[..., 0]
                for c in range(features.shape[-1])
            )
            for f in range(8)
        ]
        return np.stack(channels, axis=-1)

    samples = np.asarray(x, np.float64)
    inner = np.maximum(norm(conv(samples, "conv_0"), "norm_0"), 0)
    past = norm(samples @ np.asarray(params["shortcut"]["kernel"]), "norm_shortcut")
    expected = np.maximum(norm(conv(inner, "conv_1"), "norm_1") + past, 0)
    found: Any = block.apply(variables, x, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_intensity_is_of_the_image_and_not_of_the_lungs_beside_it(monkeypatch):
    seen = []

    def record(images, how):
        seen.append((images.shape, how))
        return images + 1

    monkeypatch.setattr(unet, "normalize_intensity", record)
    model = UNet(width=2, depth=1, norm="group", intensity="standard")
    images = jnp.asarray(np.random.default_rng(4).random((2, 8, 8, 2)), jnp.float32)
    variables = model.init(KEY, images, train=False)
    shifted = images.at[..., 0].add(1)
    found = apply(model, variables, images, train=False)
    assert set(seen) == {((2, 8, 8, 1), "standard")}
    monkeypatch.setattr(unet, "normalize_intensity", lambda images, _: images)
    np.testing.assert_array_equal(found, apply(model, variables, shifted, train=False))
