"""Linen modules: every call of a submodule is intercepted, and what is kept is sown, so that it survives `nn.remat`."""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import flax.core
import flax.errors
import flax.linen as nn
import jax

from jaxcam.taps.tap import Activations, Layer, Network, as_inputs, is_array

KEPT = "jaxcam"  # the name under which a submodule sows what is kept of its calls
OF_APPLY = ("rngs", "method", "capture_intermediates")  # what `module.apply` takes for itself
TRAINING = (
    "The model changes its variables as it runs, or draws random numbers: it is in training mode, where images "
    "influence each other, or chance does. Say to jaxcam.tap how it is told not to train, such as `train=False`."
)


def matches(model) -> bool:
    return isinstance(model, nn.Module)


def wrap(module, variables, options: dict):
    """The network of a module, and its variables."""
    if not hasattr(variables, "keys") or "params" not in variables:
        raise TypeError(
            'variables must be what module.init returned, a mapping with the key "params"; of parameters alone, '
            '{"params": parameters}.'
        )
    if others := [name for name, value in variables.items() if not hasattr(value, "keys")]:
        raise TypeError(
            f"variables holds {', '.join(map(repr, others))}, which module.init does not return. Of a training state "
            'pass what the module takes, {"params": state["params"], "batch_stats": state["batch_stats"]}.'
        )
    if "mutable" in options:
        raise TypeError("A tap explains a model and never changes it: leave out `mutable`.")
    return Linen(_hashable(module)), {name: value for name, value in variables.items() if name != "intermediates"}


def check_arguments(module, context, options: dict) -> None:
    """Arguments that the module cannot do without, such as `train`, are asked for now, not in the first pass."""
    method = options.get("method") or type(module).__call__
    if not callable(method):
        method = getattr(type(module), method)
    inputs = as_inputs(context)
    given = {**inputs.named, **{name: value for name, value in options.items() if name not in OF_APPLY}}
    signature, name = inspect.signature(method), type(module).__name__
    try:
        bound = signature.bind_partial(module, None, *inputs.placed, **given).arguments
    except TypeError as error:
        raise TypeError(f"{name} cannot be called with what the tap was given: {error}.") from None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [each for each in signature.parameters.values() if each.kind not in variadic]
    missing = [each.name for each in parameters if each.default is each.empty and each.name not in bound]
    if missing:
        example = ", ".join(f"{each}=False" if each.startswith("train") else f"{each}=..." for each in missing)
        raise TypeError(
            f"{name} is called with {' and '.join(map(repr, missing))}, which a tap must know: "
            f"jaxcam.tap(module, variables, layer, {example}). What has a row for each image goes into `context`."
        )


@dataclass(frozen=True)
class Linen(Network):
    """The network of a Linen module."""

    module: Any

    @property
    def title(self):
        return type(self.module).__name__

    def run(self, variables, images, inputs, options, visit, rows):
        hook = partial(_visited, visit=visit, rows=rows)
        apply = partial(_unwrap(self.module).apply, mutable=["intermediates"])
        try:
            with _intercepted(hook):
                output, state = apply(variables, images, *inputs.placed, **inputs.named, **options)
        except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as error:
            raise ValueError(TRAINING) from error
        except flax.errors.ScopeCollectionNotFound as error:
            held, needed = ", ".join(map(repr, variables)), str(error).partition(" (http")[0]
            raise ValueError(f"variables holds {held} alone, and the module needs more: {needed}") from error
        return output, dict(_kept(state.get("intermediates", {}), ()))


def layers_of_init(module, images, tap) -> dict[str, tuple[int, ...]]:
    """What `Tap.shapes` says, for a module whose variables are not at hand: those of `module.init`."""
    visitor = Activations((), False)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    inputs = as_inputs(tap.context)
    call = partial(module.init, **{name: value for name, value in tap.options if name not in OF_APPLY})
    arrays = {name: value for name, value in tap.arrays.items() if name not in OF_APPLY}
    with _intercepted(partial(_visited, visit=visitor, rows=None)):
        jax.eval_shape(call, keys, images, *inputs.placed, **inputs.named, **arrays)
    return visitor.listed(images)


