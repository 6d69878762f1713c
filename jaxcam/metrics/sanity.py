"""Whether a method explains this model at all: change the model, and see whether the explanation follows.

Each check takes the method itself, `method(model, images, targets)`, such as `jaxcam.grad_cam`; options go in by a
lambda or `functools.partial`. It returns, for each image, how similar the explanation of the changed model is to that
of the model: one where nothing changed, by any function of `jaxcam.metrics.similarity`. The targets are those given or
the classes that the unchanged model predicts, for all models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxcam._array import Rows
from jaxcam._checks import as_array, functions, random_key
from jaxcam._errors import unknown
from jaxcam._typing import Images, Key, Targets
from jaxcam.metrics._altered import Model, prepare_method
from jaxcam.metrics._checks import Values
from jaxcam.metrics.similarity import spearman
from jaxcam.taps import Network, Tap
from jaxcam.taps.tap import is_inexact


def shuffle(key, array):
    """The array's entries in random order: what was learned is gone, the distribution of the values stays.

    Example:
      >>> shuffle(jax.random.key(0), jnp.arange(5)).sum()
      Array(10, dtype=int32)
    """
    return jax.random.permutation(key, array.ravel()).reshape(array.shape)


def cascading_randomization(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    layers: Sequence[str] | None = None,
    similarity: Callable = spearman,
    randomize: Callable = shuffle,
    key: Key = 0,
) -> dict[str, Values]:
    """Cascading randomization: the model's layers are randomized one after the other, from the output down.

    `value[layer] = similarity(method(model with random weights from the output to layer), method(model))`.

    A method that explains the model moves away from one at once; one that keeps its picture shows the image, not the
    model. Adebayo et al. draw weights afresh from their initialisation; here the trained ones are shuffled within each
    array by default (running statistics too), which destroys as much and keeps activations in range in any framework.

    Args:
      method: `(model, images, targets) -> maps`.
      model: a tap; for a method that needs no activations, on any layer.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      layers: paths whose weights (and all below the path) are randomized together, in this order; `None` is the model's
        outermost layers that have weights, the last one called first.
      similarity: `(maps, maps) -> [n]`.
      randomize: `(key, array) -> array`, for each weight array.
      key: a seed or a key.

    Returns:
      `{layer: float32[n]}`, in the order of randomization.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: a layer without weights; images or targets of a wrong shape, type or range; `layers` left open for a
        model whose weights are not named after its layers.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.cascading_randomization(jaxcam.grad_cam, model, images)
    """
    return randomization(method, model, images, targets, layers, similarity, randomize, key, keep=True)


def independent_randomization(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    layers: Sequence[str] | None = None,
    similarity: Callable = spearman,
    randomize: Callable = shuffle,
    key: Key = 0,
) -> dict[str, Values]:
    """Independent randomization: one layer at a time is randomized, the others stay as trained.

    `value[layer] = similarity(method(model with random weights in layer), method(model))`.

    Args:
      method: `(model, images, targets) -> maps`.
      model: a tap; for a method that needs no activations, on any layer.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      layers: paths whose weights (and all below the path) are randomized together, in this order; `None` is the
        model's outermost layers that have weights, the last one called first.
      similarity: `(maps, maps) -> [n]`.
      randomize: `(key, array) -> array`, for each weight array.
      key: a seed or a key.

    Returns:
      `{layer: float32[n]}`, in the order of randomization.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: a layer without weights; images or targets of a wrong shape, type or range; `layers` left open for a
        model whose weights are not named after its layers.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.independent_randomization(jaxcam.grad_cam, model, images)
    """
    return randomization(method, model, images, targets, layers, similarity, randomize, key, keep=False)


def randomization(
    method, model, images, targets, layers, similarity, randomize, key, *, keep: bool, top_down: bool = True
):
    """The similarity of the model's maps and those of a model with random weights, for each layer."""
    model, images, targets = prepare_weights(model, images, targets)
    functions(method=method, similarity=similarity, randomize=randomize)
    names = weight_names(model.variables)
    if isinstance(layers, str) or not isinstance(layers, Iterable | None):
        layers = (layers,)
    layers = _top_down(model.shapes(images), names) if layers is None else tuple(map(str, layers))
    for layer in layers:
        if not weights_below(layer, names):
            known = dict.fromkeys(name.rpartition(".")[0] or name for name in names if name)
            raise unknown("layer", layer, known, "Only layers that have weights can be randomized.")
    layers = layers if top_down else layers[::-1]
    original, changed, values, key = method(model, images, targets), model, {}, random_key(key)
    for index, layer in enumerate(layers):
        # One key for each layer, so that both kinds of randomization give a layer the same random weights.
        variables, drawn = (changed if keep else model).variables, _folded(key, index)
        own = [name in weights_below(layer, names) for name in names]
        changed = replace(model, variables=randomized(variables, own, randomize, drawn))
        values[layer] = similarity(method(changed, images, targets), original)
    return values


