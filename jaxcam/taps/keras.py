"""Keras 3 models on the JAX backend: for one pass, each layer's `call` goes through the visitor.

Weights enter by `stateless_call` in inference mode, so the model itself stays as it is. A layer is named by its name,
or by the dotted names of the layers around it where another one has the same name.
"""

import inspect
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import Any

from jaxcam._errors import unknown
from jaxcam.taps.tap import LISTED, Layer, Network


def matches(model) -> bool:
    keras = sys.modules.get("keras")  # who has a Keras model has imported it
    return keras is not None and isinstance(model, keras.Model)


def wrap(model, variables, options: dict):
    """The network of a model, and its weights by their paths."""
    import keras

    if keras.backend.backend() != "jax":
        raise TypeError(
            f"The Keras model runs on the {keras.backend.backend()} backend, and jaxcam explains JAX. Set the "
            'environment variable KERAS_BACKEND="jax" before keras is imported.'
        )
    if variables is not None:
        raise TypeError("A Keras model carries its own variables: pass None in their place.")
    if not model.built:
        raise ValueError("The Keras model has no weights yet: call it once on images, or model.build(shape), first.")
    if "training" in options:
        raise ValueError("A tap explains a model in inference mode: leave out `training`.")
    return Keras(_ByIdentity(model)), {name: each.value for name, each in _named(model).items() if not _is_seed(each)}


@dataclass(frozen=True)
class _ByIdentity:
    """Holds a model, and is equal to what holds the same one."""

    model: Any

    def __eq__(self, other):
        return isinstance(other, _ByIdentity) and self.model is other.model

    def __hash__(self):
        return id(self.model)


@dataclass(frozen=True)
class Keras(Network):
    """The network of a Keras model."""

    holder: _ByIdentity

    def resolve(self, model, layer):
        paths = _paths(model)
        path, bracket, call = layer.replace("/", ".").partition("[")
        inside = {".".join(each): under for each, under in _inside(model, ())}
        found = [each for each, under in paths.items() if under.name == path or under is inside.get(path)]
        if not found:
            raise unknown("layer", layer, paths, LISTED)
        if len(found) > 1 and path not in paths:
            raise ValueError(f"Several layers are called {path!r}; name one of {', '.join(sorted(found))}.")
        return (path if path in paths else found[0]) + bracket + call

    def run(self, variables, images, inputs, options, visit, rows):
        model, kept = self.holder.model, {}
        names = {id(each): name for name, each in _named(model).items()}
        trainable, rest = (
            [variables.get(names[id(each)], each.value) for each in some]
            for some in (model.trainable_variables, model.non_trainable_variables)
        )
        args, named = _arranged(model, images, inputs)
        if "training" in inspect.signature(model.call).parameters:
            named["training"] = False
        with _LOCK, ExitStack() as stack:  # for the length of the pass, the layers' calls are not the model's own
            for path, layer in _paths(model).items():
                stack.enter_context(_seen(path, layer, visit, rows, kept))
            output, _ = model.stateless_call(trainable, rest, *args, **named, **options)
        return output, kept


_LOCK = RLock()


def _arranged(model, images, inputs) -> tuple[list, dict]:
    """Images and context as the model takes them: by place, in a list or a dict, by name."""
    if not hasattr(model, "inputs"):  # a model with a `call` of its own
        given, parameters = [images, *inputs.placed], inspect.signature(model.call).parameters
        needed = [each for name, each in parameters.items() if each.default is each.empty and name != "training"]
        return given if len(given) == 1 or len(needed) > 1 else [given], dict(inputs.named)
    is_dict = isinstance(getattr(model, "input", None), dict)
    names = list(model.input) if is_dict else [each.name for each in model.inputs]
    own = [name for name in names if name not in inputs.named]
    if len(own) != 1 + len(inputs.placed) or len(names) != len(own) + len(inputs.named):
        raise ValueError(
            f"The model takes the inputs {', '.join(names)}: context must hold all of them but the images, as a dict "
            "by name, or as a tuple in their order after the images."
        )
    given = {**inputs.named, **dict(zip(own, (images, *inputs.placed), strict=True))}
    if is_dict:
        return [given], {}
    return [images if len(names) == 1 else [given[name] for name in names]], {}


@contextmanager
def _seen(path, layer, visit, rows, kept):
    """`layer.call` goes through the visitor."""
    import keras

    call = layer.call

    def seen(*args, **kwargs):
        attend = partial(_attend, call) if isinstance(layer, keras.layers.MultiHeadAttention) else None
        output, found = visit(Layer(path, call, call, partial(_owned, layer), attend), args, kwargs, rows)
        if found is not None:
            kept.setdefault(path, []).append(found)
        return output

    had = layer.__dict__.get("call")
    layer.__dict__["call"] = seen  # not through Keras, which would track it
    try:
        yield
    finally:
        del layer.__dict__["call"]
        if had is not None:
            layer.__dict__["call"] = had


def _attend(call, *args, **kwargs):
    output, weights = call(*args, **{**kwargs, "return_attention_scores": True})
    return (output, weights) if kwargs.get("return_attention_scores") else output, weights


def _paths(model) -> dict[str, Any]:
    """Every layer inside the model by its name, or by the dotted names around it where the name is not the only one."""
    found = list(_inside(model, ()))
    names = Counter(path[-1] for path, _ in found)
    return {path[-1] if names[path[-1]] == 1 else ".".join(path): layer for path, layer in found}


def _inside(layer, path, seen=None):
    seen = set() if seen is None else seen
    for each in layer._flatten_layers(include_self=False, recursive=False):
        if id(each) not in seen:
            seen.add(id(each))
            yield (*path, each.name), each
            yield from _inside(each, (*path, each.name), seen)


def _owned(layer) -> set[str]:
    inside = {id(each) for below in layer._flatten_layers(include_self=False) for each in below.variables}
    return {each.name for each in layer.variables if id(each) not in inside and not _is_seed(each)}


def _is_seed(variable) -> bool:
    """Random state is no weight: in inference nothing is drawn."""
    return "seed_generator" in variable.path


def _named(model) -> dict[str, Any]:
    """Variables by their dotted paths; one that another has already gets a number."""
    named = {}
    for each in model.variables:
        path = name = each.path.replace("/", ".")
        count = 1
        while name in named:
            count += 1
            name = f"{path}_{count}"
        named[name] = each
    return named
