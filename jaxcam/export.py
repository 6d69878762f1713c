"""A method and a model as StableHLO, which runs where neither jaxcam nor the model's framework is installed.

What is exported is one artefact for all its platforms. Each platform's program is rewritten for it, once, as the method
is when it is called there; of several that differ the artefact holds each, and chooses when it is run.
"""

import importlib.util
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxcam._array import Rows
from jaxcam._checks import SPACE, as_model, positive
from jaxcam._engine import config
from jaxcam._errors import shown, unknown
from jaxcam.attribution import METHODS
from jaxcam.taps import Tap

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN = (*PLATFORMS, "rocm")  # as JAX calls them; a GPU is one of two
CHOICES = {"weights": ("constants", "arguments"), "batch": ("symbolic",), "targets": ("argument",)}
NOT_TRACED = {  # what stops JAX, and what to do about it
    jax.errors.ConcretizationTypeError: "it looks at values, which are not known before it runs",
    jax.errors.TracerArrayConversionError: "it looks at values with NumPy, and they are not known before it runs",
    jax.errors.TracerIntegerConversionError: "it looks at values, which are not known before it runs",
    jax.errors.NonConcreteBooleanIndexError: "its shapes depend on values, which are not known before it runs",
}


def export(
    method: str | Callable,
    model: Tap | Callable,
    images: Any,
    targets: int | Literal["argument"] | None = "argument",
    *,
    platforms: Iterable[str] = PLATFORMS,
    weights: Literal["constants", "arguments"] = "constants",
    batch: int | Literal["symbolic"] = "symbolic",
) -> bytes:
    """A method on a model as StableHLO, in bytes that any process with JAX runs, on any of the platforms.

    `jax.export.deserialize(exported).call(images, targets) = method(model, images, targets)`, up to rounding.
    `deserialize(exported).mlir_module_serialized` is StableHLO alone, for other runtimes. Numbers that a method draws
    are those of its `key`, which is a part of the program: the same at each call.

    Args:
      method: a name, as `jaxcam methods` lists them, a function `(model, images, targets)`, or a partial of one, which
        holds the options: `partial(jaxcam.rise, num_samples=500)`.
      model: a tap, or any callable `images -> output` for methods that need no activations.
      images: an image's shape `(*space, c)`, for float32; or images as the method takes them, an array or a
        `jax.ShapeDtypeStruct` `[n, *space, c]`, of which shape and type count, and `n` does not.
      targets: `"argument"` makes them the last argument, `int32[n]`; `None` is the predicted class and an integer one
        class for all images, and there is no such argument.
      platforms: where it may run, of `cpu`, `cuda`, `rocm` and `tpu`. None of them need be at hand.
      weights: `"constants"` are a part of it; `"arguments"` are its first argument, `jaxcam.exported_weights(model)`.
      batch: how many images each call has, or `"symbolic"`: any number.

    Returns:
      `jax.export`'s serialisation, for `jax.export.deserialize`.

    Raises:
      ImportError: flatbuffers is not installed.
      TypeError: a method or model that is none, a type of images or targets that is none.
      ValueError: an unknown method, platform or choice; a model with context, which belongs to certain images; weights
        of a bare function as arguments; a program that cannot be traced without the images; what the method raises.

    Example:
      >>> exported = jaxcam.export("grad_cam", model, (32, 32, 3), platforms=["cpu"])
      >>> jax.export.deserialize(exported).call(images, jnp.array([3])).shape
      (1, 32, 32)
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError("export needs flatbuffers, which is not installed: pip install 'jaxcam-xai[export]'.")
    from jaxcam._engine.portable import portable  # nothing else needs what it takes from JAX's inside

    method, model, platforms = _method(method), as_model(model), _platforms(platforms)
    _check_choices(weights=weights, batch=batch, targets=targets)
    _check_model(model, weights)
    arrays, names, structure = exported_weights(model), _names(model), jax.tree.structure(model)
    [n] = jax.export.symbolic_shape("n") if batch == "symbolic" else [batch]
    given = [_images(images, n)] + [jax.ShapeDtypeStruct((n,), jnp.int32)] * (targets == "argument")

    def explain(arrays, images, targets=None if targets == "argument" else targets):
        whole = jax.tree.unflatten(structure, [arrays[name] for name in names]) if arrays else model
        return method(whole, images, targets)

    explain.__name__ = _name(method)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
    given, constants = ([shapes, *given], []) if weights == "arguments" else (given, [arrays])
    try:
        return bytes(portable(explain, platforms, given, constants).serialize())
    except Exception as error:
        reason = (
            _reason(error, explain, shapes, images, targets == "argument") if batch == "symbolic" else _reason(error)
        )
        if reason is None:
            raise
        raise ValueError(f"{explain.__name__} cannot be exported: {reason}.") from error


def exported_weights(model: Tap | Callable) -> dict[str, np.ndarray]:
    """The arrays of a model by name, in the order in which an export with `weights="arguments"` takes them.

    `safetensors.numpy.save_file(weights, path)` writes them, and `load_file(path)` gives what `call` wants; arrays of
    the same names, shapes and types from a later training go with the same program.

    Args:
      model: a tap, or another tree of arrays that can be called.

    Returns:
      The arrays, on the host; none of a bare function.

    Raises:
      TypeError: a model that cannot be called.

    Example:
      >>> weights = jaxcam.exported_weights(model)
      >>> weights["variables.params.fc.kernel"].shape
      (32, 10)
    """
    model = as_model(model)
    if not _is_tree(model):
        return {}
    arrays = dict(zip(_names(model), map(np.asarray, jax.tree.leaves(model)), strict=True))
    return dict(sorted(arrays.items()))  # as JAX flattens a dict


def _is_tree(model) -> bool:
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(model))


def _names(model) -> list[str]:
    """Of each array of a model, in its own order; two paths that are spelt alike get their numbers."""
    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return names if len(set(names)) == len(names) else [f"{name}.{i}" for i, name in enumerate(names)]


def _reason(error, function=None, *given) -> str | None:
    """What stops JAX, in words; of a `function` whether it is the unknown number of images."""
    said = next((words for kind, words in NOT_TRACED.items() if isinstance(error, kind)), None)
    if said is not None or function is None:
        return said
    arrays, images, targets = given
    try:
        jax.eval_shape(function, arrays, _images(images, 2), *[jax.ShapeDtypeStruct((2,), jnp.int32)] * targets)
    except Exception:  # whatever it is, it is the same for two images
        return None
    words = " ".join(str(error).split("\n--------------------")[0].split())
    return (
        f"for any number of images it does not work ({shown(words)}), for a certain one it may; pass such as batch=16"
    )


def _method(method) -> Callable:
    if isinstance(method, str):
        if method not in METHODS:
            raise unknown("method", method, METHODS, "`jaxcam methods` lists them all.")
        return METHODS[method].function
    if not callable(method):
        raise TypeError(f"method is {shown(repr(method))}; it must be a name, or a function (model, images, targets).")
    return method


def _name(method) -> str:
    while isinstance(method, partial):
        method = method.func
    return getattr(method, "__name__", type(method).__name__)


def _platforms(platforms) -> tuple[str, ...]:
    platforms = (platforms,) if isinstance(platforms, str) else tuple(dict.fromkeys(platforms))
    for each in platforms:
        if each not in KNOWN:
            raise ValueError(f"Unknown platform {shown(repr(each))}. Known: {', '.join(KNOWN)}; a GPU is cuda or rocm.")
    if not platforms:
        raise ValueError(f"platforms is empty; choose some of {', '.join(KNOWN)}.")
    return platforms


def _check_choices(**given) -> None:
    for name, value in given.items():
        if isinstance(value, str) and value not in CHOICES[name]:
            raise unknown(f"choice of {name}", value, CHOICES[name], "It may be a number." if name != "weights" else "")
    if not isinstance(given["weights"], str):
        raise unknown("choice of weights", given["weights"], CHOICES["weights"])
    if not isinstance(given["batch"], str):
        positive(batch=given["batch"])
    targets = given["targets"]
    if isinstance(targets, bool) or not isinstance(targets, str | int | np.integer | None):
        raise TypeError(f"targets is {shown(repr(targets))}; it must be 'argument', None or one class.")


def _check_model(model, weights: str) -> None:
    leaves = jax.tree.leaves(model, is_leaf=lambda each: isinstance(each, Rows))
    if not _is_tree(model) and weights == "arguments":
        raise ValueError(
            "model is a bare function, and its weights are not known. Make it a tap, jaxcam.tap(function, variables), "
            "or pass weights='constants'."
        )
    if any(isinstance(each, Rows) for each in leaves):
        raise ValueError(
            "model holds context, with a row for each of certain images, and an export is for any images. Export a "
            "function of images alone that puts the context in."
        )
    if config.spread is not None:
        raise ValueError("config.spread is set, and an export runs on one device; set it to None.")


def _images(images, n) -> jax.ShapeDtypeStruct:
    """The argument, of what tells an image's shape."""
    is_array = hasattr(images, "shape") and hasattr(images, "dtype")
    shape = tuple(images.shape)[1:] if is_array else images
    is_shape = isinstance(shape, tuple | list) and all(isinstance(each, int) and each > 0 for each in shape)
    if not (is_shape and 2 <= len(shape) <= 4):
        raise ValueError(
            f"images is {shown(repr(images))}; it must be an image's shape, such as (224, 224, 3), or images "
            f"{', '.join(SPACE.values())}."
        )
    dtype = images.dtype if is_array else jnp.float32
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"images has dtype {dtype}; it must be floating-point and normalised as the model expects.")
    return jax.ShapeDtypeStruct((n, *shape), dtype)
