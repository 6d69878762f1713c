"""Rewritten convolutions give what they gave, in every layout and every construct, in the forms that are fast."""

import re
import traceback
from functools import partial
from pathlib import Path

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AxisType, PartitionSpec

import jaxcam
from jaxcam._engine import compiler, engine, memory, program, repeated, scan, steps
from jaxcam._engine.convolutions import fast
from jaxcam.models import ARCHITECTURES

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
    "depthwise": {"feature_group_count": 4},
    "depthwise and strided": {"feature_group_count": 4, "window_strides": (2, 3)},
    "depthwise and spread": {"feature_group_count": 4, "lhs_dilation": (2, 3), "padding": ((-1, 2), (0, -1))},
    "depthwise and dilated": {"feature_group_count": 4, "rhs_dilation": (2, 1), "padding": ((5, 6), (3, 4))},
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
    groups = options.get("feature_group_count", 1)
    sizes = {"H": size, "W": size, "I": 4 // groups, "O": 4 if groups == 4 else 6}
    kernel = jnp.asarray(random.normal(size=[sizes[each] for each in numbers[1]]), jnp.float32)
    convolve = partial(jax.lax.conv_general_dilated, **options)
    result = jax.jit(fast(convolve))(images, kernel)
    np.testing.assert_allclose(result, convolve(images, kernel), atol=3e-5)


OVERHANGING = {
    "same": {},
    "one pixel": {"pixels": (1, 1)},
    "one row": {"pixels": (1, 8)},
    "as large along one axis": {"pixels": (3, 2)},
    "strided": {"window_strides": (2, 2)},
    "spread": {"lhs_dilation": (2, 2), "padding": ((1, 2), (2, 2))},
    "dilated": {"rhs_dilation": (2, 1), "padding": ((2, 2), (1, 1))},
    "the gradient of an unpadded one": {"padding": ((2, 2), (2, 2)), "dimension_numbers": ("NHWC", "HWOI", "NHWC")},
    "cropped": {"padding": ((3, -1), (2, 1))},
    "only zeros": {"padding": ((-2, 5), (1, 1))},
    "no pixel": {"padding": ((0, 0), (0, 0))},
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
}


@pytest.mark.parametrize("options", OVERHANGING.values(), ids=OVERHANGING)
def test_a_kernel_that_is_larger_than_the_image(options):
    """Is a matrix product: XLA has no kernel for it, and takes up to sixty times as long."""
    options = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1)), **options}
    pixels, numbers = options.pop("pixels", (2, 2)), options.pop("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    random, (height, width) = np.random.default_rng(0), pixels
    sizes = {"N": 3, "H": height, "W": width, "C": 40, "I": 40, "O": 32}
    images = jnp.asarray(random.normal(size=[sizes[each] for each in numbers[0]]), jnp.float32)
    kernel = jnp.asarray(random.normal(size=[{**sizes, "H": 3, "W": 3}[each] for each in numbers[1]]), jnp.float32)
    convolve = partial(jax.lax.conv_general_dilated, dimension_numbers=numbers, **options)
    result, expected = jax.jit(fast(convolve))(images, kernel), convolve(images, kernel)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-4)
    if jax.default_backend() == "cpu" and expected.size:
        text = jax.jit(fast(convolve)).lower(images, kernel).compile().as_text()
        assert " convolution(" not in text


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


def largest(program):
    """Values of the largest array that a program, or one in it, computes."""
    if isinstance(program, tuple):
        return max(map(largest, program), default=0)
    if not isinstance(program, Jaxpr | ClosedJaxpr):
        return 0
    own = [variable.aval.size for equation in program.eqns for variable in equation.outvars]
    return max(own + [largest(tuple(equation.params.values())) for equation in program.eqns], default=0)


NETWORKS = {"resnet18": {}, "mobilenet_v2": {}, "vit_base_patch16": {"depth": 1}, "convnext_tiny": {}}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_form_holds_much_more_than_the_program_it_replaces(name):
    """Of real networks, at their size: what is worth it for a few pixels could take gigabytes for many."""
    module, images = ARCHITECTURES[name](**NETWORKS[name]), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    gradient = jax.grad(lambda images, variables: module.apply(variables, images).sum())
    plain, rewritten = (
        largest(jax.make_jaxpr(function)(images, variables)) for function in (gradient, fast(gradient, "cpu"))
    )
    assert rewritten < 1.1 * plain


