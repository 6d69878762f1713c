"""Whether a method explains this model at all: change the model, and see whether the explanation follows.

Each check takes the method itself, `method(model, images, targets)`, such as `jaxcam.grad_cam`; options go in by a
lambda or `functools.partial`. It returns, for each image, how similar the explanation of the changed model is to that
of the model: one where nothing changed, by any function of `jaxcam.metrics.similarity`. The targets are those given or
the classes that the unchanged model predicts, for all models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxcam._errors import unknown
from jaxcam._inputs import check_images, check_targets, predicted, require_tap
from jaxcam._typing import Images, Targets
from jaxcam.metrics._checks import Values
from jaxcam.metrics.similarity import spearman
from jaxcam.tap import Tap, _unwrap
from jaxcam.tap import layers as list_layers


def shuffle(key, array):
    """The array's entries in random order: what was learned is gone, the distribution of the values stays.

    Example:
      >>> shuffle(jax.random.key(0), jnp.arange(5)).sum()
      Array(10, dtype=int32)
    """
    return jax.random.permutation(key, array.ravel()).reshape(array.shape)


def cascading_randomisation(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    layers: Sequence[str] | None = None,
    similarity: Callable = spearman,
    randomise: Callable = shuffle,
    key=None,
) -> dict[str, Values]:
    """Cascading randomisation: the model's layers are randomised one after the other, from the output down.

    `value[layer] = similarity(method(model with random weights from the output to layer), method(model))`.

    A method that explains the model moves away from one at once; one that keeps its picture shows the image, not the
    model. Adebayo et al. draw weights afresh from their initialisation; here the trained ones are shuffled within each
    array by default (running statistics too), which destroys as much and keeps activations in range in any framework.

    Args:
      method: `(model, images, targets) -> maps`.
      model: a tap; for a method that needs no activations, on any layer.
      images: `float[n, h, w, c]`.
      targets: `int[n]`, one class for all, or `None` for the classes that the trained model predicts.
      layers: paths whose weights (and all below the path) are randomised together, in this order; `None` is the model's
        top-level layers from last to first.
      similarity: `(maps, maps) -> [n]`.
      randomise: `(key, array) -> array`, for each weight array.
      key: `None` means `jax.random.key(0)`.

    Returns:
      `{layer: float32[n]}`, in the order of randomisation.

    Raises:
      TypeError: `model` is not a tap.
      ValueError: a layer without weights; images or targets of a wrong shape, type or range.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.cascading_randomisation(jaxcam.grad_cam, model, images)
    """
    return _randomisation(method, model, images, targets, layers, similarity, randomise, key, keep=True)


def independent_randomisation(
    method: Callable,
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    layers: Sequence[str] | None = None,
    similarity: Callable = spearman,
    randomise: Callable = shuffle,
    key=None,
) -> dict[str, Values]:
    """Independent randomisation: one layer at a time is randomised, the others stay as trained.

    `value[layer] = similarity(method(model with random weights in layer), method(model))`.

    Arguments, result and errors are those of `cascading_randomisation`.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.independent_randomisation(jaxcam.grad_cam, model, images)
    """
    return _randomisation(method, model, images, targets, layers, similarity, randomise, key, keep=False)


def _randomisation(method, model, images, targets, layers, similarity, randomise, key, *, keep: bool):
    require_tap(model, "Randomising weights")
    images, targets = _checked(model, images, targets)
    names = _weight_names(model)
    layers = _top_down(model, images, names) if layers is None else tuple(layers)
    for layer in layers:
        if not any(_belongs(name, layer) for name in names):
            known = dict.fromkeys(name.rpartition(".")[0] for name in names)
            raise unknown("layer", layer, known, "Only layers that have weights can be randomised.")
    original, changed, values = method(model, images, targets), model, {}
    key = jax.random.key(0) if key is None else key
    for index, layer in enumerate(layers):
        # One key for each layer, so that both kinds of randomisation give a layer the same random weights.
        changed = _randomised(changed if keep else model, layer, randomise, jax.random.fold_in(key, index))
        values[layer] = similarity(method(changed, images, targets), original)
    return values


def label_randomisation(
    method: Callable,
    model: Tap | Callable,
    random_label_model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    similarity: Callable = spearman,
) -> Values:
    """Label randomisation: the model against one of the same architecture that was trained on shuffled labels.

    `value = similarity(method(random_label_model), method(model))`.

    The second model can only have memorised its images, so an explanation that looks the same for both does not show
    what the first one learned.

    Args:
      method, images, targets, similarity: as for `cascading_randomisation`.
      model: trained on the true labels.
      random_label_model: trained on permuted labels, with the same classes.

    Returns:
      `float32[n]`.

    Raises:
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
      >>> values = jaxcam.metrics.label_randomisation(jaxcam.grad_cam, model, model, images)
    """
    images, targets = _checked(model, images, targets)
    return similarity(method(random_label_model, images, targets), method(model, images, targets))


def input_invariance(
    method: Callable,
    model: Tap | Callable,
    images: Images,
    targets: Targets = None,
    *,
    shift: float | Float[Array, "..."] = 1.0,
    similarity: Callable = spearman,
) -> Values:
    """Input invariance: a constant added to all pixels, which the model takes off again, should change no explanation.

    `value = similarity(method(shifted, images + shift), method(model, images))` with
    `shifted(x) = model(x - shift)`.

    The subtraction is what a changed bias of the first layer amounts to in the paper, but exact for any model: with
    zero padding a bias cannot undo the shift at the image's edge. Methods that multiply by the pixel's value, such as
    integrated gradients from a zero baseline, fail.

    Args:
      method, model, images, targets, similarity: as for `cascading_randomisation`; any model will do for a method that
        needs no activations.
      shift: a number, or an array that broadcasts to `images`.

    Returns:
      `float32[n]`, one where the explanation is invariant.

    Raises:
      ValueError: images or targets of a wrong shape, type or range.

    Reference: Kindermans et al. 2019, The (Un)reliability of Saliency Methods, https://arxiv.org/abs/1711.00867

    Example:
      >>> values = jaxcam.metrics.input_invariance(jaxcam.grad_cam, model, images)
    """
    images, targets = _checked(model, images, targets)
    shift = jnp.asarray(shift, images.dtype)
    if isinstance(model, Tap):
        shifted = _Shifted(**{field.name: getattr(model, field.name) for field in fields(model)}, shift=shift)
    else:

        def shifted(images):
            return model(images - shift)

    return similarity(method(shifted, images + shift, targets), method(model, images, targets))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["variables", "arrays", "shift"],
    meta_fields=[field.name for field in fields(Tap) if field.name not in ("variables", "arrays")],
)
@dataclass(frozen=True, eq=False)
class _Shifted(Tap):
    """A tap that takes a constant off the images before the model sees them."""

    shift: Any = None

    def _forward(self, images, *args):  # every look at the model goes through here
        return super()._forward(images - self.shift, *args)


def _checked(model, images, targets):
    images = check_images(images)
    targets = check_targets(model, images, targets)
    return images, predicted(model(images)) if targets is None else targets


def _weight_names(model) -> list[str]:
    """The dotted path of each weight array, `"layer4.0.conv1.kernel"`, without the name of Linen's collection."""
    return [_name(path) for path, leaf in jax.tree.leaves_with_path(model.variables) if _is_weight(leaf)]


