"""Convolutions in the forms for which XLA's compilers have fast kernels: for a CPU many, for a TPU one.

On a CPU, with jax 0.10 to 0.12: in loops only the layout `nhwc, hwio -> nhwc` has a fast kernel, which a gradient's
convolutions do not come in; a 1x1 convolution takes twice as long as the matrix product that it is; a depthwise one
takes many times as long as its few multiplications; the gradient of a strided convolution with a large kernel (the
first one of a ResNet, or of a vision transformer) spends its time on zeros, and that of one with few pixels on
transposing the kernel; a kernel that is larger than the image takes up to sixty times as long as a matrix product; a
large 3x3 convolution that is repeated can do with fewer multiplications; a sum over pixels or channels draws the
convolutions before it into one slow kernel; and a max-pool's gradient is scattered value by value. Other devices have
kernels for all of these, and recognise them by the form that they come in; but a TPU, too, spends its time on the zeros
of a ResNet's first convolution.
"""

from functools import partial, reduce
from math import prod

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._engine.program import is_inexact

# Three weights as the four that a tile of four pixels meets: at the points 0, 1, -1 and infinity of their polynomial.
POINTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def _always(equation) -> bool:
    return True


def _sums_pixels(equation) -> bool:
    """Whether it is a sum of what may have come from a convolution."""
    values = equation.invars[0].aval
    return values.ndim > 3 and is_inexact(values)


def _has_phases(equation) -> bool:
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    return _is_of_phases([kernel[axis] for axis in numbers.rhs_spec[2:]], equation.params)


def _laid(images, kernel, numbers):
    """Operands in any layout as `nhwc` and `hwio`, and how a convolution is told of it."""
    last = images.ndim - 1
    pixels, weights = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    images, kernel = jnp.moveaxis(images, numbers.lhs_spec, pixels), jnp.moveaxis(kernel, numbers.rhs_spec, weights)
    return images, kernel, jax.lax.ConvDimensionNumbers(pixels, weights, pixels)


def _phases(repeated, images, kernel, *, dimension_numbers, **params):
    images, kernel, numbers = _laid(images, kernel, dimension_numbers)
    result = _of_phases(images, kernel, {**params, "dimension_numbers": numbers})
    return jnp.moveaxis(result, numbers.out_spec, dimension_numbers.out_spec)


def _convolution(repeated, images, kernel, *, dimension_numbers, **params):
    """The convolution of operands in any layout, by one of those in `nhwc, hwio -> nhwc`."""
    given, last = kernel, images.ndim - 1
    if _is_moved_far(images, dimension_numbers):
        alone = partial(_moved, dimension_numbers=dimension_numbers, **params)
        return _apart(alone, images, kernel)
    images, kernel, numbers = _laid(images, kernel, dimension_numbers)
    params["dimension_numbers"] = numbers
    spread, sizes = params["lhs_dilation"], kernel.shape[:-2]
    grouped = max(params["feature_group_count"], params["batch_group_count"]) > 1
    strided, padded = max(params["window_strides"]) > 1, any(map(any, params["padding"]))
    plain = not (grouped or strided or max(params["rhs_dilation"]) > 1)
    if max(sizes) == 1 and not (grouped or (strided and (padded or max(spread) > 1))):
        result = _matrix_product(images, kernel, params)
    elif _is_depthwise(images, kernel, params):
        result = _of_shifts(images, kernel, params)
    elif repeated and plain and max(spread) == 1 and sizes == (3, 3) and _is_large(images, kernel):
        result = _of_tiles(images, kernel, params)
    elif plain and dimension_numbers.rhs_spec[1] == last and _is_small(images, kernel):
        result = _of_products(images, jnp.moveaxis(given, dimension_numbers.rhs_spec[0], last - 1), params)
    elif not grouped and _overhangs(images, kernel, params):
        result = _of_patches(images, kernel, params)
    elif _is_of_phases(sizes, params, 1 if repeated else 2) or _is_of_phases(sizes, params, exactly=True):
        result = _of_phases(images, kernel, params)
    else:
        result = _as_it_is(images, kernel, params)
    return jnp.moveaxis(result, numbers.out_spec, dimension_numbers.out_spec)


