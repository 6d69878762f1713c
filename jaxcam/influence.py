"""Which training images? Those that pulled the model towards what it says of an image, and those that look alike to it.

TracIn asks how much a step of training on one image changed the loss of another: the dot product of two gradients,
summed over checkpoints. `similar` compares what a tapped layer returns. Either goes through the training images a chunk
at a time and keeps the best so far; each device goes through those that lie on it, and only the best of each meet.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcam._array import EXACT, Rows, each_image, flat
from jaxcam._checks import as_array, check_images, check_targets, functions, number, positive, prepare
from jaxcam._engine import chunked_fold, engine
from jaxcam._errors import shown, unknown
from jaxcam._scores import predicted, scores
from jaxcam._typing import Images, Score, Targets
from jaxcam.attribution import Method
from jaxcam.attribution._cam import check_one_layer, prepare_tap
from jaxcam.metrics.sanity import weight_names, weights_below
from jaxcam.score import log_probability
from jaxcam.taps import Tap

# Running statistics of a normalisation, as frameworks name them: training does not descend along their gradient.
STATISTICS = {"mean", "var", "moving_mean", "moving_variance", "running_mean", "running_var"}


class Influence(NamedTuple):
    """The training images that matter most to each image, by their number.

    Attributes:
      proponents: those with the greatest scores, the greatest first, `[n, k]`.
      proponent_scores: theirs, `[n, k]`.
      opponents: those with the least scores, the least first, `[n, k]`.
      opponent_scores: theirs, `[n, k]`.
    """

    proponents: Int[Array, "n k"]
    proponent_scores: Float[Array, "n k"]
    opponents: Int[Array, "n k"]
    opponent_scores: Float[Array, "n k"]


def cross_entropy(output, targets):
    """The loss of a classifier, `-log softmax(z)_t`; of a model that returns one number, that of its sigmoid.

    Raises:
      ValueError: the output is not `[n, k]`, `[n, 1]` or `[n]`.

    Example:
      >>> cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))
      Array([0.6931472], dtype=float32)
    """
    return -log_probability(output, targets)


def tracin(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    training: Any,
    checkpoints: Sequence | None = None,
    learning_rates: Sequence[float] | None = None,
    parameters: str | Callable[[str], bool] | None = None,
    loss: Score = cross_entropy,
    num_images: int = 5,
    chunk_size: int | None = None,
) -> Influence:
    """TracIn: the training images whose steps lowered the loss of each image most, and those whose steps raised it.

    `influence(z, z') = sum_i eta_i <d loss(w_i, z) / d w, d loss(w_i, z') / d w>`, over checkpoints `w_i`.

    The gradient of each of `images` is held for every checkpoint, `[n, parameters]`, so all parameters of a large model
    go with few images; those of the last layer are the usual choice. No gradient of a training image is made: its dot
    product with another is a derivative of its loss, and each of `images` costs a forward pass over the training set.

    Args:
      model: a tap; at which layer does not matter. With its weights, or those of `checkpoints`.
      images: to be explained, `float[n, *space, c]`, normalised as the model expects.
      targets: their labels, `int[n]`, one for all, or `None` for what the model predicts.
      training: `(images, labels)`, `float[m, *space, c]` and `int[m]`; or an iterable of such batches, for more than
        fits on a device: their images are counted on.
      checkpoints: of the training, each like `model.variables`; `None` is the model as it is.
      learning_rates: `eta`, one for each checkpoint; by default 1.
      parameters: whose gradients count: the path of a layer, such as `"fc"`, or a function of a weight's name, such as
        `lambda name: name.endswith("kernel")`; `None` is all. Running statistics are no parameters.
      loss: `(output, targets[n]) -> [n]`.
      num_images: how many proponents, and how many opponents, `k`.
      chunk_size: pairs of an image and a training image in one pass; by default what suits the device.

    Returns:
      An `Influence`: proponents with their scores, in units of the loss, and opponents.

    Raises:
      ValueError: images, labels, checkpoints or learning rates of a wrong shape or number; no such parameters; fewer
        training images than `num_images`; a tap with context.
      TypeError: `model` is not a tap, or there are no labels.

    When: training images behind a prediction, mislabelled ones among them, with checkpoints of the training at hand.
    Not for all parameters of a large network at once.

    Reference: Pruthi et al. 2020, Estimating Training Data Influence by Tracing Gradient Descent,
    https://arxiv.org/abs/2002.08484

    Example:
      >>> training = jnp.concatenate([images, -images]), jnp.array([0, 1])
      >>> found = jaxcam.influence.tracin(model, images, 0, training=training, parameters="fc", num_images=1)
      >>> found.proponents
      Array([[0]], dtype=int32)
    """
    _check_tap("tracin", model)
    functions(loss=loss)
    positive(num_images=num_images, chunk_size=chunk_size)
    model, images, targets = prepare(model, images, targets)
    if targets is not None and targets.ndim != 1:
        raise ValueError(f"targets has shape {targets.shape}; tracin takes one label for each image.")
    checkpoints = _checked(checkpoints, model)
    rates = _rates(learning_rates, len(checkpoints))
    options = {"loss": loss, "is_chosen": _chosen(model.variables, parameters)}
    gradients = _gradients(model, images, targets, checkpoints, rates, **options)
    options |= {"num_images": num_images, "chunk_size": chunk_size}

    def of_batch(batch):
        given, labels = _labelled(model, batch)
        return _tracin_engine(model, given, labels, checkpoints, gradients, **options)

    is_one = isinstance(training, tuple) and len(training) == 2 and hasattr(training[0], "shape")
    return _best_of([training] if is_one else training, of_batch, num_images)


def similar(
    model: Tap,
    images: Images,
    *,
    training: Images | Iterable[Images],
    similarity: str | Callable = "cosine",
    num_images: int = 5,
    chunk_size: int | None = None,
) -> Influence:
    """The training images that a layer sees as most like each image, and those that are least like it.

    `score(z, z') = <A, A'> / |A| |A'|` of what the tapped layer returns ("cosine"), `<A, A'>` ("dot") or `-|A - A'|`
    ("euclidean"). A layer that returns zeros for an image has a cosine of 0 with any other.

    Args:
      model: a tap on one layer.
      images: to be explained, `float[n, *space, c]`, normalised as the model expects.
      training: `float[m, *space, c]`, or an iterable of such batches, for more than fits on a device: their images are
        counted on.
      similarity: one of the three, or a function `(A[n, d], A'[m, d]) -> [n, m]`, greater for what is more alike.
      num_images: how many of the most, and how many of the least alike, `k`.
      chunk_size: training images in one pass; by default what suits the device.

    Returns:
      An `Influence`: the most alike are the proponents, the least alike the opponents.

    Raises:
      ValueError: images of a wrong shape; an unknown similarity; fewer training images than `num_images`; a tap on
        several layers, or with context.
      TypeError: `model` is not a tap on a layer.

    When: examples that a person can compare with the image, for one pass over the training set. Not as the cause of the
    prediction: what looks alike need not have taught it.

    Reference: Hanawa et al. 2021, Evaluation of Similarity-based Explanations, https://arxiv.org/abs/2006.04528

    Example:
      >>> found = jaxcam.influence.similar(model, images, training=jnp.concatenate([-images, images]), num_images=1)
      >>> found.proponents
      Array([[1]], dtype=int32)
    """
    _check_tap("similar", model)
    model, images, _ = prepare_tap("similar", model, images, None)
    check_one_layer("similar", model)
    positive(num_images=num_images, chunk_size=chunk_size)
    if isinstance(similarity, str) and similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    measure = SIMILARITIES[similarity] if isinstance(similarity, str) else similarity
    functions(similarity=measure)
    activations = _activations(model, images)
    options = {"measure": measure, "num_images": num_images, "chunk_size": chunk_size}

    def of_batch(batch):
        return _similar_engine(model, check_images(batch), None, activations, **options)

    return _best_of([training] if hasattr(training, "shape") else training, of_batch, num_images)


def _cosine(a, b):
    def unit(x):
        length = jnp.linalg.norm(x, axis=-1, keepdims=True)
        return x / jnp.where(length == 0, 1, length)

    return _dot(unit(a), unit(b))


def _dot(a, b):
    return jnp.matmul(a, b.T, precision=EXACT)


SIMILARITIES = {"cosine": _cosine, "dot": _dot, "euclidean": lambda a, b: -jnp.linalg.norm(a[:, None] - b, axis=-1)}


@engine
def _gradients(model, images, targets, checkpoints, rates, *, loss, is_chosen):
    """The gradient of each image's loss at each checkpoint, times the learning rate; leaves `[checkpoints, n, ...]`."""
    targets = predicted(model(images)) if targets is None else targets

    def of_one(rows, label, checkpoint):
        weights, losses = _of_weights(model, checkpoint, rows.array, label.array, loss, is_chosen)
        return jax.grad(lambda weights: losses(weights).sum())(weights)

    def at(one):
        checkpoint, rate = one
        gradients = each_image(of_one, Rows(images), Rows(targets), checkpoint)
        return [rate * each.astype(jnp.float32) for each in gradients]

    return jax.lax.map(at, (_stacked(checkpoints), rates))


