"""Reach inside an unmodified model: activations at a layer, what is added or put there, the model above and below.

A `Tap` is a pytree: weights, array arguments and context are its leaves, the network and the layer names are static, so
it goes through `jit` like any other argument. One protocol, `Network`, runs a model of some framework while a visitor
sees every call of a layer; the visitors below read activations, biases and attention weights, or change what a layer
returns. The gradient with respect to a perturbation that is added at a layer is the gradient with respect to its
activation, and the compiler drops everything below the layer from the backward pass.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxcam._array import Rows
from jaxcam._engine import by_itself
from jaxcam._errors import unknown


class Layer(NamedTuple):
    """One call of a layer, as a framework shows it to a visitor."""

    path: str
    call: Callable  # runs it
    alone: Callable  # runs it outside of the model, with the same weights
    owned: Callable  # () -> the names of the arrays that it owns itself, not through layers inside
    attend: Callable | None = None  # runs it, returns (output, attention weights); `None` where it is no attention
    batched: bool = True  # whether what it takes and returns has an axis of images
    shape: Callable = jnp.shape  # of an array that it returned: the shape that a tap shows, its axis of images in front


LISTED = "`jaxcam.layers(model, images)` lists them all; on the command line, `jaxcam layers MODEL`."


def size(variables) -> str:
    """How many numbers training would change, without statistics that are kept apart, and which devices hold them.

    Of what is traced, or NumPy's, the number alone.
    """
    trained = jax.tree.leaves(variables.get("params", variables) if isinstance(variables, Mapping) else variables)
    number = sum(math.prod(getattr(each, "shape", ())) for each in trained)
    held = [each for each in trained if isinstance(each, jax.Array) and not isinstance(each, Tracer)]
    devices = list({device for each in held for device in each.devices()})
    where = [f"{len(devices)} x {each.platform}" if devices[1:] else f"{each.platform}:{each.id}" for each in devices]
    return f"{number:,} parameters" + "".join(f" on {place}" for place in where[:1])


class Inputs(NamedTuple):
    """Further inputs of a model, with a row for each image."""

    placed: tuple  # after the images
    named: dict


class Network:
    """A model of one framework; equal for equal models, and hashable, as what is static must be.

    Attributes:
      shows_layers: whether the visitor sees every layer that owns arrays.
    """

    shows_layers = True

    @property
    def title(self) -> str:
        """What a person calls it."""
        return type(self).__name__

    def run(self, variables, images, inputs: Inputs, options: dict, visit: Callable, rows: Any) -> tuple[Any, dict]:
        """The output, and what the visitor kept: a list for each path, in the order of the calls.

        `visit(layer, args, kwargs, rows) -> (output, kept)` stands in the place of each layer's call; what it keeps is
        `None`, or one array whose first axis is that of images. `rows` is a tree of arrays with a row for each image,
        handed on to it. `options` are the model's keyword arguments, the same for all images.
        """
        raise NotImplementedError

    def resolve(self, model, layer: str) -> str:
        """The path by which the visitor sees the layer that the user names."""
        return layer


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables", "arrays", "context"],
    meta_fields=["network", "layers", "options", "reshape", "output"],
)
@dataclass(frozen=True, eq=False)
class Tap:
    """A model with a hook on one or several layers; `Tap(images)` gives its output. Made by `jaxcam.tap`.

    Attributes:
      variables: the weights, as pytree leaves.
      arrays: those keyword arguments of the model that hold arrays, as pytree leaves.
      context: further inputs of the model, with a row for each image, as pytree leaves.
      network: the model without its weights (static).
      layers: dotted paths of the tapped layers (static).
      options: the model's other keyword arguments (static).
      reshape: turns what the layers return into maps, as `jaxcam.tokens` does; `None` where they are maps (static).
      output: picks what is explained of the model's output (static).
    """

    variables: Any
    arrays: dict[str, Any]
    context: Any
    network: Network
    layers: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    reshape: Callable | None = None
    output: Any = None

    def __repr__(self):
        """In a line, not weight by weight."""
        layers = "".join(f"{layer!r}, " for layer in self.layers)
        return f"Tap({self.network.title}, {layers}{size(self.variables)})"

    @by_itself
    def __call__(self, images):
        """The model's output, `[n, k]` for a classifier; of several outputs what `output` picks."""
        return self.run(images, layers=())[0]

    def features(self, images) -> Any:
        """The model up to the layer: what that returns, `[n, *cells, k]`; a tuple where several layers are tapped."""
        activations = self.run(images)[1]
        return activations[0] if len(activations) == 1 else activations

    def head(self, images) -> "Head":
        """The model from the layer on, a function of what the layer returns for `images`.

        It is a pytree like the tap, so every method takes it for a model, and activations for images. What lies below
        the layer and does not bypass it is dropped by the compiler.

        Raises:
          ValueError: several layers are tapped.

        Example:
          >>> head, activations = model.head(images), model.features(images)
          >>> attributions = jaxcam.integrated_gradients(head, activations)
        """
        if len(self._tapped()) != 1:
            raise ValueError(f"head begins at one layer, and {len(self.layers)} are tapped; tap one of them.")
        return Head(self, Rows(images))

    def run(self, images, values: Sequence | None = None, *, layers: tuple[str, ...] | None = None, put: bool = False):
        """Output and activations (a tuple, one for each layer).

        `values[i]` is added to what layer `i` returns, or with `put` stands in its place.
        """
        if layers is None:
            layers = self._tapped()
        visitor = Activations(layers, put)
        output, kept = self._visited(images, visitor, None if values is None else tuple(values))
        return self._picked(output), visitor.select(kept)

    def gradients(self, images, scalar: Callable):
        """Output, activations and the gradient of `scalar(output)` with respect to each of the activations.

        With a scalar that sums one score per image, row `i` of a gradient belongs to image `i` alone.
        """

        def perturbed(perturbations):
            output, activations = self.run(images, perturbations)
            return scalar(output), (output, activations)

        # `zeros_like` of the activation itself: under `shard_map` it varies over the mesh as the activation does, where
        # plain zeros would gather the sum of all shards. Only the shape is used, so XLA drops this first pass.
        zeros = jax.tree.map(jnp.zeros_like, self.run(images)[1])
        gradients, (output, activations) = jax.grad(perturbed, has_aux=True)(zeros)
        return output, activations, gradients

    def biases(self, images, perturbations: Sequence | None = None):
        """Output, and the bias of every layer that has one (a tuple, in the order of the calls).

        The bias of a layer is what it returns for an input of zeros: that of a convolution or dense layer, the shift of
        a BatchNorm with its running statistics, a position embedding. It has the shape of what the layer returns.
        Layers are the innermost ones that own arrays; one that owns a kernel alone has no bias. `perturbations[i]` is
        added to what layer `i` returns, so that the gradient can be taken there.
        """
        self._check_shows_layers("biases")
        visitor = Biases()
        output, kept = self._visited(images, visitor, None if perturbations is None else tuple(perturbations))
        return self._picked(output), visitor.in_order(kept)

    def attention(self, images):
        """The weights `[n, heads, queries, keys]` of every attention layer (a tuple, in the order of the calls)."""
        self._check_shows_layers("attention weights")
        visitor = Attention()
        return visitor.in_order(self._visited(images, visitor)[1])

    def shapes(self, images) -> dict[str, tuple[int, ...]]:
        """The shape that each layer returns, `{path: shape}`, in the order of the calls; nothing is computed."""
        visitor = Activations((), False)
        jax.eval_shape(lambda tap, images: tap._visited(images, visitor)[0], self, images)
        return visitor.listed(images)

    def _visited(self, images, visitor, rows=None):
        check_rows(self.context, images)
        options = {**dict(self.options), **self.arrays}
        return self.network.run(self.variables, images, as_inputs(self.context), options, visitor, rows)

    def _picked(self, output):
        return output if self.output is None else _pick(output, self.output)

    def _tapped(self) -> tuple[str, ...]:
        if not self.layers:
            raise ValueError(
                "This needs a layer, and a tap of one function has none. Give two functions, `jaxcam.tap((features, "
                "head), variables)`, or the model itself and the name of a layer."
            )
        return self.layers

    def _check_shows_layers(self, what: str) -> None:
        if not self.network.shows_layers:
            raise ValueError(
                f"This reads the {what} of every layer, and a tap of functions does not show its layers. "
                "Tap the model itself, or use another method."
            )


