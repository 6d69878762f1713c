"""A model run again on images that differ from known ones inside of a window, computing only what the window reaches.

`windowed` runs the model once and keeps what it computed. For a changed image, an equation that looks at neighbouring
pixels gets the changed ones with known ones around them, and gives a patch that has grown a little; where patches would
cover most of the image, or an equation mixes all pixels, they are pasted into what is known and the rest runs as usual.
Where the patches of all windows lie is NumPy's to compute, before anything runs.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxcam._inputs import predicted
from jaxcam._loops import chunked_map
from jaxcam._rewrite import ELEMENTWISE, Program, bind, is_inexact, trace

SHARE = 0.6  # of the area: larger patches cost more to cut and paste than they spare
SLIDING = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
TRIVIAL = (1, 1, (0, 0), 1, 1)  # a window's size, stride, padding and dilations, along an axis on which it does nothing


class Patch(NamedTuple):
    """The part of a value `[m, h, w, ...]` that may differ from what is known; for window `i` it is at `starts[i]`."""

    values: jax.Array
    starts: np.ndarray

    @property
    def place(self):
        return self.starts, self.values.shape[1:3]


class Known(NamedTuple):
    """What a program computes for the images as they are, and for `m` changed ones, whose and where they are.

    The rules get each equation twice: as it is run, for `m` images, and the `original` of the program, which names what
    is known.
    """

    program: Program
    value: Callable  # of a variable
    padded: dict  # by the result of each equation that slides: its operand, and what it sees outside of it
    image: jax.Array  # [m]
    window: jax.Array  # [m]

    def around(self, value, patch: Patch, starts, size):
        """The patch, and what is known around it."""
        if _same(patch.place, (starts, size)):
            return patch.values
        corners = jnp.asarray(patch.starts - starts)[self.window]
        return _paste(_cut(value, self.image, jnp.asarray(starts)[self.window], size), patch.values, corners)

    def whole(self, variables, operands):
        """The operands, patches pasted into what is known."""

        def one(variable, operand):
            if not isinstance(operand, Patch):
                return operand
            value = self.value(variable)
            return self.around(value, operand, np.zeros_like(operand.starts), value.shape[1:3])

        return list(map(one, variables, operands))


class Slide(NamedTuple):
    """A convolution or pooling over two axes: result `i` looks at `extent` pixels from `stride i - low` on."""

    extent: np.ndarray
    stride: np.ndarray
    low: np.ndarray
    high: np.ndarray
    unpadded: dict  # the equation's parameters, without padding


def windowed(function: Callable, images, starts: np.ndarray, size: tuple[int, int]):
    """The output of `function` for `images [n, h, w, c]`, and `run` for images that differ from them in windows.

    `run(image, window, changed)` is the output for `changed [m, h, w, c]`, each of which differs from `images[image]`
    at most inside the window of `size` pixels that begins at `starts[window]`; `image` and `window` are `int[m]`.
    `function` treats every image by itself, however many there are. Derivatives of `run` are those of `function`.
    """
    program = _trace(function, images)
    value = program.run(images)
    # Here, for inside of a loop it would be padded again in every turn.
    padded = {each.outvars[0]: _padded(each, value) for each in program.equations if _slide(each) is not None}

    def run(image, window, changed):
        again = _trace(function, changed)
        if _signature(again) != _signature(program):
            return function(changed)  # another program for another number of images
        known = Known(program, value, padded, image, window)
        first = _cut(changed, jnp.arange(len(changed)), jnp.asarray(starts)[window], size)
        values = dict(zip(again.jaxpr.constvars, again.consts, strict=True))
        values[again.jaxpr.invars[0]] = Patch(first, starts)

        def read(variables):
            return [each.val if isinstance(each, Literal) else values[each] for each in variables]

        for equation, original in zip(again.equations, program.equations, strict=True):
            operands = read(equation.invars)
            results = _patched(known, equation, original, operands)
            if results is None:
                results = bind(equation, known.whole(original.invars, operands))
            values.update(zip(equation.outvars, results, strict=True))
        outputs = known.whole(program.jaxpr.outvars, read(again.jaxpr.outvars))
        return _with_derivatives_of(jax.tree.unflatten(again.structure, outputs), function(changed))

    return program.output(value), run


@jax.custom_jvp
def _with_derivatives_of(outputs, same):
    """The outputs; where nothing is differentiated, the compiler drops what computes the `same` in another way."""
    return outputs


@_with_derivatives_of.defjvp
def _derivatives(primals, tangents):
    return _with_derivatives_of(*primals), tangents[1]


def _signature(program: Program) -> list:
    """What a program does, but for the shapes."""

    def literals(equation):
        return [np.asarray(each.val).tobytes() for each in equation.invars if isinstance(each, Literal)]

    return [(equation.primitive, literals(equation)) for equation in program.equations]


def covered(size: int, window: int, stride: int) -> np.ndarray:
    """`[windows, size]`: one where a window covers a pixel of a side, together all; the last one may be cut off."""
    starts = np.arange(1 + max(0, -(-(size - window) // stride)))[:, None] * stride
    pixels = np.arange(size)
    return ((pixels >= starts) & (pixels < starts + window)).astype(np.float32)


def drops_without(model, images, targets, fill, rows, columns, score, chunk_size):
    """How far the score drops when `fill` takes the place of the pixels in a row and a column window, `[n, a, b]`.

    `rows [a, h]` and `columns [b, w]` are those of `covered`; `targets=None` are the predicted classes.
    """
    sides = rows, columns
    size = tuple(int(each.sum(1).max()) for each in sides)
    starts = [np.minimum(each.argmax(1), each.shape[1] - side) for each, side in zip(sides, size, strict=True)]
    starts = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2)

    def of_images(which):
        originals, fills = images[which], fill[which]
        logits, run = windowed(model, originals, starts, size)
        classes = predicted(logits) if targets is None else targets[which]

        def without(image, window):
            row, column = jnp.divmod(window, len(columns))
            gone = jnp.asarray(rows)[row, :, None] * jnp.asarray(columns)[column, None]
            changed = jnp.where(gone[..., None] > 0, fills[image], originals[image])
            return score(run(image, window, changed), classes[image]).astype(jnp.float32)

        scores = chunked_map(without, (len(originals), len(starts)), chunk_size)
        return score(logits, classes).astype(jnp.float32)[:, None] - scores

    return chunked_map(of_images, images.shape[:1], chunk_size).reshape(-1, len(rows), len(columns))


def _trace(function, images) -> Program:
    """Loops stay closed: unrolled, a long one would take long to compile."""
    return trace(function, images, keep=lambda equation: equation.primitive.name == "scan")


def _patched(known: Known, equation, original, operands) -> list[Patch] | None:
    """The patches that an equation makes of patches; `None` where it needs whole values, or where they are as good."""
    rule = RULES.get(equation.primitive.name)
    patches = [i for i, each in enumerate(operands) if isinstance(each, Patch)]
    if rule is None or not patches or patches != known.program.active(original):  # the others are whole already
        return None
    return rule(known, equation, original, operands)


def _sliding(known: Known, equation, original, operands):
    """Convolutions and pooling: the results that see the patch, from all that they see."""
    slide, (patch, *rest) = _slide(equation), operands
    if slide is None or any(isinstance(each, Patch) for each in rest):
        return None
    outside, shape = known.padded[original.outvars[0]], equation.outvars[0].aval.shape[1:3]
    patch = Patch(patch.values, patch.starts + slide.low)
    first = -(-(patch.starts - slide.extent + 1) // slide.stride)
    last = (patch.starts + patch.place[1] - 1) // slide.stride
    starts, size = _cover(shape, (first, last - first + 1))
    if np.prod(size) > SHARE * np.prod(shape):
        return None
    seen = starts * slide.stride, (size - 1) * slide.stride + slide.extent
    held = _cover(outside.shape[1:3], seen, patch.place)
    values = known.around(outside, patch, *held)
    if not _same(seen, held):
        values = _cut(values, jnp.arange(len(values)), jnp.asarray(seen[0] - held[0])[known.window], seen[1])
    return [Patch(bind(equation.replace(params=slide.unpadded), [values, *rest])[0], starts)]


def _slide(equation) -> Slide | None:
    """An equation as something that slides over the two axes after the first."""
    name, params = equation.primitive.name, equation.params
    if name not in SLIDING:
        return None
    values = equation.invars[0].aval
    if name == "conv_general_dilated":
        numbers, kernel = params["dimension_numbers"], equation.invars[1].aval.shape
        fits = numbers.lhs_spec == numbers.out_spec == (0, 3, 1, 2) and params["batch_group_count"] == 1
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        found = [[kernel[axis] for axis in numbers.rhs_spec[2:]], *(params[each] for each in names)]
    else:
        names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
        others = [params[each][:1] + params[each][3:] for each in names]
        fits = values.ndim > 2 and all(set(each) == {trivial} for each, trivial in zip(others, TRIVIAL, strict=True))
        found = [params[each][1:3] for each in names]
    sizes, strides, padding, between, spread = found
    if not fits or max(between) > 1 or min(map(min, padding)) < 0:
        return None
    if not is_inexact(values) or values.dtype.itemsize < 2:  # without an infinity to pad with
        return None
    unpadded = {**params, "padding": ((0, 0),) * len(params["padding"])}
    return Slide((np.array(sizes) - 1) * spread + 1, np.array(strides), *np.array(padding).T, unpadded)


def _padded(equation, value):
    """The operand of an equation that slides, with its padding."""
    slide, values = _slide(equation), value(equation.invars[0])
    outside = jnp.asarray(-np.inf if equation.primitive.name == "reduce_window_max" else 0, values.dtype)
    spatial = [(*each, 0) for each in zip(slide.low, slide.high, strict=True)]
    return jax.lax.pad(values, outside, [(0, 0, 0), *spatial, *[(0, 0, 0)] * (values.ndim - 3)])


def _pointwise(known: Known, equation, original, operands):
    """What does the same at every pixel: all operands at the patches' pixels."""
    patches = [i for i, each in enumerate(operands) if isinstance(each, Patch)]
    if not _is_pointwise(equation, patches):
        return None
    shape = equation.outvars[0].aval.shape[1:3]
    starts, size = _cover(shape, *(operands[i].place for i in patches))

    def at_pixels(variable, operand):
        if isinstance(operand, Patch):
            return known.around(known.value(variable), operand, starts, size)
        if equation.primitive.name == "dot_general" or np.ndim(operand) == 0 or operand.shape[1:3] == (1, 1):
            return operand
        if _is_uniform(known.program, variable):
            return operand[:, : size[0], : size[1]]
        value = known.value(variable)
        value = jnp.broadcast_to(value, (*original.outvars[0].aval.shape[:3], *value.shape[3:]))
        return _cut(value, known.image, jnp.asarray(starts)[known.window], size)

    operands = [at_pixels(*each) for each in zip(original.invars, operands, strict=True)]
    if "shape" in equation.params:
        n, _, _, *rest = equation.params["shape"]
        equation = equation.replace(params={**equation.params, "shape": (n, *map(int, size), *rest)})
    return [Patch(each, starts) for each in bind(equation, operands)]


