"""Equinox modules: a copy of the model whose layers are of classes that call the visitor, one such class for each.

An Equinox model is called for one image, channels first. Here it runs under `jax.vmap`, and the visitor sees what its
layers return with an axis of images in front and, where it has as many axes as an image, with channels last, as
everywhere in this package. What a layer returns besides, its new `State`, passes by.
"""

import sys
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from jaxcam.taps.tap import Layer, Network

TRAINING = (
    "The model is in training mode, where images influence each other, or chance does. Pass "
    "eqx.nn.inference_mode(model) to jaxcam.tap."
)
_running: ContextVar = ContextVar("what sees the calls of the layers that run")


def matches(model) -> bool:
    equinox = sys.modules.get("equinox")  # who has an Equinox model has imported it
    return equinox is not None and isinstance(model, equinox.Module) and callable(model)


def wrap(model, variables, options: dict):
    """The network of a model, and its arrays by their paths."""
    if variables is not None:
        raise TypeError("An Equinox model carries its own arrays: pass None in their place.")
    if _trains(model, "key" in options):
        raise ValueError(TRAINING)
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    names = tuple(_name(path) if _is_array(leaf) else None for path, leaf in leaves)
    fixed = tuple(None if _is_array(leaf) else leaf for _, leaf in leaves)
    return Equinox(structure, names, fixed), {_name(path): leaf for path, leaf in leaves if _is_array(leaf)}


def in_evaluation(model):
    """A copy that only shapes are asked of: in training they are the same, and the model is not changed."""
    return sys.modules["equinox"].nn.inference_mode(model)


def _trains(model, has_key: bool) -> bool:
    nn = sys.modules["equinox"].nn

    def trains(layer):
        if isinstance(layer, nn.BatchNorm):
            return not layer.inference
        return isinstance(layer, nn.Dropout) and not has_key and not layer.inference and layer.p != 0

    is_layer = partial(_is_a, (nn.BatchNorm, nn.Dropout))
    return any(map(trains, jax.tree.leaves(model, is_leaf=is_layer)))


def _is_a(kinds, value) -> bool:
    return isinstance(value, kinds)


@dataclass(frozen=True)
class Equinox(Network):
    """The network of an Equinox module: its structure, and which of its leaves are arrays."""

    structure: Any
    names: tuple[str | None, ...]
    fixed: tuple

    def run(self, variables, images, inputs, options, visit, rows):
        pairs = zip(self.names, self.fixed, strict=True)
        leaves = [fixed if name is None else variables[name] for name, fixed in pairs]
        model = _seen(jax.tree.unflatten(self.structure, leaves), ())
        rank = images.ndim - 1

        def one(image, inputs, rows):
            rows = jax.tree.map(partial(_channels_first, rank=rank), rows)
            with _seeing(_Visits(visit, rows, rank, get_opaque_trace_state(convention="nnx"), {})) as visits:
                given = {**inputs.named, **_copied(options)}
                output, _ = _split(model(jnp.moveaxis(image, -1, 0), *inputs.placed, **given))
            return output, visits.kept

        return jax.vmap(one)(images, inputs, rows)


@dataclass
class _Visits:
    """What the layers of one pass call in place of their own `__call__`."""

    visit: Any
    rows: Any
    rank: int  # of one image: what has as many axes has its channels in front
    trace: Any
    kept: dict[str, list]

    def __call__(self, layer, call, args, kwargs):
        states = []

        def run(*args, **kwargs):
            output, state = _split(call(*args, **kwargs))
            states.append(state)
            return output

        def alone(*args, **kwargs):
            return _split(call(*_copied(args), **_copied(kwargs)))[0]

        shape = partial(_shape, rank=self.rank)
        step = Layer(layer._jaxcam_path, run, alone, partial(_owned, layer), batched=False, shape=shape)
        output, kept = self.visit(step, args, kwargs, self.rows)
        # What lies inside a vmap, scan or checkpoint of the model's own cannot leave it.
        if kept is not None and self.trace == get_opaque_trace_state(convention="nnx"):
            self.kept.setdefault(layer._jaxcam_path, []).append(_channels_last(kept, self.rank))
        return output if states[0] is None else (output, states[0])


@contextmanager
def _seeing(visits):
    token = _running.set(visits)
    try:
        yield visits
    finally:
        _running.reset(token)


def _copied(arguments):
    """A `State` is used up by whoever changes it; its copy is."""
    return jax.tree.map(lambda leaf: leaf, arguments)


def _split(output):
    """What a layer or a model returns, and its new state apart."""
    is_pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], sys.modules["equinox"].nn.State)
    return output if is_pair else (output, None)


def _channels_first(row, rank):
    return jnp.moveaxis(row, -1, 0) if row.ndim == rank else row


def _channels_last(row, rank):
    return jnp.moveaxis(row, 0, -1) if row.ndim == rank else row


def _shape(leaf, rank):
    return (None, *leaf.shape[1:], leaf.shape[0]) if leaf.ndim == rank else (None, *leaf.shape)


def _seen(node: Any, path) -> Any:
    """A copy of the model, its modules of classes whose calls are seen."""
    equinox = sys.modules["equinox"]
    if isinstance(node, tuple | list):
        items = [_seen(each, (*path, str(index))) for index, each in enumerate(node)]
        return type(node)(*items) if hasattr(node, "_fields") else type(node)(items)
    if isinstance(node, dict):
        return {name: _seen(each, (*path, str(name))) for name, each in node.items()}
    if not isinstance(node, equinox.Module):
        return node
    is_layer = bool(path) and callable(node)
    copy = object.__new__(_class_seen(type(node)) if is_layer else type(node))
    for each in fields(node):  # pyright: ignore[reportArgumentType]
        if hasattr(node, each.name):
            object.__setattr__(copy, each.name, _seen(getattr(node, each.name), (*path, each.name)))
    if is_layer:
        object.__setattr__(copy, "_jaxcam_path", ".".join(path))
    return copy


@cache
def _class_seen(cls: type) -> type:
    """The class whose calls are seen. The path is a static field, so that it stays where the layer goes as a tree."""
    field = sys.modules["equinox"].field

    def __call__(self, *args, **kwargs):
        return _running.get()(self, partial(cls.__call__, self), args, kwargs)

    members = {"__call__": __call__, "__module__": cls.__module__, "__annotations__": {"_jaxcam_path": str}}
    with warnings.catch_warnings(action="ignore"):  # said already, when the class itself was made
        return type(cls)(cls.__name__, (cls,), {**members, "_jaxcam_path": field(static=True, default="")})


def _owned(layer) -> set[str]:
    """Names of what a layer owns itself: arrays, and places in the state."""
    kinds = (jax.Array, np.ndarray, sys.modules["equinox"].nn.StateIndex)
    return {each.name for each in fields(layer) if isinstance(getattr(layer, each.name, None), kinds)}


def _name(path) -> str:
    return ".".join(str(getattr(each, "name", getattr(each, "key", getattr(each, "idx", each)))) for each in path)


def _is_array(value) -> bool:
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
