"""The engines' way into `jit`: arrays are arguments of the compiled program, all else is a part of it.

A model that is a tree of arrays (a tap) enters with its weights as arguments. A bare function is run as it is: nothing
is known about what it closes over, so a compiled copy could be stale. What `config` says is a part of the program too.
"""

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any

import jax
from jax.core import Tracer

from jaxcam._checks import wrong_channels
from jaxcam._engine import kept
from jaxcam._engine.convolutions import fast
from jaxcam._engine.forms import FORMS
from jaxcam._engine.memory import fitted


@dataclass
class Config:
    """What holds for all that jaxcam compiles; what is compiled already stays as it is, inside a `jit` of your own too.

    Attributes:
      rewrite: whether convolutions take the forms that a CPU is fast at, and occlusion computes only what a window
        changes. `JAXCAM_REWRITE=0` in the environment turns it off from the start.
      spread: a `jax.sharding.NamedSharding` of one axis, over which the copies that a method makes of each image are
        spread, for fewer images than devices: `jax.NamedSharding(mesh, jax.P("devices"))`. `None` leaves them where
        the images are.

    Example:
      >>> jaxcam.config.rewrite = False
      >>> jaxcam.config.rewrite = True
    """

    rewrite: bool = os.environ.get("JAXCAM_REWRITE", "1") != "0"
    spread: Any = None


config = Config()
_inside = ContextVar("inside of an engine", default=False)
inside_an_engine = _inside.get
_ARRAY = object()  # stands for an array among what is a part of the program


def engine(function: Callable) -> Callable:
    """Compiles `function(model, images, targets, ...)`, once for each set of shapes and of what is no array.

    For several targets an image, `int[n, t]`, it is mapped over them: what does not depend on them is computed once.
    """

    @wraps(function)
    def of_targets(model, images, targets=None, *args, **kwargs):
        if getattr(targets, "ndim", 1) != 2:
            return function(model, images, targets, *args, **kwargs)

        def of_one(each):
            return function(model, images, each, *args, **kwargs)

        return jax.vmap(of_one, in_axes=1, out_axes=1)(targets)

    def call(structure, fixed, rewrite, platform, spread, arrays):
        given = iter(arrays)
        leaves = [next(given) if each is _ARRAY else each for each in fixed]
        args, kwargs = jax.tree.unflatten(structure, leaves)
        before = _inside.set(True)
        try:
            return (fast(of_targets, platform) if rewrite else of_targets)(*args, **kwargs)
        finally:
            _inside.reset(before)

    call.__name__ = function.__name__.strip("_")  # what a profile shows
    compiled, name = fitted(call, num_static=5), f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def run(model, images, *args, **kwargs):
        try:
            if not _is_compilable(model):
                return of_targets(model, images, *args, **kwargs)
            leaves, structure = jax.tree.flatten(((model, images, *args), kwargs))
            fixed = tuple(_ARRAY if _is_array(each) else each for each in leaves)
            arrays = list(filter(_is_array, leaves))
            rewrite = config.rewrite and not _inside.get()  # what is inside of an engine is rewritten with it, once
            platform = _platform(arrays)
            return kept.run(compiled, name, platform, (structure, fixed, rewrite, platform, config.spread), arrays)
        except Exception as error:
            reason = wrong_channels(model, images)
            if reason is None:
                raise
            raise reason from error

    return run


def by_itself(function: Callable) -> Callable:
    """`function(model, images)`, a forward pass, compiled with its convolutions rewritten; in an engine as it is."""

    @wraps(function)
    def without_targets(model, images, targets):
        return function(model, images)

    compiled = engine(without_targets)

    @wraps(function)
    def run(model, images):
        as_it_is = _inside.get() or not config.rewrite or not _is_compilable(model)
        return (function if as_it_is else compiled)(model, images)

    run.as_it_is = function  # pyright: ignore[reportAttributeAccessIssue]
    return run


def whole(function: Callable, platform: str) -> Callable:
    """`function` as one program for a platform: the methods and models in it are rewritten with it, once."""

    @wraps(function)
    def run(*args):
        before = _inside.set(True)
        try:
            # As one call on each platform, so that programs without another form in them are alike.
            return (fast(function, platform) if config.rewrite and platform in FORMS else jax.jit(function))(*args)
        finally:
            _inside.reset(before)

    return run


def _is_compilable(model) -> bool:
    """Whether a model is a tree of arrays, and so knows all that it computes with."""
    leaves, structure = jax.tree.flatten(model)
    return not jax.tree_util.treedef_is_leaf(structure) and all(map(_is_array, leaves))


def _platform(arrays) -> str | None:
    """Where a program of these arrays runs, or `None` while they are traced: it may then run anywhere."""
    if any(isinstance(each, Tracer) for each in arrays):
        return None
    for each in arrays:
        if getattr(each, "committed", False):
            return next(iter(each.sharding.device_set)).platform
    default = jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    return getattr(default, "platform", default)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def spread(copies):
    """Copies of images, `[n * m, ...]`, over the devices that `config.spread` names."""
    return copies if config.spread is None else jax.lax.with_sharding_constraint(copies, config.spread)