def _is_pointwise(equation, patches) -> bool:
    """Whether the pixels of the operands `patches` stay in the two axes after the first, and do not meet."""
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    if len(shape) < 3 or any(equation.invars[i].aval.shape[:3] != shape[:3] for i in patches):
        return False
    if "axes" in params:  # of a reduction
        return all(axis > 2 for axis in params["axes"])
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][:3] == (0, 1, 2)
    if name == "dot_general":
        (contracted, _), (batch, _) = params["dimension_numbers"]
        return patches == [0] and all(axis > 2 for axis in contracted) and not batch
    return True


def _is_uniform(program, variable) -> bool:
    """Whether a constant is known to be the same at every pixel."""
    equation = program.made_by.get(variable)
    if equation is None or equation.primitive.name != "broadcast_in_dim":
        return False
    shape = equation.invars[0].aval.shape
    return all(shape[i] == 1 for i, axis in enumerate(equation.params["broadcast_dimensions"]) if axis in (1, 2))


def _moved(known: Known, equation, original, operands):
    """Padding: the pixels are the same, further in."""
    patch, config = operands[0], equation.params["padding_config"]
    spatial, rest = np.array(config[1:3]), config[:1] + config[3:]
    if len(config) < 3 or any(map(any, rest)) or spatial.min() < 0 or spatial[:, 2].any():
        return None
    return [Patch(patch.values, patch.starts + spatial[:, 0])]