@engine
def _tracin_engine(model, images, labels, checkpoints, gradients, *, loss, is_chosen, num_images, chunk_size):
    checkpoints, n = _stacked(checkpoints), gradients[0].shape[1]

    def influence(images, labels):
        def at(total, one):
            checkpoint, gradients = one
            weights, losses = _of_weights(model, checkpoint, images, labels, loss, is_chosen)
            pull = jax.vjp(losses, weights)[1]  # from a weight for each loss to the gradient of their weighted sum

            def along(gradient):  # the derivative of each loss, backwards twice: forwards not every model goes
                return jax.grad(lambda each: _inner(pull(each)[0], gradient))(jnp.ones(len(images)))

            return total + jax.vmap(along)(gradients), None

        return jax.lax.scan(at, jnp.zeros((n, len(images))), (checkpoints, gradients))[0]

    return _ranked(influence, n, (images, labels), num_images, chunk_size, copies=n)


def _of_weights(model, variables, images, targets, loss, is_chosen):
    """The chosen weights, and the function from them to the losses `[n]` of images."""
    leaves, structure = jax.tree.flatten(variables)

    def losses(weights):
        given = iter(weights)
        every = [next(given) if own else leaf for own, leaf in zip(is_chosen, leaves, strict=True)]
        return scores(loss, replace(model, variables=jax.tree.unflatten(structure, every))(images), targets)

    return [leaf for own, leaf in zip(is_chosen, leaves, strict=True) if own], losses


