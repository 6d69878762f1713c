"""What something was computed with, as JSON and digests: what a later run compares before it goes on."""

import hashlib
import inspect
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def digest(model) -> str:
    """The sha256 of a model's weights, with their names, shapes and types, and of the layers that are tapped."""
    total = hashlib.sha256(repr(getattr(model, "layers", "")).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        array = _array(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return total.hexdigest()


def plain(value):
    """A value as JSON; arrays by their sha256, functions by their names."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, partial):
        return {"function": name_of(value.func), "options": plain({**value.keywords, "": list(value.args)})}
    if callable(value) and hasattr(value, "__qualname__"):
        source = inspect.getsource(value) if inspect.isfunction(value) and value.__name__ == "<lambda>" else ""
        return f"{value.__module__}.{value.__qualname__}" + (f" {source.strip()}" if source else "")
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **plain(getattr(value, "__dict__", {}))}
    array = _array(value)
    return {"shape": list(array.shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}


def _array(value) -> np.ndarray:
    """On the host; of a typed key, its numbers."""
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def name_of(function) -> str:
    function = function.func if isinstance(function, partial) else function
    return getattr(function, "__name__", type(function).__name__)