def _visited(submodule, call, args, kwargs, visit, rows):
    def alone(*args, **kwargs):
        copy, variables = submodule.unbind()
        return copy.apply(variables, *args, **kwargs)

    def attend(*args, **kwargs):
        output = call(*args, **{**kwargs, "sow_weights": True})
        weights = submodule.get_variable("intermediates", "attention_weights")  # `None` inside of a loop
        return output, None if weights is None else weights[-1]

    is_attention = isinstance(submodule, nn.MultiHeadDotProductAttention)
    layer = Layer(".".join(submodule.path), call, alone, partial(_owned, submodule), attend if is_attention else None)
    output, kept = visit(layer, args, kwargs, rows)
    if kept is not None:
        submodule.sow("intermediates", KEPT, kept)
    return output


@contextmanager
def _intercepted(hook):
    """Every call of a submodule goes through `hook(submodule, call, args, kwargs)`, a parent class's within it once."""
    running = []

    def intercept(next_call, args, kwargs, context):
        submodule = context.module
        if type(submodule.scope) is flax.core.Scope:  # Flax makes a new one for each submodule, of this class
            submodule.scope.__class__ = _Scope
        if context.method_name != "__call__" or not submodule.path or any(each is submodule for each in running):
            return next_call(*args, **kwargs)
        running.append(submodule)
        try:
            return hook(submodule, next_call, args, kwargs)
        finally:
            running.remove(submodule)

    with nn.intercept_methods(intercept):
        yield


class _Scope(flax.core.Scope):
    """Compares the shapes of a layer's parameters with what its initializers make, each of which is traced once.

    Flax traces them at every call of the layer, which is up to half of the time that it takes to trace a model.
    """

    def param(self, name, init_fn, *args, unbox=True, **kwargs):
        value = self.get_variable("params", name)
        if value is None or _shapes(value) != _made(init_fn, args, kwargs):
            # Flax makes the parameter, or says what differs.
            return super().param(name, init_fn, *args, unbox=unbox, **kwargs)
        self.reserve(name, "params")
        return flax.core.meta.unbox(value) if unbox else value


# By the initializers, without keeping them alive: one that is written inside of a call may close over its arguments.
_MADE = WeakKeyDictionary()


def _made(init_fn, args, kwargs):
    """The shapes of what an initializer makes of these arguments; `None` where that cannot be kept."""
    key = (args, tuple(kwargs.items()))
    try:
        known = _MADE.setdefault(init_fn, {})
        if key not in known:
            known[key] = _shapes(jax.eval_shape(lambda: init_fn(jax.random.key(0), *args, **kwargs)))
    except TypeError:  # no hash, or no weak reference
        return None
    return known[key]


def _shapes(tree):
    return [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _kept(node, path):
    """What was sown, `(path, values of its calls)`."""
    for name, value in node.items():
        if name == KEPT and isinstance(value, tuple):
            yield ".".join(path), list(value)
        elif hasattr(value, "items"):
            yield from _kept(value, (*path, name))


def _owned(submodule) -> set[str]:
    """Names of the arrays that a bound module owns itself, not through its submodules."""
    collections = (values for name, values in submodule.variables.items() if name != "intermediates")
    return {name for values in collections for name, value in values.items() if is_array(value)}


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """Holds a module that cannot be hashed (a list or dict among its fields), and is equal only to itself."""

    module: Any


def _hashable(module):
    try:
        hash(module)
    except TypeError:
        # One holder per module, so that a second tap of the same module does not compile again.
        holder = getattr(module, "_jaxcam_holder", None) or _ByIdentity(module)
        object.__setattr__(module, "_jaxcam_holder", holder)
        return holder
    return module


def _unwrap(module):
    return module.module if isinstance(module, _ByIdentity) else module