@on_cpu
@pytest.mark.parametrize("side", [32, 37], ids=["even", "with a rest"])
@pytest.mark.parametrize("repeated", [False, True])
def test_the_gradient_of_patches_side_by_side_is_a_matrix_product(side, repeated):
    """As in a vision transformer, whose kernel has more places than the result has pixels, which are far apart."""
    kernel = jax.random.normal(jax.random.key(0), (16, 16, 3, 384))
    images = jax.random.normal(jax.random.key(1), (2, side, side, 3))

    def gradient(images):
        def total(images):
            numbers = ("NHWC", "HWIO", "NHWC")
            patches = jax.lax.conv_general_dilated(images, kernel, (16, 16), "VALID", dimension_numbers=numbers)
            return (patches**2).sum()

        return jax.grad(total)(images)

    compiled = jax.jit(fast(gradient, "cpu", is_repeated=repeated)).lower(images).compile()
    expected = gradient(images)
    np.testing.assert_allclose(compiled(images), expected, atol=1e-5 * float(jnp.abs(expected).max()))
    assert compiled.as_text().count(" convolution(") == 1  # forwards
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * kernel.nbytes


@on_cpu
def test_a_1x1_convolution_is_a_matrix_product():
    images, kernel = jnp.ones((2, 8, 6, 3)), jnp.ones((1, 1, 3, 5))

    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    text = jax.jit(fast(convolve)).lower(images, kernel).compile().as_text()
    assert " dot(" in text and " convolution(" not in text


@on_cpu
def test_a_depthwise_convolution_is_a_sum_of_shifted_images():
    images, kernel = jnp.ones((2, 8, 6, 5), jnp.bfloat16), jnp.full((3, 3, 1, 5), 1 / 3, jnp.bfloat16)

    def convolve(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=5
        )

    program = jax.jit(fast(convolve)).lower(images, kernel).compile()
    assert " convolution(" not in program.as_text()
    assert program(images, kernel).dtype == jnp.bfloat16  # and yet summed in float32
    np.testing.assert_array_equal(program(images, kernel)[:, :3, :2], jnp.bfloat16(9 * float(kernel[0, 0, 0, 0])))


def test_depthwise_convolutions_keep_their_digits_and_their_bounds():
    """Doubles stay doubles, integers exact; a kernel as large as the image, and one that is larger, are no error."""

    def convolve(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=numbers, feature_group_count=5
        )

    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        for side in (3, 8, 9, 12):
            images = jnp.asarray(random.normal(size=(2, 8, 8, 5)))
            kernel = jnp.asarray(random.normal(size=(side, 2, 1, 5)))
            found, expected = jax.jit(fast(convolve))(images, kernel), convolve(images, kernel)
            assert found.shape == expected.shape and found.dtype == jnp.float64
            np.testing.assert_allclose(found, expected, atol=1e-12)
    whole = jnp.full((1, 4, 4, 5), 2**24 + 1, jnp.int32), jnp.ones((1, 2, 1, 5), jnp.int32)
    np.testing.assert_array_equal(jax.jit(fast(convolve))(*whole), convolve(*whole))


