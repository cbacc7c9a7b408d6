"""The convolution and its gradients, against sums written out in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covjax.models import conv3x3
from covjax.models.unet import UNet
from covjax.types import AXIS

# (B, H, W, C, F): each operand the wider one; bands of rows, of pictures, of one row.
SHAPES = [
    (2, 5, 7, 1, 3),
    (2, 6, 6, 4, 2),
    (1, 96, 40, 2, 3),  # bands of 48 rows
    (1, 94, 40, 3, 2),  # 94 = 2 * 47: of 47
    (6, 20, 20, 2, 2),  # of 3 pictures
    (1, 3, 2100, 1, 2),  # a row is longer than a band
]


def draw(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A batch, a kernel, and a gradient by their convolution."""
    b, h, w, c, f = shape
    rng = np.random.default_rng(shape)
    shapes = ((b, h, w, c), (3, 3, c, f), (b, h, w, f))
    return tuple(rng.normal(size=s) for s in shapes)  # pyright: ignore


def neighbours(x: np.ndarray):
    """(i, j) → the pictures moved so that a pixel holds its neighbour at (i, j)."""
    _, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return {(i, j): padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)}


def single(*arrays: np.ndarray) -> list[jax.Array]:
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_the_sums_written_out(shape):
    x, kernel, grad = draw(shape)
    out = sum(n @ kernel[ij] for ij, n in neighbours(x).items())
    by_kernel = np.zeros_like(kernel)
    by_x = np.zeros((x.shape[0], x.shape[1] + 2, x.shape[2] + 2, x.shape[3]))
    for (i, j), n in neighbours(x).items():
        by_kernel[i, j] = np.einsum("bhwc,bhwf->cf", n, grad)
        by_x[:, i : i + x.shape[1], j : j + x.shape[2]] += grad @ kernel[i, j].T
    found, pullback = jax.vjp(conv3x3.convolve, *single(x, kernel))
    found_by_x, found_by_kernel = pullback(*single(grad))
    np.testing.assert_allclose(found, out, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found_by_x, by_x[:, 1:-1, 1:-1], rtol=0, atol=2e-5)
    np.testing.assert_allclose(found_by_kernel, by_kernel, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_both_forms_of_the_kernel_gradient_agree(shape):
    x, _, grad = single(*draw(shape))
    np.testing.assert_allclose(
        conv3x3.kernel_gradient(x, grad),
        conv3x3.kernel_gradient_of_xla(x, grad),
        rtol=1e-5,
        atol=1e-4,
    )


# A band is a part of a picture, or eight of them: XLA compiles other products.
@pytest.mark.parametrize("side", [64, 8])
@pytest.mark.parametrize("features", [1, 16])
def test_sums_of_bfloat16_run_in_float32(side, features):
    ones = jnp.ones((8, side, side, features), jnp.bfloat16)
    found = jax.jit(conv3x3.kernel_gradient)(ones, ones)  # in bfloat16, 256 + 1 is 256
    assert found.dtype == jnp.float32
    assert (found == found[:, :, :1, :1]).all()
    less = side - 1  # pixels that have a neighbour on one side
    assert found[:, :, 0, 0].tolist() == [
        [8 * less * less, 8 * less * side, 8 * less * less],
        [8 * side * less, 8 * side * side, 8 * side * less],
        [8 * less * less, 8 * less * side, 8 * less * less],
    ]


def test_a_unet_has_the_gradients_of_the_reference(monkeypatch):
    model = UNet(width=4, depth=2)
    rng = np.random.default_rng(0)
    images, weights = single(*rng.normal(size=(2, 3, 16, 16, 1)))
    quickly = {"xla_backend_optimization_level": 0}  # each runs once
    init = functools.partial(model.init, train=False)
    variables = jax.jit(init, compiler_options=quickly)(jax.random.key(0), images)

    @functools.partial(jax.vmap, axis_name=AXIS, in_axes=(None, 0, 0))
    def loss(params, images, weights):
        prediction, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.vdot(prediction.logits, weights)

    def gradients():
        total = jax.grad(lambda p: loss(p, images[None], weights[None]).sum())
        return jax.jit(total, compiler_options=quickly)(variables["params"])

    found = gradients()
    monkeypatch.setattr(conv3x3, "kernel_gradient", conv3x3.kernel_gradient_of_xla)
    for a, b in zip(*map(jax.tree.leaves, (found, gradients())), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-5)