@partial(jax.tree_util.register_dataclass, data_fields=["tap", "images"], meta_fields=[])
@dataclass(frozen=True, eq=False)
class Head:
    """The model from a tapped layer on, `activations -> output`. Made by `Tap.head`."""

    tap: Tap
    images: Rows

    def __call__(self, activations):
        return self.tap.run(self.images.array, [activations], put=True)[0]


def as_inputs(context) -> Inputs:
    """A dict of context goes in by name, a tuple by place, and anything else as the second input."""
    given = jax.tree.map(lambda rows: rows.array, context, is_leaf=partial(_is_a, Rows))
    if isinstance(given, dict):
        return Inputs((), given)
    if given is None:
        return Inputs((), {})
    return Inputs(tuple(given) if isinstance(given, tuple | list) else (given,), {})


def check_rows(context, images) -> None:
    """Each array of the context must have a row for each image, where both counts are known."""
    for rows in jax.tree.leaves(context, is_leaf=partial(_is_a, Rows)):
        counts = jnp.shape(rows.array)[:1] + images.shape[:1]
        if len(counts) < 2 or (all(isinstance(each, int) for each in counts) and len(set(counts)) > 1):
            raise ValueError(
                f"context holds an array {jnp.shape(rows.array)}, and there are {images.shape[0]} images: it must "
                "have a row for each. What is the same for all images is an argument: jaxcam.tap(..., name=array)."
            )


