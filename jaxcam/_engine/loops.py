"""Loops: a scan, and sums and maps over chunks, with a body that is as fast as outside of a loop.

A chunk is some of the masks, steps or samples for all images: the axis of images stays whole, in front, and sharded as
it came, so that each device does its own images' part of the work and none waits for another. Sums begin as zeros like
their first term, which vary over a mesh as the terms do.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._engine.compiled import config, inside_an_engine
from jaxcam._engine.convolutions import fast
from jaxcam._engine.memory import Pass, chunk, note


def scan(step: Callable, first, over):
    """`jax.lax.scan(step, first, over)`; inside of an engine it is rewritten with all the rest."""
    loop = partial(jax.lax.scan, step)
    return (fast(loop, is_loop=True) if config.rewrite and not inside_an_engine() else loop)(first, over)


def chunked_map(function: Callable, count: int, images, chunk_size: int | None):
    """`function(indices[m]) -> [n, m, ...]` for all indices below `count`, a chunk at a time: `[n, count, ...]`.

    `chunk_size` is how many copies of images are in one pass, `n * m`; `None` is what suits the device and the model
    (`memory.py`). What one chunk builds is gone before the next begins.
    """
    num_chunks, size = _evenly(count, images, chunk_size)

    def one_chunk(_, chunk):
        return None, function(jnp.minimum(chunk * size + jnp.arange(size), count - 1))

    def joined(results):
        results = jnp.moveaxis(results, 0, 1)
        return results.reshape(results.shape[0], num_chunks * size, *results.shape[3:])[:, :count]

    return jax.tree.map(joined, scan(one_chunk, None, jnp.arange(num_chunks))[1])


def chunked_sum(function: Callable, count: int, images, chunk_size: int | None):
    """`sum_i function(i)` for `i < count`, a chunk at a time.

    `function(indices[m], weights[m])` returns the sum of the chunk's terms, or a tree of sums, each term multiplied by
    its weight: one, or zero for the padding of the last chunk. `chunk_size` is that of `chunked_map`.
    """
    num_chunks, size = _evenly(count, images, chunk_size)

    def of(chunk):
        indices = chunk * size + jnp.arange(size)
        return function(jnp.minimum(indices, count - 1), (indices < count).astype(jnp.float32))

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, of(chunk)), None

    if num_chunks == 1:
        return of(0)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, 0))
    return scan(add, zeros, jnp.arange(num_chunks))[0]


def chunked_fold(step: Callable, first, count: int, images, chunk_size: int | None):
    """`step(state, indices[m], is_new[m]) -> state` over all indices below `count`, a chunk at a time, from `first` on.

    An index that is not new is the padding of the last chunk. `chunk_size` is that of `chunked_map`.
    """
    num_chunks, size = _evenly(count, images, chunk_size)

    def one_chunk(state, chunk):
        indices = chunk * size + jnp.arange(size)
        return step(state, jnp.minimum(indices, count - 1), indices < count), None

    return scan(one_chunk, first, jnp.arange(num_chunks))[0]


def _evenly(count: int, images, chunk_size: int | None) -> tuple[int, int]:
    """How many chunks, and how large: so that little of the last one is padding, and that they spread over devices."""
    n = images.shape[0]
    devices = 1 if config.spread is None else config.spread.num_devices
    if not isinstance(n, int):  # but a symbol, in an export
        return count, 1
    asked = chunk(images, chunk_size) * devices
    num_chunks = -(-count // max(1, asked // n))
    size = -(-count // num_chunks)
    size = -(-size // devices) * devices
    note(Pass(n * size, asked, n * devices, n * count))
    return num_chunks, size
