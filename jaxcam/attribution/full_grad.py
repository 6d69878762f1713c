"""FullGrad: what the score is made of, the image and the biases of all layers, whichever layer is tapped.

It reads the unmodified model through the tap, whose `reshape` says how tokens lie on the image.
"""

import jax
import jax.numpy as jnp

from jaxcam._array import normalize, resize
from jaxcam._scores import scores
from jaxcam._typing import Images, Maps, Score, Targets
from jaxcam.attribution._method import as_method
from jaxcam.score import logit
from jaxcam.taps import Tap


@as_method
def full_grad(model: Tap, images: Images, targets: Targets = None, *, score: Score = logit, raw: bool = False) -> Maps:
    """FullGrad: the image and the biases of all layers, each times its gradient.

    `map = sum_c scale|x_c dS/dx_c| + sum_layers sum_k scale|b_k G_k|`, where `scale` brings each channel to [0, 1].

    Biases are those of every layer of the model that has one, also the effective bias of BatchNorm, whichever layer is
    tapped (its `reshape` is used for tokens). `raw=True` gives the contributions themselves, signed, as a tuple: first
    `[n, *space]` of the image, then `[n, *cells]` of each layer, in the order of the calls; one cell, `[n, 1, 1]` for
    pictures, for layers that are not spatial, which the heatmap leaves out. All of them together sum to the score where
    the layers are joined by ReLU, pooling and sums, and BatchNorm uses its running statistics.

    Args:
      model: a tap on one or several spatial layers.
      images: `float[n, *space, c]`, normalised as the model expects.
      targets: `int[n]`, one class for all, `int[n, t]` for `t` maps an image, or `None` for the predicted class.
      score: the explained scalar, `(output, targets[n]) -> [n]`.
      raw: return the weighted sum itself, signed and at the layer's resolution (a tuple for several layers).

    Returns:
      Heatmaps `float32[n, *space]` in [0, 1]; zeros where nothing speaks for the class.

    Raises:
      ValueError: images or targets of a wrong shape, type or range; an unknown or non-spatial layer.
      TypeError: `model` is not a tap.

    When: ReLU networks, where every bias has its part and all parts sum to the score. Not for single regions of two
    classes: it is a broad map.

    Reference: Srinivas and Fleuret 2019, Full-Gradient Representation for Neural Network Visualization,
    https://arxiv.org/abs/1905.00780

    Example:
      >>> heatmaps = jaxcam.full_grad(model, images)
    """

    def total(images, perturbations):
        output, biases = model.biases(images, perturbations)
        return scores(score, output, targets).sum(), biases

    zeros = [_zeros(each, images) for each in model.biases(images)[1]]
    (G, gradients), biases = jax.grad(total, (0, 1), has_aux=True)(images, zeros)
    tokens = None if model.reshape is None else jax.eval_shape(model.run, images)[1][0].shape[1]
    terms = [_times(b, g) for b, g in zip(biases, gradients, strict=True)]
    terms = [_times(images, G), *(_contribution(each, model.reshape, tokens, images.shape) for each in terms)]
    if raw:
        return tuple(each.sum(-1) for each in terms)
    channels = [normalize(jnp.abs(jnp.moveaxis(each, -1, 1)), 2).sum(1) for each in terms]
    return normalize(sum(resize(each, images.shape[1:-1]) for each in channels))


def _zeros(bias, images):
    """A perturbation of what a layer returns: of each image by itself, also where the layer returns one for all."""
    first = images.shape[0] if _is_shared(bias) else bias.shape[0]
    # Like the images, so that it varies over a mesh as they do.
    return jnp.zeros_like(images, bias.dtype, shape=(first, *bias.shape[1:]))


def _is_shared(bias) -> bool:
    return isinstance(bias.shape[0], int) and bias.shape[0] == 1


def _times(values, gradient):
    return values.astype(jnp.float32) * gradient.astype(jnp.float32)


def _contribution(term, reshape, tokens, image):
    """A layer's contributions as maps `[n, *cells, k]`: maps already, tokens like the tapped ones, or a single cell.

    Tokens may have more axes, such as heads; what has the image's rank and proportions is a map. Along one axis of
    space all is in proportion: there, what is as long as the tapped tokens are is tokens.
    """
    whole = term.shape[0] == image[0]  # and not parts of images, such as windows, one after another
    sides = list(zip(term.shape[1:-1], image[1:-1], strict=False))
    in_proportion = all(cells * sides[0][1] == sides[0][0] * pixels for cells, pixels in sides)
    is_map = whole and term.ndim == len(image) and in_proportion and len(image) > 3
    if reshape is not None and whole and not is_map and term.ndim > 2 and term.shape[1] == tokens:
        return reshape(term.reshape(*term.shape[:2], -1))
    return term if whole and term.ndim == len(image) else term.reshape(image[0], *(1,) * (len(image) - 2), -1)
