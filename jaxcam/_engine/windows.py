"""A model run again on images that differ from known ones inside of a window, computing only what the window reaches.

`windowed` runs the model once and keeps what it computed. For a changed image, an equation that looks at neighbouring
pixels gets the changed ones with known ones around them, and gives a patch that has grown a little; where patches would
cover most of the image, or an equation mixes all pixels, they are pasted into what is known and the rest runs as usual.
Where the patches of all windows lie is NumPy's to compute, before anything runs. The windows of all images are the
same: what is known is cut at their places for every image alike, so that an axis of images that is sharded stays so.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxcam._array import flat, repeated
from jaxcam._engine.compiled import config, spread
from jaxcam._engine.program import ELEMENTWISE, Program, bind, is_inexact, trace

SHARE = 0.6  # of the area: larger patches cost more to cut and paste than they spare
SLIDING = ("conv_general_dilated", "reduce_window_max", "reduce_window_sum")
SMALL = 32  # pixels: only images of a side below this are ever too small for a model
TRIVIAL = (1, 1, (0, 0), 1, 1)  # a window's size, stride, padding and dilations, along an axis on which it does nothing


class Patch(NamedTuple):
    """The part of a value `[n * m, *space, ...]` that may differ from what is known; of window `i` at `starts[i]`."""

    values: jax.Array
    starts: np.ndarray

    @property
    def axes(self) -> slice:
        """The axes of space."""
        return slice(1, 1 + self.starts.shape[1])

    @property
    def place(self):
        return self.starts, self.values.shape[self.axes]


class Known(NamedTuple):
    """What a program computes for the `n` images as they are, and the `m` windows in which copies of each are changed.

    The rules get each equation twice: as it is run, for `n * m` images, and the `original` of the program, which names
    what is known.
    """

    program: Program
    value: Callable  # of a variable
    padded: dict  # by the result of each equation that slides: its operand, and what it sees outside of it
    window: jax.Array  # [m]

    def cut(self, value, starts, size):
        """A known value at the windows' places."""
        return flat(_cut(value, jnp.asarray(starts)[self.window], size))

    def around(self, value, patch: Patch, starts, size):
        """The patch, and what is known around it."""
        if _same(patch.place, (starts, size)):
            return patch.values
        known, changed = (_copies(each, len(value)) for each in (self.cut(value, starts, size), patch.values))
        return flat(_paste(known, changed, jnp.asarray(patch.starts - starts)[self.window]))

    def whole(self, variables, operands):
        """The operands, patches pasted into what is known."""

        def one(variable, operand):
            if not isinstance(operand, Patch):
                return operand
            value = self.value(variable)
            return self.around(value, operand, np.zeros_like(operand.starts), value.shape[operand.axes])

        return list(map(one, variables, operands))


class Slide(NamedTuple):
    """A convolution or pooling over the axes of space: result `i` looks at `extent` pixels from `stride i - low` on."""

    extent: np.ndarray
    stride: np.ndarray
    low: np.ndarray
    high: np.ndarray
    unpadded: dict  # the equation's parameters, without padding


def windowed(model: Callable, images, starts: np.ndarray, size: tuple[int, ...]):
    """The output of `model` for `images [n, *space, c]`, and `run` for copies that differ from them in windows.

    `run(window, changed)` is the output for `changed [n, m, *space, c]`, flattened: `n * m` rows, image by image. Copy
    `changed[:, i]` differs from its image at most inside the window of `size` pixels that begins at
    `starts[window[i]]`; `window` is `int[m]`. The model treats every image by itself, however many there are; `Rows` in
    it are repeated for the copies. Derivatives of `run` are those of the model.
    """

    def whole(window, changed):
        return repeated(model, changed.shape[1])(spread(flat(changed)))

    if not config.rewrite or not isinstance(images.shape[0], int):
        return model(images), whole
    rank = len(size)
    program = _trace(model, images)
    value = program.run(images)
    # Here, for inside of a loop it would be padded again in every turn.
    slides = ((each, _slide(each, rank)) for each in program.equations)
    padded = {each.outvars[0]: _padded(each, slide, value, rank) for each, slide in slides if slide}

    def run(window, changed):
        again = _trace(repeated(model, changed.shape[1]), flat(changed))
        if _signature(again) != _signature(program):
            return whole(window, changed)  # another program for another number of images
        known = Known(program, value, padded, window)
        first = _cut_copies(changed, jnp.asarray(starts)[window], size)
        values = dict(zip(again.jaxpr.constvars, again.consts, strict=True))
        values[again.jaxpr.invars[0]] = Patch(spread(flat(first)), starts)

        def read(variables):
            return [each.val if isinstance(each, Literal) else values[each] for each in variables]

        for equation, original in zip(again.equations, program.equations, strict=True):
            operands = read(equation.invars)
            results = _patched(known, equation, original, operands)
            if results is None:
                results = bind(equation, known.whole(original.invars, operands))
            values.update(zip(equation.outvars, results, strict=True))
        outputs = known.whole(program.jaxpr.outvars, read(again.jaxpr.outvars))
        return _with_derivatives_of(jax.tree.unflatten(again.structure, outputs), whole(window, changed))

    return program.output(value), run


