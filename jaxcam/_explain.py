"""Several methods on the same images, as heatmaps, in one compiled program.

The methods stay what they are: the compiler sees them side by side, finds what they have in common (the forward pass,
the activations, their gradients) and computes it once.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._errors import unknown
from jaxcam._inputs import check_images, check_targets, engine
from jaxcam._typing import Heatmaps, Images, Targets
from jaxcam.attribution import METHODS, heatmap
from jaxcam.tap import Tap

CAMS = {method for method in METHODS.values() if "raw" in inspect.signature(method).parameters}  # return heatmaps


def explain(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    methods: Iterable[str | Callable] | Mapping[str, Callable] = ("grad_cam", "saliency", "integrated_gradients"),
    percentile: float | int = 100,
) -> dict[str, Heatmaps]:
    """Heatmaps by several methods, which share what they have in common: four CAMs cost hardly more than one.

    `explain(...)[name] = heatmap(method(model, images, targets))`; the CAM methods give heatmaps themselves.

    Args:
      model: a tap, or any callable `images -> logits` for methods that need no activations.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      methods: names, as `jaxcam methods` lists them, with their default options, or functions
        `(model, images, targets) -> attributions`; or functions by names of your own, such as
        `{"IG, 200 steps": functools.partial(jaxcam.integrated_gradients, num_steps=200)}`. What they return goes
        through `heatmap`, but for the CAM methods and partials of them. The program is compiled once for the same
        functions, so make a partial once and keep it.
      percentile: as for `heatmap`; 99 makes the noisy maps of gradient methods legible.

    Returns:
      Heatmaps `float32[n, h, w]` by method.

    Raises:
      TypeError: methods that are no list of names or functions.
      ValueError: an unknown method, none at all, one with `raw=True`, or what the methods themselves raise.

    Example:
      >>> heatmaps = jaxcam.explain(model, images, methods=["grad_cam", "layer_cam", "saliency"])
    """
    methods = _functions(methods)
    images = check_images(images)
    targets = check_targets(model, images, targets)
    heatmaps = _explain_engine(model, images, targets, methods=tuple(methods.items()), percentile=percentile)
    for name, method in methods.items():
        if _unwrapped(method)[0] is METHODS["cam"] and _has_nan(heatmaps[name]):
            method(model, images, targets)  # which says what is wrong, as it cannot inside of `jit`
    return heatmaps


def _has_nan(heatmaps) -> bool:
    return not isinstance(heatmaps, jax.core.Tracer) and bool(jnp.isnan(heatmaps).any())


@engine(static=("methods", "percentile"))
def _explain_engine(model, images, targets, *, methods, percentile):
    heatmaps = {}
    for name, method in methods:
        result = method(model, images, targets)
        heatmaps[name] = result if _unwrapped(method)[0] in CAMS else heatmap(result, percentile=percentile)
    return heatmaps


def _functions(methods) -> dict[str, Callable]:
    """The methods by name, or an error that says what is wrong with them."""
    if isinstance(methods, str) or callable(methods):
        what = repr(methods) if isinstance(methods, str) else "a function"
        raise TypeError(f"methods is {what}; it must be a list of methods, such as ['grad_cam', 'saliency'].")
    if not isinstance(methods, Mapping):
        listed = list(methods)
        methods = {_name(each): METHODS.get(each, each) if isinstance(each, str) else each for each in listed}
        if len(methods) < len(listed):
            raise ValueError("Two of the methods have the same name; pass a dict, with names of your own.")
    if not methods:
        raise ValueError(f"No methods are given; choose some of {', '.join(METHODS)}.")
    for name, method in methods.items():
        if isinstance(method, str) and method == name:
            raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
        if not callable(method):
            raise TypeError(f"The method {name!r} is {method!r}; it must be a function (model, images, targets).")
        if _unwrapped(method)[1].get("raw"):
            raise ValueError(f"The method {name!r} has raw=True, and a raw map is not a heatmap; call it by itself.")
    return dict(methods)


def _name(method) -> str:
    return method if isinstance(method, str) else getattr(_unwrapped(method)[0], "__name__", repr(method))


def _unwrapped(method) -> tuple[Callable, dict]:
    """What a partial is a partial of, and the options that it holds."""
    options = {}
    while isinstance(method, partial):
        method, options = method.func, {**method.keywords, **options}
    return method, options