def _inner(a, b):
    return sum(jnp.sum(x.astype(jnp.float32) * y) for x, y in zip(a, b, strict=True))


def _stacked(checkpoints):
    return jax.tree.map(lambda *each: jnp.stack(each), *checkpoints)


@engine
def _activations(model, images, targets=None):
    features = model.features(images).astype(jnp.float32)
    return features.reshape(len(features), -1)


@engine
def _similar_engine(model, images, targets, activations, *, measure, num_images, chunk_size):
    def alike(images):
        found = measure(activations, _activations(model, images))
        expected = (len(activations), len(images))
        if getattr(found, "shape", None) != expected:
            raise ValueError(
                f"The similarity returned {shown(getattr(found, 'shape', found))}; it must return one number for each "
                f"pair, {expected}: (A[n, d], A'[m, d]) -> [n, m]."
            )
        return found

    return _ranked(alike, len(activations), (images,), num_images, chunk_size)


def _ranked(score, n, rows, num_images, chunk_size, copies=1):
    """The greatest and the least of `score(*chunk of rows) -> [n, m]` for all rows: values and numbers, `[2, n, k]`.

    The rows are laid out `[devices, m / devices]`, as they lie where they are sharded, and a chunk is some of each
    device's. A row takes as much memory as `copies` images.
    """
    m = len(rows[0])
    devices = math.gcd(m, jax.device_count())
    laid = [each.reshape(devices, -1, *each.shape[1:]) for each in rows]
    numbers = jnp.arange(m, dtype=jnp.int32).reshape(devices, -1)

    def step(best, places, is_new):
        chunk = [flat(jnp.take(each, places, axis=1, mode="clip")) for each in laid]
        values = score(*chunk).astype(jnp.float32).reshape(n, devices, -1)
        both = jnp.where(is_new, jnp.stack([values, -values]), -jnp.inf)
        return _better(best, (both, jnp.broadcast_to(numbers[:, places], both.shape)), num_images)

    shape = (2, n, devices, num_images)
    nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    one = jax.ShapeDtypeStruct((devices * copies, *rows[0].shape[1:]), rows[0].dtype)
    best = chunked_fold(step, nothing, m // devices, one, chunk_size)
    return _first([each.reshape(2, n, -1) for each in best], num_images)


def _first(found, count: int):
    """The `count` greatest values along the last axis and their numbers; of equal ones the first."""
    values, numbers = jax.lax.sort_key_val(-found[0], found[1])  # `top_k` would gather the other axes where sharded
    return -values[..., :count], numbers[..., :count]


@partial(jax.jit, static_argnums=2)
def _better(best, found, count: int):
    """The first of both."""
    return _first([jnp.concatenate(each, -1) for each in zip(best, found, strict=True)], count)


def _best_of(batches, of_batch, num_images: int) -> Influence:
    """The best over all batches of training images."""
    best: Any = None
    counted = 0
    for batch in batches:
        values, numbers = of_batch(batch)
        found = values, numbers + as_array(counted, np.int32)
        best = found if best is None else _better(best, found, num_images)
        counted += len(batch if hasattr(batch, "shape") else batch[0])
    if counted < num_images:
        raise ValueError(f"num_images is {num_images}, and there are {counted} training images. Ask for fewer.")
    (greatest, least), (proponents, opponents) = best
    return Influence(proponents, greatest, opponents, -least)


def _check_tap(method: str, model) -> None:
    if not isinstance(model, Tap):
        raise TypeError(
            f"{method} looks inside of the model, and the model is a {type(model).__name__}. Pass a tap: "
            '`jaxcam.tap(module, variables, "layer4")`.'
        )
    if jax.tree.leaves(model.context):
        raise ValueError(
            f"The tap has context, with rows for some images, and {method} passes others through the model too. What "
            "is the same for all images is an argument: jaxcam.tap(..., name=array)."
        )


def _labelled(model, batch):
    if not (isinstance(batch, tuple | list) and len(batch) == 2) or batch[1] is None:
        raise TypeError("training must be (images, labels), or an iterable of such pairs.")
    images = check_images(batch[0])
    labels: Any = check_targets(model, images, batch[1])
    if labels.ndim != 1:
        raise ValueError(f"The labels of training have shape {labels.shape}; there must be one for each image.")
    return images, labels


def _checked(checkpoints, model) -> tuple:
    """Checkpoints as the model's variables are: of the same structure, with arrays of the same shapes."""
    if checkpoints is None:
        return (model.variables,)
    checkpoints = tuple(checkpoints)
    if not checkpoints:
        raise ValueError("checkpoints is empty; it must hold one at least, or be None for the model as it is.")
    structure, shapes = jax.tree.structure(model.variables), list(map(jnp.shape, jax.tree.leaves(model.variables)))
    for number_of, each in enumerate(checkpoints):
        if jax.tree.structure(each) != structure or list(map(jnp.shape, jax.tree.leaves(each))) != shapes:
            raise ValueError(
                f"Checkpoint {number_of} is not like model.variables; it must be a tree of the same names with arrays "
                "of the same shapes, such as `jaxcam.tap(module, variables, layer).variables`."
            )
    return checkpoints


def _rates(learning_rates, count: int):
    rates = [1.0] * count if learning_rates is None else list(learning_rates)
    if len(rates) != count:
        raise ValueError(f"There are {len(rates)} learning rates and {count} checkpoints; there must be one for each.")
    for each in rates:
        number(learning_rates=each)
    return jnp.stack([as_array(each, np.float32) for each in rates])


def _chosen(variables, parameters) -> tuple[bool, ...]:
    """Which leaves of the variables are the parameters that are meant."""
    inside = hasattr(variables, "keys") and "params" in variables  # of Linen's collections only these are trained
    paths = [path for path, _ in jax.tree.leaves_with_path(variables)]
    names = [
        None if name is None or STATISTICS & set(name.split(".")) or (inside and path[0].key != "params") else name
        for path, name in zip(paths, weight_names(variables), strict=True)
    ]
    known = list(filter(None, names))
    if parameters is None:
        found = set(known)
    elif isinstance(parameters, str):
        found = weights_below(parameters, names)
    else:
        functions(parameters=parameters)
        found = set(filter(parameters, known))
    if not found:
        if isinstance(parameters, str):
            raise unknown("layer with parameters", parameters, dict.fromkeys(each.rpartition(".")[0] for each in known))
        raise ValueError(f"No parameters are left. Some of the model's: {', '.join(known[:5]) or 'none'}.")
    return tuple(name in found for name in names)


TRAINING = "which training images"
METHODS = {
    row.name: row
    for row in [
        Method(tracin, TRAINING, "tap", "training images", "3, and 4 for each training image"),
        Method(similar, TRAINING, "tap", "training images", "1, and 1 for each training image", sees_class=False),
    ]
}
