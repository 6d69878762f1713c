"""The methods that are compiled and not run, each with options for images of one side."""

from collections.abc import Callable
from functools import partial
from inspect import signature

import jaxcam
from jaxcam.attribution import METHODS

NAMES = [name for name, row in METHODS.items() if row.needs != "tokens" and row.gives != "concepts"]
OF_SEGMENTS = ("lime", "kernel_shap", "shapley_sampling", "sobol", "hsic", "feature_ablation", "xrai")


def method(name: str, side: int, window: int, chunk_size: int) -> Callable:
    """A method by name; segments and windows are squares of `window` pixels."""
    function = METHODS[name].function
    options = {"chunk_size": chunk_size} if "chunk_size" in signature(function).parameters else {}
    if name in OF_SEGMENTS:
        options["segments"] = jaxcam.segments.grid((side, side), window)
    if name == "occlusion":
        options |= {"window": window, "stride": window}
    return partial(function, **options)