@jax.custom_jvp
def _with_derivatives_of(outputs, same):
    """The outputs; where nothing is differentiated, the compiler drops what computes the `same` in another way."""
    return outputs


@_with_derivatives_of.defjvp
def _derivatives(primals, tangents):
    return _with_derivatives_of(*primals), tangents[1]


def check_large_enough(model, images) -> None:
    """An error for images so small that a convolution or pooling of the model returns nothing: all scores were NaN."""
    space = images.shape[1:-1]
    if min(space) >= SMALL:
        return
    sliding = (each.outvars[0].aval.shape for each in _trace(model, images).equations if each.primitive.name in SLIDING)
    if any(0 in shape[1:] for shape in sliding):
        raise ValueError(
            f"Images of {' x '.join(map(str, space))} pixels are too small for this model: a convolution or pooling in "
            "it has no place for its window. Enlarge them."
        )


def _signature(program: Program) -> list:
    """What a program does, but for the shapes."""

    def literals(equation):
        return [np.asarray(each.val).tobytes() for each in equation.invars if isinstance(each, Literal)]

    return [(equation.primitive, literals(equation)) for equation in program.equations]


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
    patch, *rest = operands
    slide, outside = _slide(equation, patch.starts.shape[1]), known.padded.get(original.outvars[0])
    if slide is None or outside is None or any(isinstance(each, Patch) for each in rest):
        return None
    shape = equation.outvars[0].aval.shape[patch.axes]
    patch = Patch(patch.values, patch.starts + slide.low)
    first = -(-(patch.starts - slide.extent + 1) // slide.stride)
    last = (patch.starts + patch.place[1] - 1) // slide.stride
    starts, size = _cover(shape, (first, last - first + 1))
    if np.prod(size) > SHARE * np.prod(shape):
        return None
    seen = starts * slide.stride, (size - 1) * slide.stride + slide.extent
    held = _cover(outside.shape[patch.axes], seen, patch.place)
    values = known.around(outside, patch, *held)
    if not _same(seen, held):
        corners = jnp.asarray(seen[0] - held[0])[known.window]
        values = flat(_cut_copies(_copies(values, len(outside)), corners, seen[1]))
    return [Patch(bind(equation.replace(params=slide.unpadded), [values, *rest])[0], starts)]


def _slide(equation, rank: int) -> Slide | None:
    """An equation as something that slides over the `rank` axes after the first."""
    name, params = equation.primitive.name, equation.params
    if name not in SLIDING:
        return None
    values = equation.invars[0].aval
    if name == "conv_general_dilated":
        numbers, kernel = params["dimension_numbers"], equation.invars[1].aval.shape
        pixels = (0, rank + 1, *range(1, rank + 1))
        fits = numbers.lhs_spec == numbers.out_spec == pixels and params["batch_group_count"] == 1
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        found = [[kernel[axis] for axis in numbers.rhs_spec[2:]], *(params[each] for each in names)]
    else:
        names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
        others = [params[each][:1] + params[each][rank + 1 :] for each in names]
        fits = values.ndim > rank and all(set(each) == {trivial} for each, trivial in zip(others, TRIVIAL, strict=True))
        found = [params[each][1 : rank + 1] for each in names]
    sizes, strides, padding, between, dilation = found
    if not fits or max(between) > 1 or min(map(min, padding)) < 0:
        return None
    if not is_inexact(values) or values.dtype.itemsize < 2:  # without an infinity to pad with
        return None
    unpadded = {**params, "padding": ((0, 0),) * len(params["padding"])}
    low, high = np.array(padding).T
    return Slide((np.array(sizes) - 1) * dilation + 1, np.array(strides), low, high, unpadded)


def _padded(equation, slide: Slide, value, rank: int):
    """The operand of an equation that slides, with its padding."""
    values = value(equation.invars[0])
    outside = jnp.asarray(-np.inf if equation.primitive.name == "reduce_window_max" else 0, values.dtype)
    spatial = [(*each, 0) for each in zip(slide.low, slide.high, strict=True)]
    return jax.lax.pad(values, outside, [(0, 0, 0), *spatial, *[(0, 0, 0)] * (values.ndim - 1 - rank)])


def _pointwise(known: Known, equation, original, operands):
    """What does the same at every pixel: all operands at the patches' pixels."""
    patches = [i for i, each in enumerate(operands) if isinstance(each, Patch)]
    axes = operands[patches[0]].axes
    if not _is_pointwise(equation, patches, axes.stop):
        return None
    starts, size = _cover(equation.outvars[0].aval.shape[axes], *(operands[i].place for i in patches))

    def at_pixels(variable, operand):
        if isinstance(operand, Patch):
            return known.around(known.value(variable), operand, starts, size)
        if equation.primitive.name == "dot_general" or np.ndim(operand) == 0 or set(operand.shape[axes]) == {1}:
            return operand
        if _is_uniform(known.program, variable, axes):
            return operand[(slice(None), *map(slice, size))]
        value = known.value(variable)
        value = jnp.broadcast_to(value, (*original.outvars[0].aval.shape[: axes.stop], *value.shape[axes.stop :]))
        return known.cut(value, starts, size)

    operands = [at_pixels(*each) for each in zip(original.invars, operands, strict=True)]
    if "shape" in equation.params:
        n, *rest = equation.params["shape"]
        equation = equation.replace(params={**equation.params, "shape": (n, *map(int, size), *rest[len(size) :])})
    return [Patch(each, starts) for each in bind(equation, operands)]


def _is_pointwise(equation, patches, first: int) -> bool:
    """Whether the pixels of the operands `patches` stay in the axes before `first`, and do not meet."""
    name, params, shape = equation.primitive.name, equation.params, equation.outvars[0].aval.shape
    if len(shape) < first or any(equation.invars[i].aval.shape[:first] != shape[:first] for i in patches):
        return False
    if "axes" in params:  # of a reduction
        return all(axis >= first for axis in params["axes"])
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][:first] == tuple(range(first))
    if name == "dot_general":
        (contracted, _), (batch, _) = params["dimension_numbers"]
        return patches == [0] and all(axis >= first for axis in contracted) and not batch
    return True


