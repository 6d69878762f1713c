"""Relative stability: how much an explanation changes against what the model made of the same change.

Three metrics share the numerator, the relative change of the map; they divide it by the relative change of the image,
by that of the tapped layer's activations, or by the change of the output. Only changes that leave the predicted class
as it is count, as in the paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcam._array import defined
from jaxcam._checks import functions, positive, random_key
from jaxcam._engine import engine
from jaxcam._scores import predicted
from jaxcam._typing import Images, Key, Targets
from jaxcam.metrics._altered import Model, check_perturbation, prepare_method
from jaxcam.metrics._checks import Values
from jaxcam.metrics.robustness import difference, explained, norm, over_changes, traceable
from jaxcam.taps import Tap

LEAST = 1e-6  # the paper's epsilon: what a zero is divided by, and the least denominator


def relative_input_stability(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Relative input stability: the explanation's relative change for each relative change of the image; low is good.

    `RIS = max_d |(e - e') / e| / max(|(x - x') / x|, 1e-6)`, with `e = method(image x)`, `e' = method(x' = x + d)`.

    A value of zero is divided by 1e-6. Changes that change the predicted class do not count; where all do, the value is
    NaN. In Quantus one such change among many makes it NaN.

    Args:
      method: `(model, images, targets) -> maps`, which JAX can trace.
      model: what the method takes.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class, which is then explained for the
        changed images too; one class an image, no `[n, t]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; a negative radius or noise; an unknown
        perturbation.

    Reference: Agarwal et al. 2022, Rethinking Stability for Attribution-based Explanations,
    https://arxiv.org/abs/2203.06877

    Example:
      >>> values = jaxcam.metrics.relative_input_stability(jaxcam.saliency, model, images)
    """
    how = check_perturbation(perturbation, radius, noise, deviation)
    return _stability(_of_the_input, method, model, images, targets, how, num_samples, key)


def relative_output_stability(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Relative output stability: the explanation's relative change for each change of the logits; low is good.

    `ROS = max_d |(e - e') / e| / max(|h - h'|, 1e-6)`, with `e = method(image x)`, `e' = method(x + d)` and `h`, `h'`
    the model's output for the two.

    A value of zero is divided by 1e-6. Changes that change the predicted class do not count; where all do, the value is
    NaN. In Quantus one such change among many makes it NaN.

    Args:
      method: `(model, images, targets) -> maps`, which JAX can trace.
      model: what the method takes; its output is one array, such as logits.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class, which is then explained for the
        changed images too; one class an image, no `[n, t]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, one over units of the output.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; a negative radius or noise; an unknown
        perturbation.

    Reference: Agarwal et al. 2022, Rethinking Stability for Attribution-based Explanations,
    https://arxiv.org/abs/2203.06877

    Example:
      >>> values = jaxcam.metrics.relative_output_stability(jaxcam.saliency, model, images)
    """
    how = check_perturbation(perturbation, radius, noise, deviation)
    return _stability(_of_the_output, method, model, images, targets, how, num_samples, key)


def relative_representation_stability(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    perturbation: str | Callable = "uniform",
    radius: float | int = 0.02,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 10,
    key: Key = 0,
) -> Values:
    """Relative representation stability: the explanation's relative change for each one of a hidden layer.

    `RRS = max_d |(e - e') / e| / max(|(a - a') / a|, 1e-6)`, with `e = method(image x)`, `e' = method(x + d)` and `a`,
    `a'` the activations of the tapped layer for the two; low is good.

    A value of zero is divided by 1e-6. Changes that change the predicted class do not count; where all do, the value is
    NaN. In Quantus one such change among many makes it NaN.

    Args:
      method: `(model, images, targets) -> maps`, which JAX can trace.
      model: a tap of the layer.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for each image's predicted class, which is then explained for the
        changed images too; one class an image, no `[n, t]`.
      perturbation: the change `d`: `"uniform"`, `"noise"` (normal), or a function `(key, image[*space, c]) -> [*space,
        c]`.
      radius: largest change of a pixel for `"uniform"`, in units of the normalised image.
      noise: deviation for `"noise"`, as a share of each image's range.
      deviation: the same in units of the normalised pixel; it takes the place of `noise`.
      num_samples: changes that are tried.
      key: a seed or a key.

    Returns:
      `float32[n]`, a ratio.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: images or targets of a wrong shape, type or range; a negative radius or noise; an unknown
        perturbation.

    Reference: Agarwal et al. 2022, Rethinking Stability for Attribution-based Explanations,
    https://arxiv.org/abs/2203.06877

    Example:
      >>> values = jaxcam.metrics.relative_representation_stability(jaxcam.saliency, model, images)
    """
    if not isinstance(model, Tap):
        raise TypeError(
            f"The model is a {type(model).__name__}, which has no layer to compare. Pass a tap of one: "
            '`jaxcam.tap(module, variables, "layer4")`.'
        )
    how = check_perturbation(perturbation, radius, noise, deviation)
    return _stability(_of_the_layer, method, model, images, targets, how, num_samples, key)


def _of_the_input(model, images):
    return lambda changed: _relative(difference(images, changed), images.astype(jnp.float32))


def _of_the_output(model, images):
    output = model(images)
    return lambda changed: norm(difference(model(changed), output))


def _of_the_layer(model, images):
    before = jax.tree.leaves(model.features(images))

    def change(changed):
        pairs = zip(before, jax.tree.leaves(model.features(changed)), strict=True)
        return norm(jnp.stack([_relative(difference(a, b), a.astype(jnp.float32)) for a, b in pairs], -1))

    return change


def _stability(against, method, model, images, targets, how, num_samples, key):
    functions(method=method)
    positive(num_samples=num_samples)
    model, images, targets = prepare_method(model, images, targets)
    options = {"against": against, "method": method, "how": how, "num_samples": num_samples}
    with traceable("method"):
        return _stability_engine(model, images, targets, random_key(key), **options)


@engine
def _stability_engine(model, images, targets, key, *, against, method, how, num_samples):
    """The largest quotient of the map's relative change and of what `against` says of the same changed images."""

    def explain(images):
        return method(model, images, targets)

    images, original = explained(explain, images)
    denominator, classes = against(model, images), predicted(model(images))

    def quotient(changed, maps):
        ratio = _relative(original - maps, original) / jnp.maximum(denominator(changed), LEAST)
        return defined(ratio, predicted(model(changed)) == classes)

    return jnp.nanmax(over_changes(explain, images, quotient, how, num_samples, key), 0)


def _relative(change, of):
    """The length of each image's relative changes; what is zero counts as `LEAST`."""
    return norm(change / jnp.where(of == 0, LEAST, of))