@on_cpu
def test_a_forward_pass_by_itself_is_rewritten_too():
    """That of a tap, jitted or not; what takes the tap for a bare function walks the model's own program."""

    class Depthwise(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (3, 3), feature_group_count=3, name="depthwise")(x))
            return nn.Dense(4)(x.mean((1, 2)))

    images = helpers.images()
    model = jaxcam.tap(Depthwise(), Depthwise().init(jax.random.key(0), images), "depthwise")
    compiled = jax.jit(lambda model, images: model(images)).lower(model, images).compile()
    assert " convolution(" not in compiled.as_text()
    np.testing.assert_allclose(model(images), Depthwise().apply(model.variables, images), atol=1e-5)
    for method in (jaxcam.lrp, jaxcam.guided_backprop, jaxcam.occlusion):
        options = {"window": 4} if method is jaxcam.occlusion else {}
        expected = method(model, images, 1, **options)
        found = method(lambda images: model(images), images, 1, **options)
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()))


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
def test_a_large_3x3_convolution_that_is_repeated_takes_half_the_multiplications(padding):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, 67, 65, 64)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, 64, 64)), jnp.float32)

    def convolve(images, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), padding, dimension_numbers=numbers)

    def gradient(images, kernel):
        return jax.vjp(lambda images: convolve(images, kernel), images)[1](convolve(images, kernel))[0]

    def repeated(function):
        """Inside of a loop, here of one turn."""
        return lambda images, kernel: jax.lax.map(lambda each: function(each, kernel), images[None])[0]

    for function in (convolve, gradient):
        programs = (function, fast(repeated(function)))
        plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in programs)
        assert rewritten.cost_analysis()["flops"] < 0.6 * plain.cost_analysis()["flops"]
        once = jax.jit(fast(function)).lower(images, kernel).compile()
        assert once.cost_analysis()["flops"] > 0.9 * plain.cost_analysis()["flops"]  # there it would not pay
        expected = plain(images, kernel)
        np.testing.assert_allclose(rewritten(images, kernel), expected, rtol=0, atol=3e-6 * np.abs(expected).max())


POOLS = {  # window, stride, padding, and the pixels
    "a ResNet's": ((3, 3), (2, 2), ((1, 1), (1, 1)), (7, 8)),
    "a VGG's": ((2, 2), (2, 2), "VALID", (6, 5)),
    "overlapping": ((2, 3), (1, 2), "SAME", (4, 6)),
    "one pixel": ((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    "along one axis": ((3,), (2,), ((2, 0),), (9,)),
    "in a volume": ((2, 2, 2), (2, 2, 2), "SAME", (3, 4, 5)),
}


@on_cpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", POOLS)
def test_a_max_pools_gradient_goes_to_the_first_of_the_largest(name, dtype):
    """First and second derivatives as XLA's, also where cells tie; nothing is scattered."""
    window, stride, padding, space = POOLS[name]
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(-2, 2, (2, *space, 3)), dtype)
    direction = jnp.asarray(rng.integers(-4, 4, images.shape), dtype)

    def summary(images):
        return (nn.max_pool(images, window, stride, padding) ** 2).sum()

    def derivatives(images):
        return jax.grad(summary)(images), jax.grad(lambda images: (jax.grad(summary)(images) * direction).sum())(images)

    plain, rewritten = (str(jax.make_jaxpr(f)(images)) for f in (jax.grad(summary), fast(jax.grad(summary), "cpu")))
    assert "select_and_scatter" in plain and "select_and_scatter" not in rewritten
    for found, expected in zip(jax.jit(fast(derivatives))(images), jax.jit(derivatives)(images), strict=True):
        np.testing.assert_array_equal(found, expected)


@on_cpu
@pytest.mark.parametrize(
    "window, computation", [((6, 5), jax.lax.max), ((2, 2), jax.lax.min)], ids=["a large window", "a minimum"]
)
def test_other_pools_stay(window, computation):
    images = helpers.images(2, 12, 10)

    def gradient(images):
        start = -jnp.inf if computation is jax.lax.max else jnp.inf
        sides = (1, *window, 1)
        return jax.grad(lambda x: jax.lax.reduce_window(x, start, computation, sides, sides, "VALID").sum())(images)

    np.testing.assert_array_equal(jax.jit(fast(gradient))(images), jax.jit(gradient)(images))


@on_cpu
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_gradient_of_a_resnets_first_convolution_holds_no_zeros(platform):
    images, kernel = jnp.ones((2, 16, 16, 3)), jnp.ones((7, 7, 3, 4))

    def gradient(images, kernel):
        def total(images):
            padding = ((3, 3), (3, 3))
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(images, kernel, (2, 2), padding, dimension_numbers=numbers).sum()

        return jax.grad(total)(images)

    plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in (gradient, fast(gradient, platform)))
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


