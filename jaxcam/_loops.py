"""Loops: a scan, and sums and maps over chunks, with a body that is as fast as outside of a loop."""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp

from jaxcam._convolutions import fast


def scan(step: Callable, first, over):
    """`jax.lax.scan(step, first, over)`."""
    return jax.lax.scan(fast(step), first, over)


def chunked_sum(function: Callable, count: int, chunk_size: int, like):
    """`sum_i function(i)` for `i < count`, at most `chunk_size` terms at a time.

    `function(indices, weights)` gets a chunk's indices and returns the sum of its terms, each multiplied by its
    weight: one, or zero for the padding of the last chunk. `like` is a zero of the result's shape (or a tree of them).
    """
    num_chunks, chunk_size = _evenly(count, chunk_size)

    def add(total, chunk):
        indices = chunk * chunk_size + jnp.arange(chunk_size)
        terms = function(jnp.minimum(indices, count - 1), (indices < count).astype(jnp.float32))
        return jax.tree.map(jnp.add, total, terms), None

    return scan(add, like, jnp.arange(num_chunks))[0]


def chunked_map(function: Callable, shape: tuple[int, ...], chunk_size: int):
    """`function` at every index of an array of `shape`, at most `chunk_size` of them at a time.

    `function` gets one vector of indices per axis and returns an array with a row for each; the result is
    `[*shape, ...]`. What one chunk builds is gone before the next begins.
    """
    count = prod(shape)
    num_chunks, chunk_size = _evenly(count, chunk_size)

    def one_chunk(_, chunk):
        flat = jnp.minimum(chunk * chunk_size + jnp.arange(chunk_size), count - 1)
        return None, function(*jnp.unravel_index(flat, shape))

    results = scan(one_chunk, None, jnp.arange(num_chunks))[1]
    return results.reshape(-1, *results.shape[2:])[:count].reshape(*shape, *results.shape[2:])


def _evenly(count: int, chunk_size: int) -> tuple[int, int]:
    """How many chunks, and how large: no larger than `chunk_size`, and so that little of the last one is padding."""
    num_chunks = -(-count // chunk_size)
    return num_chunks, -(-count // num_chunks)
