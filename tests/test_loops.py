"""Chunks give what a plain loop gives, leave the axis of images alone, and are as large as was asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxcam._engine import chunked_fold, chunked_map, chunked_sum

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32)
MEANS = np.asarray(IMAGES.mean((1, 2, 3)))


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 6, 50, None])
def test_chunked_map(chunk_size):
    """`chunk_size` counts copies of images, of which there are two for each index."""
    seen = []

    def function(indices):
        seen.append(len(indices))
        scaled = IMAGES.mean((1, 2, 3))[:, None] * indices
        return scaled, jnp.stack([scaled, -scaled], -1)

    first, second = chunked_map(function, 7, IMAGES, chunk_size)
    expected = MEANS[:, None] * np.arange(7)
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    np.testing.assert_allclose(second, np.stack([expected, -expected], -1), rtol=1e-6)
    assert set(seen) == {{1: 1, 2: 1, 4: 2, 6: 3, 50: 7, None: 7}[chunk_size]}


def test_chunks_are_even():
    """As little of the last chunk as possible is padding: seven in chunks of four are two of four, ten two of five."""
    seen = set()

    def function(indices):
        seen.add(len(indices))
        return jnp.zeros((2, len(indices)))

    for count in (7, 10):
        assert chunked_map(function, count, IMAGES, 12).shape == (2, count)
    assert seen == {4, 5}


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 50, None])
def test_chunked_sum(chunk_size):
    def function(indices, weights):
        terms = weights * (indices + 1.0) ** 2
        return {"scaled": IMAGES.mean((1, 2, 3)) * terms.sum(), "terms": weights.sum()}

    found = chunked_sum(function, 7, IMAGES, chunk_size)
    np.testing.assert_allclose(found["scaled"], MEANS * sum((i + 1) ** 2 for i in range(7)), rtol=1e-6)
    assert float(found["terms"]) == 7


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 50, None])
def test_chunked_fold(chunk_size):
    """Each index comes once and in order; what pads the last chunk says so."""

    def step(state, indices, is_new):
        seen, weighed = state
        return seen.at[indices].add(is_new), weighed * 0.5 + (indices * is_new).sum()

    seen, weighed = chunked_fold(step, (jnp.zeros(7), jnp.float32(0)), 7, IMAGES, chunk_size)
    np.testing.assert_array_equal(seen, np.ones(7))
    size = {1: 1, 4: 2, 6: 3, 50: 7, None: 7}[chunk_size]
    expected = 0.0
    for start in range(0, 7, size):
        expected = 0.5 * expected + sum(range(start, min(start + size, 7)))
    np.testing.assert_allclose(weighed, expected)


@pytest.mark.parametrize("chunk_size", [2, 4])
def test_each_device_does_its_own_images(chunk_size):
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))

    @partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec("devices"), out_specs=PartitionSpec("devices"))
    def run(images):
        means = images.mean((1, 2, 3))
        total = chunked_sum(lambda indices, weights: means * (weights * indices).sum(), 5, images, chunk_size)
        return total, chunked_map(lambda indices: means[:, None] * indices, 5, images, chunk_size)

    total, mapped = run(IMAGES)
    np.testing.assert_allclose(total, MEANS * 10, rtol=1e-6)
    np.testing.assert_allclose(mapped, MEANS[:, None] * np.arange(5), rtol=1e-6)
