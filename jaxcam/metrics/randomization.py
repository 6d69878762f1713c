"""More ways to randomize: another class, and what the test of random weights became after its critics.

Comparing the maps of a trained and of a random model by their similarity rewards noisy methods. The smooth test takes
the noise off first, by a mean over noisy copies of the image; the efficient one compares no maps, but how complex they
are.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from jaxcam._checks import class_count, functions, outline, positive, random_key
from jaxcam._engine import engine, scan
from jaxcam._typing import Images, Key, Targets
from jaxcam.metrics._altered import Model, check_perturbation, prepare_method
from jaxcam.metrics._checks import Values, check_maps
from jaxcam.metrics.complexity import histogram_entropy
from jaxcam.metrics.robustness import quotient, traceable
from jaxcam.metrics.sanity import prepare_weights, randomization, randomized, shuffle, weight_names
from jaxcam.metrics.similarity import spearman
from jaxcam.taps import Tap


def random_logit(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    similarity: Callable = spearman,
    key: Key = 0,
) -> Values:
    """Random logit: the explanation of a class against that of another one, drawn for each image.

    `value = similarity(method(other class), method(class))`; a method that explains the class moves away from one.

    Args:
      method: `(model, images, targets) -> maps`.
      model: what the method takes; its output tells two classes or more apart.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the model predicts; one class an image, no
        `[n, t]`.
      similarity: `(maps, maps) -> [n]`; Quantus's default is the structural similarity.
      key: for the other classes; a seed or a key.

    Returns:
      `float32[n]`, one where the class makes no difference.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; a model without classes.

    Reference: Sixt et al. 2020, When Explanations Lie: Why Many Modified BP Attributions Fail,
    https://arxiv.org/abs/1912.09818

    Example:
      >>> values = jaxcam.metrics.random_logit(jaxcam.grad_cam, model, images)
    """
    functions(method=method, similarity=similarity)
    model, images, targets = prepare_method(model, images, targets)
    classes = class_count(outline(model, images))
    if classes is None or classes < 2:
        raise ValueError("The model's output is no logits of two classes or more, so there is no other class to draw.")
    others = _other_classes(random_key(key), targets, classes)
    return similarity(method(model, images, others), method(model, images, targets))


@partial(jax.jit, static_argnums=2)
def _other_classes(key, targets, classes):
    """Each image draws from a key of its own, whatever stands beside it."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(targets)))
    further = jax.vmap(lambda key: jax.random.randint(key, (), 1, classes, jnp.int32))(keys)
    return (targets + further) % classes


def smooth_mprt(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    layers: Sequence[str] | None = None,
    similarity: Callable = spearman,
    randomize: Callable = shuffle,
    noise: float | int = 0.15,
    deviation: float | int | None = None,
    num_samples: int = 25,
    key: Key = 0,
) -> dict[str, Values]:
    """Smooth MPRT: cascading randomization from the input up, of maps that are means over noisy copies of the image.

    `value[layer] = similarity(mean_s method(model with random weights from the input to layer)(image + e_s), mean_s
    method(model)(image + e_s))`, with `e_s ~ N(0, (noise * range)^2)`.

    The mean takes the noise off the maps, for which two maps are unlike each other whatever they show. Quantus leaves
    one of the copies as it is.

    Args:
      method: `(model, images, targets) -> maps`, which JAX can trace.
      model: a tap; for a method that needs no activations, on any layer.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      layers: paths whose weights (and all below the path) are randomized together, the last one first; `None` is the
        model's outermost layers that have weights, the first one called first.
      similarity: `(maps, maps) -> [n]`.
      randomize: `(key, array) -> array`, for each weight array.
      noise: standard deviation of the noise, as a share of the image's range; that of a constant image counts as one.
      deviation: standard deviation in units of the pixel, in place of `noise`.
      num_samples: noisy copies of each image.
      key: a seed or a key.

    Returns:
      `{layer: float32[n]}`, in the order of randomization.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: a layer without weights; images or targets of a wrong shape, type or range; `layers` left open for a
        model whose weights are not named after its layers.

    Reference: Hedström et al. 2024, Sanity Checks Revisited: An Exploration to Repair the Model Parameter
    Randomisation Test, https://arxiv.org/abs/2401.06465

    Example:
      >>> values = jaxcam.metrics.smooth_mprt(jaxcam.saliency, model, images, num_samples=2, layers=["fc"])
    """
    positive(num_samples=num_samples)
    functions(method=method)
    how, (key, key_of_noise) = check_perturbation("noise", 0, noise, deviation), jax.random.split(random_key(key))

    def smooth(model, images, targets):
        with traceable("method"):
            return _smooth(model, images, targets, key_of_noise, method=method, how=how, num_samples=num_samples)

    return randomization(smooth, model, images, targets, layers, similarity, randomize, key, keep=True, top_down=False)


@engine
def _smooth(model, images, targets, key, *, method, how, num_samples):
    def one_sample(total, key):
        maps = method(model, images + how(key, images).astype(images.dtype), targets)
        return total + maps.astype(jnp.float32) / num_samples, None

    zeros = jnp.zeros_like(jax.eval_shape(method, model, images, targets), jnp.float32)
    return scan(one_sample, zeros, jax.random.split(key, num_samples))[0]


def efficient_mprt(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    complexity: Callable = histogram_entropy,
    randomize: Callable = shuffle,
    key: Key = 0,
) -> Values:
    """Efficient MPRT: how much more complex the maps are of a model with random weights; high is good.

    `value = (H(method(random model)) - H(method(model))) / H(method(model))`, with `H` the entropy of the histogram of
    a map's values.

    Args:
      method: `(model, images, targets) -> maps`.
      model: a tap; for a method that needs no activations, on any layer.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      complexity: `H`, `maps -> [n]`.
      randomize: `(key, array) -> array`, for each weight array of the model.
      key: a seed or a key.

    Returns:
      `float32[n]`, a share of the map's complexity; zero where that is zero.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Hedström et al. 2024, Sanity Checks Revisited: An Exploration to Repair the Model Parameter
    Randomisation Test, https://arxiv.org/abs/2401.06465

    Example:
      >>> values = jaxcam.metrics.efficient_mprt(jaxcam.saliency, model, images)
    """
    functions(method=method, complexity=complexity, randomize=randomize)
    model, images, targets = prepare_weights(model, images, targets)
    weights = [name is not None for name in weight_names(model.variables)]
    random_model = replace(model, variables=randomized(model.variables, weights, randomize, random_key(key)))
    after, before = (
        complexity(check_maps(method(each, images, targets), "The result of `method`"))
        for each in (random_model, model)
    )
    return quotient(after - before, before)
