"""Scans and chunks give what a plain loop gives, and their convolutions what XLA's fast kernels take."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcam._loops import chunked_map, chunked_sum, scan


@pytest.mark.parametrize("chunk_size", [1, 4, 6, 50])
def test_chunked_map(chunk_size):
    seen = []

    def function(row, column):
        seen.append(row.shape)
        return jnp.stack([10 * row + column, -row], -1)

    result = chunked_map(function, (2, 3), chunk_size)
    rows, columns = np.mgrid[:2, :3]
    np.testing.assert_array_equal(result, np.stack([10 * rows + columns, -rows], -1))
    assert set(seen) == {(chunk_size,)}


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 50])
def test_chunked_sum(chunk_size):
    def function(indices, weights):
        return jnp.sum(weights * (indices + 1.0) ** 2)

    assert float(chunked_sum(function, 7, chunk_size, jnp.zeros(()))) == sum((i + 1) ** 2 for i in range(7))


def convolved(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def in_a_branch(images, kernel):
    def matrix_product():
        return images[:, ::2, ::2] @ kernel[0, 0]

    return jax.lax.cond(images.sum() > 1e6, matrix_product, lambda: convolved(images, kernel))


def in_a_loop(images, kernel):
    def add(total, scale):
        return total + convolved(scale * images, kernel), None

    return jax.lax.scan(add, jnp.zeros((2, 4, 3, 5)), jnp.arange(3.0))[0]


@jax.custom_vjp
def with_a_rule(images, kernel):
    return convolved(images, kernel)


with_a_rule.defvjp(
    lambda images, kernel: jax.vjp(convolved, images, kernel), lambda pullback, change: pullback(2 * change)
)


@pytest.mark.parametrize(
    "function", [convolved, jax.jit(convolved), jax.checkpoint(convolved), in_a_branch, in_a_loop, with_a_rule]
)
def test_gradients_in_loops_take_the_fast_kernels(function):
    random = np.random.default_rng(0)
    images, kernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((2, 8, 6, 3), (3, 3, 3, 5)))

    def gradient(scale, images):
        return jax.grad(lambda images: (function(images, kernel) ** 2).sum())(scale * images)

    def looped(scan, images):
        def add(total, scale):
            return total + gradient(scale, images), None

        return scan(add, jnp.zeros_like(images), jnp.arange(1.0, 4))[0]

    compiled, plain = (jax.jit(partial(looped, each)).lower(images).compile() for each in (scan, jax.lax.scan))
    np.testing.assert_allclose(compiled(images), sum(gradient(scale, images) for scale in (1, 2, 3)), rtol=1e-5)
    if jax.default_backend() == "cpu":
        layouts = set(re.findall(r"dim_labels=(\w+->\w+)", plain.as_text()))
        assert "b01f_01oi->b01f" in layouts  # when this fails, XLA has learnt it, and the rewriting can go
        assert set(re.findall(r"dim_labels=(\w+->\w+)", compiled.as_text())) == {"b01f_01io->b01f"}


def test_scans_are_differentiable():
    kernel = jnp.ones((3, 3, 3, 3))

    def total(scan, images):
        def step(_, scale):
            return None, jax.grad(lambda images: (convolved(images, kernel) ** 2).sum())(images * scale)

        return scan(step, None, jnp.arange(3.0))[1].sum() ** 2

    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), jnp.float32)
    expected = jax.grad(partial(total, jax.lax.scan))(images)
    np.testing.assert_allclose(jax.grad(partial(total, scan))(images), expected, rtol=1e-5)