def _is_a(kind, value) -> bool:
    return isinstance(value, kind)


def _pick(output, place):
    """What a function, a key, an index or a name picks of a model's output."""
    if callable(place):
        return place(output)
    is_one = is_array(output)
    if not is_one and isinstance(place, str) and not hasattr(output, "keys") and hasattr(output, place):
        return getattr(output, place)
    try:
        if is_one:  # an index would pick an image
            raise TypeError
        return output[place]
    except (KeyError, IndexError, TypeError):
        has = f"an array {output.shape}" if is_one else f"a {type(output).__name__}"
        has = f"a dict with the keys {list(output)}" if hasattr(output, "keys") else has
        has += f" of {len(output)}" if isinstance(output, tuple | list) else ""
        raise ValueError(
            f"output is {place!r}, and the model returns {has}. Pick by a key or an index that it has, or by a "
            'function, such as output=lambda out: out["logits"].'
        ) from None


class Activations:
    """Sees every call of one forward pass; at the tapped ones it keeps what they return, and adds or puts values."""

    def __init__(self, layers: tuple[str, ...], put: bool):
        self.layers = layers
        self.put = put
        self.calls: dict[str, list] = {}  # path -> the number of the layers that are tapped there, and of which call
        for number, (path, call) in enumerate(map(_parse, layers)):
            self.calls.setdefault(path, []).append((number, call or 0))
        self.shapes: dict[str, list] = {}  # path -> the shape of what each of its calls returned

    def __call__(self, layer: Layer, args, kwargs, rows):
        output = layer.call(*args, **kwargs)
        shapes = self.shapes.setdefault(layer.path, [])
        tapped = self.calls.get(layer.path, ())
        if rows is not None:
            for number, call in tapped:
                if call == len(shapes):
                    output = _changed(output, rows[number], self.put)
        leaf = _activation(output)
        shapes.append(None if leaf is None else layer.shape(leaf))
        return output, leaf if tapped else None

    def select(self, kept: dict[str, Sequence]) -> tuple:
        """The activation of each layer, from what was kept of each path, one entry for each call."""
        return tuple(self._select(layer, kept) for layer in self.layers)

    def listed(self, images) -> dict[str, tuple[int, ...]]:
        """The shape that each layer's first call returned."""
        n = images.shape[0]
        return {path: (n, *shapes[0][1:]) for path, shapes in self.shapes.items() if shapes[0] is not None}

    def _select(self, layer, kept):
        path, index = _parse(layer)
        shapes, values = self.shapes.get(path, ()), kept.get(path, ())
        calls = len(shapes)
        if calls == 0:
            raise unknown("layer", layer, self.shapes, LISTED)
        expected = [len(shape) for shape in shapes if shape is not None]
        if [value.ndim for value in values] != expected:
            raise in_a_loop(layer, "Tap a layer before or after the loop, or build the model without it.")
        if index is None and calls > 1:
            raise ValueError(
                f"Layer {path!r} is called {calls} times; name one call, '{path}[0]' ... '{path}[{calls - 1}]'."
            )
        if (index or 0) >= calls:
            raise ValueError(f"Layer {path!r} is called {calls} times, so there is no {layer!r}; calls count from 0.")
        if shapes[index or 0] is None:
            raise ValueError(
                f"Layer {layer!r} does not return one floating-point array; tap a layer inside or after it."
            )
        return values[sum(shape is not None for shape in shapes[: index or 0])]