@on_cpu
def test_the_gradient_of_a_kernel_stays_apart_from_what_makes_its_operands():
    """Its operands are turned over, and XLA would compute each value again where it takes it from afar."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(64, 32, 32, 16)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, 16, 4)), jnp.float32)

    def gradient(images, kernel):
        def total(kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            made = nn.relu(images - images.mean((0, 1, 2)))
            return (jax.lax.conv_general_dilated(made, kernel, (2, 2), "SAME", dimension_numbers=numbers) ** 2).mean()

        return jax.grad(total)(kernel)

    plain, rewritten = (jax.jit(each).lower(images, kernel).compile() for each in (gradient, fast(gradient)))
    assert " conditional(" in rewritten.as_text()
    expected = plain(images, kernel)
    np.testing.assert_allclose(rewritten(images, kernel), expected, rtol=0, atol=3e-6 * np.abs(expected).max())
    spoilt = images.at[0, 0, 0, 0].set(jnp.nan)
    assert np.isnan(rewritten(spoilt, kernel)).any() and np.isnan(plain(spoilt, kernel)).any()


@on_cpu
def test_the_gradient_of_a_strided_3x3_convolution_that_is_repeated_holds_no_zeros():
    images, kernel = helpers.images(2, 9, 8), jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 3, 4)))

    def gradient(images, kernel):
        def total(images):
            padding, numbers = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
            return (jax.lax.conv_general_dilated(images, kernel, (2, 2), padding, dimension_numbers=numbers) ** 2).sum()

        return jax.grad(total)(images)

    programs = gradient, fast(gradient), fast(gradient, "cpu", is_repeated=True)
    plain, once, often = (jax.jit(each).lower(images, kernel).compile() for each in programs)
    assert ["lhs_dilate" in each.as_text() for each in (plain, once, often)] == [True, True, False]
    np.testing.assert_allclose(often(images, kernel), plain(images, kernel), rtol=1e-5, atol=1e-4)


@on_cpu
def test_a_step_that_is_repeated(monkeypatch):
    """Keeps its static and donated arguments; where XLA does not know an option, or it is switched off, it runs too."""

    def step(state, images, *, scale):
        return state + scale * convolved(images, kernel).sum()

    images, kernel = helpers.images(2, 8, 6), jnp.ones((3, 3, 3, 5))
    expected = step(1.0, images, scale=2)
    unknown = {"cpu": dict.fromkeys(compiler.OPTIONS["cpu"], {"xla_no_such_option": "1"})}
    for chosen, rewrite in ((compiler.OPTIONS, True), (unknown, True), (compiler.OPTIONS, False)):
        monkeypatch.setattr(jaxcam.config, "rewrite", rewrite)
        monkeypatch.setattr(compiler, "OPTIONS", chosen)
        compiler.options.cache_clear()
        run, state = repeated(step, static_argnames="scale", donate_argnames="state"), jnp.ones(())
        np.testing.assert_allclose(run(state, images, scale=2), expected, rtol=1e-5)
        assert state.is_deleted()
        for kind, own in chosen["cpu"].items():
            assert compiler.options("cpu", kind) == (None if chosen is unknown else own)
    compiler.options.cache_clear()


KINDS = {  # what a program multiplies once, with what, and of which kind it is therefore
    "a convolution": (convolved, (2, 8, 6, 3), (3, 3, 3, 5), compiler.USUAL),
    "a dense layer": (jnp.matmul, (2, 256), (256, 1024), compiler.USUAL),
    "its gradient": (
        lambda x, kernel: jax.grad(lambda x: jnp.sin(x @ kernel).sum())(x),
        (2, 256),
        (256, 1024),
        compiler.TURNED,
    ),
    "a kernel turned over": (partial(jnp.einsum, "nj,ij->ni"), (2, 1024), (256, 1024), compiler.TURNED),
    "with short rows": (partial(jnp.einsum, "nj,ij->ni"), (2, 1023), (257, 1023), compiler.USUAL),
    "with few rows": (partial(jnp.einsum, "nj,ij->ni"), (2, 1024), (255, 1024), compiler.USUAL),
    "many times": (partial(jnp.einsum, "nj,ij->ni"), (257, 1024), (256, 1024), compiler.USUAL),
    "of each image": (partial(jnp.einsum, "nj,nij->ni"), (2, 1024), (2, 256, 1024), compiler.USUAL),
}


@on_cpu
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", KINDS)
def test_the_compiler_is_told_by_what_a_program_multiplies(monkeypatch, name, half):
    """Anywhere in it; what multiplies in half precision is not written."""
    multiply, shape, kernel_shape, kind = KINDS[name]
    kind, dtype = (compiler.HALF, jnp.bfloat16) if half else (kind, jnp.float32)

    def loop(model, images, targets):
        def step(total, _):
            kernel = model.variables["weight"].astype(dtype)
            found = multiply(images.astype(dtype), kernel).astype(jnp.float32)
            return total + found.reshape(len(found), -1).mean(1), ()

        return jax.lax.scan(step, jnp.zeros(len(images)), length=2)[0]

    images, asked, said = jnp.ones(shape), [], []
    monkeypatch.setitem(compiler.OPTIONS["cpu"], compiler.HALF, {"xla_cpu_enable_fast_math": False})
    compiler.options.cache_clear()
    for module in (memory, steps):
        monkeypatch.setattr(module, "options", lambda *key: asked.append(key) or compiler.options(*key))
        monkeypatch.setattr(module, "unwritten", lambda never: said.append(never) or compiler.unwritten(never))
    model = jaxcam.tap(lambda weights, images: images.mean(-1), {"weight": jnp.ones(kernel_shape)})
    expected = loop(model, images, None)
    for run in (engine(loop), repeated(loop)):
        asked.clear(), said.clear()
        np.testing.assert_allclose(run(model, images, None), expected, rtol=2e-2)
        assert asked[-1] == ("cpu", kind) and set(said) == {half}
    compiler.options.cache_clear()


def test_what_is_unwritten():
    """JAX's cache takes what takes at least so long to compile; blocks of several threads end in any order."""

    def least():
        return jax.config.values["jax_persistent_cache_min_compile_time_secs"]

    usual, first, second = least(), compiler.unwritten(), compiler.unwritten()
    with compiler.unwritten(False):
        assert least() == usual
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert least() == float("inf")
    second.__exit__(None, None, None)
    assert least() == usual


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