def _moved(images, kernel, *, dimension_numbers, **params):
    """The convolution itself, its operands brought into the layout `nhwc, hwio` before."""
    images, kernel, numbers = _laid(images, kernel, dimension_numbers)
    result = _as_it_is(images, kernel, {**params, "dimension_numbers": numbers})
    return jnp.moveaxis(result, numbers.out_spec, dimension_numbers.out_spec)


def _apart(function, images, *others):
    """`function(images, *others)`, apart from what makes its operands, which XLA would else make again as they move.

    XLA does not look into a branch, and does not know that this one is always taken: where it is not, the result is
    NaN anyway.
    """

    def not_a_number(*operands):
        return jax.tree.map(lambda each: jnp.full(each.shape, jnp.nan, each.dtype), jax.eval_shape(function, *operands))

    first = images[(0,) * images.ndim]
    return jax.lax.cond(first == first, function, not_a_number, images, *others)


def _sum(repeated, values, **params):
    """A sum, apart from what makes its values: XLA does not look through a choice."""
    return jax.lax.reduce_sum_p.bind(jnp.where(values == values, values, jnp.nan), **params)


def _gradient_of_max_pool(repeated, change, images, *, select_prim, window_dimensions, window_strides, padding):
    """What every window gives to the first of its largest values, cell by cell of the window."""
    window = {"window_dimensions": window_dimensions, "window_strides": window_strides, "padding": padding}
    of_floats = jnp.issubdtype(images.dtype, jnp.floating)
    if select_prim is not jax.lax.ge_p or prod(window_dimensions) > 25 or not of_floats:
        return jax.lax.select_and_scatter_add_p.bind(change, images, select_prim=select_prim, **window)
    ones, lowest = (1,) * images.ndim, jnp.asarray(-jnp.inf, images.dtype)
    largest = jax.lax.reduce_window_max_p.bind(images, base_dilation=ones, window_dilation=ones, **window)
    padded = jax.lax.pad(images, lowest, [(*each, 0) for each in padding])
    spans = [step * (count - 1) + 1 for step, count in zip(window_strides, largest.shape, strict=True)]
    taken, terms = jnp.zeros(largest.shape, bool), []
    for cell in np.ndindex(*window_dimensions):
        ends = [first + span for first, span in zip(cell, spans, strict=True)]
        chosen = (jax.lax.slice(padded, cell, ends, window_strides) == largest) & ~taken
        taken = taken | chosen
        rest = [size - end for size, end in zip(padded.shape, ends, strict=True)]
        zeros = zip(cell, rest, (step - 1 for step in window_strides), strict=True)
        terms.append(jax.lax.pad(jnp.where(chosen, change, 0), jnp.zeros((), change.dtype), list(zeros)))
    first = [low for low, _ in padding]
    ends = [low + size for low, size in zip(first, images.shape, strict=True)]
    return jax.lax.slice(reduce(jax.lax.add, terms), first, ends)


# By platform and primitive: the form, and when it is better.
FORMS = {
    "cpu": {
        "conv_general_dilated": (_convolution, _always),
        "reduce_sum": (_sum, _sums_pixels),
        "select_and_scatter_add": (_gradient_of_max_pool, _always),
    },
    "tpu": {"conv_general_dilated": (_phases, _has_phases)},
}


def _matrix_product(images, kernel, params):
    """A 1x1 convolution: of every pixel alone, before zeros come around and between them."""
    images = images[(slice(None), *(slice(None, None, step) for step in params["window_strides"]))]
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    channels = ((images.ndim - 1,), (0,))
    result = jax.lax.dot_general(images, kernel.reshape(kernel.shape[-2:]), (channels, ((), ())), **options)
    zeros = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    return jax.lax.pad(result, jnp.zeros((), result.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])


def _as_it_is(images, kernel, params):
    return jax.lax.conv_general_dilated_p.bind(images, kernel, **params)


