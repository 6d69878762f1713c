"""Several methods on the same images, as heatmaps, in one compiled program.

The methods stay what they are: the compiler sees them side by side, finds what they have in common (the forward pass,
the activations, their gradients) and computes it once.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcam._checks import is_known, prepare
from jaxcam._engine import engine
from jaxcam._errors import unknown
from jaxcam._progress import shown
from jaxcam._typing import Heatmaps, Images, Score, Targets
from jaxcam.attribution import METHODS, heatmap
from jaxcam.taps import Tap


def explain(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    methods: Iterable[str | Callable] | Mapping[str, Any] = ("grad_cam", "saliency", "integrated_gradients"),
    score: Score | None = None,
    percentile: float | int = 99,
    progress: bool = True,
) -> dict[str, Heatmaps]:
    """Heatmaps by several methods, which share what they have in common: four CAMs cost hardly more than one.

    `explain(...)[name] = heatmap(method(model, images, targets))`; the CAM methods give heatmaps themselves. What
    looks at the images on the host first, as `xrai` does, runs beside the shared program.

    Args:
      model: a tap, or any callable `images -> output` for methods that need no activations.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      methods: names, as `jaxcam methods` lists them, or functions `(model, images, targets) -> attributions`; or a
        dict: options by name, such as `{"integrated_gradients": {"num_steps": 200}}`, and functions by names of your
        own. What a function returns goes through `heatmap`, but for the CAM methods and partials of them. The program
        is compiled once for the same functions, so make a partial once and keep it.
      score: the explained scalar of all methods, `(output, targets[n]) -> [n]`; `None` leaves each its own.
      percentile: values above this percentile of an image are cut, in the maps of methods that give attributions.
      progress: whether a line shows what is done and since when, if that takes more than two seconds.

    Returns:
      Heatmaps `float32[n, *space]` by method.

    Raises:
      TypeError: methods that are no list of names or functions.
      ValueError: an unknown method, none at all, one with `raw=True`, or what the methods themselves raise.

    Example:
      >>> heatmaps = jaxcam.explain(model, images, methods=["grad_cam", "layer_cam", "saliency"])
    """
    methods = functions_of(methods, score)
    model, images, targets = prepare(model, images, targets)
    heatmaps: dict[str, Any] = dict.fromkeys(methods)  # in their order
    with shown(_title(images, methods), enabled=progress and is_known(images)):
        heatmaps |= _computed(model, images, targets, methods, percentile)
    for name, (method, options) in methods.items():
        if _says_nothing(heatmaps[name]):
            method(model, images, targets, **options)  # which says why, as it cannot inside of `jit`
    return heatmaps


def _title(images, methods) -> str:
    count = images.shape[0]
    return f"{', '.join(methods)} of {count} image{'s' * (count != 1)}"


def _computed(model, images, targets, methods, percentile):
    on_host = {name: each for name, each in methods.items() if _registered(each[0], "on_host")}
    compiled = {name: each for name, each in methods.items() if name not in on_host}
    heatmaps = _heatmaps(model, images, targets, on_host, percentile)
    if compiled:
        heatmaps |= _explain_engine(model, images, targets, methods=compiled, percentile=percentile)
    return jax.block_until_ready(heatmaps)


def _says_nothing(heatmaps) -> bool:
    return is_known(heatmaps) and bool(jnp.isnan(heatmaps).any() | ~heatmaps.any())


@engine
def _explain_engine(model, images, targets, *, methods, percentile):
    return _heatmaps(model, images, targets, methods, percentile)


def _heatmaps(model, images, targets, methods, percentile):
    heatmaps = {}
    for name, (method, options) in methods.items():
        result = method(model, images, targets, **options)
        is_heatmap = _registered(method, "gives") == "heatmaps"
        heatmaps[name] = result if is_heatmap else heatmap(result, images, percentile=percentile)
    return heatmaps


def functions_of(methods, score=None) -> dict[str, tuple[Callable, dict]]:
    """The methods by name with their options, or an error that says what is wrong with them."""
    if isinstance(methods, str) or callable(methods):
        what = repr(methods) if isinstance(methods, str) else "a function"
        raise TypeError(f"methods is {what}; it must be a list of methods, such as ['grad_cam', 'saliency'].")
    if not isinstance(methods, Mapping):
        listed = list(methods)
        methods = {_name(each): {} if isinstance(each, str) else each for each in listed}
        if len(methods) < len(listed):
            raise ValueError("Two of the methods have the same name; pass a dict, with names of your own.")
    if not methods:
        raise ValueError(f"No methods are given; choose some of {', '.join(METHODS)}.")
    return {name: _function(name, each, score) for name, each in methods.items()}


def _function(name, given, score) -> tuple[Callable, dict]:
    """One method and its options, given as a dict of these or as a function."""
    if isinstance(given, Mapping):
        if name not in METHODS:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
        method, options = METHODS[name].function, dict(given)
        known = inspect.signature(method).parameters
        for option in options:
            if option not in known:
                raise unknown(f"option of {name}", option, list(known)[3:])
    elif callable(given):
        method, options = given, {}
    else:
        raise TypeError(
            f"The method {name!r} is {given!r}; it must be a function (model, images, targets), or a dict of options."
        )
    if _registered(method, "is_map") is False:
        raise ValueError(
            f"The method {name!r} gives {_registered(method, 'gives')}, and no heatmap; call it by itself."
        )
    if _unwrapped(method)[1].get("raw") or options.get("raw"):
        raise ValueError(f"The method {name!r} has raw=True, and a raw map is not a heatmap; call it by itself.")
    return method, options if score is None else {"score": score, **options}


def _registered(method, attribute: str):
    """What the registry says of a method, or of what a partial is a partial of; `None` for a function of one's own."""
    function = _unwrapped(method)[0]
    row = METHODS.get(getattr(function, "__name__", ""))
    return getattr(row, attribute) if row is not None and row.function is function else None


def _name(method) -> str:
    return method if isinstance(method, str) else getattr(_unwrapped(method)[0], "__name__", repr(method))


def _unwrapped(method) -> tuple[Callable, dict]:
    """What a partial is a partial of, and the options that it holds."""
    options = {}
    while isinstance(method, partial):
        method, options = method.func, {**method.keywords, **options}
    return method, options
