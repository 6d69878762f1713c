"""Array operations that several files share: normalise a map, resize it, run a function in chunks."""

from collections.abc import Callable
from functools import lru_cache
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-6  # a range this small against the values is float32 rounding, not signal


def normalise(maps, num_axes: int = 2):
    """`(x - min) / (max - min)` over the last `num_axes` axes; a constant map gives zeros, NaN stays NaN.

    Scaling the input does not change the result, and its gradient is finite everywhere.
    """
    axes = tuple(range(-num_axes, 0))
    low, high = jnp.min(maps, axes, keepdims=True), jnp.max(maps, axes, keepdims=True)
    span = high - low
    constant = span <= ROUNDING * jnp.maximum(jnp.abs(low), jnp.abs(high))
    return jnp.where(constant, 0, (maps - low) / jnp.where(constant, 1, span))


@lru_cache(maxsize=256)
def _interpolation(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """The `[new_size, size]` matrix of bilinear interpolation along one axis, without antialiasing."""
    if align_corners:
        positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        positions = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    positions = positions.clip(0, size - 1)
    return np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(size))).astype(np.float32)


def resize(maps, shape: tuple[int, int], *, align_corners: bool = False):
    """Bilinear resize of `[..., h, w]` to `shape`, as two matrix products.

    Half-pixel centres as in OpenCV and `torch.nn.functional.interpolate`; with `align_corners` the corner samples
    coincide instead.
    """
    rows = _interpolation(maps.shape[-2], shape[0], align_corners)
    columns = _interpolation(maps.shape[-1], shape[1], align_corners)
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("Hh,...hw,Ww->...HW", rows, maps.astype(jnp.float32), columns, precision=exact)


def chunked_sum(function: Callable, count: int, chunk_size: int, like):
    """`sum_i function(i)` for `i < count`, `chunk_size` terms at a time.

    `function(indices, weights)` gets `chunk_size` indices and returns the sum of its terms, each multiplied by its
    weight: one, or zero for the padding of the last chunk. `like` is a zero of the result's shape (or a tree of them).
    """
    num_chunks = -(-count // chunk_size)

    def add(total, chunk):
        indices = chunk * chunk_size + jnp.arange(chunk_size)
        terms = function(jnp.minimum(indices, count - 1), (indices < count).astype(jnp.float32))
        return jax.tree.map(jnp.add, total, terms), None

    total, _ = jax.lax.scan(add, like, jnp.arange(num_chunks))
    return total


def chunked_map(function: Callable, shape: tuple[int, ...], chunk_size: int):
    """`function` at every index of an array of `shape`, `chunk_size` of them at a time.

    `function` gets one vector of indices per axis and returns `[chunk_size, ...]`; the result is `[*shape, ...]`. What
    one chunk builds is gone before the next begins.
    """
    count = prod(shape)
    num_chunks = -(-count // chunk_size)

    def one_chunk(chunk):
        flat = jnp.minimum(chunk * chunk_size + jnp.arange(chunk_size), count - 1)
        return function(*jnp.unravel_index(flat, shape))

    results = jax.lax.map(one_chunk, jnp.arange(num_chunks))
    return results.reshape(-1, *results.shape[2:])[:count].reshape(*shape, *results.shape[2:])
