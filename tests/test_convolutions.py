"""Rewritten convolutions give what they gave, in every layout and every construct, in the forms that are fast."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import jaxcam
from jaxcam._convolutions import fast
from jaxcam._loops import scan

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere nothing is rewritten")


def layouts(compiled):
    return set(re.findall(r"dim_labels=(\w+->\w+)", compiled.as_text()))


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
        assert "b01f_01oi->b01f" in layouts(plain)  # when this fails, XLA has learnt it, and the rewriting can go
        assert layouts(compiled) == {"b01f_01io->b01f"}


def test_scans_are_differentiable():
    kernel = jnp.ones((3, 3, 3, 3))

    def total(scan, images):
        def step(_, scale):
            return None, jax.grad(lambda images: (convolved(images, kernel) ** 2).sum())(images * scale)

        return scan(step, None, jnp.arange(3.0))[1].sum() ** 2

    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 6, 3)), jnp.float32)
    expected = jax.grad(partial(total, jax.lax.scan))(images)
    np.testing.assert_allclose(jax.grad(partial(total, scan))(images), expected, rtol=1e-5)


CASES = {
    "transposed": {"dimension_numbers": ("NCHW", "OIHW", "NHCW")},
    "kernel transposed": {"dimension_numbers": ("NHWC", "OIHW", "NHWC")},
    "grouped": {"feature_group_count": 2},
    "batch groups": {"batch_group_count": 2},
    "dilated kernel": {"rhs_dilation": (2, 1)},
    "strided": {"window_strides": (2, 3)},
    "one axis": {"lhs_dilation": (2, 1)},
    "spread": {"lhs_dilation": (2, 3)},
    "spread and grouped": {"lhs_dilation": (2, 2), "feature_group_count": 2},
    "spread and strided": {"lhs_dilation": (2, 2), "window_strides": (2, 2)},
    "unpadded": {"padding": ((0, 0), (0, 0))},
    "cropped": {"lhs_dilation": (2, 2), "padding": ((-1, 2), (0, -1))},
    "precise": {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32},
}


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_kind_of_convolution(options, size):
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"window_strides": (1, 1), "padding": ((2, 1), (0, 3)), "dimension_numbers": numbers} | options
    numbers = options["dimension_numbers"]
    random = np.random.default_rng(size)
    sizes = {"N": 2, "H": 9, "W": 8, "C": 4}
    images = jnp.asarray(random.normal(size=[sizes[each] for each in numbers[0]]), jnp.float32)
    sizes = {"H": size, "W": size, "I": 4 // options.get("feature_group_count", 1), "O": 6}
    kernel = jnp.asarray(random.normal(size=[sizes[each] for each in numbers[1]]), jnp.float32)
    convolve = partial(jax.lax.conv_general_dilated, **options)
    result = jax.jit(fast(convolve))(images, kernel)
    np.testing.assert_allclose(result, convolve(images, kernel), atol=3e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_spread_pixels_at_random(rank):
    """Sizes, distances and paddings of all kinds, along one to three axes."""
    random = np.random.default_rng(rank)
    numbers = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[rank]
    for _ in range(12):
        spread = random.integers(1, 4, rank)
        taps = 2 * spread + random.integers(1, 3, rank)
        sizes, padding = random.integers(3, 6, rank), random.integers(0, 7, (rank, 2))
        images = jnp.asarray(random.normal(size=(2, *sizes, 3)), jnp.float32)
        kernel = jnp.asarray(random.normal(size=(*taps, 3, 2)), jnp.float32)
        padding = [(int(low) + 3, int(high) + 3) for low, high in padding]  # at least one pixel comes out
        options = {"window_strides": (1,) * rank, "padding": padding, "lhs_dilation": tuple(map(int, spread))}
        convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=numbers, **options)
        result = jax.jit(fast(convolve))(images, kernel)
        np.testing.assert_allclose(result, convolve(images, kernel), atol=3e-5, err_msg=str(options))


@on_cpu
def test_a_1x1_convolution_is_a_matrix_product():
    images, kernel = jnp.ones((2, 8, 6, 3)), jnp.ones((1, 1, 3, 5))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    text = jax.jit(fast(convolve)).lower(images, kernel).compile().as_text()
    assert " dot(" in text and " convolution(" not in text


@on_cpu
def test_a_sum_stays_apart_from_the_convolutions_before_it():
    """Together they would be one kernel, which takes several times as long."""
    images, kernel = jnp.ones((1, 14, 14, 64)), jnp.ones((3, 3, 64, 64))

    def pooled(images, kernel):
        for _ in range(2):
            numbers = ("NHWC", "HWIO", "NHWC")
            images = nn.relu(
                jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers) - 1
            )
        return images.mean((1, 2))

    def convolutions_beside_a_sum(function):
        text = jax.jit(function).lower(images, kernel).compile().as_text()
        return [body for body in text.split("\n\n") if " convolution(" in body and " reduce(" in body]

    assert len(convolutions_beside_a_sum(pooled)) == 1  # when this fails, XLA has learnt it
    assert not convolutions_beside_a_sum(fast(pooled))
    np.testing.assert_array_equal(jax.jit(fast(pooled))(images, kernel), jax.jit(pooled)(images, kernel))


@on_cpu
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 2)), ((3, 0), (-1, 2))])
def test_a_large_3x3_convolution_takes_half_the_multiplications(padding):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 67, 65, 64)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, 64, 64)), jnp.float32)

    def convolve(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=numbers)

    def gradient(images, kernel):
        return jax.vjp(lambda images: convolve(images, kernel), images)[1](convolve(images, kernel))[0]

    for function in (convolve, gradient):
        plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in (function, fast(function)))
        assert rewritten.cost_analysis()["flops"] < 0.6 * plain.cost_analysis()["flops"]
        expected = plain(images, kernel)
        np.testing.assert_allclose(rewritten(images, kernel), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@on_cpu
def test_the_gradient_of_a_resnets_first_convolution_holds_no_zeros():
    images, kernel = jnp.ones((2, 16, 16, 3)), jnp.ones((7, 7, 3, 4))

    def gradient(images, kernel):
        def total(images):
            padding = ((3, 3), (3, 3))
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(images, kernel, (2, 2), padding, dimension_numbers=numbers).sum()

        return jax.grad(total)(images)

    plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in (gradient, fast(gradient)))
    assert "lhs_dilate" in plain.as_text() and "lhs_dilate" not in rewritten.as_text()
    np.testing.assert_allclose(rewritten(images, kernel), plain(images, kernel), rtol=1e-6)


@on_cpu
@pytest.mark.parametrize(
    "size, padding, stride",
    [((3, 3), ((1, 1), (1, 1)), 1), ((3, 3), ((0, 3), (2, 0)), 2), ((2, 4), ((0, 3), (2, 0)), 1)],
)
def test_the_gradient_of_few_pixels_does_not_transpose_the_kernel(size, padding, stride):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(1, 5, 4, 96)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(*size, 96, 128)), jnp.float32)

    def gradient(images, kernel):
        def convolve(images):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(images, kernel, (stride,) * 2, padding, dimension_numbers=numbers)

        result, pullback = jax.vjp(convolve, images)
        return pullback(jnp.sin(result))[0]

    plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in (gradient, fast(gradient)))

    def large_transpositions(compiled):
        found = re.findall(r"= f32\[([\d,]+)\]\S* (?:transpose|reverse)\(", compiled.as_text())
        return [each for each in found if np.prod(list(map(int, each.split(",")))) == kernel.size]

    assert large_transpositions(plain) and not large_transpositions(rewritten)
    expected = plain(images, kernel)
    np.testing.assert_allclose(rewritten(images, kernel), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


def test_sharded_models():
    """What `shard_map` holds belongs to its mesh, and is left as it is."""
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))

    class Sharded(nn.Module):
        @nn.compact
        def __call__(self, images):
            last = PartitionSpec(None, None, None, "devices")

            @partial(jax.shard_map, mesh=mesh, in_specs=last, out_specs=PartitionSpec())
            def head(features):
                numbers = ("NHWC", "HWIO", "NHWC")
                kernel = jnp.ones((1, 1, features.shape[-1], 4))
                mixed = jax.lax.conv_general_dilated(features, kernel, (1, 1), "VALID", dimension_numbers=numbers)
                return jax.lax.psum(mixed.mean((1, 2)), "devices")

            return head(nn.relu(nn.Conv(4, (3, 3))(images)))

    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    model = jaxcam.tap(Sharded(), Sharded().init(jax.random.key(0), images), "Conv_0")
    expected = jax.jit(jax.grad(lambda images: model(images)[:, 1].sum()))(images)
    np.testing.assert_allclose(jaxcam.saliency(model, images, 1), expected, atol=1e-7)
    path = jaxcam.integrated_gradients(model, images, 1, num_steps=1)
    half = jax.jit(jax.grad(lambda images: model(images)[:, 1].sum()))(images / 2)
    np.testing.assert_allclose(path, images * half, atol=1e-7)