@dataclass
class Biases:
    """Finds the innermost layers that own arrays, in the order of their calls, and adds values to what they return."""

    paths: list[str] = field(default_factory=list)

    def __call__(self, layer: Layer, args, kwargs, rows):
        found = len(self.paths)
        output = layer.call(*args, **kwargs)
        given = [*((i, each) for i, each in enumerate(args)), *kwargs.items()]
        first: Any = next(((place, each) for place, each in given if is_array(each)), (None, None))
        place, x = first
        is_innermost = found == len(self.paths)
        if not (is_innermost and is_inexact(x) and is_inexact(output)) or set(layer.owned()) <= {"kernel", "weight"}:
            return output, None
        zeros = jnp.zeros_like(x[:1] if layer.batched else x)  # one image is enough: the bias is the same for all
        args = [zeros if i == place else each for i, each in enumerate(args)]
        bias = layer.alone(*args, **{name: zeros if name == place else each for name, each in kwargs.items()})
        self.paths.append(layer.path)
        return output if rows is None else output + rows[found], jnp.broadcast_to(bias, output.shape)

    def in_order(self, kept: dict[str, Sequence]) -> tuple:
        return _in_order(self.paths, kept)


@dataclass
class Attention:
    """Keeps the weights of every attention layer."""

    paths: list[str] = field(default_factory=list)

    def __call__(self, layer: Layer, args, kwargs, rows):
        if layer.attend is None:
            return layer.call(*args, **kwargs), None
        self.paths.append(layer.path)
        return layer.attend(*args, **kwargs)

    def in_order(self, kept: dict[str, Sequence]) -> tuple:
        return _in_order(self.paths, kept)


def _in_order(paths: Sequence[str], kept: dict[str, Sequence]) -> tuple:
    """What was kept of the calls of `paths`, in their order."""
    values = {path: list(kept.get(path, ())) for path in paths}
    for path in paths:
        if len(values[path]) != paths.count(path):
            raise in_a_loop(path, "Build the model without the loop.")
    counts = dict.fromkeys(paths, 0)
    found = []
    for path in paths:
        found.append(values[path][counts[path]])
        counts[path] += 1
    return tuple(found)


def in_a_loop(layer: str, advice: str) -> ValueError:
    """The error for a layer of which a single call cannot be reached."""
    inside = "lies inside a scan, vmap or checkpoint, where a single call cannot be reached."
    return ValueError(f"Layer {layer!r} {inside} {advice}")


def _changed(output, value, put: bool):
    """A layer's output with `value` added to its one floating-point array, or in its place."""

    def change(leaf):
        if not is_inexact(leaf):
            return leaf
        return value.astype(leaf.dtype) if put else leaf + value

    return jax.tree.map(change, output)


def _parse(layer: str) -> tuple[str, int | None]:
    """`"relu[1]"` is the second call of `relu`; without an index there must be one call."""
    match = re.fullmatch(r"(.+)\[(\d+)\]", layer)
    return (match[1], int(match[2])) if match else (layer, None)


def is_array(value) -> bool:
    """Whether a value is an array, of JAX or NumPy, or stands for one."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def is_inexact(value) -> bool:
    """Whether a value is an array of floating-point or complex numbers."""
    return is_array(value) and jnp.issubdtype(value.dtype, jnp.inexact)


def _activation(output):
    """The one floating-point array in what a layer returned, or `None`."""
    leaves = [leaf for leaf in jax.tree.leaves(output) if is_inexact(leaf)]
    return leaves[0] if len(leaves) == 1 else None