def _of_shifts(images, kernel, params):
    """A depthwise convolution: every channel by itself, one shifted copy of the images for each of its weights."""
    sizes, kind = kernel.shape[:-2], params["preferred_element_type"] or images.dtype
    wide = images.dtype if images.dtype.itemsize > 2 else jnp.float32  # half the digits do not do for a sum
    zeros = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    images = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])
    n, *pixels, channels = images.shape
    steps, dilation = params["window_strides"], params["rhs_dilation"]
    reach = [d * (size - 1) for d, size in zip(dilation, sizes, strict=True)]
    images, kernel, terms = images.astype(wide), kernel.astype(wide).reshape(-1, channels), []
    for i, weight in enumerate(np.ndindex(*sizes)):
        first = [d * j for d, j in zip(dilation, weight, strict=True)]
        last = [size - each + j for size, each, j in zip(pixels, reach, first, strict=True)]
        seen = jax.lax.slice(images, (0, *first, 0), (n, *last, channels), (1, *steps, 1))
        own = jax.lax.broadcast_in_dim(
            jax.lax.slice(kernel, (i, 0), (i + 1, channels)), seen.shape, (0, images.ndim - 1)
        )
        terms.append(jax.lax.mul(seen, own))
    return reduce(jax.lax.add, terms).astype(kind)


def _of_patches(images, kernel, params):
    """A convolution as one matrix product: of what each result sees, and of those weights that see any of it."""
    zeros = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *zeros, (0, 0, 0)])
    axes = list(zip(padded.shape[1:-1], kernel.shape, params["rhs_dilation"], params["window_strides"], strict=False))

    def places(weight) -> list[range]:  # of the padded axes that a weight sees, for all results
        starts = [d * i for i, (_, _, d, _) in zip(weight, axes, strict=True)]
        lasts = [start + size - d * (taps - 1) for start, (size, taps, d, _) in zip(starts, axes, strict=True)]
        return [range(*each) for each in zip(starts, lasts, params["window_strides"], strict=True)]

    def meets(place: range, axis: int) -> bool:
        reach, d = images.shape[axis + 1], params["lhs_dilation"][axis]
        return not set(place).isdisjoint(params["padding"][axis][0] + d * i for i in range(reach))

    weights = list(np.ndindex(*kernel.shape[:-2]))
    useful = [each for each in weights if all(meets(place, axis) for axis, place in enumerate(places(each)))]
    seen, rows = [], []
    for weight in useful or weights[:1]:
        seen.append(padded[(slice(None), *(slice(each.start, each.stop, each.step) for each in places(weight)))])
        rows.append(kernel[weight])
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    channels = ((images.ndim - 1,), (0,))
    return jax.lax.dot_general(jnp.concatenate(seen, -1), jnp.concatenate(rows), (channels, ((), ())), **options)


def _of_products(images, kernel, params):
    """A convolution of few pixels by a kernel `[..., outputs, inputs]`, which is not transposed: that is its cost.

    Every pixel is multiplied by all weights at once, and the products are added where they belong. The kernel of a
    gradient comes reversed, and reversing it again leaves it as it was.
    """
    sizes, last = kernel.shape[:-2], images.ndim - 1
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    channels = ((kernel.ndim - 1,), (last,))
    products = jax.lax.dot_general(jnp.flip(kernel, range(len(sizes))), images, (channels, ((), ())), **options)
    zeros = [(low, high, d - 1) for (low, high), d in zip(params["padding"], params["lhs_dilation"], strict=True)]
    products = jax.lax.pad(products, jnp.zeros((), products.dtype), [(0, 0, 0)] * last + [(0, 0, 0), *zeros])
    result = 0
    for weight in np.ndindex(*sizes):
        seen = products[tuple(size - 1 - i for i, size in zip(weight, sizes, strict=True))]
        for axis, (i, size) in enumerate(zip(weight, sizes, strict=True), 2):
            seen = jax.lax.slice_in_dim(seen, i, seen.shape[axis] - size + 1 + i, axis=axis)
        result += seen
    return jnp.moveaxis(result, 0, -1)


