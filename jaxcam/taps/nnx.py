"""NNX modules: the merged copy of one pass gets classes whose `__call__` goes through the visitor.

One such class is made for each class of the model, once. Modules are split as graphs, also where the user builds them
as trees, so that shared submodules work in both modes. Variables that a model only changes in training refuse to be
changed.
"""

import inspect
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxcam.taps.tap import Layer, Network

GRAPH = {"graph": True} if "graph" in inspect.signature(nnx.split).parameters else {}
_running: ContextVar = ContextVar("what sees the calls of the modules that run")


def matches(model) -> bool:
    return isinstance(model, nnx.Module)


def wrap(model, variables, options):
    """The network of a model, and a copy of its state. Random state is no weight, so it is no leaf of the tap."""
    if variables is not None:
        raise TypeError("An NNX model carries its own variables: pass None in their place.")
    graphdef, random, state = nnx.split(model, nnx.RngState, ..., **GRAPH)
    leaves, structure = jax.tree.flatten(random)
    kinds = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return NNX(graphdef, structure, kinds), jax.tree.map(lambda leaf: leaf, state)  # the model's own may change


def in_evaluation(model):
    """A copy that only shapes are asked of: in training they are the same, and the model is not changed."""
    copy = nnx.clone(model, **GRAPH)
    with nnx.set_graph_mode(True) if GRAPH else nullcontext():
        copy.eval()
    return copy


@dataclass(frozen=True)
class NNX(Network):
    """The network of an NNX module: its graph, and what its random state looks like."""

    graphdef: Any
    random: Any
    kinds: tuple

    def resolve(self, model, layer):
        """A submodule that is there under several names is seen under the first of them."""
        path, bracket, call = layer.partition("[")
        found = _at(model, path.split("."))
        first = (".".join(map(str, path)) for path, each in nnx.iter_modules(model, **GRAPH) if each is found)
        return next(first, path) + bracket + call

    def run(self, variables, images, inputs, options, visit, rows):
        # In evaluation nothing is drawn, as is checked, so any random state serves.
        random = jax.tree.unflatten(self.random, [_zeros(*each) for each in self.kinds])
        model = nnx.merge(self.graphdef, random, variables, copy=True)
        for path, node in nnx.iter_graph(model, **GRAPH):
            name = ".".join(map(str, path))
            if isinstance(node, nnx.BatchStat | nnx.RngState):
                node.set_metadata(on_set_value=(_Refusal(name), *_hooks(node)))
            elif path and isinstance(node, nnx.Module) and callable(node):
                # The merged model is this pass's own copy, so a changed class of its parts disturbs nobody.
                object.__setattr__(node, "__class__", _seen(type(node)))
                node._jaxcam_path = name  # pyright: ignore[reportAttributeAccessIssue]
        with _seeing(_Visits(visit, rows)):
            output = model(images, *inputs.placed, **inputs.named, **options)
        kept: list[Any] = [each for _, each in nnx.iter_modules(model, **GRAPH) if hasattr(each, "jaxcam")]
        return output, {each._jaxcam_path: list(each.jaxcam.get_value()) for each in kept}


@dataclass
class _Visits:
    """What the modules of one pass call in place of their own `__call__`."""

    visit: Any
    rows: Any
    caught: list | None = None  # attention weights, where they are asked for

    def __call__(self, submodule: Any, call, args, kwargs):
        is_attention = isinstance(submodule, nnx.MultiHeadAttention)
        attend = partial(_attend, call) if is_attention else None
        layer = Layer(submodule._jaxcam_path, call, call, partial(_owned, submodule), attend)
        output, kept = self.visit(layer, args, kwargs, self.rows)
        if kept is not None:  # in a variable, which comes out of `nnx.remat`
            before = submodule.jaxcam.get_value() if hasattr(submodule, "jaxcam") else ()
            submodule.jaxcam = nnx.Intermediate((*before, kept))
        return output


@contextmanager
def _seeing(visits):
    token = _running.set(visits)
    try:
        yield
    finally:
        _running.reset(token)


@cache
def _seen(cls: type) -> type:
    """The class whose calls are seen; NNX keeps every class that it meets, so there is one for each."""

    def __call__(self, *args, **kwargs):
        return _running.get()(self, partial(cls.__call__, self), args, kwargs)

    def sow(self, variable_type, name, value, *args, **kwargs):
        caught = _running.get().caught
        if caught is not None and name == "attention_weights":
            caught.append(value)
            return True
        return cls.sow(self, variable_type, name, value, *args, **kwargs)

    return type(cls)(cls.__name__, (cls,), {"__call__": __call__, "sow": sow, "__module__": cls.__module__})


def _attend(call, *args, **kwargs):
    """The output of an attention layer and its weights, which it would sow."""
    visits = _running.get()
    visits.caught = []
    output = call(*args, **{**kwargs, "sow_weights": True})
    [weights], visits.caught = visits.caught, None
    return output, weights


@dataclass(frozen=True)
class _Refusal:
    """What a variable calls that a model must not change while it is explained."""

    name: str

    def __call__(self, variable, value):
        raise ValueError(
            f"The model changes {self.name!r} as it runs, so it is in training mode, where images influence each "
            "other, or chance does. Call `model.eval()` before jaxcam.tap."
        )


def _hooks(variable) -> tuple:
    hooks = variable.get_metadata().get("on_set_value", ())
    return hooks if isinstance(hooks, tuple) else (hooks,)


def _owned(submodule) -> set[str]:
    return {name for name, value in vars(submodule).items() if isinstance(value, nnx.Variable)}


def _at(node, path):
    """What lies at a path of names, keys and places; `None` where nothing does."""
    for name in path:
        try:
            node = getattr(node, name) if hasattr(node, name) else node[int(name) if name.isdecimal() else name]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def _zeros(shape, dtype):
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    return jnp.zeros(shape, dtype)
