"""Chunks give what a plain loop gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcam._loops import chunked_map, chunked_sum


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 50])
def test_chunked_map(chunk_size):
    seen = []

    def function(row, column):
        seen.append(row.shape)
        return jnp.stack([10 * row + column, -row], -1)

    result = chunked_map(function, (2, 3), chunk_size)
    rows, columns = np.mgrid[:2, :3]
    np.testing.assert_array_equal(result, np.stack([10 * rows + columns, -rows], -1))
    assert set(seen) == {({1: 1, 4: 3, 6: 6, 50: 6}[chunk_size],)}  # no padding where chunks of one size fit


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 50])
def test_chunked_sum(chunk_size):
    def function(indices, weights):
        return jnp.sum(weights * (indices + 1.0) ** 2)

    assert float(chunked_sum(function, 7, chunk_size, jnp.zeros(()))) == sum((i + 1) ** 2 for i in range(7))