def _of_phases(images, kernel, params):
    """A convolution of pixels `d` apart, with zeros between them, without the zeros.

    The result's pixels `d j + p` take part in it for one phase `p` after the other, each by every `d`-th of the
    kernel's weights: all phases are channels of one convolution of the pixels as they are.
    """
    axes, steps = range(1, images.ndim - 1), params["lhs_dilation"]
    padding, sizes, counts = [], [], []
    for axis, d, (low, high) in zip(axes, steps, params["padding"], strict=True):
        taps = kernel.shape[axis - 1]
        size = d * (images.shape[axis] - 1) + 1 + low + high - taps + 1
        first = -(low // d)  # the pixel, counted from `j`, under the first weight that any phase has
        count = (d + taps - 2 - low) // d - first + 1
        before = d - 1 - low - d * first
        # Weight `d (t - first) + (d - 1 - p)` of the padded kernel lies on pixel `j + t` in phase `p`.
        kernel = jax.lax.pad(
            kernel,
            jnp.zeros((), kernel.dtype),
            [(before, d * count - taps - before, 0) if each == axis - 1 else (0, 0, 0) for each in range(kernel.ndim)],
        )
        padding.append((-first, -(-size // d) - images.shape[axis] + first + count - 1))
        sizes.append(size)
        counts.append(count)
    rank, (inputs, outputs) = len(sizes), kernel.shape[-2:]
    split = kernel.reshape(*(each for pair in zip(counts, steps, strict=True) for each in pair), inputs, outputs)
    split = jnp.flip(split, range(1, 2 * rank, 2))
    taps, phases = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    kernel = split.transpose(*taps, 2 * rank, *phases, 2 * rank + 1).reshape(*counts, inputs, -1)
    params = {**params, "padding": tuple(padding), "lhs_dilation": (1,) * rank}
    product = _matrix_product if max(counts) == 1 else _as_it_is
    result = product(images, kernel, params)
    n, *places, _ = result.shape
    result = result.reshape(n, *places, *steps, outputs)
    order = [each for axis in axes for each in (axis, axis + rank)]
    result = result.transpose(0, *order, 2 * rank + 1)
    result = result.reshape(n, *(place * d for place, d in zip(places, steps, strict=True)), outputs)
    return jax.lax.slice(result, [0] * result.ndim, [n, *sizes, outputs])


def _is_depthwise(images, kernel, params) -> bool:
    """Whether every channel has a kernel of its own, with few enough weights for a sum of so many terms."""
    spans = [
        (low + d * (size - 1) + 1 + high, reach * (taps - 1) + 1)
        for (low, high), d, size, reach, taps in zip(
            params["padding"],
            params["lhs_dilation"],
            images.shape[1:-1],
            params["rhs_dilation"],
            kernel.shape[:-2],
            strict=True,
        )
    ]
    return (
        params["feature_group_count"] == images.shape[-1] == kernel.shape[-1] > 1
        and params["batch_group_count"] == 1
        and prod(kernel.shape[:-2]) <= 81
        and images.dtype == kernel.dtype
        and jnp.issubdtype(images.dtype, jnp.floating)
        and all(pixels >= taps for pixels, taps in spans)  # a pixel comes out
    )


def _is_of_phases(sizes, params, several: int = 2, *, exactly: bool = False) -> bool:
    """Whether it is the gradient of a strided convolution, with a kernel that has weights for several pixels.

    Or, `exactly`, for one: the gradient of patches side by side, as a vision transformer takes them.
    """
    spread, low = params["lhs_dilation"], min(low for low, _ in params["padding"])
    others = *params["window_strides"], *params["rhs_dilation"], params["feature_group_count"]
    return (
        max(*others, params["batch_group_count"]) == 1 < max(spread)
        and all(size == d if exactly else size > several * d for size, d in zip(sizes, spread, strict=True))
        and low >= 0  # XLA computes the cropped one wrongly
    )


def _is_moved_far(images, numbers) -> bool:
    """Whether the channels, of many values, come from an axis that is not the last: the gradient of a kernel."""
    size = prod(images.shape)
    is_known = isinstance(size, int)
    return is_known and size >= 2**20 and numbers.lhs_spec[1] == 0 and jnp.issubdtype(images.dtype, jnp.floating)


def _overhangs(images, kernel, params) -> bool:
    """Whether a kernel has more places than the image has pixels, and enough weights for that to matter.

    With zeros between the pixels it has at least as many as there are then, or what each result sees would be a lot.
    """
    pixels, (*taps, inputs, outputs) = images.shape[1:-1], kernel.shape
    is_known = all(isinstance(each, int) for each in (*pixels, inputs, outputs))
    some = is_known and all(
        low + high + d * (size - 1) + 1 > reach * (each - 1)
        for (low, high), d, size, reach, each in zip(
            params["padding"], params["lhs_dilation"], pixels, params["rhs_dilation"], taps, strict=True
        )
    )  # a pixel comes out
    between = [d * (size - 1) + 1 for d, size in zip(params["lhs_dilation"], pixels, strict=True)]
    larger = is_known and prod(pixels) < prod(taps) and prod(between) <= prod(taps)
    return some and larger and inputs * outputs >= 1024 and min(pixels) > 0 and is_inexact(images)


def _is_large(images, kernel) -> bool:
    """Whether sixteen products of a 3x3 convolution's tiles are worth their overheads, as measured on two cores."""
    pixels, (inputs, outputs) = prod(images.shape[:-1]), kernel.shape[-2:]
    return (
        isinstance(pixels, int)  # of an unknown number of images nothing is known
        and images.dtype == kernel.dtype == jnp.float32
        and min(inputs, outputs) >= 64
        and pixels >= 256
        and pixels * inputs * outputs > 2**25
    )


def _is_small(images, kernel) -> bool:
    """Whether transposing the kernel would take longer than all the rest, as measured on two cores.

    Of an unknown number of images, `jax.export`'s `"b"`, it would not.
    """
    pixels, inputs = prod(images.shape[:-1]), images.shape[-1]
    is_known = isinstance(pixels, int) and isinstance(inputs, int)
    of_floats = images.dtype == kernel.dtype == jnp.float32
    return is_known and of_floats and 4 * pixels < inputs and prod(kernel.shape[:-2]) < 10


def _of_tiles(images, kernel, params):
    """A 3x3 convolution by tiles of 2x2 pixels of the result: 16 multiplications for each, where 36 are usual.

    Winograd's minimal filtering: a tile takes part as sums of its pixels, and the kernel as sums of its weights, one
    product for each of 16 pairs (Lavin and Gray 2015, https://arxiv.org/abs/1509.09308).
    """
    (n, height, width, inputs), outputs = images.shape, kernel.shape[-1]
    (top, bottom), (left, right) = params["padding"]
    rows, columns = height + top + bottom - 2, width + left + right - 2
    high, wide = -(-rows // 2), -(-columns // 2)
    zeros = [(0, 0, 0), (top, bottom + rows % 2, 0), (left, right + columns % 2, 0), (0, 0, 0)]
    images = jax.lax.pad(images, jnp.zeros((), images.dtype), zeros)
    tiles = [tile for row in _sums_of_pixels(images, 1, high) for tile in _sums_of_pixels(row, 2, wide)]
    weights = (np.kron(POINTS, POINTS) @ kernel.reshape(9, -1)).reshape(16, inputs, outputs)
    options = {name: params[name] for name in ("precision", "preferred_element_type")}
    products = [
        jax.lax.dot_general(each, weight, (((3,), (0,)), ((), ())), **options)
        for each, weight in zip(tiles, weights, strict=True)
    ]
    down = [_sums_of_products(products[column::4]) for column in range(4)]
    result = jnp.stack([jnp.stack(_sums_of_products(row), 3) for row in zip(*down, strict=True)], 2)
    return result.reshape(n, 2 * high, 2 * wide, outputs)[:, :rows, :columns]


def _sums_of_pixels(images, axis, count):
    a, b, c, d = (jax.lax.slice_in_dim(images, first, first + 2 * count - 1, 2, axis) for first in range(4))
    return a - c, b + c, c - b, b - d


def _sums_of_products(products):
    a, b, c, d = products
    return a + b + c, b - c - d