RULES = {
    **dict.fromkeys(ELEMENTWISE | {"broadcast_in_dim", "copy", "select_n"}, _pointwise),
    **dict.fromkeys(("concatenate", "dot_general", "reduce_max", "reduce_min", "reduce_sum"), _pointwise),
    **dict.fromkeys(SLIDING, _sliding),
    "pad": _moved,
}


def _cover(shape, *places):
    """Places of one size for all windows, inside of `shape`, that hold every one of the given ones."""
    first = np.maximum(np.min([starts for starts, _ in places], 0), 0)
    last = np.minimum(np.max([starts + size for starts, size in places], 0), shape)
    size = np.maximum((last - first).max(0), 1)
    return np.clip(first, 0, shape - size), size


def _same(place, other) -> bool:
    return np.array_equal(place[0], other[0]) and np.array_equal(place[1], other[1])


def _cut(values, index, corners, size):
    """The part of `values[index]` that has `size` pixels from `corners` on, for each of them."""

    def one(index, corner):
        start = (index, *corner, *(np.int32(0),) * (values.ndim - 3))
        return jax.lax.dynamic_slice(values, start, (1, *map(int, size), *values.shape[3:]))[0]

    return jax.vmap(one)(index.astype(jnp.int32), corners.astype(jnp.int32))


@jax.vmap
def _paste(values, patch, corner):
    start = (*corner.astype(jnp.int32), *(np.int32(0),) * (values.ndim - 2))
    return jax.lax.dynamic_update_slice(values, patch, start)
