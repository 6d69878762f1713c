"""Loops whose bodies run as fast as they would outside: a scan, and sums and maps over chunks.

XLA's CPU compiler has fast kernels for convolutions in one layout, and brings others into it; inside loops it does not
(jax 0.10 and 0.11). A gradient's convolutions, with the kernel's channels exchanged, are therefore about eight times
slower in a loop. So `scan` brings the convolutions of its body into that layout before XLA sees them.
"""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxcam._rewrite import bind, evaluate


def scan(step: Callable, first, over):
    """`jax.lax.scan(step, first, over)`."""
    return jax.lax.scan(lambda carry, each: _canonical(step, carry, each), first, over)


def chunked_sum(function: Callable, count: int, chunk_size: int, like):
    """`sum_i function(i)` for `i < count`, `chunk_size` terms at a time.

    `function(indices, weights)` gets `chunk_size` indices and returns the sum of its terms, each multiplied by its
    weight: one, or zero for the padding of the last chunk. `like` is a zero of the result's shape (or a tree of them).
    """

    def add(total, chunk):
        indices = chunk * chunk_size + jnp.arange(chunk_size)
        terms = function(jnp.minimum(indices, count - 1), (indices < count).astype(jnp.float32))
        return jax.tree.map(jnp.add, total, terms), None

    return scan(add, like, jnp.arange(-(-count // chunk_size)))[0]


def chunked_map(function: Callable, shape: tuple[int, ...], chunk_size: int):
    """`function` at every index of an array of `shape`, `chunk_size` of them at a time.

    `function` gets one vector of indices per axis and returns `[chunk_size, ...]`; the result is `[*shape, ...]`. What
    one chunk builds is gone before the next begins.
    """
    count = prod(shape)

    def one_chunk(_, chunk):
        flat = jnp.minimum(chunk * chunk_size + jnp.arange(chunk_size), count - 1)
        return None, function(*jnp.unravel_index(flat, shape))

    results = scan(one_chunk, None, jnp.arange(-(-count // chunk_size)))[1]
    return results.reshape(-1, *results.shape[2:])[:count].reshape(*shape, *results.shape[2:])


def _canonical(function: Callable, *inputs):
    """`function(*inputs)`, its convolutions in the layout that XLA's CPU kernels take."""
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*inputs)
    return jax.tree.unflatten(jax.tree.structure(shape), _run(closed, jax.tree.leaves(inputs)))


def _run(closed: ClosedJaxpr, inputs) -> list:
    values = evaluate(closed.jaxpr, closed.consts, inputs, _apply)
    return [each.val if isinstance(each, Literal) else values[each] for each in closed.jaxpr.outvars]


def _apply(equation, operands) -> list:
    if equation.primitive.name == "conv_general_dilated":
        return [_convolution(equation.params, *operands)]
    return bind(equation.replace(params={name: _rewritten(value) for name, value in equation.params.items()}), operands)


def _rewritten(value):
    """A parameter of an equation, with the convolutions of the programs in it rewritten."""
    if isinstance(value, ClosedJaxpr):
        return jax.make_jaxpr(lambda *inputs: _run(value, inputs))(*value.in_avals)
    if isinstance(value, Jaxpr):
        return _rewritten(ClosedJaxpr(value, ())).jaxpr
    return tuple(map(_rewritten, value)) if type(value) is tuple else value


def _convolution(params, images, kernel):
    """The convolution, on a CPU with transpositions around it where its layout is not `nhwc, hwio -> nhwc`.

    Other devices choose layouts of their own, and recognise a gradient by the one it comes in.
    """
    primitive, layout = jax.lax.conv_general_dilated_p, params["dimension_numbers"]
    last = images.ndim - 1
    pixels, weights = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    if layout == jax.lax.ConvDimensionNumbers(pixels, weights, pixels):
        return primitive.bind(images, kernel, **params)

    def canonical(images, kernel):
        images, kernel = jnp.moveaxis(images, layout.lhs_spec, pixels), jnp.moveaxis(kernel, layout.rhs_spec, weights)
        numbers = jax.lax.ConvDimensionNumbers(pixels, weights, pixels)
        result = primitive.bind(images, kernel, **{**params, "dimension_numbers": numbers})
        return jnp.moveaxis(result, pixels, layout.out_spec)

    def as_it_is(images, kernel):
        return primitive.bind(images, kernel, **params)

    return jax.lax.platform_dependent(images, kernel, cpu=canonical, default=as_it_is)
