"""Noise on images: one unit, one kind of draw.

Noise is a share of each image's own range unless an absolute deviation is given, and the same for every image, so that
no map depends on an image's place in the batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcam._checks import number


class Noise(NamedTuple):
    """How much noise: a share of the image's range, or a deviation in units of the pixel."""

    share: float | jax.Array
    deviation: float | jax.Array | None


def check_noise(noise, deviation=None) -> Noise:
    """The noise that was asked for, or the error of what is wrong with it."""
    number(least=0, noise=noise, deviation=deviation)
    return Noise(noise, deviation)


def deviations(images, noise: Noise):
    """The standard deviation of each image's noise, `float32[n, 1, ..., 1]`; a constant image's range counts as one."""
    axes = tuple(range(1, images.ndim))
    if noise.deviation is not None:
        return jnp.full_like(images, noise.deviation, jnp.float32, shape=(images.shape[0], *(1,) * len(axes)))
    span = jnp.ptp(images.astype(jnp.float32), axis=axes, keepdims=True)
    return noise.share * jnp.where(span == 0, 1, span)


def noisy_copies(images, deviation, key, samples):
    """`images` with the noise of each of `samples [m]`, `[n, m, *space, c]`, of the images' type."""
    draw = jax.vmap(lambda sample: jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:], jnp.float32))
    noise = deviation[:, None] * draw(samples)[None]
    return (images.astype(jnp.float32)[:, None] + noise).astype(images.dtype)
