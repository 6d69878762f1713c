"""A formula becomes a method: what every method is given is checked, then the formula is compiled.

The signature says what is wanted: `model: Tap` is a tap of a layer, and an option means the same in every method, so it
has one check, by its name. What only one method forbids is said in the first lines of its formula, as it is traced.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from jaxcam._checks import check_baseline, check_baselines, functions, number, positive, prepare, random_key
from jaxcam._engine import engine
from jaxcam.attribution._cam import prepare_tap
from jaxcam.taps import Tap

Given = ParamSpec("Given")
Found = TypeVar("Found")
COUNTS = {"chunk_size", "max_channels", "num_components", "num_iterations", "num_samples", "num_steps"}
BOUNDS = {
    "deviation": {"least": 0},
    "deviations": {},
    "fraction": {"above": 0, "most": 1},
    "kernel_scale": {"above": 0},
    "mask_noise": {"least": 0},
    "max_distance": {"above": 0, "most": 1},
    "max_sigma": {"above": 0},
    "noise": {"least": 0},
    "residual": {"least": 0, "most": 1},
}


def as_method(formula: Callable[Given, Found]) -> Callable[Given, Found]:
    """`formula(model, images, targets=None, *, options)` as a method that anyone may call."""
    signature, compiled = inspect.signature(formula), engine(formula)
    needs_tap = signature.parameters["model"].annotation is Tap

    @wraps(formula)
    def run(*args, **kwargs):
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{formula.__name__}: {error}.") from None
        given.apply_defaults()
        what = prepare_tap(formula.__name__, *given.args) if needs_tap else prepare(*given.args)
        return compiled(*what, **{name: _checked(name, value, what[1]) for name, value in given.kwargs.items()})

    return run


def _checked(name: str, value, images):
    if name in COUNTS:
        positive(**{name: value})
    elif name in BOUNDS:
        number(**BOUNDS[name], **{name: value})
    elif name == "method":
        functions(**{name: value})
    elif name == "baseline":
        return check_baseline(value, images, several=True)
    elif name == "baselines":
        return check_baselines(value, images)
    return random_key(value) if name == "key" else value