def _name(path) -> str:
    words = [str(getattr(each, "key", getattr(each, "name", each))) for each in path]
    collections = ("params", "batch_stats")
    return ".".join(words[1:] if words[0] in collections else words)


def _is_weight(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _belongs(name: str, layer: str) -> bool:
    return name.startswith(layer + ".")


def _top_down(model, images, names) -> tuple[str, ...]:
    """The top-level layers that have weights, the last one called first."""
    module, variables = _unwrap(model.module), model.variables
    if isinstance(module, nnx.GraphDef):
        module, variables = nnx.merge(module, variables), None
    calls = list_layers(module, images[:1], variables, **dict(model.options), **model.arrays)
    top_level = dict.fromkeys(path.partition(".")[0] for path in calls)
    return tuple(each for each in reversed(top_level) if any(_belongs(name, each) for name in names))


def _randomised(model, layer, randomise, key):
    counter = iter(range(len(jax.tree.leaves(model.variables))))

    def change(path, leaf):
        index = next(counter)
        if not _is_weight(leaf) or not _belongs(_name(path), layer):
            return leaf
        return randomise(jax.random.fold_in(key, index), leaf)

    variables = jax.tree.map_with_path(change, model.variables)
    return Tap(**{field.name: getattr(model, field.name) for field in fields(model)} | {"variables": variables})