def _is_uniform(program, variable, axes: slice) -> bool:
    """Whether a constant is known to be the same at every pixel."""
    equation = program.made_by.get(variable)
    if equation is None or equation.primitive.name != "broadcast_in_dim":
        return False
    shape, places = equation.invars[0].aval.shape, range(axes.start, axes.stop)
    return all(shape[i] == 1 for i, axis in enumerate(equation.params["broadcast_dimensions"]) if axis in places)


def _moved(known: Known, equation, original, operands):
    """Padding: the pixels are the same, further in."""
    patch, config = operands[0], equation.params["padding_config"]
    spatial, rest = np.array(config[patch.axes]), config[:1] + config[patch.axes.stop :]
    if len(config) < patch.axes.stop or any(map(any, rest)) or spatial.min() < 0 or spatial[:, 2].any():
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


def _copies(values, n: int):
    """`[n * m, ...]` as `[n, m, ...]`."""
    return values.reshape(n, -1, *values.shape[1:])


def _part(size, values, corner):
    start = (*corner, *(np.int32(0),) * (values.ndim - len(size)))
    return jax.lax.dynamic_slice(values, start, (*map(int, size), *values.shape[len(size) :]))


def _cut(values, corners, size):
    """The parts of each of `values [n, ...]` that have `size` pixels from `corners [m]` on, `[n, m, ...]`."""
    parts = jax.vmap(partial(_part, size), (None, 0))
    return jax.vmap(parts, (0, None))(values, corners.astype(jnp.int32))


def _cut_copies(copies, corners, size):
    """The part of each of `copies [n, m, ...]` that has `size` pixels from its one of `corners [m]` on."""
    parts = jax.vmap(partial(_part, size))
    return jax.vmap(parts, (0, None))(copies, corners.astype(jnp.int32))


def _paste(copies, patches, corners):
    """`copies [n, m, ...]`, each with its patch from its one of `corners [m]` on."""

    def one(values, patch, corner):
        start = (*corner, *(np.int32(0),) * (values.ndim - len(corner)))
        return jax.lax.dynamic_update_slice(values, patch, start)

    return jax.vmap(jax.vmap(one), (0, 0, None))(copies, patches, corners.astype(jnp.int32))
