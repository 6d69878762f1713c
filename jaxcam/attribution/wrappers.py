"""Around any CAM: of flipped and scaled images, of the principal component of its terms, of all layers together, or of
what sets a class apart from others.

Each takes a `method` and calls it as anyone would: with other images, another tap, another score, or `raw`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Int

from jaxcam._array import Rows, flat, normalize, repeated
from jaxcam._checks import as_array, functions, number, positive
from jaxcam._engine import chunked_sum, spread
from jaxcam._errors import shown
from jaxcam._scores import chosen, described, scores
from jaxcam._typing import Heatmaps, Images, Maps, Raw, Score, Targets
from jaxcam.attribution._cam import finish, layer_heatmap, prepare_tap
from jaxcam.attribution._method import as_method
from jaxcam.attribution.cam import grad_cam, grad_cam_plus_plus
from jaxcam.attribution.decomposition import principal_map
from jaxcam.score import logit
from jaxcam.taps import Tap

Classes = Int[Array, "..."] | Int[np.ndarray, "..."] | tuple[int, ...] | list[int] | None


@as_method
def aug_smooth(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = grad_cam,
    factors: tuple[float, ...] = (0.9, 1.0, 1.1),
    chunk_size: int | None = None,
) -> Heatmaps:
    """Test-time augmentation: the mean of a CAM's heatmaps over mirrored and scaled copies of the image.

    `map = mean over f, m of mirror_m(method(mirror_m(f image)))`, with and without mirroring the last axis of space
    (left and right), then scaled to [0, 1].

    pytorch-grad-cam's `aug_smooth` does the same, but for the last scaling; without targets it explains each copy's own
    prediction, where here it is that of the image.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      method: any method that gives heatmaps, or a function with the same first three arguments and `score`. Options go
        in by `functools.partial`, made once.
      factors: by which the normalised image is multiplied.
      chunk_size: copies that `method` gets at a time; by default what suits the device.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; factors that are
        no numbers; a method that gives no heatmaps.
      TypeError: `model` is not a tap.

    When: a steadier blob from a model that mirrors and brightness should not disturb. Not where left and right matter
    to the class.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.aug_smooth(model, images, method=jaxcam.hires_cam)
    """
    if not isinstance(factors, tuple | list) or not factors:
        raise ValueError(f"factors is {shown(repr(factors))}; it must hold one number or more.")
    for each in factors:
        number(factors=each)
    targets = chosen(model, images, targets)
    axis, scales = images.ndim - 2, jnp.asarray(factors, images.dtype)

    def mirrored(copies, variants):  # the odd ones
        odd = (variants % 2 == 1).reshape(-1, *(1,) * (copies.ndim - 2))
        return jnp.where(odd, jnp.flip(copies, axis + 1), copies)

    def add(variants, weights):
        m = len(variants)
        scaled = images[:, None] * scales[variants // 2].reshape(-1, *(1,) * (images.ndim - 1))
        repeats = repeated(model, m), spread(flat(mirrored(scaled, variants))), jnp.repeat(targets, m, axis=0)
        maps = method(*repeats, score=repeated(score, m))
        if getattr(maps, "shape", ())[1:] != images.shape[1:-1]:
            raise ValueError(f"method returned {described(maps)}; aug_smooth takes methods that give heatmaps.")
        maps = mirrored(maps.reshape(images.shape[0], m, *maps.shape[1:]), variants)
        return jnp.sum(maps * weights.reshape(-1, *(1,) * (maps.ndim - 2)), axis=1)

    return normalize(chunked_sum(add, 2 * len(factors), images, chunk_size))


@as_method
def eigen_smooth(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: bool = False,
    method: Callable = grad_cam,
) -> Maps:
    """Eigen-smoothing: the first principal component of a CAM's weighted channels in place of their sum.

    `map = (B - mean_hw(B)) v` with the terms `B[p, k] = w[p, k] A[p, k]` of the CAM, where `v[k]` is the direction of
    the channels along which the cells vary most: what most channels agree on, without the noise.

    The sign of `v` is that with which the map correlates positively with `sum_k B`, the CAM itself; pytorch-grad-cam
    leaves it to chance. With `hires_cam` it is `eigen_grad_cam`.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the projection itself, signed and at the layer's resolution (a tuple for several layers).
      method: any CAM that takes `raw="channels"`, that is which weighs channels. Options go in by `functools.partial`,
        made once.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a method that
        weighs no channels.
      TypeError: `model` is not a tap.

    When: a CAM with much scattered noise and one object. Not where two regions matter: it keeps one pattern.

    Reference: Gildenblat et al. 2021, PyTorch library for CAM methods,
    https://github.com/jacobgil/pytorch-grad-cam

    Example:
      >>> heatmaps = jaxcam.eigen_smooth(model, images, method=jaxcam.layer_cam)
    """

    def projected(terms):
        flat_terms = terms.reshape(terms.shape[0], -1, terms.shape[-1])
        return jax.vmap(principal_map)(flat_terms).reshape(terms.shape[:-1])

    found = method(model, images, targets, score=score, raw="channels")
    return finish(list(map(projected, _each(found))), images, raw)


def _each(maps) -> tuple:
    """The maps of each layer."""
    return maps if isinstance(maps, tuple) else (maps,)


@as_method
def refine_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    method: Callable = grad_cam_plus_plus,
) -> Heatmaps:
    """RefineCAM: the product of a CAM's heatmaps of several layers, as fine as the first and as clean as the last.

    `map = prod_l heatmap_l`, then scaled to [0, 1], where `heatmap_l` is the CAM of layer `l` alone.

    Tap several layers, such as the last of each stage: `jaxcam.tap(module, variables, ("layer2", "layer3", "layer4"))`.
    Of one layer it is the method itself. A CAM by itself takes the mean over layers, in which the noise of early layers
    stays.

    Args:
      model: a tap on several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      method: any CAM that takes `raw=True`; by default that of pytorch-grad-cam. Options go in by `functools.partial`,
        made once.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class in all layers.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: the last stage's certainty with an early stage's edges. Not when the early maps miss the object: a product
    forgets what one of them leaves out.

    Reference: Domeniconi et al. 2026, How to Evaluate and Refine your CAM, https://arxiv.org/abs/2605.14641

    Example:
      >>> classifier = jaxcam.load("resnet18_cifar10")
      >>> heatmaps = jaxcam.refine_cam(classifier.tap(("layer3", "layer4")), images)
    """
    product = 1
    for each in _each(method(model, images, targets, score=score, raw=True)):
        product = product * normalize(layer_heatmap(each, images))
    return normalize(product)


def finer_cam(
    model: Tap,
    images: Images,
    targets: Targets = None,
    *,
    score: Score = logit,
    raw: Raw = False,
    alpha: float | int = 1.0,
    num_classes: int = 3,
    classes: Classes = None,
    method: Callable = grad_cam,
) -> Maps:
    """Finer-CAM: a CAM of what sets the class apart from the classes most like it, or from those that are chosen.

    `map = method(sum_d p_d (score_c - alpha score_d))`, over the classes `d` whose logits are nearest to that of `c`,
    `p` being their softmax.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers); with
        `"channels"` its terms, `[n, *cells, k]`.
      alpha: how much of the similar classes is taken away; 0 is Grad-CAM.
      num_classes: how many similar classes; all others where the model has fewer.
      classes: those to compare with, `int[m]` for all images or `int[n, m]`, in place of the nearest.
      method: any method; by default Grad-CAM, as in the paper. Options go in by `functools.partial`, made once.

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer; a model of a
        single class; classes of a wrong shape or type.

    When: telling look-alikes apart, such as two breeds or two aircraft. Not for an image whose runner-up is an
    unrelated class: the contrast means little there.

    Reference: Zhang et al. 2025, Finer-CAM: Spotting the Difference Reveals Finer Details,
    https://arxiv.org/abs/2501.11309

    Example:
      >>> heatmaps = jaxcam.finer_cam(model, images, alpha=0.6)
    """
    positive(num_classes=num_classes)
    functions(method=method)
    model, images, targets = prepare_tap("finer_cam", model, images, targets)
    number(alpha=alpha)
    if classes is not None:
        classes = as_array(np.asarray(classes) if isinstance(classes, tuple | list) else classes)
        fits = classes.ndim == 1 or (classes.ndim == 2 and classes.shape[0] == images.shape[0])
        if not fits or 0 in classes.shape or not jnp.issubdtype(classes.dtype, jnp.integer):
            raise ValueError(f"classes is {described(classes)}; it must hold whole numbers, [m] or [n, m].")
    of_each = Rows(classes) if classes is not None and classes.ndim == 2 else classes
    finer = Partial(_finer, score, alpha, num_classes, of_each)
    return method(model, images, targets, score=finer, **({"raw": raw} if raw else {}))


def _finer(score, alpha, num_classes, classes, logits, targets):
    if getattr(logits, "ndim", 0) != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"finer_cam compares classes, and the model returns {described(logits)}; it needs logits [n, k] of "
            "several classes. Use `grad_cam`."
        )
    own = jnp.take_along_axis(logits, targets[:, None], 1)
    is_target = jnp.arange(logits.shape[1]) == targets[:, None]
    if classes is None:
        distance = jnp.where(is_target, jnp.inf, jnp.abs(logits - own))
        others = jnp.argsort(distance, 1)[:, : min(num_classes, logits.shape[1] - 1)]
    else:
        others = classes.array if isinstance(classes, Rows) else classes
        others = jnp.broadcast_to(others, (*targets.shape, others.shape[-1])).astype(jnp.int32)
    shares = jax.nn.softmax(jnp.take_along_axis(logits, others, 1))
    contrasts = [scores(score, logits, targets) - alpha * scores(score, logits, each) for each in others.T]
    return jnp.sum(shares * jnp.stack(contrasts, 1), 1)