NUMBERS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
FORMS = {  # size of images and kernel, step, inputs and outputs
    "matrix product": (6, 1, 1, 3, 4),
    "strided matrix product": (6, 1, 2, 3, 4),
    "phases": (8, 7, 2, 3, 2),
    "products": (3, 2, 1, 4, 160),
    "plain": (6, 3, 1, 3, 4),
}


def gradient_of(rank, step):
    """The gradient of a convolution, so that all of its forms are met, and a sum."""

    def gradient(images, kernel):
        def total(images):
            options = {"dimension_numbers": NUMBERS[rank], "padding": "SAME"}
            result = jax.lax.conv_general_dilated(images, kernel, (step,) * rank, **options)
            return (result**2).sum(tuple(range(1, images.ndim))).sum()

        return jax.grad(total)(images)

    return gradient


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_under_shard_map_and_of_an_unknown_number_of_images(form, rank):
    size, taps, step, inputs, outputs = form
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(2, *(size,) * rank, inputs)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(*(taps,) * rank, inputs, outputs)), jnp.float32)
    plain = gradient_of(rank, step)
    expected = jax.jit(plain)(images, kernel)
    close = partial(np.testing.assert_allclose, desired=expected, rtol=0, atol=3e-6 * float(np.abs(expected).max()))
    mesh, split = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,)), PartitionSpec("devices")
    sharded = jax.shard_map(fast(plain), mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)
    close(jax.jit(sharded)(images, kernel))
    unknown = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), *images.shape[1:]), images.dtype)
    kernel_shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
    close(export.export(jax.jit(fast(plain)))(unknown, kernel_shape).call(images, kernel))


@pytest.mark.parametrize(
    "method",
    [jaxcam.saliency, jaxcam.grad_cam, partial(jaxcam.integrated_gradients, num_steps=3)],
    ids=["saliency", "grad_cam", "integrated_gradients"],
)
def test_methods_of_an_unknown_number_of_images(method):
    model = helpers.small()
    unknown = jax.ShapeDtypeStruct(export.symbolic_shape("b, 12, 16, 3"), jnp.float32)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model)
    exported = export.export(jax.jit(method))(shapes, unknown)
    for n in (1, 3):
        images = helpers.images(n)
        np.testing.assert_allclose(exported.call(model, images), method(model, images), atol=1e-5)