def label_randomization(
    method: Callable,
    model: Model,
    random_label_model: Model,
    images: Images,
    targets: Targets = None,
    *,
    similarity: Callable = spearman,
) -> Values:
    """Label randomization: the model against one of the same architecture that was trained on shuffled labels.

    `value = similarity(method(random_label_model), method(model))`.

    The second model can only have memorised its images, so an explanation that looks the same for both does not show
    what the first one learned.

    Args:
      method: `(model, images, targets) -> maps`.
      model: trained on the true labels.
      random_label_model: trained on permuted labels, with the same classes.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      similarity: `(maps, maps) -> [n]`.

    Returns:
      `float32[n]`.

    Raises:
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.label_randomization(jaxcam.grad_cam, model, model, images)
    """
    model, images, targets = prepare_method(model, images, targets)
    functions(method=method, similarity=similarity, random_label_model=random_label_model)
    return similarity(method(random_label_model, images, targets), method(model, images, targets))


def input_invariance(
    method: Callable,
    model: Model,
    images: Images,
    targets: Targets = None,
    *,
    shift: float | int | Float[Array, "..."] = 1.0,
    similarity: Callable = spearman,
) -> Values:
    """Input invariance: a constant added to all pixels, which the model takes off again, should change no explanation.

    `value = similarity(method(shifted, images + shift), method(model, images))` with
    `shifted(x) = model(x - shift)`.

    The subtraction is what a changed bias of the first layer amounts to in the paper, but exact for any model: with
    zero padding a bias cannot undo the shift at the image's edge. Methods that multiply by the pixel's value, such as
    integrated gradients from a zero baseline, fail.

    Args:
      method: `(model, images, targets) -> maps`.
      model: a tap, or any callable for a method that takes one.
      images: `float[n, *space, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts; one class an
        image, no `[n, t]`.
      shift: a number, or an array that broadcasts to `images`.
      similarity: `(maps, maps) -> [n]`.

    Returns:
      `float32[n]`, one where the explanation is invariant.

    Raises:
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Kindermans et al. 2019, The (Un)reliability of Saliency Methods, https://arxiv.org/abs/1711.00867

    Example:
      >>> values = jaxcam.metrics.input_invariance(jaxcam.grad_cam, model, images)
    """
    model, images, targets = prepare_method(model, images, targets)
    functions(method=method, similarity=similarity)
    shift = as_array(shift, images.dtype)
    if isinstance(model, Tap):
        # A shift of each image's own is one of its rows, which follow the image where a method repeats it.
        own = shift.ndim == images.ndim and shift.shape[0] == images.shape[0]
        variables = model.variables, Rows(shift) if own else shift
        shifted = replace(model, network=_Shifted(model.network), variables=variables)
    else:

        def shifted(images):
            return model(images - shift)

    return similarity(method(shifted, images + shift, targets), method(model, images, targets))


@dataclass(frozen=True)
class _Shifted(Network):
    """A network that takes a shift off the images first; its variables are the inner network's, and the shift."""

    network: Network

    def run(self, variables, images, inputs, options, visit, rows):
        inner, shift = variables
        shift = shift.array if isinstance(shift, Rows) else shift
        return self.network.run(inner, images - shift, inputs, options, visit, rows)


def prepare_weights(model, images, targets):
    """`prepare_method`, for what changes the model's weights, and so must see them."""
    if not isinstance(model, Tap):
        raise TypeError(
            f"The weights to randomize are not to be seen: the model is a {type(model).__name__}. Pass a tap, on any "
            'layer: `jaxcam.tap(module, variables, "layer4")`.'
        )
    return prepare_method(model, images, targets)


def weight_names(variables) -> list[str | None]:
    """For each leaf of the variables the dotted path of the weight, `"layer4.0.conv1.kernel"`; `None` for what is none.

    The first word of a Linen path is the collection, which is no part of the layer's name.
    """
    first = int(hasattr(variables, "keys") and "params" in variables)
    dotted = partial(jax.tree_util.keystr, simple=True, separator=".")
    return [dotted(path[first:]) if is_inexact(leaf) else None for path, leaf in jax.tree.leaves_with_path(variables)]


def weights_below(layer: str, names) -> set[str]:
    """The weights of a layer: those whose path begins with the layer's, or is it.

    Keras names a layer alone by its own name, so where no path begins so, the name may stand further in, at one place.
    """
    weights = set(filter(None, names))
    found = {name for name in weights if f"{name}.".startswith(f"{layer}.")}
    inside = {name for name in weights if f".{layer}." in name}
    return found or (inside if len({name.split(f".{layer}.")[0] for name in inside}) == 1 else set())


def _top_down(called, names) -> tuple[str, ...]:
    """The outermost layers that have weights, the last one called first."""
    layers, seen = [], set()
    for path in reversed(called):
        words = path.split(".")
        if any(".".join(words[:end]) in called for end in range(1, len(words))):
            continue
        own = weights_below(path, names)
        if not own <= seen:
            layers.append(path)
            seen |= own
    if not layers:
        raise ValueError(
            "The weights are not named after the model's layers, so which of them come last is not known. Say so: "
            f"layers=[...], of {', '.join(dict.fromkeys(name.partition('.')[0] for name in filter(None, names)))}."
        )
    return tuple(layers)


def randomized(variables, own, randomize, key):
    """The variables, those leaves that are a layer's `own` drawn anew."""
    leaves, structure = jax.tree.flatten(variables)
    drawn = [
        randomize(_folded(key, index), leaf) if is_own else leaf
        for index, (leaf, is_own) in enumerate(zip(leaves, own, strict=True))
    ]
    return jax.tree.unflatten(structure, drawn)


def _folded(key, number: int):
    return jax.random.fold_in(key, as_array(number, np.uint32))
