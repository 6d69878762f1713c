"""Several methods on the same images, as heatmaps, in one compiled program.

The methods stay what they are: the compiler sees them side by side, finds what they have in common (the forward pass,
the activations, their gradients) and computes it once.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping

from jaxcam._errors import unknown
from jaxcam._inputs import check_images, check_targets, engine
from jaxcam._typing import Heatmaps, Images, Targets
from jaxcam.attribution import METHODS, heatmap
from jaxcam.tap import Tap


def explain(
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    methods: Iterable[str] | Mapping[str, Callable] = ("grad_cam", "saliency", "integrated_gradients"),
    percentile: float | int = 100,
) -> dict[str, Heatmaps]:
    """Heatmaps by several methods, which share what they have in common: four CAMs cost hardly more than one.

    `explain(...)[name] = heatmap(method(model, images, targets))`; the CAM methods give heatmaps themselves.

    Args:
      model: a tap, or any callable `images -> logits` for methods that need no activations.
      images: `float[n, h, w, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class.
      methods: names, as `jaxcam methods` lists them, with their default options; or functions
        `(model, images, targets) -> attributions` by a name of your own, such as
        `{"IG, 200 steps": functools.partial(jaxcam.integrated_gradients, num_steps=200)}`. The program is compiled once
        for the same functions, so make a partial once and keep it.
      percentile: as for `heatmap`; 99 makes the noisy maps of gradient methods legible.

    Returns:
      Heatmaps `float32[n, h, w]` by method.

    Raises:
      ValueError: an unknown method, none at all, or what the methods themselves raise.

    Example:
      >>> heatmaps = jaxcam.explain(model, images, methods=["grad_cam", "layer_cam", "saliency"])
    """
    if isinstance(methods, str):
        raise ValueError(f"methods is {methods!r}; it must be a list of names, such as [{methods!r}].")
    if not isinstance(methods, Mapping):
        methods = {name: _named(name) for name in methods}
    if not methods:
        raise ValueError(f"No methods are given; choose some of {', '.join(METHODS)}.")
    images = check_images(images)
    targets = check_targets(model, images, targets)
    return _explain_engine(model, images, targets, methods=tuple(methods.items()), percentile=percentile)


@engine(static=("methods", "percentile"))
def _explain_engine(model, images, targets, *, methods, percentile):
    heatmaps = {}
    for name, method in methods:
        result = method(model, images, targets)
        is_heatmap = "raw" in inspect.signature(method).parameters  # the CAM methods
        heatmaps[name] = result if is_heatmap else heatmap(result, percentile=percentile)
    return heatmaps


def _named(name: str) -> Callable:
    if name not in METHODS:
        raise unknown("method", name, METHODS, "`jaxcam methods` lists them all.")
    return METHODS[name]
