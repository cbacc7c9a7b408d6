"""A 3x3 convolution whose gradient with respect to its kernel is fast on a CPU as well.

XLA computes that gradient as a convolution whose window is the whole picture. On a GPU
or a TPU that is a good form. Its CPU backend reaches a third of the rate of a matrix
product with it, and transposes both operands first. There, the same sums are taken
here as matrix products over bands of the picture that fit in a core's cache.

The gradient is written out for reverse mode; forward mode (`jax.jvp`) is not defined.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

_BAND = 2048  # pixels of a product; 4,096 are as fast, 8,192 leave the cache


class Conv3x3(nn.Module):
    """A 3x3 convolution, padded with zeros, without a bias.

    Attributes:
      features: channels of the output.
      dtype: of the computation; the kernel is float32.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype))


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Correlates every picture with a 3x3 kernel; outside, pictures are 0.

    Args:
      x: float [B, H, W, C].
      kernel: same dtype, [3, 3, C, F].

    Returns:
      Same dtype, [B, H, W, F].
    """
    return _convolve(x, kernel)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(
    saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (x_grad,) = jax.vjp(lambda x: _convolve(x, kernel), x)[1](grad)
    with jax.named_scope("kernel_gradient"):  # so that a profile shows it
        kernel_grad = jax.lax.platform_dependent(
            x, grad, cpu=kernel_gradient, default=kernel_gradient_of_xla
        )
    return x_grad, kernel_grad.astype(kernel.dtype)


convolve.defvjp(_forward, _backward)


def kernel_gradient_of_xla(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Does what `kernel_gradient` does, in the form that XLA derives."""
    kernel = jnp.zeros((3, 3, x.shape[-1], grad.shape[-1]), x.dtype)
    (kernel_grad,) = jax.vjp(lambda k: _convolve(x, k), kernel)[1](grad)
    return kernel_grad.astype(jnp.float32)


def kernel_gradient(x: jax.Array, grad: jax.Array) -> jax.Array:
    """Sums, over all pixels, each one's 3x3 neighbourhood times its gradient.

        result[i, j, c, f] = sum over b, h, w of
          x[b, h + i - 1, w + j - 1, c] * grad[b, h, w, f]

    Args:
      x: the pictures that were convolved, float [B, H, W, C].
      grad: of the loss with respect to the convolution's output, [B, H, W, F].

    Returns:
      Gradient of the loss with respect to the kernel, float32 [3, 3, C, F].
    """
    if x.shape[-1] <= grad.shape[-1]:
        return _correlate(x, grad)
    # Neighbourhoods are copied nine times: of the operand with fewer channels. A pixel
    # is its neighbour's neighbour on the other side.
    return _correlate(grad, x)[::-1, ::-1].swapaxes(2, 3)


def _correlate(around: jax.Array, at: jax.Array) -> jax.Array:
    """Sums neighbourhoods of `around` [B, H, W, P] times `at` [B, H, W, Q].

    Returns:
      float32 [3, 3, P, Q].
    """
    batch, height, width, p = around.shape
    q = at.shape[-1]
    rows = _divisor(height, _BAND // width)
    pictures = _divisor(batch, _BAND // (width * height))
    bands = height // rows
    padded = jnp.pad(around, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_band(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        start = (k // bands * pictures, k % bands * rows, 0, 0)
        band = jax.lax.dynamic_slice(padded, start, (pictures, rows + 2, width + 2, p))
        neighbours = jnp.concatenate(
            [band[:, i : i + rows, j : j + width] for i in range(3) for j in range(3)],
            axis=-1,
        )
        centres = jax.lax.dynamic_slice(at, start, (pictures, rows, width, q))
        # In float32, as not every product of XLA's CPU backend takes bfloat16 and
        # sums in float32.
        centres, neighbours = (a.astype(jnp.float32) for a in (centres, neighbours))
        product = jnp.einsum("bhwq,bhwn->qn", centres, neighbours)
        return total + product, None

    start = jnp.zeros((q, 9 * p), jnp.float32)
    steps = jnp.arange(batch // pictures * bands)
    total, _ = jax.lax.scan(add_band, start, steps)
    return total.T.reshape(3, 3, p, q)


def _divisor(n: int, most: int) -> int:
    """Returns the largest divisor of `n` that is at most `most`; at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(most, 1))