@pytest.mark.parametrize("name", ["saliency", "grad_cam", "deep_lift", "integrated_gradients", "occlusion"])
def test_nothing_is_rewritten_where_it_is_switched_off(name, monkeypatch):
    method, images = jaxcam.METHODS[name].function, helpers.images(2)

    def explained(images):
        return method(helpers.small(), images, 1)

    def choices():  # between a form for CPUs and one for other devices
        return str(jax.make_jaxpr(lambda images: explained(images))(images)).count("branches_platforms")

    rewritten = explained(images)
    assert choices() > 0
    monkeypatch.setattr(jaxcam.config, "rewrite", False)
    assert choices() == 0
    plain = explained(images)
    np.testing.assert_allclose(rewritten, plain, rtol=0, atol=1e-5 * float(np.abs(plain).max()))


def test_on_arrays_there_is_no_choice_of_platforms(monkeypatch):
    """Where they are is known, and on another device a program is not touched; under `jit` it may run anywhere.

    A method inside of `explain` is rewritten with it: by itself it would know of no device.
    """
    images, model, choices = helpers.images(2), helpers.small(), []
    choose = jax.lax.platform_dependent

    def counted(*operands, **forms):
        choices.append(forms)
        return choose(*operands, **forms)

    monkeypatch.setattr(jax.lax, "platform_dependent", counted)
    jax.clear_caches()
    explain = partial(jaxcam.explain, model, methods=["saliency"])
    for run in (lambda images: jaxcam.saliency(model, images, 1), explain, model):
        run(images)
        assert not choices
        jax.jit(lambda images, run=run: run(images))(images)
        assert choices and set(choices.pop()) == {"cpu", "default"}
        choices.clear()
    assert fast(model, "gpu") is model


# ---------------------------------------------------------------------------------- the program stays the user's to see


class Named(nn.Module):
    """Its one convolution is written in this file."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 3, 4))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)  # this line


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(Named(name="features")(x)).mean((1, 2)))


def line_of(text):
    return 1 + next(i for i, line in enumerate(Path(__file__).read_text().splitlines()) if line.endswith(text))


def places(function, *arguments):
    """The name of each convolution of a program, and all files and lines that led to it."""
    text = jax.jit(function).lower(*arguments).as_text(debug_info=True)
    found = dict(re.findall(r"^(#loc\d+) = loc\((.*)\)$", text, re.MULTILINE))

    def all_of(place):
        return found[place] + "".join(map(all_of, re.findall(r"#loc\d+", found[place])))

    used = re.findall(r"stablehlo\.convolution.* loc\((#loc\d+)\)", text)
    return [(found[each], all_of(each)) for each in used]


@pytest.mark.parametrize("name", ["saliency", "grad_cam", "guided_backprop", "deep_lift", "integrated_gradients"])
@pytest.mark.parametrize("missing", [False, True], ids=["", "without source_info_util"])
def test_profiles_name_the_users_layers_and_lines(name, missing, monkeypatch):
    """In loops too; where JAX has moved what this needs, results are the same, under other names."""
    images = helpers.images(2, 8, 8)
    model = jaxcam.tap(Classifier(), Classifier().init(jax.random.key(0), images), "features")
    method = partial(jaxcam.METHODS[name].function, **({"num_steps": 3} if name == "integrated_gradients" else {}))
    expected = method(model, images, 1)
    jax.clear_caches()
    if missing:
        monkeypatch.setattr(program, "user_context", None)
    found = places(lambda model, images: method(model, images, 1), model, images)
    assert found
    if not missing:
        assert all("features/conv_general_dilated" in name for name, _ in found)
        assert all(f'{Path(__file__).name}":{line_of("# this line")}' in lines for _, lines in found)
    np.testing.assert_allclose(method(model, images, 1), expected, atol=1e-6)
    jax.clear_caches()


def test_errors_point_to_the_users_line(as_user):
    def model(x):
        features = nn.relu(x)
        return jnp.sort(features, axis=1).mean((1, 2))  # the line that is meant

    with pytest.raises(ValueError, match="deep_lift has no rule for the operation 'sort'") as caught:
        jaxcam.deep_lift(model, helpers.images(1, 4, 4), 1)
    shown = "".join(traceback.format_exception(caught.value))
    assert f'{Path(__file__).name}", line {line_of("# the line that is meant")}' in shown
