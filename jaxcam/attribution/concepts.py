"""Concepts: directions in a layer that mean something to a person, given by examples (TCAV) or found (CRAFT).

Both look at the model through a tapped layer: what it returns for an image, and what the rest of the model makes of
that. A concept of TCAV is the direction from random images to examples; the class needs it if its score rises along it.
A concept of CRAFT is a non-negative factor of what crops of the class's images have in common; how much the class needs
it is its Sobol index, and where it is on an image are the cells of which it is a part.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcam._array import EXACT, resize
from jaxcam._checks import check_images, number, positive, random_key
from jaxcam._engine import chunked_map, engine
from jaxcam._scores import chosen, scores
from jaxcam._typing import Images, Key, Score, Targets
from jaxcam.attribution._cam import check_one_layer, prepare_tap, scores_with
from jaxcam.attribution.decomposition import factorised
from jaxcam.attribution.sensitivity import total_indices
from jaxcam.score import logit
from jaxcam.taps import Tap

Examples = Float[Array, "e ..."] | Float[np.ndarray, "e ..."]
RandomSets = Float[Array, "r m ..."] | Float[np.ndarray, "r m ..."]
HELD_OUT = 3  # every third example says how good a direction is, and has no part in it
NEWTON = 20  # steps; the logistic loss is convex


class Tcav(NamedTuple):
    """What a class has to do with a concept.

    Attributes:
      score: the share of the images whose score rises along the concept, the mean over random sets.
      scores: the same for the direction away from each random set, `[r]`.
      null: the same for directions from one random set to another, `[r]`.
      p_value: of Welch's t-test between `scores` and `null`: small where the concept is no random direction.
      accuracy: how well each direction tells held-out examples from random images, `[r]`; 0.5 is chance.
      sensitivities: the derivative of each image's score along each direction, `[r, n]`.
      directions: of length one, `[r, *cells, k]`.
    """

    score: Float[Array, ""]
    scores: Float[Array, "r"]
    null: Float[Array, "r"]
    p_value: Float[Array, ""]
    accuracy: Float[Array, "r"]
    sensitivities: Float[Array, "r n"]
    directions: Float[Array, "r ..."]


def tcav(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    concept: Examples,
    random_sets: RandomSets,
    score: Score = logit,
    penalty: float | int = 0.01,
) -> Tcav:
    """TCAV: does the score of these images rise along the direction of a concept, more often than along random ones?

    `TCAV = mean_n(d score_n / d A_n . v > 0)`, where `v` is the normal of the plane between the layer's activations `A`
    for examples of the concept and those for random images, by logistic regression with a penalty on its length.

    One random set gives a number, several say whether it means something: each gives a direction, and pairs of them
    those of no concept, with which a two-sided t-test compares. Every third example is held out.

    Args:
      model: a tap on one layer.
      images: of the class, `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, or `None` for the predicted class.
      concept: examples of the concept, `float[e, *space, c]`, three at least.
      random_sets: images of anything, `float[r, m, *space, c]`, two sets at least.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      penalty: on the square of the direction's length, in units of the mean square of an activation vector.

    Returns:
      A `Tcav`: score, p-value, accuracy, and what they are made of.

    Raises:
      ValueError: images, examples or targets of a wrong shape; too few examples or sets; a tap on several layers.
      TypeError: `model` is not a tap.

    When: whether a class needs what you can show by examples, such as stripes. Not for a picture of one image, nor with
    random images that differ from the examples in more than the concept.

    Reference: Kim et al. 2018, Interpretability Beyond Feature Attribution: Quantitative Testing with Concept
    Activation Vectors, https://arxiv.org/abs/1711.11279

    Example:
      >>> examples = jnp.repeat(images, 3, axis=0)
      >>> anything = jnp.stack([examples[::-1], -examples])
      >>> found = jaxcam.tcav(model, images, 1, concept=examples, random_sets=anything)
      >>> found.scores.shape
      (2,)
    """
    model, images, targets = _one_layer("tcav", model, images, targets)
    number(above=0, penalty=penalty)
    concept, random_sets = check_images(concept), jnp.asarray(random_sets)
    if random_sets.ndim != images.ndim + 1 or len(random_sets) < 2:
        raise ValueError(
            f"random_sets has shape {random_sets.shape}; it must be two sets or more of images, [r, m, *space, c]."
        )
    if min(len(concept), random_sets.shape[1]) < HELD_OUT:
        raise ValueError(
            f"There are {len(concept)} examples of the concept and {random_sets.shape[1]} images in each random set; "
            f"it takes {HELD_OUT} at least."
        )
    return _tcav_engine(model, images, targets, concept, random_sets, score=score, penalty=penalty)


@engine
def _tcav_engine(model, images, targets, concept, random_sets, *, score, penalty):
    targets = chosen(model, images, targets)
    slopes = model.gradients(images, lambda output: scores(score, output, targets).sum())[2][0].astype(jnp.float32)
    examples, randoms = model.features(concept), jax.lax.map(model.features, random_sets)

    def along(examples):  # the directions from each random set, and the score's derivatives along them
        directions, accuracy = jax.vmap(partial(_direction, penalty=penalty))(examples, randoms)
        return jnp.einsum("n...,r...->rn", slopes, directions, precision=EXACT), directions, accuracy

    sensitivities, directions, accuracy = along(jnp.broadcast_to(examples, (len(randoms), *examples.shape)))
    found, null = (jnp.mean(each > 0, 1) for each in (sensitivities, along(jnp.roll(randoms, -1, 0))[0]))
    return Tcav(found.mean(), found, null, _welch(found, null), accuracy, sensitivities, directions)


def _welch(a, b):
    """The p-value of Welch's two-sided t-test between two samples of `r` numbers; two constants are equal, or not."""
    variances = jnp.stack([jnp.var(each, ddof=1) / len(each) for each in (a, b)])
    constant, difference = variances.sum() == 0, jnp.mean(a) - jnp.mean(b)
    variances = jnp.where(constant, 1, variances)
    degrees = variances.sum() ** 2 / jnp.sum(variances**2 / (jnp.array([len(a), len(b)], jnp.float32) - 1))
    below = degrees / (degrees + difference**2 / variances.sum())
    return jnp.where(constant, difference == 0, jax.scipy.special.betainc(degrees / 2, 0.5, below))


def _direction(examples, randoms, penalty):
    """The direction from `randoms [m, ...]` to `examples [e, ...]`, and how well it tells those that are held out."""
    sets = examples, randoms
    x = jnp.concatenate(sets).astype(jnp.float32)
    x = x.reshape(len(x), -1)
    y = (jnp.arange(len(x)) < len(examples)).astype(jnp.float32)
    held = jnp.concatenate([jnp.arange(len(each)) % HELD_OUT == 0 for each in sets])
    weight, bias = _logistic(x, y, ~held, penalty)
    right = (jnp.sum(x * weight, -1) + bias > 0) == (y > 0)
    length = jnp.linalg.norm(weight)
    direction = weight / jnp.where(length == 0, 1, length)
    return direction.reshape(examples.shape[1:]), jnp.sum(right & held) / jnp.sum(held)


def _logistic(x, y, used, penalty):
    """Weights and bias of a logistic regression, by Newton's method.

    The weights are a sum of the rows of `x`, so that one number for each example is sought, however long a row is.
    """
    centre = jnp.sum(x * used[:, None], 0) / jnp.sum(used)
    x = x - centre
    gram = jnp.matmul(x, x.T, precision=EXACT)
    scale = jnp.trace(gram) / len(x)
    gram = gram / jnp.where(scale == 0, 1, scale)
    kernel = jnp.pad(gram, ((0, 0), (0, 1)), constant_values=1.0)  # the last column is the bias
    ridge = penalty * jnp.pad(gram, (0, 1)) + 1e-6 * jnp.eye(len(x) + 1)

    def loss(a):
        margin = kernel @ a
        losses = jax.nn.softplus(margin) - y * margin
        return jnp.sum(losses * used) / jnp.sum(used) + a @ ridge @ a / 2

    def step(a, _):
        return a - jnp.linalg.solve(jax.hessian(loss)(a), jax.grad(loss)(a)), None

    a = jax.lax.scan(step, jnp.zeros(len(x) + 1), length=NEWTON)[0]
    weight = jnp.matmul(a[:-1], x, precision=EXACT) / jnp.where(scale == 0, 1, scale)
    return weight, a[-1] - jnp.sum(weight * centre)


class Craft(NamedTuple):
    """The concepts of a class, the most important first.

    Attributes:
      components: the concepts in the layer, `[r, k]`: what its channels are where the concept is.
      importance: how much of the variance of the score each has a part in (total Sobol index), `[r]`.
      maps: how strong each concept is where, on each image, `[n, r, *space]`, not negative; `craft_maps` for others.
      crops: the crops in which it is strongest, `[r, 5, 1 + axes]`: the image, and the corner in pixels.
      window: of a crop, in pixels along each axis.
    """

    components: Float[Array, "r k"]
    importance: Float[Array, "r"]
    maps: Float[Array, "n r ..."]
    crops: Int[Array, "r m axes"]
    window: tuple[int, ...]


def craft(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    num_components: int = 10,
    num_iterations: int = 100,
    window: float = 0.35,
    num_samples: int = 32,
    key: Key = 0,
    chunk_size: int | None = None,
) -> Craft:
    """CRAFT: the concepts that the images of a class are made of, how much it needs each, and where they are.

    Crops of all images go through the layer and are averaged over its cells: `A[crops, k] ~ U W` with `U, W >= 0`, by
    `num_iterations` rounds of coordinate descent; the rows of `W` are the concepts. On an image the layer's cells are
    `A[p, k] ~ U[p, r] W` with the same `W`. The importance of a concept is the total Sobol index of the score when the
    columns of `U` are multiplied by numbers from 0 to 1 and the rest of the model sees `U W`, the mean over images.

    The layer's values must not be negative (after a ReLU); negative ones count as zero.

    Args:
      model: a tap on one spatial layer.
      images: of one class, `float[n, *space, c]`, normalised as the model expects; ten at least are sensible.
      targets: one class for all, `int[n]`, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      num_components: concepts, `r`.
      num_iterations: rounds in which each column of `U` and each row of `W` is made better once.
      window: of a crop, as a share of each side; crops overlap by a fifth, and are resized to the image.
      num_samples: rows of the sampling matrices, best a power of two: each takes a pass for every concept, and two.
      key: of the samples: a key, or the seed of one.
      chunk_size: crops or changed activations in one pass; by default what suits the device.

    Returns:
      A `Craft`: concepts, importance, maps and the crops that show them.

    Raises:
      ValueError: images or targets of a wrong shape; a window outside of (0, 1]; a layer that is not spatial or knows
        nothing of the images; a tap on several layers.
      TypeError: `model` is not a tap.

    When: what the images of a class have in common for the model, without naming it first. Not for one image, nor where
    the layer's values are negative.

    Reference: Fel et al. 2023, CRAFT: Concept Recursive Activation FacTorization for Explainability,
    https://arxiv.org/abs/2211.10154

    Example:
      >>> found = jaxcam.craft(model, images, 1, num_components=3, num_samples=4)
      >>> found.importance.shape
      (3,)
    """
    counts = {"num_components": num_components, "num_iterations": num_iterations, "num_samples": num_samples}
    positive(**counts, chunk_size=chunk_size)
    number(above=0, most=1, window=window)
    model, images, targets = _one_layer("craft", model, images, targets)
    size = tuple(max(1, round(window * side)) for side in images.shape[1:-1])
    corners = _corners(images.shape[1:-1], size)
    options = {"score": score, "corners": tuple(map(tuple, corners.tolist())), "size": size, "chunk_size": chunk_size}
    W, importance, maps, crops = _craft_engine(model, images, targets, random_key(key), **options, **counts)
    return Craft(W, importance, maps, crops, size)


def craft_maps(model: Tap, images: Images, components: Float[Array, "r k"], *, num_iterations: int = 100):
    """How strong CRAFT's concepts are where, on any images: `float32[n, r, *space]`, not negative.

    `A[p, k] ~ U[p, r] W` with `U >= 0` and the concepts `W` that `craft` has found, by coordinate descent.

    Args:
      model: the tap with which the concepts were found.
      images: `float[n, *space, c]`, normalised as the model expects.
      components: `W`.
      num_iterations: rounds in which each column of `U` is made better once.

    Returns:
      Maps at the images' size, in units of the concept.

    Raises:
      ValueError: images of a wrong shape; concepts of another layer.
      TypeError: `model` is not a tap.

    Reference: Fel et al. 2023, CRAFT: Concept Recursive Activation FacTorization for Explainability,
    https://arxiv.org/abs/2211.10154

    Example:
      >>> maps = jaxcam.craft_maps(model, images, jaxcam.craft(model, images, 1, num_samples=4).components)
    """
    positive(num_iterations=num_iterations)
    model, images, _ = _one_layer("craft_maps", model, images, None)
    return _maps_engine(model, images, None, components, num_iterations=num_iterations)


@engine
def _maps_engine(model, images, targets, components, *, num_iterations):
    A = _cells_of(model, images)
    if components.ndim != 2 or components.shape[1] != A.shape[-1]:
        raise ValueError(
            f"components has shape {components.shape}, and the layer has {A.shape[-1]} channels: it must be [r, k]."
        )
    return _laid(_coefficients(A, components, num_iterations), images)


@engine
def _craft_engine(
    model, images, targets, key, *, score, corners, size, num_components, num_iterations, num_samples, chunk_size
):
    targets, corners = chosen(model, images, targets), jnp.array(corners, jnp.int32)

    def crops(indices):
        def crop(image, corner):
            part = jax.lax.dynamic_slice(image, (*corner, 0), (*size, image.shape[-1]))
            return jnp.moveaxis(resize(jnp.moveaxis(part, -1, 0), image.shape[:-1]), 0, -1)

        parts = jax.vmap(lambda image: jax.vmap(partial(crop, image))(corners[indices]))(images)
        found = _cells_of(model, parts.reshape(-1, *images.shape[1:]).astype(images.dtype))
        return found.mean(tuple(range(1, found.ndim - 1))).reshape(len(images), len(indices), -1)

    seen = chunked_map(crops, len(corners), images, chunk_size)
    strength, W = factorised(seen.reshape(-1, seen.shape[-1]), num_components, num_iterations)
    A = _cells_of(model, images)
    U = _coefficients(A, W, num_iterations)
    importance = _importance(model, images, targets, key, U, W, score, num_samples, chunk_size, A.dtype).mean(0)
    order = jnp.argsort(-importance)
    best = jnp.argsort(-strength[:, order], 0)[:5].T  # [r, 5] of crops, image after image
    places = jnp.concatenate([(best // len(corners))[..., None], corners[best % len(corners)]], -1)
    return W[order], importance[order], _laid(U, images)[:, order], places


def _importance(model, images, targets, key, U, W, score, num_samples, chunk_size, dtype):
    """The total Sobol index of each concept for each image's score, `[n, r]`."""
    design = total_indices(key, jnp.ones((1, len(W)), bool), num_samples)

    def changed(indices):
        masks = jnp.expand_dims(design.keep(indices), range(1, U.ndim - 1))  # [m, ..., r]
        values = jnp.matmul(U[:, None] * masks, W, precision=EXACT).astype(dtype)
        return scores_with(model, model.layers[0], images, values, targets, score)

    return design.attribute(chunked_map(changed, design.num_samples, U, chunk_size))


def _cells_of(model, images):
    """What the layer returns, without what is negative, `[n, *cells, k]`."""
    activation = model.features(images)
    if activation.ndim != images.ndim:
        raise ValueError(
            f"Layer {model.layers[0]!r} returns {activation.shape}, which is not spatial as the images {images.shape} "
            "are. Tap a convolutional layer."
        )
    return jax.nn.relu(activation)


def _coefficients(A, W, num_iterations):
    """`U >= 0` with `A ~ U W`, `[n, *cells, r]`."""
    X = A.astype(jnp.float32).reshape(-1, A.shape[-1])
    return factorised(X, len(W), num_iterations, W)[0].reshape(*A.shape[:-1], len(W))


def _laid(U, images):
    return resize(jnp.moveaxis(U, -1, 1), images.shape[1:-1])


def _corners(space, size) -> np.ndarray:
    """Where crops begin, `[m, axes]`: one after four fifths of the other, and one at each end."""
    starts = [
        np.unique(np.append(np.arange(0, side - length, max(1, int(0.8 * length))), side - length))
        for side, length in zip(space, size, strict=True)
    ]
    return np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(space))


def _one_layer(method: str, model, images, targets) -> tuple[Tap, jax.Array, jax.Array | None]:
    model, images, targets = prepare_tap(method, model, images, targets)
    check_one_layer(method, model)
    if targets is not None and targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}; {method} takes one class for each image.")
    return model, images, targets
